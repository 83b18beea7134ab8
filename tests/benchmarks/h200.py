"""The GPU law fitted on the H200's rows, beside the networks measured there.

The networks are never fitted on, nor are rows flagged ``test`` or ``validation``.

Run:  python tests/benchmarks/h200.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from layer_energy.dataset import Dataset
from layer_energy.gpu_law import GpuLaw, waiting_s
from layer_energy.gpu_sheet import sheet_of
from layer_energy.networks import layers_of
from layer_energy.plan import NetworkJob
from layer_energy.workload import NetworkMeasurement, Workload

ROOT = Path(__file__).parents[2]


def spread(errors: list[float]) -> str:
    """Median and 90th percentile of absolute errors."""
    return "{:5.1f} / {:5.1f} %".format(*(100 * np.quantile(np.abs(errors), (0.5, 0.9))))


def layers(network: NetworkMeasurement) -> dict[Workload, int]:
    """What a measured network runs."""
    shape, integers, _ = network.input.partition(":int64")
    sides = ",".join(shape.split("x")[1:]) + integers
    job = NetworkJob(
        network.model, sides, network.batch_size, dtype=network.dtype, mode=network.mode
    )
    return layers_of(job)


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
    groups: dict[str, list[tuple[float, float]]] = {}
    for network in dataset.networks:
        calls = layers(network)
        prices = law.price([*calls], cached=True)
        counts = np.array([*calls.values()], dtype=float)
        device_s, host_s = counts @ prices.time_s, counts @ prices.host_s
        wait_s = waiting_s(device_s, host_s) if network.launch == "eager" else 0.0
        energy_j = counts @ prices.energy_j + law.sheet.idle_w * wait_s
        time_s = device_s + wait_s
        errors = energy_j / network.energy_j - 1, time_s / network.time_s - 1
        training = network.mode != "inference"
        groups.setdefault("training steps" if training else str(network.launch), []).append(errors)
        print(
            f"{network.model.split(':')[-1]:24} {network.batch_size:4} {network.dtype:9}"
            f"{network.mode:15}{network.launch:6} joules {errors[0]:+7.1%}  time {errors[1]:+7.1%}"
            f"  waiting {wait_s / time_s:4.0%}"
        )
    for name, found in groups.items():
        joules, seconds = zip(*found, strict=True)
        print(f"{name} ({len(found)}): joules {spread([*joules])}  time {spread([*seconds])}")


if __name__ == "__main__":
    main()
