"""Errors on whole networks against the number of rows that a profile is fitted on.

Four sets of rows: the H200, a CPU, the paper's CPU, and a virtual GPU whose joules are known. The
rows are the first of a random order, several orders each. Beside the profile that `layer-energy
fit` makes stand regressors per layer type alone, which price a network only if each of its layer
types has rows enough.

Run:  python tests/benchmarks/rows_curve.py [h200 cpu virtual paper] [--data FOLDER]

FOLDER holds the paper's data, see tests/benchmarks/README.md; without it that set is left out.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from layer_energy.campaign import campaign, campaign_networks
from layer_energy.collect import collect
from layer_energy.dataset import Dataset
from layer_energy.errors import ProfileError
from layer_energy.evaluate.paper import DEVICE, split
from layer_energy.external import read_getzner2023
from layer_energy.measure import GpuBench, open_gpu
from layer_energy.measure.virtual import Truth
from layer_energy.model import EnergyModel
from layer_energy.models import build_model
from layer_energy.networks import in_dtype, layers, layers_of, traced
from layer_energy.pooled_law import PooledLaw
from layer_energy.report.total import total
from layer_energy.sheet import sheets
from layer_energy.walk import parse_shape, walk
from layer_energy.workload import Workload

ROOT = Path(__file__).parents[2]
ROWS = (50, 100, 200, 500, 1000, None)
ORDERS = 5


@dataclass
class Network:
    """What runs, its joules, and how it is launched."""

    calls: Mapping[Workload, int]
    energy_j: float
    launch: str | None = None


def measured(slug: str) -> tuple[Dataset, list[Network]]:
    """A shipped dataset and the forward passes of its networks."""
    dataset, networks = Dataset.load(ROOT / "datasets" / slug), []
    for n in dataset.networks:
        if n.mode == "inference":
            model = build_model(n.model)
            trace = traced(model, (parse_shape(n.input),), n.mode, n.dtype, dataset.device.kind)
            calls = {in_dtype(w, n.dtype, n.mode): c for w, c in trace.workloads().items()}
            networks.append(Network(calls, n.energy_j, n.launch))
    return dataset, networks


def virtual() -> tuple[Dataset, list[Network]]:
    """Nine minutes of a simulated GPU, and networks by its own law."""
    with tempfile.TemporaryDirectory() as folder:
        bench = GpuBench(*open_gpu("virtual", layers=layers))
        collect(Path(folder), bench, campaign(), 540 - bench.clock(), clock=bench.clock)
        dataset, truth = Dataset.load(Path(folder)), Truth()
    networks = []
    for job in campaign_networks():
        calls = layers_of(job)
        networks.append(Network(calls, sum(n * truth.of(w)[1] for w, n in calls.items())))
    return dataset, networks


def paper(folder: Path) -> tuple[Dataset, list[Network]]:
    """The paper's random layers, and its networks without what no random row is of."""
    data, networks = read_getzner2023(folder), []
    rows = [row for every in data.random.values() for part in split(every)[:2] for row in part]
    kinds = {row.workload.kind for row in rows}
    for n in data.networks:
        trace = walk(build_model(n.model), parse_shape(n.input))
        calls = Counter(call.workload for call in trace.calls if call.workload.kind in kinds)
        networks.append(Network(calls, n.energy_j))
    return Dataset(rows, DEVICE), networks


def errors(model: EnergyModel, networks: list[Network]) -> list[float]:
    """Of the joules of the networks that a profile prices."""
    found = []
    for network in networks:
        try:
            (prices,) = model.price_networks([network.calls])
        except ProfileError:
            continue
        parts = ((prices[w], True, n) for w, n in network.calls.items())
        idle_w = model.waits_at_w(network.launch)
        sums = total(parts, {}, 0.0, idle_power_w=idle_w)
        found.append(abs(sums.energy_j / network.energy_j - 1))
    return found


def curve(name: str, dataset: Dataset, networks: list[Network]) -> None:
    """Print one set's."""
    usable = [m for m in dataset.measurements if m.usable and "test" not in m.flags]
    print(f"\n{name}: {len(usable)} rows, {len(networks)} networks")
    print("rows    as fitted: median  90th   regressors per layer type alone: median  priced")
    sheet = sheets().get(dataset.device.name)
    if sheet is not None:
        model = replace(EnergyModel.fit(dataset), pooled=PooledLaw.fit([], sheet))
        print(_line(0, [np.quantile(errors(model, networks), (0.5, 0.9))], []))
    for rows in ROWS:
        ours, alone = [], []
        for order in range(1 if rows is None else ORDERS):
            shuffled = np.random.default_rng(order).permutation(len(usable))
            part = replace(dataset, measurements=[usable[i] for i in sorted(shuffled[:rows])])
            ours.append(np.quantile(errors(EnergyModel.fit(part), networks), (0.5, 0.9)))
            own = replace(EnergyModel.fit(part, "hybrid"), pooled=None)
            priced = errors(own, networks)
            alone.append((np.median(priced) if priced else np.nan, len(priced)))
        print(_line(len(usable) if rows is None else rows, ours, alone), flush=True)


def _line(rows: int, ours: list[Any], alone: list[Any]) -> str:
    median, tail = np.median(ours, axis=0)
    said = f"{rows:5}   {median:17.1%} {tail:5.0%}"
    if not alone:
        return said
    priced = int(np.median([n for _, n in alone]))
    known = [error for error, _ in alone if error == error]
    return said + f"   {f'{np.median(known):.1%}' if known else '-':>39} {priced:7}"


def main() -> None:
    """Print the curves asked for."""
    arguments = sys.argv[1:]
    sets: dict[str, Callable[[], tuple[Dataset, list[Network]]]] = {
        "h200": lambda: measured("nvidia-h200"),
        "cpu": lambda: measured("amd-epyc-2t"),
        "virtual": virtual,
    }
    if "--data" in arguments:
        at = arguments.index("--data")
        folder = Path(arguments[at + 1])
        sets["paper"] = lambda: paper(folder)
        arguments = arguments[:at] + arguments[at + 2 :]
    for name in arguments or sets:
        if name not in sets:
            sys.exit(f"no set {name!r}; there are {', '.join(sets)} (paper needs --data FOLDER)")
        curve(name, *sets[name]())


if __name__ == "__main__":
    main()
