"""STEP on recorded training runs: error against the share observed, beside the usual methods.

Run:  python tests/benchmarks/step.py --data FOLDER [--calibrate]

FOLDER holds power_traces.parquet and power_traces_runs.csv of del Rey et al. (arXiv 2307.05520; 60
runs, five networks on two GPUs). ``--calibrate`` prints layer_energy.training.interval.DRIFT.
Each interval is judged with that table made without the run, and without its network × GPU.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from layer_energy.training import PowerTrace, Projection, interval, project_trace
from layer_energy.training.baselines import first_epoch_j, green_algorithms_j, tdp_time_j
from layer_energy.training.step import step_power_j

SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
CALIBRATED = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.125, 0.15, 0.175, 0.2, 0.25, 0.5)
RAM_GB = {"NVIDIA GeForce RTX 3090": 16, "NVIDIA GeForce RTX 3070": 32}
"""Memory of the two machines, as pre_training_runs.csv has it."""


@dataclass(frozen=True)
class Run:
    """One recorded run."""

    name: str
    group: str
    trace: PowerTrace
    busy: np.ndarray
    epochs: int
    max_power_w: float
    ram_gb: float

    def utilisation(self, share: float) -> float:
        """Mean utilisation of the GPU over the first ``share`` of the duration, 0 to 1."""
        t = self.trace.t_s - self.trace.t_s[0]
        return float(self.busy[t <= share * self.trace.duration_s].mean())


def load(folder: Path) -> list[Run]:
    """All runs, in the order of the table of runs."""
    samples = dict(list(pd.read_parquet(folder / "power_traces.parquet").groupby("run_id")))
    runs = []
    for row in pd.read_csv(folder / "power_traces_runs.csv").itertuples():
        s = samples[row.run_id]
        runs.append(
            Run(
                row.run_id,
                f"{row.architecture} {row.gpu}",
                PowerTrace.of(s["t_s"].to_numpy(), s["power_w"].to_numpy(), row.run_id),
                s["gpu_util_pct"].to_numpy(dtype=float) / 100,
                row.epochs,
                row.max_power_w,
                RAM_GB[row.gpu],
            )
        )
    return runs


def first_epoch(run: Run, share: float) -> float:
    """One epoch's share of the time × epochs, or all that is known if that is less."""
    share = min(share, 1 / run.epochs)
    return first_epoch_j(run.trace.until(share).energy_j, 1 / share)


def papers_window(run: Run, share: float) -> float:
    """Mean power over five epochs from ``share`` on × duration: it sees more than the share."""
    end_s = run.trace.duration_s
    edges_s = np.minimum(np.array([share, share + 5 / run.epochs]) * end_s, end_s)
    window_w = float(run.trace.slices_j(edges_s)[0] / np.diff(edges_s)[0])
    return step_power_j(window_w, end_s)


METHODS: dict[str, Callable[[Run, float], float]] = {
    "STEP, epoch form": lambda r, f: project_trace(r.trace, r.epochs, f).energy_j,
    "STEP, power form": lambda r, f: project_trace(r.trace, r.epochs, f, "power").energy_j,
    "power, the paper's 5 epochs from there on": papers_window,
    "first epoch × epochs": first_epoch,
    "Green Algorithms": lambda r, f: green_algorithms_j(
        r.max_power_w, r.utilisation(f), r.ram_gb, r.trace.duration_s
    ),
    "MLCO2 (TDP × time)": lambda r, f: tdp_time_j(r.max_power_w, r.trace.duration_s),
}


def to_come_ratios(run: Run) -> dict[float, float]:
    """Share observed → joules to come over those projected."""
    ratios = {}
    for share in CALIBRATED:
        p = project_trace(run.trace, run.epochs, share)
        ratios[share] = (run.trace.energy_j - p.energy_so_far_j) / p.energy_to_come_j
    return ratios


def calibrate(ratios: Iterable[dict[float, float]]) -> dict[float, tuple[float, float]]:
    """The table DRIFT of these runs: split-conformal bounds that only narrow with the share."""
    rows = list(ratios)
    rank = math.ceil((len(rows) + 1) * (1 + interval.COVERAGE) / 2)
    table = {}
    low = high = 1.0
    for share in reversed(CALIBRATED):
        ordered = sorted(row[share] for row in rows)
        low, high = min(low, ordered[-rank]), max(high, ordered[rank - 1])
        table[share] = (round(low, 3), round(high, 3))
    return dict(sorted(table.items()))


def intervals(runs: list[Run], label: Callable[[Run], str]) -> dict[str, list[Projection]]:
    """Run → projections by share, each with a table made without the runs of the same label."""
    ratios = {run.name: to_come_ratios(run) for run in runs}
    projections = {}
    for run in runs:
        others = calibrate(ratios[o.name] for o in runs if label(o) != label(run))
        with patch.object(interval, "DRIFT", others):
            projections[run.name] = [project_trace(run.trace, run.epochs, f) for f in SHARES]
    return projections


def mean_errors(runs: list[Run], method: Callable[[Run, float], float]) -> list[float]:
    """Mean error of the runs' joules at each share observed."""
    truth = np.array([run.trace.energy_j for run in runs])
    return [
        float(np.abs(np.array([method(run, share) for run in runs]) / truth - 1).mean())
        for share in SHARES
    ]


def markdown(folder: Path) -> str | None:
    """The table of mean errors, ``None`` without the data."""
    if not folder.is_dir():
        return None
    runs = load(folder)
    lines = [["mean error of the joules", *(f"{share:.0%} observed" for share in SHARES)]]
    lines.append(["---"] * len(lines[0]))
    for name, method in METHODS.items():
        lines.append([name, *(f"{error:.1%}" for error in mean_errors(runs, method))])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--calibrate", action="store_true", help="print DRIFT and stop")
    options = parser.parse_args()
    runs = load(options.data)
    if options.calibrate:
        for share, bounds in calibrate(map(to_come_ratios, runs)).items():
            print(f"    {share}: {bounds},")
        return
    shown = Table("mean error of the run's joules", *(f"{f:.0%} observed" for f in SHARES))
    truth = np.array([run.trace.energy_j for run in runs])
    for name, method in METHODS.items():
        cells = []
        for share in SHARES:
            error = np.abs(np.array([method(run, share) for run in runs]) / truth - 1)
            cells.append(f"{error.mean():.2%} (max {error.max():.0%})")
        shown.add_row(name, *cells)
    for out, label in (("run", lambda r: r.name), ("network × GPU", lambda r: r.group)):
        made = intervals(runs, label)
        held = [[p.low_j <= r.trace.energy_j <= p.high_j for p in made[r.name]] for r in runs]
        cells = [f"{share:.0%}" for share in np.mean(held, axis=0)]
        shown.add_row(f"90 % interval without this {out} holds", *cells)
    widths = [[(p.high_j - p.low_j) / r.trace.energy_j for p in made[r.name]] for r in runs]
    shown.add_row("its width over the joules", *(f"{w:.1%}" for w in np.mean(widths, axis=0)))
    Console(width=150).print(shown)
    print(f"{len(runs)} runs; duration taken as known, epochs as equally long; replayed traces")


if __name__ == "__main__":
    main()
