"""AMD GPUs, Apple silicon and Jetson boards, through the package ``zeus`` (extra ``[zeus]``).

zeus 0.10 and newer; its joules are plain differences of a window, without this project's
calibration and alignment: for work that lasts seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from layer_energy.errors import MeterError
from layer_energy.meters.base import Reading, register

_SOC_MJ = ("total_energy_mj", "cpu_total_mj", "gpu_mj", "gpu_sram_mj", "dram_mj", "ane_mj")
"""Counters of a system on a chip that do not overlap: Jetson's total, or Apple's parts."""


@register("zeus", rank=60, kind="cuda")
class ZeusMeter:
    """Joules of all GPUs that zeus sees, or else of the system on a chip.

    Args:
        monitor: a ``zeus.monitor.ZeusMonitor``; one is made if not given.
        clock: seconds.

    Raises:
        MeterError: if zeus is not installed or sees nothing.
    """

    name = "zeus"
    quality = "measured"
    relative_uncertainty = 0.1
    period_s = 0.1

    def __init__(self, monitor: Any = None, clock: Callable[[], float] = time.perf_counter) -> None:
        self._monitor = _open() if monitor is None else monitor
        self._clock = clock
        self._energy_j = 0.0
        self._monitor.begin_window(self.name, sync_execution=False)
        window = self._monitor.end_window(self.name, sync_execution=False)
        if not window.gpu_energy and window.soc_energy is None:
            raise MeterError("zeus sees neither a GPU nor a system on a chip with energy counters")
        what = f"{len(window.gpu_energy)} GPUs" if window.gpu_energy else "the system on a chip"
        self.assumptions: tuple[str, ...] = (
            f"zeus counts {what}, other processes included; differences are not aligned to the "
            "counter's updates.",
        )
        self._monitor.begin_window(self.name, sync_execution=False)

    def read(self) -> Reading:
        """Joules since this meter was made."""
        window = self._monitor.end_window(self.name, sync_execution=False)
        self._energy_j += _joules(window)
        now_s = self._clock()
        self._monitor.begin_window(self.name, sync_execution=False)
        return Reading(now_s, self._energy_j)


def _joules(window: Any) -> float:
    if window.gpu_energy:
        return float(sum(window.gpu_energy.values()))
    parts = (getattr(window.soc_energy, name, None) for name in _SOC_MJ)
    return float(sum(part for part in parts if part is not None)) / 1e3


def _open() -> Any:
    try:
        from zeus.monitor import ZeusMonitor
    except ImportError:
        raise MeterError("zeus is not installed: pip install zeus") from None
    try:
        return ZeusMonitor()
    except Exception as error:  # whatever the drivers below zeus raise
        raise MeterError(f"zeus cannot be used here: {error}") from error
