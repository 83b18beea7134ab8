"""PRE as published and the law on the walked network, on random and on grouped splits.

Run:  python tests/benchmarks/pre.py --data FOLDER

FOLDER holds pre_training_runs.csv of del Rey et al. (arXiv 2307.05520): the 857 training rows of
the published regressors, in their order. Random split: the five folds of the published search,
means over folds, to be held against the paper. Grouped splits: each configuration, GPU or network
is predicted by a fit without it; R² and errors over all rows together. The published errors of
whole runs (27.6 and 49.7 kJ) are of the 368 rows of its test split, which this file lacks.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table
from sklearn.metrics import mean_absolute_percentage_error, r2_score
from sklearn.model_selection import KFold, LeaveOneGroupOut
from torch import nn

from layer_energy.models import build_model
from layer_energy.training.pre import REGRESSORS, PreTrainingRegressor
from layer_energy.training.run import DeviceFigures, NetworkCost, TrainingRun
from layer_energy.training.run_law import RunLaw

COLUMNS = {
    "batch size": "batch_size", "total ram (GB)": "ram_gb", "training size": "training_images",
    "validation size": "validation_images", "GFLOPs": "gflops", "image height": "image_height",
    "image width": "image_width", "gpu cuda cores": "cuda_cores",
    "gpu total memory": "gpu_memory_gb", "gpu max power": "max_power_w",
}  # fmt: skip
TARGETS = {
    "mean power (W)": "average gpu power (W)",
    "mean epoch energy (kJ)": "average epoch energy (kJ)",
    "mean stable epoch energy (kJ)": "average stable epoch energy (kJ)",
}
PUBLISHED = {"mean power (W)": (0.988, 0.020), "mean epoch energy (kJ)": (0.965, 0.060)}
"""R² and MAPE of kernel ridge."""

FIGURES = {
    "RTX 3090": (35.6e12, 936e9),
    "RTX 3070": (20.3e12, 448e9),
    "GTX 750 Ti": (1.39e12, 86.4e9),
}
"""Peak fp32 FLOP/s (boost clock) and bytes/s of memory, from NVIDIA's data sheets."""

RANDOM = "random folds"
GROUPS = ("configuration", "gpu", "architecture")
LAW = "law on the walked network"


