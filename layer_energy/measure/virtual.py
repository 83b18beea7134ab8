"""A GPU of known truth in virtual time: what the protocol is proved on where there is none.

Nothing is executed. A workload's true time and power come from a law of its counts; its
submissions fill a :class:`~layer_energy.meters.virtual_nvml.PowerHistory`, and a
:class:`~layer_energy.meters.virtual_nvml.VirtualNvml` shows that as a real sensor would. Rows
measured here are of quality ``"simulated"``.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import Any

import torch

from layer_energy.layers.base import count
from layer_energy.measure.gpu import Build, Variant, input_text
from layer_energy.meters.simulated import VirtualClock
from layer_energy.meters.virtual_nvml import PowerHistory, VirtualNvml, VirtualSensor
from layer_energy.workload import Device, Gradients, Workload

DEVICE = Device("Virtual GPU", "cuda", "virtual-gpu", 1, 50 << 20, {"torch": "none"})
Layers = Callable[[Any, tuple[Any, ...]], Iterable[tuple[Workload, int]]]
"""Model and inputs → the workloads of its layers, and how often each occurs."""

HOST_S = 2e-5
"""Time of the host per eager call of an operation."""

CAP_DELAY_S = 0.25
"""How long a power above the limit lasts before the clocks come down, as an H200 showed."""

MAX_OVERSHOOT = 1.15
"""Power over the limit until then."""


@dataclass(frozen=True)
class Truth:
    """The law of a virtual GPU; its joules are additive, its time follows the slower resource.

    Attributes:
        idle_w: power without work.
        op_s, op_j: of every execution.
        macs_per_s, mac_j: of multiply-accumulates in float32.
        bytes_per_s, byte_j: of memory traffic.
        training: cost of a forward and backward pass over that of a forward pass.
    """

    idle_w: float = 90.0
    op_s: float = 2e-6
    op_j: float = 2e-4
    macs_per_s: float = 2.5e13
    mac_j: float = 1.3e-11
    bytes_per_s: float = 3e12
    byte_j: float = 8e-11
    training: float = 3.0

    def matrix_speed(self, dtype: str) -> float:
        """How much faster, and more sparing, multiply-accumulates of a dtype are."""
        return {"tf32": 6.0, "bfloat16": 12.0, "float16": 12.0}.get(dtype, 1.0)

    def of(self, workload: Workload) -> tuple[float, float]:
        """True seconds and joules of one execution, below the power limit."""
        cost, drivers = count(workload)
        executed = [n for name, n in drivers.items() if name.startswith("macs")]
        macs = sum(executed) if executed else cost.macs  # padded to whole tiles
        speed = self.matrix_speed(workload.dtype)
        compute_s = macs / (self.macs_per_s * speed)
        memory_s = cost.bytes / self.bytes_per_s
        time_s = self.op_s + max(compute_s, memory_s)
        dynamic_j = self.op_j + macs * self.mac_j / speed + cost.bytes * self.byte_j
        factor = 1.0 if workload.gradients == "none" else self.training
        return factor * time_s, factor * (dynamic_j + self.idle_w * time_s)


class VirtualGpu:
    """See the module's text.

    Args:
        truth: the law of time and energy.
        sensor: what the board shows.
        layers: for networks.
        leakage_w_per_k: power added by every degree above 40 °C; heat follows power in 20 s.
        wander: standard deviation by which power differs from the truth, anew every 50 ms.
        seed: of host delays.

    Attributes:
        nvml: the board's management library.
        failure: called with every workload before it is loaded; may raise.
    """

    quality = "simulated"

    def __init__(
        self,
        truth: Truth | None = None,
        sensor: VirtualSensor | None = None,
        layers: Layers | None = None,
        leakage_w_per_k: float = 0.0,
        wander: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.truth = truth or Truth()
        self.device = DEVICE
        self.history = PowerHistory(self.truth.idle_w)
        self.time = VirtualClock()
        self.nvml = VirtualNvml(self.time, self.history, sensor, seed=seed)
        self.failure: Callable[[Workload], None] = lambda workload: None
        self._layers = layers
        self._leakage_w_per_k = leakage_w_per_k
        self._wander, self._seed = wander, seed
        self._rng = Random(seed)
        self._free_s = 0.0
        self._over_limit_since_s = math.inf

    def clock(self) -> float:
        """Virtual seconds; asking takes a microsecond."""
        self.time.advance(1e-6)
        return self.time()

    def sleep(self, duration_s: float) -> None:
        """Let the host wait; it oversleeps a little, as hosts do."""
        self.time.advance(max(duration_s, 0.0) + self._rng.expovariate(1 / 6e-5))

    def load(
        self, workload: Workload, variant: Variant = (), submission_s: float = 0.0075
    ) -> VirtualProgram:
        """See :class:`layer_energy.measure.gpu.Gpu`."""
        self.failure(workload)
        self._settle(self._rng.uniform(0.01, 0.04))
        return VirtualProgram(self, *self.truth.of(workload), submission_s)

    def load_module(self, build: Build, dtype: str, mode: str) -> VirtualProgram:
        """See :class:`layer_energy.measure.gpu.Gpu`."""
        if self._layers is None:
            raise NotImplementedError("this virtual GPU was not told how to take a model apart")
        training = mode != "inference"
        gradients: Gradients = "both" if training else "none"
        time_s = energy_j = calls = 0.0
        with torch.device("meta"):
            model, inputs = build()
        for work, times in self._layers(model, inputs):
            priced = Workload(work.kind, work.params, dtype, gradients)
            each_s, each_j = self.truth.of(priced)
            time_s, energy_j = time_s + times * each_s, energy_j + times * each_j
            calls += times * (3 if training else 1)
        self._settle(1.0)
        program = VirtualProgram(self, time_s, energy_j, time_s)
        program.host_bound, program.host_time_s = True, calls * HOST_S
        program.input = input_text(inputs)
        return program

    def graph_of(self, program: Any) -> VirtualProgram:
        """The same work, without waiting for the host."""
        graph = VirtualProgram(self, program.submission_s, program.energy_j, program.submission_s)
        graph.host_time_s, graph.input, graph.flags = None, program.input, ("graph",)
        return graph

    def background(self, step: Callable[[], float | None]) -> None:
        """See :class:`layer_energy.measure.gpu.Gpu`."""
        self.time.background(step)

    def release(self) -> None:
        """Nothing to give back."""

    def execute(self, time_s: float, power_w: float) -> float:
        """Append work to the queue; the moment it will end."""
        start_s = max(self._free_s, self.time())
        power_w = self._wandering(start_s, power_w) + self._leakage(start_s, power_w)
        limit_w = self.nvml.power_limit_w
        if start_s > self._free_s or power_w <= limit_w:
            self._over_limit_since_s = math.inf
        if power_w > limit_w:
            self._over_limit_since_s = min(self._over_limit_since_s, start_s)
            if start_s - self._over_limit_since_s >= CAP_DELAY_S:
                time_s *= math.sqrt(power_w / limit_w)  # slower, and at a lower voltage
                self.nvml.power_cap_s += time_s
                power_w = limit_w
            power_w = min(power_w, MAX_OVERSHOOT * limit_w)
        self.history.add(start_s, time_s, power_w)
        self._free_s = start_s + time_s
        return self._free_s

    def _wandering(self, now_s: float, power_w: float) -> float:
        if not self._wander:
            return power_w
        return power_w * (1 + self._wander * Random(f"{self._seed}/{int(now_s / 0.05)}").gauss())

    def _settle(self, preparation_s: float) -> None:
        """Prepare while the queue drains, and wait for it."""
        self.time.advance(max(preparation_s, self._free_s - self.time()))

    def _leakage(self, now_s: float, power_w: float) -> float:
        elapsed_s = now_s - self._free_s + 1e-3
        target_c = 35.0 + power_w / 14
        share = 1 - math.exp(-elapsed_s / 20.0)
        self.nvml.temperature_c += (target_c - self.nvml.temperature_c) * share
        return self._leakage_w_per_k * (self.nvml.temperature_c - 40.0)


class VirtualProgram:
    """Work of known time and energy; see :class:`layer_energy.measure.gpu.Program`."""

    host_bound = False
    flags: tuple[str, ...] = ()
    input = ""

    def __init__(
        self, gpu: VirtualGpu, time_s: float, energy_j: float, submission_s: float
    ) -> None:
        self._gpu = gpu
        self.executions = max(1, min(512, round(submission_s / time_s)))
        self.submission_s = self.executions * time_s
        self.burst_time_s = time_s
        self.energy_j = energy_j
        self.host_time_s: float | None = HOST_S
        self._power_w = energy_j / time_s
        self._ends: list[float] = []

    def submit(self) -> None:
        """Ten microseconds of the host for a graph, its time per execution for eager work."""
        self._gpu.time.advance((self.host_time_s or 0.0) if self.host_bound else 1e-5)
        self._ends.append(self._gpu.execute(self.submission_s, self._power_w))

    def completions_s(self) -> list[float]:
        """Ends of the submissions that are over."""
        now_s = self._gpu.time()
        return [end for end in self._ends if end <= now_s]

    def pending(self) -> int:
        """How many are not."""
        now_s = self._gpu.time()
        return len(self._ends) - bisect.bisect_right(self._ends, now_s)

    def close(self) -> None:
        """Nothing to free."""
