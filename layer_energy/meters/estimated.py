"""Joules where no counter can be read: time × an assumed power."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable

from layer_energy.errors import InvalidInput
from layer_energy.meters.base import Reading, register

MAX_POWER_PER_THREAD_W = 3.5
"""Assumed full-load power of one hardware thread, where the processor's is not given.

An assumption between two kinds of processor: 65 to 105 W on 16 threads (desktops) are 4 to 6.5 W
a thread, 360 W on 192 threads (EPYC 9654) are 1.9 W. Both ends lie about within the stated
uncertainty; give ``max_power_w`` where it is known.
"""

IDLE_SHARE = 0.2
"""Assumed idle power over full-load power, where not given: 0.7 of 3.5 W a thread."""


@register("estimated", rank=100)
class EstimatedMeter:
    """Power = idle + (maximum − idle) × utilisation, utilisation by this process alone.

    The counter is ``idle × wall time + (maximum − idle) / threads × processor time``.

    Args:
        idle_power_w: of the whole processor; 0.2 × the maximum if not given.
        max_power_w: of the whole processor, its TDP; 3.5 W per hardware thread if not given.
        threads: hardware threads of the processor; those the system shows if not given.
        clock: seconds of wall time.
        cpu_clock: seconds of processor time, summed over threads.
    """

    name = "estimated"
    quality = "estimated"
    relative_uncertainty = 0.5
    period_s = 0.0

    def __init__(
        self,
        idle_power_w: float | None = None,
        max_power_w: float | None = None,
        threads: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
        cpu_clock: Callable[[], float] = time.process_time,
    ) -> None:
        threads = (os.cpu_count() or 1) if threads is None else threads
        if threads < 1:
            raise InvalidInput(f"threads must be 1 or more, got {threads}")
        maximum = MAX_POWER_PER_THREAD_W * threads if max_power_w is None else max_power_w
        idle = IDLE_SHARE * maximum if idle_power_w is None else idle_power_w
        if not 0 <= idle <= maximum < math.inf:
            raise InvalidInput(
                f"expected 0 <= idle_power_w <= max_power_w, got {idle:g} W and {maximum:g} W"
            )
        self.idle_power_w, self.max_power_w = idle, maximum
        self._power_per_thread_w = (maximum - idle) / threads
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._start_s, self._cpu_start_s = clock(), cpu_clock()
        sentences = [
            (
                f"No energy counter: power is modelled as {idle:g} W + {maximum - idle:g} W × the "
                f"utilisation of {threads} hardware threads by this process, "
                f"±{self.relative_uncertainty:.0%}."
            )
        ]
        if max_power_w is None:
            sentences.append(
                f"The processor's power is not known: {MAX_POWER_PER_THREAD_W:g} W per hardware "
                "thread at full load is assumed; give max_power_w, its TDP, to do better."
            )
        if idle_power_w is None:
            sentences.append(
                f"Idle power is assumed to be {IDLE_SHARE:.0%} of full load; give idle_power_w "
                "if you know it."
            )
        self.assumptions = tuple(sentences)

    def read(self) -> Reading:
        """Modelled joules since this meter was made."""
        now_s, cpu_s = self._clock(), self._cpu_clock()
        return Reading(
            now_s,
            self.idle_power_w * (now_s - self._start_s)
            + self._power_per_thread_w * (cpu_s - self._cpu_start_s),
        )
