"""The first seconds on a GPU: how its sensor behaves.

Nothing about an energy counter is documented: how often it is updated, how late it shows what
happened, whether it integrates all of the time. So it is found out, under a reference load, and
stored with the data. It takes some ten seconds, and holds for the board and its driver.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from layer_energy.errors import MeterError
from layer_energy.layers.base import workload
from layer_energy.measure.counter import CounterReader, Update, slope_w
from layer_energy.measure.gpu import Gpu, Idle, Program, Pump
from layer_energy.measure.power import ShownPower
from layer_energy.meters.nvml import (
    ASSUMED_POWER,
    AVERAGE_POWER,
    COUNTER,
    IDLE_SHARE,
    INSTANT_POWER,
    LOAD_SHARE,
    AssumedSensor,
    NvmlSensor,
    Sensor,
)

MIN_UPDATES = 5
DEFAULT_PERIOD_S = 0.1
AVERAGE_SETTLE_S = 1.1
"""Average power shows a second."""

BEAT_S = 2.0
STEPS = 4
PHASES = 5
MIN_SETTLE_S = 0.045
SETTLED = 0.02
"""An interval is settled within this share of the step of power before it, or within what the
reads' distance allows to tell."""

PART_TIME_SPREAD = 0.15
"""Spread of mean power over the phases of a square wave; a full integral shows next to none."""

AGREEMENT = 0.05
DISTRUST = 0.25
"""Counter against instant power: above the first, only the counter is used, above the second, only
power is."""

JITTERY = 0.3
"""A counter whose updates scatter by more than this share of their period is not used."""

_POLL_S = 1e-3


@dataclass(frozen=True, slots=True)
class Calibration:
    """How a GPU's sensor behaves.

    Attributes:
        counter: whether its energy counter is used.
        power_source: of the power of steady work: ``"instant power"``, ``"average power"``,
            ``"assumed power"``, or ``"counter"`` where no power is to be trusted.
        period_s, power_period_s: seconds between two updates of the counter, and of power.
        jitter_s: width (5 to 95 %) of the scatter of the counter's updates around a regular beat.
        read_s: seconds a read of the counter takes.
        lag_s: how late the counter follows a step of power, its averaging included.
        settle_s: from the start of work until an interval may begin that shows nothing but it.
        part_time: the counter integrates only part of the time.
        counter_over_power: joules counted over instant power × time; ``None`` without both.
        idle_power_w: power of the device, ready and without work.
        load_power_w: power under the reference load.
        always_slowed: the slow-down times for heat or power brake advance all the time.
        warnings: sentences about what is not as it should be.
    """

    counter: bool
    power_source: str
    period_s: float
    power_period_s: float
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

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Calibration:
        """As ``dataclasses.asdict`` wrote it.

        Raises:
            TypeError: if it is of another version.
        """
        return cls(**{**facts, "warnings": tuple(facts["warnings"])})


