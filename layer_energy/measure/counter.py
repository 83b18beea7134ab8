"""The energy counter, read all the time: its updates are the only moments that mean something.

Between two updates the counter stands still, so a plain "read before, read after" is off by up to
one update at either end: at an update every 100 ms, by tens of per cent over 0.2 s. The slope
through updates is right. A read takes 2 to 16 ms on recent boards and blocks the thread that asks,
so a thread of its own asks, and keeps between which two reads each update came.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from layer_energy.errors import LayerEnergyError
from layer_energy.measure.gpu import Gpu
from layer_energy.meters.nvml import NvmlSensor, Sample

PAUSE_S = 5e-4
EAGER_PAUSE_S = 5e-3
"""Between two reads; longer while Python launches eager work, which needs the interpreter too."""

KEPT = 4096
FITTED = 4
"""Updates from which on a line is fitted through them."""


@dataclass(frozen=True, slots=True)
class Update:
    """An update of the counter.

    Attributes:
        before_s: the last read that showed the former joules, by the host's clock.
        after_s: the first read that showed the new ones.
        energy_j: what the counter showed from then on.
    """

    before_s: float
    after_s: float
    energy_j: float

    @property
    def time_s(self) -> float:
        """When it came, within half the distance of the two reads."""
        return (self.before_s + self.after_s) / 2


class CounterReader:
    """Reads the counter of a sensor beside everything else, and keeps its updates.

    Args:
        gpu: has a clock, and runs things in the background.
        sensor: has a counter.

    Attributes:
        pause_s: between two reads.
        reads_s: how long the last reads took.
    """

    def __init__(self, gpu: Gpu, sensor: NvmlSensor) -> None:
        self.pause_s = PAUSE_S
        self.reads_s: deque[float] = deque(maxlen=KEPT)
        self._sensor = sensor
        self._updates: deque[Update] = deque(maxlen=KEPT)
        self._new: deque[Update] = deque()
        self._first: Sample | None = None
        self._last: Sample | None = None
        self._error: LayerEnergyError | None = None
        self._closed = False
        gpu.background(self._look)

    def between(self, start_s: float, end_s: float) -> list[Update]:
        """The updates that came after one moment and were seen by another.

        Raises:
            MeterError: if the counter cannot be read any more.
            DeviceLost: if the GPU is gone.
        """
        if self._error is not None:
            raise self._error
        found: list[Update] = []
        for update in reversed(self._updates.copy()):  # the thread goes on
            if update.before_s < start_s:
                break
            if update.after_s <= end_s:
                found.append(update)
        return found[::-1]

    def take_new(self) -> list[Update]:
        """The updates since this was last asked."""
        return [self._new.popleft() for _ in range(len(self._new))]

    def energy_j(self) -> float:
        """Joules since this reader was made."""
        if self._first is None or self._last is None:
            return 0.0
        return (self._last.energy_j or 0.0) - (self._first.energy_j or 0.0)

    def close(self) -> None:
        """Read no more."""
        self._closed = True

    def _look(self) -> float | None:
        if self._closed:
            return None
        try:
            now = self._sensor.energy_j()
        except LayerEnergyError as error:
            self._error = error
            return None
        self.reads_s.append(now.end_s - now.start_s)
        last = self._last
        if last is not None and now.energy_j != last.energy_j:
            assert now.energy_j is not None
            update = Update(last.time_s, now.time_s, now.energy_j)
            self._updates.append(update)
            self._new.append(update)
        self._first = self._first or now
        self._last = now
        return self.pause_s


def told(updates: Sequence[Update]) -> list[list[float]]:
    """As a raw log holds updates: ``before_s``, ``after_s`` and ``energy_j`` of each."""
    return [[round(u.before_s, 5), round(u.after_s, 5), u.energy_j] for u in updates]


def slope_w(updates: Sequence[Update]) -> float | None:
    """Mean power between the first and the last of some updates; ``None`` for fewer than two.

    Each update's moment is known within its two reads, so a line is fitted where there are enough.
    """
    if len(updates) < 2:
        return None
    times = np.array([update.time_s for update in updates])
    joules = np.array([update.energy_j for update in updates])
    if len(updates) < FITTED:
        return float((joules[-1] - joules[0]) / (times[-1] - times[0]))
    return float(np.polyfit(times - times[0], joules - joules[0], 1)[0])
