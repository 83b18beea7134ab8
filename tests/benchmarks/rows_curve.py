"""Errors on whole networks against the number of rows that a profile is fitted on.

Four sets of rows: the H200, a CPU, the paper's CPU, and a virtual GPU whose joules are known. The
rows are the first of a random order, several orders each. Beside the profile that `layer-energy
fit` makes stands, in brackets, how many networks regressors per layer type alone could price, for
they need rows enough of each.

Run:  python tests/benchmarks/rows_curve.py [--data FOLDER]   (a quarter of an hour)

FOLDER holds the paper's data (see `layer_energy.external.getzner2023`); without it that set is
left out.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from layer_energy.collect import collect
from layer_energy.dataset import Dataset
from layer_energy.errors import ProfileError
from layer_energy.evaluate.paper import DEVICE, split
from layer_energy.external import read_getzner2023
from layer_energy.gpu_plan import gpu_plan
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
ROWS = (50, 100, 200, 500, 1000)
ORDERS = 4


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
        collect(Path(folder), bench, gpu_plan(), 540 - bench.clock(), clock=bench.clock)
        dataset, truth = Dataset.load(Path(folder)), Truth()
    networks = []
    for job in gpu_plan(mode="inference").networks:
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


@dataclass
class Point:
    """Of profiles fitted on so many rows: middle of several random choices of the rows.

    Attributes:
        rows: how many.
        median, tail: median and 90th percentile of the networks' errors.
        alone: how many networks regressors per layer type price without the law, and their median.
    """

    rows: int
    median: float
    tail: float
    alone: tuple[int, float] = (0, np.nan)

    def __str__(self) -> str:
        priced, median = self.alone
        return (
            f"{self.median:.1%} / {self.tail:.0%} ({priced}{f': {median:.1%}' if priced else ''})"
        )


def curve(dataset: Dataset, networks: list[Network]) -> list[Point]:
    """Errors by number of rows; those of the data sheet alone first, where there is one."""
    usable = [m for m in dataset.measurements if m.usable and "test" not in m.flags]
    points = []
    sheet = sheets().get(dataset.device.name)
    if sheet is not None:
        model = replace(EnergyModel.fit(dataset), pooled=PooledLaw.fit([], sheet))
        points.append(Point(0, *np.quantile(errors(model, networks), (0.5, 0.9))))
    for rows in [*(n for n in ROWS if n < len(usable)), len(usable)]:
        ours, alone = [], []
        for order in range(1 if rows == len(usable) else ORDERS):
            shuffled = np.random.default_rng(order).permutation(len(usable))
            part = replace(dataset, measurements=[usable[i] for i in sorted(shuffled[:rows])])
            model = EnergyModel.fit(part, "hybrid")
            known = errors(replace(model, pooled=None), networks)
            alone.append((len(known), np.median(known) if known else np.nan))
            model = model if sheet is None else EnergyModel.fit(part)
            ours.append(np.quantile(errors(model, networks), (0.5, 0.9)))
        priced = int(np.median([n for n, _ in alone]))
        medians = [median for n, median in alone if n]
        middle = float(np.median(medians)) if medians else np.nan
        points.append(Point(rows, *np.median(ours, axis=0), (priced, middle)))
        print(f"{rows:6} rows: {points[-1]}", flush=True)
    return points


def sets(data: Path | None) -> dict[str, Callable[[], tuple[Dataset, list[Network]]]]:
    """What curves there are, by the name of their columns."""
    found: dict[str, Callable[[], tuple[Dataset, list[Network]]]] = {
        "NVIDIA H200": lambda: measured("nvidia-h200"),
        "CPU (amd-epyc-2t)": lambda: measured("amd-epyc-2t"),
        "virtual GPU": virtual,
    }
    if data is not None:
        found["the paper's CPU"] = lambda: paper(data)
    return found


def markdown(data: Path | None) -> str:
    """A row a number of rows, a column a set: median / 90th percentile (priced without the law)."""
    columns: dict[str, dict[str, Point]] = {}
    for name, read in sets(data).items():
        print(name, flush=True)
        points = curve(*read())
        columns[name] = {str(p.rows): p for p in points[:-1]} | {"all": points[-1]}
        all_rows = points[-1].rows
        columns[f"{name}, {all_rows} rows"] = columns.pop(name)
    lines = ["| rows | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for rows in ("0", *map(str, ROWS), "all"):
        cells = [str(column[rows]) if rows in column else "-" for column in columns.values()]
        lines.append(f"| {rows} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    folder = Path(sys.argv[sys.argv.index("--data") + 1]) if "--data" in sys.argv else None
    print(markdown(folder))


if __name__ == "__main__":
    main()