def calibrate(gpu: Gpu, sensor: Sensor, reader: CounterReader | None) -> Calibration:
    """Find out how a sensor behaves; takes some ten seconds at an update every 100 ms.

    Args:
        gpu: executes a reference load.
        sensor: of the very same board.
        reader: of its counter, ``None`` if it has none.

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
        return _Calibrator(gpu, sensor, reader, program).run()
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
        False, ASSUMED_POWER, DEFAULT_PERIOD_S, DEFAULT_PERIOD_S, 0.0, 0.0, 0.0, MIN_SETTLE_S,
        False, None, idle_w, load_w, warnings=(warning,),
    )  # fmt: skip


@dataclass
class _Seen:
    """What was shown in a while: updates of the counter, and values of power."""

    start_s: float
    end_s: float
    updates: list[Update]
    power: list[tuple[float, float]]

    def tail_w(self) -> list[float]:
        """Values of power that stood in the second half."""
        middle_s = (self.start_s + self.end_s) / 2
        return [w for t, w in self.power[:-1] if t >= middle_s] + [self.power[-1][1]]

    def median_w(self) -> float:
        return statistics.median(power_w for _, power_w in self.power)

    def periods_s(self) -> list[float]:
        """Between two changes of power."""
        return [b - a for (a, _), (b, _) in itertools.pairwise(self.power[1:])]


class _Step:
    """A step of power from idle to load, as the counter's updates show it."""

    def __init__(self, start_s: float, idle_w: float, updates: list[Update]) -> None:
        self.start_s, self.idle_w = start_s, idle_w
        self._updates = updates
        self._powers = [_power_w(a, b) for a, b in itertools.pairwise(updates)]
        self.tail = self._powers[len(self._powers) // 2 :]
        self.load_w = statistics.median(self.tail)

    def lag_s(self) -> float:
        """How much later than the step the counter's joules begin to grow faster."""
        step_w = self.load_w - self.idle_w
        missing_s = sum(
            (self.load_w - power_w) / step_w * (b.time_s - a.time_s)
            for power_w, (a, b) in zip(self._powers, itertools.pairwise(self._updates), strict=True)
        )
        return missing_s - (self.start_s - self._updates[0].time_s)

    def settles_s(self, accuracy: float, noise_w: float) -> float:
        """From the step to the begin of the last interval that is still unsettled."""
        settled_w = max(accuracy * (self.load_w - self.idle_w), noise_w)
        away_w = [abs(power_w - self.load_w) for power_w in self._powers]
        settled = next((i for i, away in enumerate(away_w) if away <= settled_w), len(away_w))
        return self._updates[max(0, settled - 1)].time_s - self.start_s


class _Calibrator:
    def __init__(
        self, gpu: Gpu, sensor: NvmlSensor, reader: CounterReader | None, program: Program
    ) -> None:
        self._gpu, self._sensor, self._reader, self._program = gpu, sensor, reader, program
        self._pump, self._idle = Pump(gpu, program), Idle(gpu)
        first = sensor.power()
        self._shows = AVERAGE_POWER if first.power_w is None else INSTANT_POWER
        self._average = self._shows == AVERAGE_POWER
        self._power_source = self._shows
        if self._average and (reader is not None or first.average_power_w is None):
            self._power_source = COUNTER
        self._warnings: list[str] = []

    def run(self) -> Calibration:
        self._pump.until(self._gpu.clock() + 0.5 + AVERAGE_SETTLE_S * self._average)
        slowed_s = self._sensor.thermal_s()
        steady = self._watch(BEAT_S, self._pump)
        period_s, jitter_s = self._beat(steady.updates)
        ratio, load_w = self._agreement(steady)
        slowed = self._sensor.thermal_s() > slowed_s
        if slowed:
            self._warnings.append("heat or the power brake slow this GPU down under any load")
        gaps_s = steady.periods_s()
        power_period_s = statistics.median(gaps_s) if len(gaps_s) >= MIN_UPDATES else period_s
        reads_s = [] if self._reader is None else list(self._reader.reads_s)
        read_s = statistics.median(reads_s) if reads_s else 0.0
        lag_s, settle_s = self._steps(max(period_s, power_period_s), period_s, read_s)
        part_time = self._reader is not None and self._part_time(period_s, lag_s)
        idle_w = self._idle_power_w(settle_s)
        if not load_w > idle_w:
            raise MeterError(
                f"{self._sensor.name} shows {load_w:.0f} W under load and {idle_w:.0f} W without: "
                "nothing can be measured with its sensor"
            )
        return Calibration(
            self._reader is not None, self._power_source, period_s, power_period_s, jitter_s,
            read_s, lag_s, settle_s, part_time, ratio, idle_w, load_w, slowed,
            tuple(self._warnings),
        )  # fmt: skip

    def _beat(self, updates: list[Update]) -> tuple[float, float]:
        """Period and jitter of the counter, from steady watching."""
        if self._reader is None:
            return DEFAULT_PERIOD_S, 0.0
        if len(updates) < MIN_UPDATES:
            self._leave_counter(f"the energy counter changed {len(updates)} times in {BEAT_S:g} s")
            return DEFAULT_PERIOD_S, 0.0
        times = np.array([update.time_s for update in updates])
        gaps = np.diff(times)
        beats = np.concatenate([[0], np.cumsum(np.maximum(1, np.round(gaps / np.median(gaps))))])
        slope, start = np.polyfit(beats, times, 1)
        low, high = np.quantile(times - (start + slope * beats), (0.05, 0.95))
        if high - low > JITTERY * slope and self._power_source != COUNTER:
            self._leave_counter(
                f"the updates of the energy counter scatter by {1e3 * (high - low):.0f} ms"
            )
        return float(slope), float(high - low)

    def _agreement(self, steady: _Seen) -> tuple[float | None, float]:
        """Joules counted over instant power × time, and the power that is to be believed."""
        counted_w = slope_w(steady.updates) if self._reader is not None else None
        if counted_w is None:
            if not steady.power:
                raise MeterError(
                    f"neither the energy counter nor the power of {self._sensor.name} changes "
                    "under load: nothing can be measured with its sensor"
                )
            return None, steady.median_w()
        if self._power_source == COUNTER or not steady.power or not steady.median_w():
            return None, counted_w
        shown_w = steady.median_w()
        ratio = counted_w / shown_w
        if abs(ratio - 1) > DISTRUST:
            self._leave_counter(f"the energy counter shows {ratio:.2f} × the instant power")
            return ratio, shown_w
        if abs(ratio - 1) > AGREEMENT:
            self._power_source = COUNTER
            self._warnings.append(f"the energy counter shows {ratio:.2f} × the instant power")
        return ratio, counted_w

    def _steps(self, longest_s: float, period_s: float, read_s: float) -> tuple[float, float]:
        """Lag and settling time, from steps of power at ``STEPS`` phases of the beat."""
        if self._power_source == AVERAGE_POWER:
            return AVERAGE_SETTLE_S, AVERAGE_SETTLE_S
        steps: list[_Step] = []
        shown: list[tuple[float, _Seen, _Seen]] = []
        for phase in range(STEPS):
            off = self._watch(0.2 + longest_s * (2 + phase / STEPS), self._idle)
            start_s = self._gpu.clock()
            on = self._watch(0.3 + 4 * longest_s, self._pump)
            if self._power_source == INSTANT_POWER:
                shown.append((start_s, off, on))
            if self._reader is not None:
                steps.append(self._step(start_s, off.updates, on.updates))
        lag_s, settles_s = self._counter_settles_s(steps, period_s, read_s)
        if shown:  # the counter, which shows no past but its lag, is settled by then
            settles_s = max(lag_s + 2e-3, _power_settles_s(shown) + longest_s / STEPS + 2e-3)
        settle_s = max(MIN_SETTLE_S, settles_s)
        allowed_s = MIN_SETTLE_S + abs(lag_s) + 2 * max(longest_s, DEFAULT_PERIOD_S)
        if settle_s > allowed_s:
            self._warnings.append(
                f"power under load takes {settle_s:.2f} s to settle; {allowed_s:.2f} s are waited"
            )
        return lag_s, min(settle_s, allowed_s)

    def _counter_settles_s(
        self, steps: list[_Step], period_s: float, read_s: float
    ) -> tuple[float, float]:
        if not steps:
            return 0.0, MIN_SETTLE_S
        noise_w = statistics.median(abs(p - step.load_w) for step in steps for p in step.tail)
        accuracy = max(SETTLED, 3 * read_s / period_s)
        settles_s = [step.settles_s(accuracy, 5 * noise_w) for step in steps]
        lag_s = statistics.median(step.lag_s() for step in steps)
        return lag_s, max(lag_s + 2e-3, max(settles_s) + period_s / STEPS + 2e-3)

    def _step(self, start_s: float, off: list[Update], on: list[Update]) -> _Step:
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
        assert self._reader is not None
        pulse = max(1, round(period_s / 2 / self._program.submission_s))
        means = []
        anchor_s = self._watch(2 * period_s, self._idle).updates[-1].time_s
        cycle = 0
        for phase in range(PHASES):
            start_s = self._gpu.clock()
            for _ in range(5 + round(abs(lag_s) / period_s)):
                cycle = max(cycle + 1, int((self._gpu.clock() - anchor_s) / period_s) + 1)
                at_s = anchor_s + (cycle + phase / PHASES) * period_s
                self._idle.until(at_s)
                for _ in range(pulse):
                    self._program.submit()
            mean_w = slope_w(self._reader.between(start_s, self._gpu.clock())[-3:])
            if mean_w is None:
                raise MeterError("the energy counter stopped changing during the calibration")
            means.append(mean_w)
        idle, load = min(means), max(means)
        middle = statistics.fmean(means)
        return (load - idle) / middle > PART_TIME_SPREAD if middle else False

    def _idle_power_w(self, settle_s: float) -> float:
        """Power without work, the context open and the clocks still up."""
        self._idle.until(self._gpu.clock() + max(0.1, settle_s))
        seen = self._watch(0.6, self._idle)
        counted_w = slope_w(seen.updates) if self._reader is not None else None
        return seen.median_w() if counted_w is None else counted_w

    def _watch(self, duration_s: float, busy: Pump | Idle) -> _Seen:
        """What is shown within ``duration_s``."""
        start_s = self._gpu.clock()
        shown = ShownPower(self._shows)
        while self._gpu.clock() < start_s + duration_s:
            busy.top_up()
            shown.look(self._sensor.power())
            self._gpu.sleep(_POLL_S)
        end_s = self._gpu.clock()
        updates = [] if self._reader is None else self._reader.between(start_s, end_s)
        return _Seen(start_s, end_s, updates, shown.values)

    def _leave_counter(self, reason: str) -> None:
        if self._power_source == COUNTER:
            if not self._average:
                raise MeterError(f"{reason}, and {self._sensor.name} shows no power")
            self._power_source = AVERAGE_POWER
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        self._warnings.append(f"{reason}: {self._power_source} is used instead")


def _power_settles_s(steps: Sequence[tuple[float, _Seen, _Seen]]) -> float:
    """From a step until power was last first seen away from what it ends at; the longest."""
    loads_w = [statistics.median(on.tail_w()) for _, _, on in steps]
    noise_w = max(
        abs(power_w - load_w)
        for load_w, (_, _, on) in zip(loads_w, steps, strict=True)
        for power_w in on.tail_w()
    )
    settled_s = [0.0]
    for load_w, (start_s, off, on) in zip(loads_w, steps, strict=True):
        near_w = max(SETTLED * abs(load_w - off.power[-1][1]), 1.5 * noise_w)
        away_s = [time_s for time_s, power_w in on.power if abs(power_w - load_w) > near_w]
        settled_s += [away_s[-1] - start_s] if away_s else []
    return max(settled_s)


def _power_w(first: Update, second: Update) -> float:
    return (second.energy_j - first.energy_j) / (second.time_s - first.time_s)
