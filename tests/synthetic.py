"""A synthetic device whose joules are known: an additive law with optional noise."""

import math
import random
from collections.abc import Callable

from layer_energy.dataset import Dataset
from layer_energy.layers import count
from layer_energy.plan import make_plan
from layer_energy.workload import Device, Measurement, Workload

DEVICE = Device("Synthetic", "cpu", "synthetic-1t", 1, 1 << 20, {"torch": "2"})
POWER_W = 10.0


def true_time_s(workload: Workload) -> float:
    cost, _ = count(workload)
    return 2e-6 + cost.macs * 2e-11 + cost.bytes * 1e-10


PASSES = {"none": 1, "input": 2.5, "weight": 2.25, "both": 3.5}


def training_time_s(workload: Workload) -> float:
    """The same device, on which no gradient costs quite what a rule of thumb says."""
    return true_time_s(workload) * PASSES[workload.gradients]


def gpu_time_s(workload: Workload) -> float:
    """A GPU: a launch, then the slower of arithmetic, in waves of whole tiles, and memory."""
    cost, _ = count(workload)
    tiles = math.ceil(cost.elements / (128 * 64))
    waves = math.ceil(tiles / 108) * 108 / tiles
    arithmetic_s = cost.macs * 2 / 60e12 * waves
    memory_s = cost.bytes / (1.6e12 * max(min(1.0, tiles / 108), 0.05))
    return 6e-6 + (arithmetic_s**4 + memory_s**4) ** 0.25


def make_dataset(
    rows: dict[str, int],
    noise: float = 0.01,
    seed: int = 0,
    truth: Callable[[Workload], float] = true_time_s,
    training: bool = False,
) -> Dataset:
    rng = random.Random(seed)
    measurements = []
    for i, job in enumerate(make_plan(rows, seed, training=training).jobs):
        workload = job.workload
        time_s = truth(workload) * math.exp(rng.gauss(0, noise))
        measurements.append(
            Measurement(workload, time_s, POWER_W * time_s, POWER_W, 0.01, 5, 100,
                        "estimated", "estimated", (), i)
        )  # fmt: skip
    provenance = {
        "meter": "estimated",
        "meter_relative_uncertainty": 0.5,
        "assumptions": ["Power is assumed."],
        "finished": "2026-01-01T00:00:00+00:00",
    }
    return Dataset(measurements, DEVICE, provenance)
