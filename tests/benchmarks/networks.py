"""Whole networks against predictions, baselines and the additivity floor, and the 90 % quantile.

Run:  python tests/benchmarks/networks.py [DATASET_FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from layer_energy.dataset import Dataset
from layer_energy.evaluate import evaluate_networks, held_out_coverage, network_scores
from layer_energy.model import EnergyModel

DEFAULT = Path(__file__).parents[2] / "datasets" / "amd-epyc-2t"


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT
    dataset = Dataset.load(folder)
    model = EnergyModel.load(dataset.device.slug)
    table = evaluate_networks(dataset.networks, model, dataset)
    measured = table["measured_energy_j"]
    shown = Table("method", "n", "median error", "90 % within", "within 25 %", "bias")
    for method, s in network_scores(table).items():
        error = np.abs(table[f"{method}_energy_j"] / measured - 1).dropna()
        shown.add_row(
            method,
            str(s.n),
            f"{s.median_error:.1%}",
            f"{np.quantile(error, 0.9):.1%}",
            f"{s.within_25:.0%}",
            f"{s.bias:+.1%}",
        )
    Console().print(shown)
    low, high = model.totals["inference"].ratio["energy_j"]
    ratios = measured / table["layer_energy_energy_j"]
    held = held_out_coverage(ratios, table["model"], table["input"])
    print(f"{model.device['name']}: seconds measured, joules {model.quality}")
    print(f"90 % interval of totals: {low:.2f} to {high:.2f} x; calibrated without them, it holds")
    print(
        f"{held['held_out']:.0%} of single networks, {held['architecture_held_out']:.0%} of models"
    )


if __name__ == "__main__":
    main()
