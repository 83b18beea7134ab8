"""The first seconds of every run on a GPU: how its sensor behaves.

Nothing about an energy counter is documented: how often it is updated, how late it shows what
happened, whether it integrates all of the time. So each run finds out, under a reference load, and
stores the answer with its data.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from layer_energy.errors import MeterError
from layer_energy.layers.base import workload
from layer_energy.measure.edges import Edge
from layer_energy.measure.gpu import Gpu, Idle, Program, Pump
from layer_energy.meters.nvml import (
    ASSUMED_POWER,
    AVERAGE_POWER,
    COUNTER,
    IDLE_SHARE,
    INSTANT_POWER,
    LOAD_SHARE,
    AssumedSensor,
    NvmlSensor,
    Sample,
    Sensor,
)

MIN_UPDATES = 5
DEFAULT_PERIOD_S = 0.1
CONTINUOUS_S = 5e-3
STEPS = 6
PHASES = 5
MIN_SETTLE_S = 0.045
SETTLED = 0.02
"""An interval is settled within this share of the step of power before it, or within what the
reads' distance allows to tell."""

PART_TIME_SPREAD = 0.15
"""Spread of mean power over the phases of a square wave; a full integral shows next to none."""

AGREEMENT = 0.05
DISTRUST = 0.25
"""Counter against instant power: warn above the first, use the power above the second."""

_POLL_S = 1e-3


@dataclass(frozen=True, slots=True)
class Calibration:
    """How a GPU's sensor behaves.

    Attributes:
        energy_source: of the joules of this run: ``"counter"``, ``"instant power"``,
            ``"average power"`` or ``"assumed power"``.
        period_s: seconds between two updates.
        jitter_s: width (5 to 95 %) of their scatter around a regular beat.
        read_s: seconds a read takes.
        lag_s: how late the sensor follows a step of power, its averaging included.
        settle_s: from the start of work until an interval may begin that shows nothing but it.
        part_time: the counter integrates only part of the time.
        counter_over_power: joules counted over instant power × time; ``None`` without both.
        idle_power_w: power of the device, ready and without work.
        load_power_w: power under the reference load.
        always_slowed: the slow-down times for heat or power brake advance all the time.
        warnings: sentences about what is not as it should be.
    """

    energy_source: str
    period_s: float
    jitter_s: float
    read_s: float
    lag_s: float
    settle_s: float
    part_time: bool
    counter_over_power: float | None
    idle_power_w: float
    load_power_w: float
    always_slowed: bool = False
    warnings: tuple[str, ...] = ()


def calibrate(gpu: Gpu, sensor: Sensor) -> Calibration:
    """Find out how a sensor behaves; takes some 15 seconds at an update every 100 ms.

    Raises:
        MeterError: if neither the counter nor power changes under load.
    """
    if isinstance(sensor, AssumedSensor):
        return _assumed(sensor)
    program = gpu.load(
        workload("linear", tokens=2048, in_features=2048, out_features=2048, bias=0),
        submission_s=1e-3,
    )
    try:
        return _Calibrator(gpu, sensor, program).run()
    finally:
        program.close()


def _assumed(sensor: AssumedSensor) -> Calibration:
    limit_w = sensor.power_limit_w
    load_w, idle_w = LOAD_SHARE * limit_w, IDLE_SHARE * limit_w
    warning = (
        f"Joules are time × an assumed {load_w:.0f} W, {LOAD_SHARE:.0%} of the power limit, ±50 %: "
        f"{sensor.reason}"
    )
    return Calibration(
        ASSUMED_POWER, DEFAULT_PERIOD_S, 0.0, 0.0, 0.0, MIN_SETTLE_S, False, None, idle_w, load_w,
        warnings=(warning,),
    )  # fmt: skip