class _Skip(nn.Module):
    """Takes the place of a cell."""

    def forward(self, x: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        return x


def network(name: str) -> nn.Module:
    """The network that a row names; InceptionV3 was trained with its backbone frozen."""
    if name == "nasnet_mobile":  # NASNet-A (4 @ 1056), from timm's (6 @ 4032)
        from timm.models.nasnet import NASNetALarge

        with torch.device("meta"):
            model: nn.Module = NASNetALarge(stem_size=32, num_features=1056)
        for cell in (4, 5, 10, 11, 16, 17):
            setattr(model, f"cell_{cell}", _Skip())
        return model
    model = build_model("timm:legacy_xception" if name == "xception" else name).to("meta")
    if name == "inception_v3":
        model.requires_grad_(False)
        model.fc.requires_grad_(True)
        model.AuxLogits = None
    return model


def load(folder: Path) -> pd.DataFrame:
    """The rows, with a column for each kind of group."""
    rows = pd.read_csv(folder / "pre_training_runs.csv").rename(columns=COLUMNS)
    rows["configuration"] = rows.groupby(list(COLUMNS.values())).ngroup()
    return rows


def runs(rows: pd.DataFrame) -> list[TrainingRun]:
    """Each row as the law sees it."""
    networks = {name: network(name) for name in rows["architecture"].unique()}
    sizes = rows[["architecture", "image_height"]].drop_duplicates().itertuples(index=False)
    costs = {
        (name, size): NetworkCost.of(networks[name], (2, 3, size, size)) for name, size in sizes
    }
    return [
        TrainingRun(
            costs[r.architecture, r.image_height],
            DeviceFigures(r.gpu, *FIGURES[r.gpu], r.max_power_w),
            r.batch_size,
            r.training_images,
            r.validation_images,
        )
        for r in rows.itertuples()
    ]


def held_out(
    rows: pd.DataFrame, group: str, fit_predict: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """Predictions of every row by a fit without its group; ``fit_predict(train, test)``."""
    predicted = None
    splits = (
        KFold(5).split(rows)
        if group == RANDOM
        else LeaveOneGroupOut().split(rows, groups=rows[group])
    )
    for train, test in splits:
        part = fit_predict(train, test)
        predicted = np.empty((len(rows), *part.shape[1:])) if predicted is None else predicted
        predicted[test] = part
    return predicted


def law_held_out(rows: pd.DataFrame, specs: list[TrainingRun], group: str) -> dict[str, np.ndarray]:
    """Target → predictions of the law, each row by a fit without its group."""
    power_w = rows[TARGETS["mean power (W)"]].to_numpy()

    def predict(energy_kj: np.ndarray) -> np.ndarray:
        def fit_predict(train: np.ndarray, test: np.ndarray) -> np.ndarray:
            law = RunLaw().fit([specs[i] for i in train], power_w[train], 1e3 * energy_kj[train])
            return law.predict([specs[i] for i in test])

        return held_out(rows, group, fit_predict)

    power, *energies = TARGETS
    made = {name: predict(rows[TARGETS[name]].to_numpy()) for name in energies}
    return {power: made[energies[0]][:, 0], **{n: p[:, 1] / 1e3 for n, p in made.items()}}


def pre_held_out(rows: pd.DataFrame, group: str, target: str, regressor: str) -> np.ndarray:
    """Predictions of PRE, each row by a fit without its group."""
    x, y = rows[list(COLUMNS.values())].to_numpy(dtype=float), rows[TARGETS[target]].to_numpy()
    return held_out(
        rows, group, lambda train, test: PreTrainingRegressor(regressor).fit(x[train], y[train])
        .predict(x[test]),
    )  # fmt: skip


def flops_held_out(
    rows: pd.DataFrame, specs: list[TrainingRun], group: str, target: str
) -> np.ndarray:
    """Joules per FLOP of an epoch, the median of the other groups; none of mean power."""
    y = rows[TARGETS[target]].to_numpy()
    flops = np.array(
        [r.training_images * r.network.training_macs + r.validation_images * r.network.macs
         for r in specs]
    )  # fmt: skip
    return held_out(
        rows, group, lambda train, test: np.median(y[train] / flops[train]) * flops[test]
    )


def random_split(rows: pd.DataFrame, target: str, regressor: str) -> tuple[float, float]:
    """Mean R² and mean MAPE over the five folds of the published search."""
    x, y = rows[list(COLUMNS.values())].to_numpy(dtype=float), rows[TARGETS[target]].to_numpy()
    folds = KFold(5, shuffle=True, random_state=2022) if regressor == "linear" else KFold(5)
    scores = []
    for train, test in folds.split(x):
        p = PreTrainingRegressor(regressor).fit(x[train], y[train]).predict(x[test])
        scores.append((r2_score(y[test], p), mean_absolute_percentage_error(y[test], p)))
    r2, mape = np.mean(scores, axis=0)
    return float(r2), float(mape)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    rows = load(parser.parse_args().data)
    warnings.simplefilter("ignore")
    specs = runs(rows)
    law = {group: law_held_out(rows, specs, group) for group in (RANDOM, *GROUPS)}
    console = Console(width=130)
    for target, column in TARGETS.items():
        y = rows[column].to_numpy()
        shown = Table("R², MAPE (median)", "published", RANDOM, *GROUPS, title=target)

        def cell(p: np.ndarray, y: np.ndarray = y) -> str:
            median = np.median(np.abs(p / y - 1))
            mape = mean_absolute_percentage_error(y, p)
            return f"{r2_score(y, p):.2f}, {mape:.1%} ({median:.1%})"

        for name in REGRESSORS:
            published = PUBLISHED.get(target) if name == "kernel_ridge" else None
            r2, mape = random_split(rows, target, name)
            shown.add_row(
                f"PRE, {name}",
                f"{published[0]:.3f}, {published[1]:.1%}" if published else "",
                f"{r2:.3f}, {mape:.1%}",
                *(cell(pre_held_out(rows, group, target, name)) for group in GROUPS),
            )
        if "energy" in target:
            cells = [cell(flops_held_out(rows, specs, group, target)) for group in GROUPS]
            shown.add_row("FLOPs-proportional", "", "", *cells)
        shown.add_row(LAW, "", *(cell(law[group][target]) for group in (RANDOM, *GROUPS)))
        console.print(shown)
    print(f"{len(rows)} rows, {rows['configuration'].nunique()} configurations; measured on GPUs")


if __name__ == "__main__":
    main()
