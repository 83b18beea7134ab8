"""A stand-in for ``pynvml``: a virtual board whose power, sensor and faults are known.

Time is a :class:`~layer_energy.meters.simulated.VirtualClock`: every call costs some of it, nothing
waits. What a real sensor does to the truth is modelled after Yang, Adamek and Armour 2023
(arXiv 2312.02741): updates every ``period_s`` with jitter, each showing a window of the past,
some time late, and with an energy counter that integrates either all of the time or only those
windows.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from types import SimpleNamespace
from typing import Any

import pynvml

from layer_energy.meters import nvml as fields
from layer_energy.meters.simulated import VirtualClock

KEPT_S = 30.0
"""How far back the history of power is kept."""


class PowerHistory:
    """Piecewise constant power; ``idle_w`` wherever nothing was added."""

    def __init__(self, idle_w: float) -> None:
        self.idle_w = idle_w
        self._starts = [-KEPT_S]
        self._powers = [idle_w]
        self._joules = [0.0]
        self.end_s = 0.0

    def add(self, start_s: float, duration_s: float, power_w: float) -> None:
        """Append a segment that starts no earlier than the last one ended."""
        self._append(start_s, power_w)
        self._append(start_s + duration_s, self.idle_w)
        self.end_s = start_s + duration_s
        while len(self._starts) > 2000 and self._starts[1000] < start_s - KEPT_S:
            del self._starts[:500], self._powers[:500], self._joules[:500]

    def energy_j(self, time_s: float) -> float:
        """Joules until a moment, from an arbitrary origin."""
        at = max(bisect.bisect_right(self._starts, time_s) - 1, 0)
        return self._joules[at] + self._powers[at] * (time_s - self._starts[at])

    def _append(self, start_s: float, power_w: float) -> None:
        joules = self.energy_j(start_s)
        if self._starts[-1] == start_s:
            self._powers[-1] = power_w
        else:
            self._starts.append(start_s)
            self._powers.append(power_w)
            self._joules.append(joules)


@dataclass
class VirtualSensor:
    """What a board shows of a power history.

    Attributes:
        period_s: seconds between two updates of the counter.
        power_period_s: the same of power; as the counter's if ``None``.
        window_s: seconds of the past that an update of the power shows.
        lag_s: how late it shows them.
        jitter_s: updates come up to this much late, uniformly.
        part_time: the counter adds only what the windows show, times the time between updates.
        gain: joules shown per true joule.
        seed: of the jitter.
        stuck_from_s: from then on nothing is updated any more.
        offset_j: added to the counter from the next update on; negative: it jumps back.
    """

    period_s: float = 0.1
    window_s: float = 0.1
    lag_s: float = 0.0
    jitter_s: float = 0.0
    part_time: bool = False
    gain: float = 1.0
    seed: int = 0
    stuck_from_s: float = float("inf")
    offset_j: float = 0.0
    power_period_s: float | None = None
    _last_s: float = 0.0
    _energy_j: float = 0.0
    _power_w: float = 0.0
    _counted_j: float = 0.0

    def __post_init__(self) -> None:
        self._counter = _Beat(self.period_s, self.jitter_s, Random(self.seed))
        period_s = self.period_s if self.power_period_s is None else self.power_period_s
        self._power = _Beat(period_s, self.jitter_s, Random(self.seed))

    def energy_j(self, history: PowerHistory, now_s: float) -> float:
        """What the counter shows, as of its last update."""
        for time_s in self._counter.until(min(now_s, self.stuck_from_s)):
            if self.part_time:
                self._energy_j += self._window_w(history, time_s) * (time_s - self._last_s)
            else:
                total_j = history.energy_j(time_s - self.lag_s)
                self._energy_j += total_j - self._counted_j
                self._counted_j = total_j
            self._last_s = time_s
        return self.gain * self._energy_j + self.offset_j

    def power_w(self, history: PowerHistory, now_s: float) -> float:
        """Instant power, as of its last update."""
        for time_s in self._power.until(now_s):
            self._power_w = self._window_w(history, time_s)
        return self.gain * self._power_w

    def _window_w(self, history: PowerHistory, now_s: float) -> float:
        until_s = now_s - self.lag_s
        window_j = history.energy_j(until_s) - history.energy_j(until_s - self.window_s)
        return window_j / self.window_s


class _Beat:
    """Updates at a period, each up to a jitter late."""

    def __init__(self, period_s: float, jitter_s: float, rng: Random) -> None:
        self._period_s, self._jitter_s, self._rng = period_s, jitter_s, rng
        self._updates, self._next_s = 0, 0.0

    def until(self, now_s: float) -> Iterator[float]:
        """The moments of the updates that came since this was last asked."""
        while self._next_s <= now_s:
            yield self._next_s
            self._updates += 1
            late_s = self._rng.uniform(0, self._jitter_s)
            self._next_s = self._updates * self._period_s + late_s


class VirtualNvml:
    """Has the functions of ``pynvml`` that this project calls, for one board.

    Args:
        clock: virtual time.
        history: true power of the board.
        sensor: what it shows of that.
        call_s: cost of a call, drawn uniformly up to twice this.
        counter_s: cost of reading the counter, drawn anew for each read; as of any call if
            ``None``.

    Attributes:
        absent: fields that answer NOT_SUPPORTED.
        errors: error codes that the next calls answer, one each.
        foreign: process ids of others on the board.
        thermal_s, power_cap_s: slow-down times shown.
        processes_s: cost of listing processes.
        mig_instances: ``None`` with MIG off.
    """

    UUID = "GPU-00000000-0000-0000-0000-000000000000"
    NAME = "Virtual GPU"

    NVMLError = pynvml.NVMLError
    NVML_ERROR_GPU_IS_LOST = pynvml.NVML_ERROR_GPU_IS_LOST
    NVML_ERROR_RESET_REQUIRED = pynvml.NVML_ERROR_RESET_REQUIRED

    def __init__(
        self,
        clock: VirtualClock,
        history: PowerHistory,
        sensor: VirtualSensor | None = None,
        call_s: float = 1e-4,
        seed: int = 0,
        counter_s: Callable[[Random], float] | None = None,
    ) -> None:
        self.clock, self.history = clock, history
        self.sensor = VirtualSensor() if sensor is None else sensor
        self.absent: set[int] = set()
        self.errors: deque[int] = deque()
        self.foreign: list[int] = []
        self.thermal_s = self.power_cap_s = 0.0
        self.power_limit_w = 700.0
        self.temperature_c = 40.0
        self.processes_s = 4.5e-3
        self.mig_instances: int | None = None
        self.counter_s = counter_s
        self._call_s = call_s
        self._rng = Random(seed)

    def nvmlDeviceGetFieldValues(self, handle: str, wanted: list[int]) -> list[Any]:  # noqa: N802
        """Values of fields, each with its own return code."""
        self._call()
        if 83 in wanted and self.counter_s is not None:
            self.clock.advance(self.counter_s(self._rng))
        shown = {field: self._shown(field) for field in wanted}
        return [
            SimpleNamespace(
                fieldId=each,
                nvmlReturn=pynvml.NVML_ERROR_NOT_SUPPORTED if each in self.absent else 0,
                valueType=pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG,
                value=SimpleNamespace(ullVal=shown[each]),
            )
            for each in wanted
        ]

    def _shown(self, field: int) -> int:
        now_s, sensor = self.clock(), self.sensor
        if field == 83:
            return round(1e3 * sensor.energy_j(self.history, now_s))
        if field == 186:
            return round(1e3 * sensor.power_w(self.history, now_s))
        if field == 185:
            second_j = self.history.energy_j(now_s) - self.history.energy_j(now_s - 1.0)
            return round(1e3 * sensor.gain * second_j)
        return {74: round(1e9 * self.power_cap_s), 269: round(1e9 * self.thermal_s)}.get(field, 0)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        """The counter in mJ; absent together with its field."""
        self._call(fields.COUNTER)
        return self._shown(83)

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:  # noqa: N802
        """Power averaged over a second, in mW; absent together with its field."""
        self._call(fields.AVERAGE_POWER)
        return self._shown(185)

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        """One board."""
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        """The board."""
        return self.UUID

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        """The board, if this is its UUID."""
        if uuid != self.UUID:
            raise self.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return uuid

    nvmlDeviceGetHandleByPciBusId = nvmlDeviceGetHandleByUUID  # noqa: N815

    def nvmlDeviceGetUUID(self, handle: str) -> str:  # noqa: N802
        """The board's UUID."""
        return self.UUID

    def nvmlDeviceGetName(self, handle: str) -> str:  # noqa: N802
        """The board's name."""
        return self.NAME

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        """A version."""
        return "virtual"

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: str) -> int:  # noqa: N802
        """The power limit in mW."""
        return round(1e3 * self.power_limit_w)

    def nvmlDeviceGetArchitecture(self, handle: str) -> int:  # noqa: N802
        """Hopper."""
        return int(pynvml.NVML_DEVICE_ARCH_HOPPER)

    def nvmlDeviceGetTemperature(self, handle: str, which: int) -> int:  # noqa: N802
        """Degrees Celsius."""
        return round(self.temperature_c)

    def nvmlDeviceGetClockInfo(self, handle: str, which: int) -> int:  # noqa: N802
        """The clock of the multiprocessors or of the memory in MHz."""
        return {1: 1980, 2: 3201}[which]

    def nvmlDeviceGetMigMode(self, handle: str) -> tuple[int, int]:  # noqa: N802
        """Whether MIG is on, now and after a reset."""
        on = int(self.mig_instances is not None)
        return on, on

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: str) -> int:  # noqa: N802
        """Seven instances at most."""
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: str, index: int) -> str:  # noqa: N802
        """An instance, if there is one of this index."""
        if index >= (self.mig_instances or 0):
            raise self.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return f"MIG-{index}"

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Any]:  # noqa: N802
        """Processes of others."""
        self.clock.advance(self.processes_s)
        return [SimpleNamespace(pid=pid) for pid in self.foreign]

    def _call(self, source: str | None = None) -> None:
        self.clock.advance(self._rng.uniform(0, 2 * self._call_s))
        if self.errors:
            raise self.NVMLError(self.errors.popleft())
        if source is not None and (83 if source == fields.COUNTER else 185) in self.absent:
            raise self.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
