"""Would extrapolating cross-validation have chosen right? Three datasets, judged in hindsight.

For each layer type the regressor chosen on random rows alone, beside the mean error of every
candidate on layers of real networks (the paper's data, a synthetic GPU), and on whole networks
(the committed CPU dataset, whose layers were not measured inside networks).

Run:  python -m tests.benchmarks.selection [paper|gpu|cpu ...]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from layer_energy.dataset import Dataset
from layer_energy.evaluate import evaluate_networks, network_scores, score
from layer_energy.evaluate.paper import split
from layer_energy.external import read_getzner2023
from layer_energy.model import EnergyModel
from layer_energy.models import build_model
from layer_energy.regressors import AUTO, CANDIDATES, extrapolation_error, features, make
from layer_energy.walk import walk
from layer_energy.workload import Measurement, Workload
from tests.synthetic import gpu_time_s, make_dataset

ROOT = Path(__file__).parents[2]
PAPER = ROOT.parent / "shared" / "external" / "getzner2023"
GPU_ROWS = {"conv2d": 400, "linear": 200, "max_pool2d": 200, "relu": 200, "batch_norm": 200}
GPU_NETWORKS = ("vgg11", "alexnet", "resnet18", "resnet50", "densenet121", "squeezenet1_1")


def judge(shown: Table, name: str, fit: Sequence[Measurement], real: dict[Workload, float]) -> None:
    """One line of the table: errors on the real layers, and what the random ones made us choose."""
    x = features([m.workload for m in fit])
    y = np.array([[m.energy_j, m.time_s] for m in fit])
    seen = {c: extrapolation_error(x, y, c) for c in CANDIDATES}
    xr = features(list(real))
    measured = list(real.values())
    hindsight = {
        c: score(measured, make(c).fit(x, y).predict(xr)[:, 0]).mean_error for c in CANDIDATES
    }
    chosen = min(seen, key=lambda c: seen[c])
    shown.add_row(
        name,
        chosen,
        *(f"{seen[c]:.3f}" for c in CANDIDATES),
        *(f"{hindsight[c]:.1%}" for c in CANDIDATES),
        f"{hindsight[chosen] / min(hindsight.values()) - 1:+.0%}",
    )


def paper(shown: Table) -> None:
    data = read_getzner2023(PAPER)
    for name, rows in data.real.items():
        first, second, _ = split(data.random[name])
        judge(shown, f"paper, {name}", first + second, {m.workload: m.energy_j for m in rows})


def gpu(shown: Table) -> None:
    random = make_dataset(GPU_ROWS, noise=0.02, truth=gpu_time_s)
    calls = {
        call.workload
        for name in GPU_NETWORKS
        for batch in (1, 16)
        for call in walk(build_model(name), (batch, 3, 224, 224)).calls
    }
    power_w = random.measurements[0].power_w
    for kind in GPU_ROWS:
        real = {w: power_w * gpu_time_s(w) for w in calls if w.kind == kind}
        judge(shown, f"synthetic GPU, {kind}", random.of(kind), real)


def cpu(shown: Table) -> None:
    dataset = Dataset.load(ROOT / "datasets" / "amd-epyc-2t")
    errors = {
        name: network_scores(evaluate_networks(dataset.networks, EnergyModel.fit(dataset, name)))[
            "layer_energy"
        ].mean_error
        for name in (*CANDIDATES, AUTO)
    }
    shown.add_row(
        "amd-epyc-2t, whole networks",
        AUTO,
        *("-" for _ in CANDIDATES),
        *(f"{errors[c]:.1%}" for c in CANDIDATES),
        f"{errors[AUTO] / min(errors.values()) - 1:+.0%}",
    )


def main() -> None:
    shown = Table(
        "dataset, layer type",
        "chosen",
        *(f"{c}: log error, extrapolating" for c in CANDIDATES),
        *(f"{c}: error in hindsight" for c in CANDIDATES),
        "chosen over best",
    )
    parts = {"paper": paper, "gpu": gpu, "cpu": cpu}
    for name in sys.argv[1:] or parts:
        if name == "paper" and not PAPER.is_dir():
            print("paper: left out, the reference data are not beside this checkout")
            continue
        parts[name](shown)
    Console(width=160).print(shown)


if __name__ == "__main__":
    main()
