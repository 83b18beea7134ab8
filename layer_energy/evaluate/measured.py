"""A dataset's layers and whole networks beside predictions and baselines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from layer_energy.dataset import Dataset
from layer_energy.errors import DatasetError
from layer_energy.layers.base import count
from layer_energy.model import MODE_NAMES, PASSES, EnergyModel
from layer_energy.models import build_model
from layer_energy.networks import in_dtype, traced
from layer_energy.optimization import MODES
from layer_energy.regressors import Features, Physical, features, make
from layer_energy.regressors.features import Array
from layer_energy.report.total import total
from layer_energy.walk import Trace, parse_shape
from layer_energy.workload import Gradients, NetworkMeasurement, Workload

if TYPE_CHECKING:
    import pandas as pd

BASELINES = {"flops": ("macs",), "flops+bytes": ("macs", "bytes")}


@dataclass(frozen=True)
class Score:
    """How far predictions are from measurements.

    Attributes:
        n: pairs.
        median_error, mean_error: of |predicted / measured − 1|.
        within_25: share of pairs closer than 25 %.
        r2: coefficient of determination, as the paper gives it: dominated by the largest.
        bias: median of predicted / measured − 1.
    """

    n: int
    median_error: float
    mean_error: float
    within_25: float
    r2: float
    bias: float


def score(measured: Sequence[float] | Array, predicted: Sequence[float] | Array) -> Score:
    """Compare two equally long sequences of positive numbers."""
    y, p = np.asarray(measured, dtype=float), np.asarray(predicted, dtype=float)
    relative = p / y - 1
    error = np.abs(relative)
    spread = float(((y - y.mean()) ** 2).sum())
    return Score(
        n=len(y),
        median_error=float(np.median(error)),
        mean_error=float(error.mean()),
        within_25=float((error <= 0.25).mean()),
        r2=1 - float(((y - p) ** 2).sum()) / spread if spread else float("nan"),
        bias=float(np.median(relative)),
    )


def evaluate_layers(
    dataset: Dataset,
    regressors: Sequence[str] = ("hybrid", "physical", "polynomial"),
    kinds: Sequence[str] | None = None,
    folds: int = 5,
    dtype: str = "float32",
    gradients: Gradients = "none",
) -> pd.DataFrame:
    """Cross-validated scores of the joules, per layer type and regressor.

    Args:
        dataset: the rows.
        regressors: names of some.
        kinds: layer types; all of the dataset that have enough rows if not given.
        folds: parts of which each is predicted by a fit to the others.
        dtype: of the rows.
        gradients: of the rows: ``"none"`` for forward passes.

    Raises:
        DatasetError: if a layer type asked for has fewer than two rows a fold, or all have.
    """
    import pandas as pd

    table = []
    for kind in kinds or dataset.kinds:
        rows = [
            row
            for row in dataset.of(kind)
            if (row.workload.dtype, row.workload.gradients) == (dtype, gradients)
        ]
        if len(rows) < 2 * folds:
            if kinds is None:
                continue
            raise DatasetError(
                f"{kind} has {len(rows)} usable rows of {dtype}, gradients {gradients}; "
                f"{2 * folds} are needed"
            )
        x = features([row.workload for row in rows])
        y = np.array([[row.energy_j, row.time_s] for row in rows])
        fold = np.random.default_rng(0).permutation(len(rows)) % folds
        for name in regressors:
            predicted = np.empty_like(y)
            for k in range(folds):
                out = fold == k
                predicted[out] = make(name).fit(x[~out], y[~out]).predict(x[out])
            table.append({"kind": kind, "regressor": name, **vars(score(y[:, 0], predicted[:, 0]))})
    if not table:
        raise DatasetError(
            f"no layer type has {2 * folds} usable rows of {dtype}, gradients {gradients}"
        )
    return pd.DataFrame(table)


class Baseline:
    """One additive law for all layer types: constant + price × MACs (+ price × bytes).

    A backward pass counts as one more pass for each of its gradients.
    """

    def __init__(self, dataset: Dataset, drivers: Sequence[str], training: bool = False) -> None:
        rows = [
            row
            for row in dataset.measurements
            if row.usable and (training or row.workload.gradients == "none")
        ]
        self._drivers = drivers
        y = np.array([[row.energy_j, row.time_s] for row in rows])
        self._law = Physical().fit(self._features([row.workload for row in rows]), y)

    def _features(self, workloads: Sequence[Workload]) -> Features:
        costs = [count(w)[0] * PASSES[w.gradients] for w in workloads]
        drivers = np.array([[getattr(c, d) for d in self._drivers] for c in costs], dtype=float)
        empty = np.empty((len(costs), 0))
        return Features(drivers, tuple(self._drivers), empty, (), drivers[:, 0], empty, ())

    def predict(self, trace: Trace) -> tuple[float, float]:
        """(joules, seconds) of a forward pass or training step."""
        workloads = list(trace.workloads().elements())
        energy_j, time_s = self._law.predict(self._features(workloads)).sum(axis=0)
        return float(energy_j), float(time_s)


def evaluate_networks(
    networks: Sequence[NetworkMeasurement],
    model: EnergyModel,
    dataset: Dataset | None = None,
    on_network: Callable[[str], None] = lambda name: None,
    training: bool = False,
) -> pd.DataFrame:
    """Predictions beside measured forward passes, one row a network, batch size and dtype.

    With ``training``, beside measured training steps instead, one row a mode more. Networks that
    ran as CUDA graphs are left out where the model cannot tell them from eager ones.

    Columns ``<method>_energy_j`` and ``<method>_time_s`` for ``layer_energy``, ``floor`` (the sum
    of exactly measured layers) and, where a dataset is given to fit them on, the ``BASELINES``.
    """
    import pandas as pd

    baselines = (
        {name: Baseline(dataset, d, training) for name, d in BASELINES.items()} if dataset else {}
    )
    built: dict[Any, Any] = {}
    table = []
    for network in networks:
        if (network.mode != "inference") != training:
            continue
        if network.launch == "graph" and not model.knows_launches:
            continue
        key = network.model, MODES[network.mode].frozen_backbone
        if key not in built:
            on_network(network.model)
            built[key] = build_model(network.model)
        trace = traced(
            built[key],
            (parse_shape(network.input),),
            network.mode,
            network.dtype,
            model.device["kind"],
        )
        works = [
            in_dtype(work, network.dtype, network.mode) for work in trace.workloads().elements()
        ]
        prices = model.price(works)
        predicted = total(
            ((prices[work], True, 1) for work in works),
            {},
            0.0,
            idle_power_w=model.waits_at_w(network.launch),
        )
        row = {
            "model": network.model,
            "batch_size": network.batch_size,
            "input": network.input,
            "dtype": network.dtype,
            "mode": network.mode,
            "launch": network.launch or "",
            "measured_energy_j": network.energy_j,
            "measured_time_s": network.time_s,
            "layer_energy_energy_j": predicted.energy_j,
            "layer_energy_time_s": predicted.time_s,
            "floor_energy_j": network.layers_energy_j,
            "floor_time_s": network.layers_time_s,
        }
        for name, baseline in baselines.items():
            row[f"{name}_energy_j"], row[f"{name}_time_s"] = baseline.predict(trace)
        table.append(row)
    return pd.DataFrame(table)


def network_scores(table: pd.DataFrame) -> dict[str, Score]:
    """Scores of the joules of every method in a table of :func:`evaluate_networks`."""
    suffix = "_energy_j"
    methods = [c.removesuffix(suffix) for c in table.columns if c.endswith(suffix)]
    scores = {}
    for method in methods:
        rows = table.dropna(subset=[method + suffix])
        if method != "measured" and len(rows):
            scores[method] = score(
                rows["measured" + suffix].to_numpy(), rows[method + suffix].to_numpy()
            )
    return scores


def fit_profile(dataset: Dataset, regressor: str | None = None) -> EnergyModel:
    """Fit a dataset, and calibrate the interval of totals on its measured networks."""
    model = EnergyModel.fit(dataset, regressor)
    for mode in MODE_NAMES if model.trains else MODE_NAMES[:1]:
        table = evaluate_networks(dataset.networks, model, training=mode == "training")
        ratios = [
            (
                row["measured_energy_j"] / row["layer_energy_energy_j"],
                row["measured_time_s"] / row["layer_energy_time_s"],
            )
            for row in table.to_dict("records")
        ]
        model.calibrate_networks(ratios, mode)
    return model
