"""The GPU law fitted on the H200's rows, beside the networks measured there.

The networks are never fitted on, nor are rows flagged ``test`` or ``validation``.

Run:  python tests/benchmarks/h200.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from layer_energy.dataset import Dataset
from layer_energy.evaluate import evaluate_networks
from layer_energy.gpu_law import GpuLaw
from layer_energy.gpu_sheet import sheet_of
from layer_energy.model import EnergyModel

ROOT = Path(__file__).parents[2]


def spread(errors: list[float]) -> str:
    """Median and 90th percentile of absolute errors."""
    return "{:5.1f} / {:5.1f} %".format(*(100 * np.quantile(np.abs(errors), (0.5, 0.9))))


def main() -> None:
    """Print the tables."""
    dataset = Dataset.load(ROOT / "datasets" / "nvidia-h200")
    usable = [m for m in dataset.measurements if m.usable]
    law = GpuLaw.fit([m for m in usable if "test" not in m.flags], sheet_of("NVIDIA H200"))
    judged = [m for m in usable if "test" in m.flags]
    prices = law.price([m.workload for m in judged], cached=False)
    print(
        f"rows flagged test ({len(judged)}): joules",
        spread([e / m.energy_j - 1 for e, m in zip(prices.energy_j, judged, strict=True)]),
        "time",
        spread([t / m.time_s - 1 for t, m in zip(prices.time_s, judged, strict=True)]),
    )
    model = EnergyModel.fit(dataset)
    groups: dict[str, list[tuple[float, float]]] = {}
    for training in (False, True):
        for row in evaluate_networks(dataset.networks, model, training=training).itertuples():
            errors = (
                row.layer_energy_energy_j / row.measured_energy_j - 1,
                row.layer_energy_time_s / row.measured_time_s - 1,
            )
            groups.setdefault("training steps" if training else row.launch, []).append(errors)
            print(
                f"{row.model.split(':')[-1]:24} {row.batch_size:4} {row.dtype:9}{row.mode:15}"
                f"{row.launch:6} joules {errors[0]:+7.1%}  time {errors[1]:+7.1%}"
            )
    for name, found in groups.items():
        joules, seconds = zip(*found, strict=True)
        print(f"{name} ({len(found)}): joules {spread([*joules])}  time {spread([*seconds])}")


if __name__ == "__main__":
    main()
