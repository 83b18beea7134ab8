"""The protocol for GPUs beside plain readers of the energy counter, on a virtual GPU.

Rows a minute and error of the joules, over a grid of sensors whose truth is known.

Run:  python tests/benchmarks/gpu_protocol.py [--markdown]
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable

import numpy as np

from layer_energy.measure import GpuBench
from layer_energy.measure.virtual import VirtualGpu
from layer_energy.meters.nvml import NvmlSensor
from layer_energy.meters.virtual_nvml import VirtualSensor
from layer_energy.plan import make_plan
from layer_energy.workload import Workload

WORKS = [job.workload for job in make_plan({"conv2d": 5, "relu": 3, "linear": 4}, 5).jobs]
GRID = list(itertools.product((0.02, 0.1), (0.025,), (False, True), (0.0, 0.06), (0.004,)))
"""Period, window, part-time, lag and jitter of the sensor."""

Measure = Callable[[Workload], float]


def this_project(gpu: VirtualGpu) -> Measure:
    bench = GpuBench(gpu, NvmlSensor(library=gpu.nvml, clock=gpu.clock))
    return lambda work: bench.measure(work).energy_j


def before_and_after(dwell_s: float, repeats: int = 1) -> Callable[[VirtualGpu], Measure]:
    """Warm up, read the counter, run for ``dwell_s``, read it again; the mean of ``repeats``."""

    def make(gpu: VirtualGpu) -> Measure:
        sensor = NvmlSensor(library=gpu.nvml, clock=gpu.clock)

        def run(program: object, times: int) -> None:
            for _ in range(times):
                program.submit()  # type: ignore[attr-defined]
            gpu.sleep(times * program.submission_s)  # type: ignore[attr-defined]

        def once(work: Workload) -> float:
            program = gpu.load(work)
            run(program, 3)
            times = max(1, round(dwell_s / program.submission_s))
            before = sensor.sample().energy_j or 0.0
            run(program, times)
            joules = (sensor.sample().energy_j or 0.0) - before
            gpu.sleep(0.1)
            return joules / (times * program.executions)

        return lambda work: float(np.mean([once(work) for _ in range(repeats)]))

    return make


METHODS: dict[str, Callable[[VirtualGpu], Measure]] = {
    "this project": this_project,
    "before and after, 30 s × 3": before_and_after(30.0, 3),
    "before and after, 2 s": before_and_after(2.0),
    "before and after, 1 s": before_and_after(1.0),
    "before and after, 0.2 s": before_and_after(0.2),
}


def judge(make: Callable[[VirtualGpu], Measure]) -> tuple[float, np.ndarray]:
    """Rows a minute, calibration left out, and all relative errors."""
    errors, seconds = [], 0.0
    for seed, (period, window, part_time, lag, jitter) in enumerate(GRID):
        gpu = VirtualGpu(sensor=VirtualSensor(period, window, lag, jitter, part_time), seed=seed)
        measure = make(gpu)
        start = gpu.time()
        errors += [measure(work) / gpu.truth.of(work)[1] - 1 for work in WORKS]
        seconds += gpu.time() - start
    return 60 * len(errors) / seconds, np.array(errors)


def rows() -> Iterable[tuple[str, ...]]:
    for name, make in METHODS.items():
        rate, errors = judge(make)
        yield (
            name,
            f"{rate:.3g}",
            f"{errors.mean():+.2%}",
            f"{errors.std():.2%}",
            f"{np.quantile(np.abs(errors), 0.95):.2%}",
        )


HEADER = ("method", "rows a minute", "bias", "SD", "95 % within")


def markdown() -> str:
    lines = [HEADER, ("---",) * len(HEADER), *rows()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    if "--markdown" in sys.argv:
        print(markdown())
    else:
        for line in [HEADER, *rows()]:
            print(f"{line[0]:<30}" + "".join(f"{cell:>16}" for cell in line[1:]))
