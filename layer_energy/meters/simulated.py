"""A meter of known truth and a clock that only moves when told, for tests."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from layer_energy.errors import InvalidInput
from layer_energy.meters.base import Reading, register

STEP_S = 1e-3
"""Longest step of the integral over a varying power."""


class VirtualClock:
    """A clock to call like ``time.perf_counter``; only :meth:`advance` moves it."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s
        self._tasks: list[_Task] = []
        self._in_task = False

    def __call__(self) -> float:
        """Seconds now."""
        return self._now_s

    def advance(self, duration_s: float) -> None:
        """Let ``duration_s`` seconds pass."""
        if not 0 <= duration_s < math.inf:
            raise InvalidInput(f"a clock advances by 0 or more seconds, got {duration_s}")
        until_s = self._now_s + duration_s
        if not self._in_task:
            self._run_tasks(until_s)
        self._now_s = until_s

    sleep = advance
    """Stands in for ``time.sleep``."""

    def background(self, step: Callable[[], float | None]) -> None:
        """Call ``step`` again and again beside everything else, as a thread would.

        It returns the seconds until its next call, or ``None`` to end. The time that it takes
        passes for it alone.
        """
        self._tasks.append(_Task(step, self._now_s))

    def _run_tasks(self, until_s: float) -> None:
        self._in_task = True
        try:
            for task in [task for task in self._tasks if task.due_s <= until_s]:
                while task.due_s <= until_s:
                    self._now_s = task.due_s
                    pause_s = task.step()
                    task.due_s = math.inf if pause_s is None else self._now_s + pause_s
            self._tasks = [task for task in self._tasks if task.due_s < math.inf]
        finally:
            self._in_task = False


@dataclass
class _Task:
    step: Callable[[], float | None]
    due_s: float


@register("simulated")
class SimulatedMeter:
    """Counts the integral of a given power over the time of a clock.

    Args:
        power_w: watts, or a function from the clock's seconds to watts. A function is integrated
            by the midpoint rule in steps of 1 ms or less.
        clock: seconds; a :class:`VirtualClock` makes a test exact and fast.
        period_s: seconds between updates; a read in between returns the last update's joules.
        gain: joules shown per true joule, such as 0.95 for a board that reads 5 % low.
    """

    name = "simulated"
    quality = "simulated"
    relative_uncertainty = 0.0
    assumptions: tuple[str, ...] = ("Energy is simulated: nothing was measured.",)

    def __init__(
        self,
        power_w: float | Callable[[float], float],
        clock: Callable[[], float] = time.perf_counter,
        period_s: float = 0.0,
        gain: float = 1.0,
    ) -> None:
        if not callable(power_w) and not 0 <= power_w < math.inf:
            raise InvalidInput(f"power_w must be 0 or more watts, got {power_w}")
        if not 0 <= period_s < math.inf:
            raise InvalidInput(f"period_s must be 0 or more seconds, got {period_s}")
        if not 0 < gain < math.inf:
            raise InvalidInput(f"gain must be above 0, got {gain}")
        self.period_s = period_s
        self._power_w = power_w
        self._gain = gain
        self._clock = clock
        self._start_s = self._until_s = clock()
        self._energy_j = 0.0

    def read(self) -> Reading:
        """Simulated joules since this meter was made, as of the last update."""
        now_s = self._clock()
        updated_s = now_s
        if self.period_s > 0:
            # an update that rounding puts a hair after now has happened
            updates = math.floor((now_s - self._start_s) / self.period_s + 1e-9)
            updated_s = self._start_s + updates * self.period_s
        self._integrate(updated_s)
        return Reading(now_s, self._gain * self._energy_j)

    def _integrate(self, until_s: float) -> None:
        span_s = until_s - self._until_s
        if callable(self._power_w):
            steps = math.ceil(span_s / STEP_S)
            for step in range(steps):
                middle_s = self._until_s + span_s * (step + 0.5) / steps
                self._energy_j += self._power_w(middle_s) * span_s / steps
        else:
            self._energy_j += self._power_w * span_s
        self._until_s = until_s
