"""When the counter of a sensor is updated: the only moments at which its joules mean something.

Between two updates the counter stands still, so a plain "read before, read after" is off by up to
one update at either end: at an update every 100 ms, by tens of per cent over 0.2 s. The difference
between two updates, divided by the time between them, is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from layer_energy.errors import DroppedInterval
from layer_energy.measure.gpu import Idle, Pump
from layer_energy.meters.nvml import NvmlSensor, Sample

WIDE_BRACKET_S = 1.5e-3
"""Reads further apart than this locate an update worse than its prediction does."""

GUARD_S = 2e-3
PATIENCE = 0.35
"""Share of a period by which an update may be late before it counts as missed."""

STALE_PERIODS = 30
"""After this many periods without an update seen, its phase is looked for anew."""


@dataclass(frozen=True, slots=True)
class Edge:
    """An update of the counter.

    Attributes:
        time_s: when it happened, by the host's clock.
        energy_j: what the counter showed from then on.
        sample: everything else, read at once after that.
    """

    time_s: float
    energy_j: float
    sample: Sample


class Edges:
    """Finds updates of a sensor's counter, polling only where one is due.

    Args:
        sensor: has a counter.
        clock: the host's.
        period_s: seconds between two updates.
        jitter_s: width of the scatter of updates around their mean phase.
    """

    def __init__(
        self, sensor: NvmlSensor, clock: Callable[[], float], period_s: float, jitter_s: float
    ) -> None:
        self.period_s = period_s
        self._jitter_s = jitter_s
        self._sensor = sensor
        self._clock = clock
        self._phase_s = 0.0  # a moment at which an update is expected
        self._seen_s = -math.inf

    def next(self, not_before_s: float, busy: Pump | Idle) -> Edge:
        """Wait for the first update expected at or after a moment.

        Raises:
            DroppedInterval: if it does not come.
        """
        now_s = max(not_before_s, self._clock())
        if now_s - self._seen_s > STALE_PERIODS * self.period_s:
            busy.until(now_s)
            return self._poll(busy, now_s + 2 * self.period_s, None)
        guard_s = GUARD_S + self._jitter_s
        ahead = math.ceil((now_s + guard_s - self._phase_s) / self.period_s)
        expected_s = self._phase_s + ahead * self.period_s
        busy.until(expected_s - guard_s)
        patience_s = max(PATIENCE * self.period_s, guard_s)
        return self._poll(busy, expected_s + patience_s, expected_s)

    def shown_by(self, sample: Sample) -> Edge | None:
        """The update whose joules a sample shows, by its beat alone; ``None`` beside an update.

        For work that keeps the host too busy to look at the counter when it changes.
        """
        assert sample.energy_j is not None
        beats, since = divmod(sample.time_s - self._phase_s, self.period_s)
        guard_s = GUARD_S + self._jitter_s
        if not guard_s < since < self.period_s - guard_s:
            return None
        return Edge(self._phase_s + beats * self.period_s, sample.energy_j, sample)

    def steady(self, interval_s: float) -> bool:
        """Whether an interval between two updates is a whole number of periods, within 8 %."""
        away_s = abs(interval_s - self.period_s * round(interval_s / self.period_s))
        return away_s <= max(0.08 * self.period_s, 1.5 * self._jitter_s)

    def _poll(self, busy: Pump | Idle, deadline_s: float, expected_s: float | None) -> Edge:
        before = self._sensor.energy_j()
        while before.end_s < deadline_s:
            busy.top_up()
            after = self._sensor.energy_j()
            if after.energy_j != before.energy_j:
                return self._edge(before, after, expected_s)
            before = after
        raise DroppedInterval(
            f"the energy counter was not updated when expected (period {self.period_s:.3f} s)"
        )

    def _edge(self, before: Sample, after: Sample, expected_s: float | None) -> Edge:
        time_s = (before.time_s + after.time_s) / 2
        if expected_s is not None and after.time_s - before.time_s > WIDE_BRACKET_S:
            time_s = min(max(expected_s, before.time_s), after.time_s)
        late_s = 0.0 if expected_s is None else time_s - expected_s
        self._phase_s = time_s if expected_s is None else expected_s + 0.3 * late_s
        self._seen_s = time_s
        assert after.energy_j is not None
        return Edge(time_s, after.energy_j, self._sensor.sample())
