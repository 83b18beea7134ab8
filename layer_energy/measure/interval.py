"""One interval of steady work on a GPU: its power, and the time of an execution.

Work is kept in the queue. Power and counter are watched until each has been updated twice after
settling. On a steady load both agree, and instant power needs no edges: it is taken. Where the
power limit lowers the clocks, and for eager work, power wavers and only the counter holds all of
it. Both are kept.

**At the power limit.** An H200 of 700 W draws up to 810 W for 0.2 to 0.3 s before its limit acts.
So a limited row is watched longer: its settled power and time come from after that, and the power
before it is kept as ``burst_power_w``, beside the time of the first milliseconds.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from layer_energy.errors import DroppedInterval
from layer_energy.measure.calibration import AGREEMENT, Calibration
from layer_energy.measure.counter import (
    EAGER_PAUSE_S,
    FITTED,
    PAUSE_S,
    CounterReader,
    slope_w,
    told,
)
from layer_energy.measure.gpu import TOP_UP_S, Gpu, Program, Pump
from layer_energy.measure.power import ShownPower
from layer_energy.meters.nvml import ASSUMED_POWER, AVERAGE_POWER, COUNTER, Sensor

POLL_S = 4e-3
"""The host rests this long between two looks at power, if the queue is full."""

EAGER_POLL_S = 20e-3
"""Between two looks while the host launches eager work: it has no time to lose."""

LIMIT_SETTLE_S, LIMIT_DWELL_S = 0.35, 0.35
"""The power limit of an H200 acts after 0.2 to 0.3 s."""

PATIENCE = 4.0
"""Updates are waited for this many of their periods longer than they should take."""

FRESH_S = 0.02
"""Power first shown this much after settling shows nothing of what was before."""

STARVED = 0.02
"""Share of an interval in which the queue may have run dry."""

LATE = 1.5
"""A submission that took this many times the usual waited for the host."""

MAX_POWER = 1.3
"""More than this many times the power limit cannot be true."""


@dataclass(frozen=True, slots=True)
class Interval:
    """What was seen.

    Attributes:
        power_w: to be believed, and ``energy_source``, where it came from.
        counter_power_w, instant_power_w: of either source, ``None`` where it does not answer.
        burst_power_w: before the power limit acted; ``None`` if it did not.
        time_s: per execution.
        spread: half the distance of the quartiles of that, over it.
        submissions: that ended within the interval.
        power_cap_s: time in which the power limit lowered the clocks.
        raw: what the sensor said, moment by moment.
    """

    power_w: float
    energy_source: str
    counter_power_w: float | None
    instant_power_w: float | None
    burst_power_w: float | None
    time_s: float
    spread: float
    submissions: int
    power_cap_s: float
    raw: Mapping[str, Any]

    @property
    def remarks(self) -> tuple[str, ...]:
        """Flags for what is unusual."""
        counter_w, instant_w = self.counter_power_w, self.instant_power_w
        apart = counter_w and instant_w and abs(counter_w / instant_w - 1) > AGREEMENT
        return (
            *(("power_capped",) if self.power_cap_s > 0 else ()),
            *(("meters_disagree",) if apart else ()),
        )


class Watch:
    """Watches intervals on one GPU.

    Args:
        gpu: executes.
        sensor: shows power.
        reader: of its counter; ``None`` if that is not to be used.
        found: how the sensor behaves.
    """

    def __init__(
        self, gpu: Gpu, sensor: Sensor, reader: CounterReader | None, found: Calibration
    ) -> None:
        self._gpu, self._sensor, self._reader, self._found = gpu, sensor, reader, found
        self._instant = found.power_source not in (AVERAGE_POWER, ASSUMED_POWER)

    def interval(self, program: Program, dwell_s: float) -> Interval:
        """Run a program and watch.

        Args:
            program: what to run.
            dwell_s: shortest time to watch after settling.

        Raises:
            DroppedInterval: if a health check failed.
        """
        eager = program.host_bound
        if self._reader is not None:
            self._reader.pause_s = EAGER_PAUSE_S if eager else PAUSE_S
        pump, shown = Pump(self._gpu, program), ShownPower(self._found.power_source)
        thermal_s, first = self._sensor.thermal_s(), self._sensor.power()
        start_s = self._gpu.clock()
        settled_s = start_s + max(self._found.settle_s, program.submission_s)
        limited_s: float | None = None
        sample = first
        while True:
            full = pump.top_up()
            if eager and self._gpu.clock() < sample.end_s + EAGER_POLL_S:
                if full:
                    self._gpu.sleep(TOP_UP_S)
                continue
            sample = self._sensor.power()
            shown.look(sample)
            if sample.end_s < settled_s and limited_s is None:
                first = sample  # the limit may act for a moment when hard work ends
            elif limited_s is None and not eager and sample.power_cap_s > first.power_cap_s:
                limited_s = sample.end_s
                settled_s = max(settled_s, start_s + LIMIT_SETTLE_S)
                dwell_s = max(dwell_s, LIMIT_DWELL_S)
            if sample.end_s >= settled_s + dwell_s:
                updates = self._updates_wanted(eager or limited_s is not None)
                usually_s = max(dwell_s, (updates + 0.5) * self._found.period_s)
                late_s = settled_s + usually_s + PATIENCE * self._found.period_s
                if sample.end_s > late_s or self._enough(shown, settled_s, updates):
                    break
            if full and not eager:
                self._gpu.sleep(POLL_S)
        if self._sensor.thermal_s() > thermal_s and not self._found.always_slowed:
            raise DroppedInterval("the GPU was slowed down by heat or by its power brake")
        power_cap_s = max(0.0, sample.power_cap_s - first.power_cap_s)
        return self._seen(program, shown, start_s, settled_s, sample.end_s, power_cap_s, limited_s)

    def _updates_wanted(self, wavering: bool) -> int:
        return FITTED if wavering or self._found.power_source == COUNTER else 2

    def _enough(self, shown: ShownPower, settled_s: float, updates: int) -> bool:
        """Whether counter and power were updated often enough after settling."""
        now_s = self._gpu.clock()
        seen = None if self._reader is None else self._reader.between(settled_s, now_s)
        counted = seen is None or len(seen) >= updates
        fresh_s = settled_s + FRESH_S
        return counted and (
            len(shown.between(fresh_s, now_s)) >= 2
            or now_s >= fresh_s + 2 * self._found.power_period_s  # it may well stand still
        )

    def _seen(
        self,
        program: Program,
        shown: ShownPower,
        start_s: float,
        settled_s: float,
        end_s: float,
        power_cap_s: float,
        limited_s: float | None,
    ) -> Interval:
        updates = [] if self._reader is None else self._reader.between(settled_s, end_s)
        counter_w = slope_w(updates)
        fresh = shown.between(settled_s + FRESH_S, end_s + POLL_S)
        fresh = fresh or [power_w for _, power_w in shown.values[-1:]]
        instant_w = statistics.median(fresh) if fresh else None
        burst: list[float] = []
        if limited_s is not None:
            burst = shown.between(start_s + self._found.settle_s, limited_s)
        wavering = limited_s is not None or program.host_bound
        power_w, source = self._believed(counter_w, instant_w, wavering)
        self._check(power_w, source)
        if counter_w is not None:
            self._check(counter_w, COUNTER)
        time_s, spread, gaps = _timed(program, settled_s, end_s)
        raw = {
            "start_s": start_s, "settled_s": settled_s, "end_s": end_s,
            "edges": told(updates), "shown": [[round(t, 5), p] for t, p in shown.values],
            "counter_w": counter_w, "instant_w": instant_w, "cap_s": power_cap_s,
            "submission_s": program.submission_s, "executions": program.executions,
            "burst_time_s": program.burst_time_s, "inside": len(gaps) + 1,
            "gaps_s": [float(q) for q in np.quantile(gaps, (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1))],
        }  # fmt: skip
        return Interval(
            power_w, source, counter_w, instant_w if self._instant else None,
            statistics.median(burst) if burst else None,
            time_s, spread, len(gaps), power_cap_s, raw,
        )  # fmt: skip

    def _believed(
        self, counter_w: float | None, instant_w: float | None, wavering: bool
    ) -> tuple[float, str]:
        """The power to take, and its source."""
        source = self._found.power_source
        if counter_w is not None and (wavering or source == COUNTER or instant_w is None):
            return counter_w, COUNTER
        if instant_w is None or source == COUNTER:
            raise DroppedInterval("the energy counter was not updated in time")
        return instant_w, source

    def _check(self, power_w: float, source: str) -> None:
        limit_w = self._sensor.power_limit_w
        if power_w <= 0:
            backwards = ": it went backwards" if source == COUNTER else ""
            name = "energy counter" if source == COUNTER else source
            raise DroppedInterval(f"the {name} shows {power_w:.1f} W{backwards}")
        if limit_w is not None and power_w > MAX_POWER * limit_w:
            raise DroppedInterval(
                f"{power_w:.0f} W is above {MAX_POWER} × the limit of {limit_w:.0f} W"
            )


def _timed(program: Program, start_s: float, end_s: float) -> tuple[float, float, Any]:
    """Time per execution, its spread, and the times between submissions, all in seconds."""
    ends = [end for end in program.completions_s() if start_s <= end <= end_s]
    if len(ends) < 3:
        raise DroppedInterval(f"only {len(ends)} submissions ended within the interval")
    gaps = np.diff(ends)
    usual_s = float(np.median(gaps))
    low, high = np.quantile(gaps, (0.25, 0.75))
    spread = float(high - low) / 2 / usual_s
    if not program.host_bound and gaps[gaps > LATE * usual_s].sum() > STARVED * gaps.sum():
        raise DroppedInterval("the host was too slow to keep the GPU busy")
    return float(gaps.mean()) / program.executions, spread, gaps