class _Step:
    """A step of power from idle to load, as the counter's updates show it."""

    def __init__(self, start_s: float, idle_w: float, edges: list[Edge]) -> None:
        self.start_s, self.idle_w = start_s, idle_w
        self._edges = edges
        self._powers = [_power_w(a, b) for a, b in itertools.pairwise(edges)]
        self.tail = self._powers[len(self._powers) // 2 :]
        self.load_w = statistics.median(self.tail)

    def lag_s(self) -> float:
        """How much later than the step the counter's joules begin to grow faster."""
        step_w = self.load_w - self.idle_w
        missing_s = sum(
            (self.load_w - power_w) / step_w * (b.time_s - a.time_s)
            for power_w, (a, b) in zip(self._powers, itertools.pairwise(self._edges), strict=True)
        )
        return missing_s - (self.start_s - self._edges[0].time_s)

    def settles_s(self, accuracy: float, noise_w: float) -> float:
        """From the step to the begin of the last interval that is still unsettled."""
        settled_w = max(accuracy * (self.load_w - self.idle_w), noise_w)
        away_w = [abs(power_w - self.load_w) for power_w in self._powers]
        settled = next((i for i, away in enumerate(away_w) if away <= settled_w), len(away_w))
        return self._edges[max(0, settled - 1)].time_s - self.start_s


class _Calibrator:
    def __init__(self, gpu: Gpu, sensor: NvmlSensor, program: Program) -> None:
        self._gpu, self._sensor, self._program = gpu, sensor, program
        self._pump, self._idle = Pump(gpu, program), Idle(gpu)
        self._source = sensor.source
        self._warnings: list[str] = []

    def run(self) -> Calibration:
        self._pump.until(self._gpu.clock() + 1.0)
        before = self._sensor.sample()
        period_s, jitter_s, read_s = self._beat()
        ratio, load_w = self._agreement(period_s)
        slowed = self._sensor.sample().thermal_s > before.thermal_s
        if slowed:
            self._warnings.append("heat or the power brake slow this GPU down under any load")
        if self._source == COUNTER:
            lag_s, settle_s = self._steps(period_s, read_s)
            part_time = self._part_time(period_s, lag_s)
        else:
            lag_s = settle_s = {INSTANT_POWER: 0.15, AVERAGE_POWER: 1.1}[self._source]
            part_time = False
        idle_w = self._idle_power_w(settle_s)
        if not load_w > idle_w:
            raise MeterError(
                f"the {self._source} of {self._sensor.name} is {load_w:.0f} W under load and "
                f"{idle_w:.0f} W without: nothing can be measured with it"
            )
        return Calibration(
            self._source, period_s, jitter_s, read_s, lag_s, settle_s, part_time, ratio, idle_w,
            load_w, slowed, tuple(self._warnings),
        )  # fmt: skip

    def _beat(self) -> tuple[float, float, float]:
        """Period, jitter and read latency, from three seconds of fast polling under load."""
        edges, reads = self._watch(3.0, self._pump, fast=True)
        if len(edges) < MIN_UPDATES and self._source == COUNTER:
            self._distrust(f"the energy counter changed {len(edges)} times in 3 s")
            edges, reads = self._watch(3.0, self._pump, fast=True)
        if len(edges) < MIN_UPDATES:  # power may stand still under a steady load
            return DEFAULT_PERIOD_S, 0.0, statistics.median(reads)
        times = np.array([edge.time_s for edge in edges])
        period_s = float(np.median(np.diff(times)))
        if period_s < CONTINUOUS_S:  # as good as continuous: look at it now and then
            return DEFAULT_PERIOD_S / 5, 0.0, statistics.median(reads)
        beats = np.round((times - times[0]) / period_s)
        slope, start = np.polyfit(beats, times, 1)
        low, high = np.quantile(times - (start + slope * beats), (0.05, 0.95))
        return float(slope), float(high - low), statistics.median(reads)

    def _agreement(self, period_s: float) -> tuple[float | None, float]:
        """Joules counted over instant power × time, and the power that is to be believed."""
        edges, _ = self._watch(max(1.0, 10 * period_s), self._pump)
        if self._source != COUNTER:
            return None, self._shown_power_w(self._sensor.sample())
        shown_w = statistics.median(self._shown_power_w(edge.sample) for edge in edges)
        counted_w = _mean_power_w(edges)
        if edges[0].sample.power_w is None or not shown_w:
            return None, counted_w
        ratio = counted_w / shown_w
        if abs(ratio - 1) > DISTRUST:
            self._distrust(f"the energy counter shows {ratio:.2f} × the instant power")
            return ratio, shown_w
        if abs(ratio - 1) > AGREEMENT:
            self._warnings.append(f"the energy counter shows {ratio:.2f} × the instant power")
        return ratio, counted_w

    def _steps(self, period_s: float, read_s: float) -> tuple[float, float]:
        """Lag and settling time, from steps of power at ``STEPS`` phases of the beat."""
        steps = [self._step(period_s, phase / STEPS) for phase in range(STEPS)]
        noise_w = statistics.median(abs(p - step.load_w) for step in steps for p in step.tail)
        accuracy = max(SETTLED, 3 * read_s / period_s)
        settles_s = [step.settles_s(accuracy, 5 * noise_w) for step in steps]
        lag_s = statistics.median(step.lag_s() for step in steps)
        settle_s = max(MIN_SETTLE_S, lag_s + 2e-3, max(settles_s) + period_s / STEPS + 2e-3)
        longest_s = MIN_SETTLE_S + abs(lag_s) + 2 * period_s
        if settle_s > longest_s:
            self._warnings.append(
                f"power under load takes {settle_s:.2f} s to settle; {longest_s:.2f} s are waited"
            )
        return lag_s, min(settle_s, longest_s)

    def _step(self, period_s: float, phase: float) -> _Step:
        off, _ = self._watch(0.2 + period_s * (2 + phase), self._idle, fast=True)
        start_s = self._gpu.clock()
        on, _ = self._watch(0.2 + 4 * period_s, self._pump, fast=True)
        if len(off) < 2 or len(on) < 4:
            raise MeterError("the energy counter stopped changing during the calibration")
        step = _Step(start_s, _power_w(*off[-2:]), [off[-1], *on])
        if not step.load_w > step.idle_w:
            raise MeterError(
                f"the energy counter of {self._sensor.name} shows {step.load_w:.0f} W under load "
                f"and {step.idle_w:.0f} W without: nothing can be measured with it"
            )
        return step

    def _part_time(self, period_s: float, lag_s: float) -> bool:
        """Whether the phase of a square wave of the sensor's own period changes what it counts."""
        pulse = max(1, round(period_s / 2 / self._program.submission_s))
        means = []
        edges, _ = self._watch(2 * period_s, self._idle)
        anchor_s = edges[-1].time_s
        cycle = 0
        for phase in range(PHASES):
            seen: list[Edge] = []
            for _ in range(5 + round(abs(lag_s) / period_s)):
                cycle = max(cycle + 1, int((self._gpu.clock() - anchor_s) / period_s) + 1)
                at_s = anchor_s + (cycle + phase / PHASES) * period_s
                seen += self._watch(at_s - self._gpu.clock(), self._idle)[0]
                for _ in range(pulse):
                    self._program.submit()
            means.append(_mean_power_w(seen[-3:]))
        idle, load = min(means), max(means)
        middle = statistics.fmean(means)
        return (load - idle) / middle > PART_TIME_SPREAD if middle else False

    def _idle_power_w(self, settle_s: float) -> float:
        """Power without work, the context open and the clocks still up."""
        self._idle.until(self._gpu.clock() + max(0.1, settle_s))
        edges, _ = self._watch(0.7, self._idle)
        if self._source == COUNTER:
            return _mean_power_w(edges)
        return self._shown_power_w(self._sensor.sample())

    def _shown_power_w(self, sample: Sample) -> float:
        """Instant power, or its average where there is only that."""
        shown = sample.average_power_w if sample.power_w is None else sample.power_w
        return shown or 0.0

    def _watch(
        self, duration_s: float, busy: Pump | Idle, fast: bool = False
    ) -> tuple[list[Edge], list[float]]:
        """All updates within ``duration_s``, and how long each read took."""
        until_s = self._gpu.clock() + duration_s
        edges: list[Edge] = []
        look = self._sensor.energy_j if self._source == COUNTER else self._sensor.sample
        before = look()
        reads = [before.end_s - before.start_s]
        while self._gpu.clock() < until_s:
            busy.top_up()
            if not fast:
                self._gpu.sleep(_POLL_S)
            after = look()
            reads.append(after.end_s - after.start_s)
            if self._value(after) != self._value(before):
                time_s = (before.time_s + after.time_s) / 2
                edges.append(Edge(time_s, after.energy_j or 0.0, self._sensor.sample()))
            before = after
        return edges, reads

    def _value(self, sample: object) -> float | None:
        name = {COUNTER: "energy_j", INSTANT_POWER: "power_w", AVERAGE_POWER: "average_power_w"}
        value: float | None = getattr(sample, name[self._source])
        return value

    def _distrust(self, reason: str) -> None:
        sample = self._sensor.sample()
        self._source = AVERAGE_POWER if sample.power_w is None else INSTANT_POWER
        self._warnings.append(f"{reason}: {self._source} is used instead")


def _power_w(first: Edge, second: Edge) -> float:
    return (second.energy_j - first.energy_j) / (second.time_s - first.time_s)


def _mean_power_w(edges: Sequence[Edge]) -> float:
    if len(edges) < 2:
        raise MeterError("the energy counter stopped changing during the calibration")
    return _power_w(edges[0], edges[-1])
