"""Joules of NVIDIA GPUs: the counter and power readings of the driver's management library.

``NvmlSensor`` probes what this board, driver and sandbox answer, and reads it;
:mod:`layer_energy.measure` builds precise measurements of short work on it. ``NvmlMeter`` is the
plain meter for work that lasts many seconds.

Field 83 (``nvmlDeviceGetTotalEnergyConsumption``) counts millijoules since the driver was loaded,
on Volta and newer. It is updated every 20 to 100 ms, so the difference of two reads taken at
arbitrary moments is off by up to one update at either end. Field 186 is instant power, 185 its
average over a second, which is also what ``nvmlDeviceGetPowerUsage`` gives on Ampere and newer.
Board sensors are good to about ±5 %, random by card (Yang, Adamek and Armour 2023,
arXiv 2312.02741): no protocol removes that.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from layer_energy.errors import DeviceLost, InvalidInput, MeterError
from layer_energy.meters.base import Reading, register

COUNTER, INSTANT_POWER, AVERAGE_POWER = "counter", "instant power", "average power"
SOURCES = (COUNTER, INSTANT_POWER, AVERAGE_POWER)
"""Sources of joules, the best first."""

ASSUMED_POWER = "assumed power"
"""Where none of them answers."""

LOAD_SHARE, IDLE_SHARE = 0.6, 0.12
"""Assumed power of a busy and of an idle GPU over its limit: a large matrix product runs at the
limit, a copy at about half of it."""

_ENERGY, _INSTANT, _AVERAGE, _POWER_CAP = 83, 186, 185, 74
_THERMAL = (269, 270, 271)  # software and hardware thermal slow-down, power brake
_QUICK = (_INSTANT, _AVERAGE, _POWER_CAP)  # 4 µs a read on an H200; the counter takes 2 to 16 ms
_FIELDS = (_ENERGY, _INSTANT, _AVERAGE, _POWER_CAP, *_THERMAL)
_NAMES = dict(zip(_FIELDS, (
    "energy counter", "instant power", "average power", "power-cap time",
    "software thermal slow-down time", "hardware thermal slow-down time", "power-brake time",
), strict=True))  # fmt: skip
_UNION = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")
_UNSIGNED_INT = 1
_AMPERE = 7
_SM_CLOCK, _MEMORY_CLOCK = 1, 2

RETRIES = 3
MAX_ERROR_SHARE = 0.05
_ERROR_WINDOW_S = 60.0
_MIN_CALLS = 40


@dataclass(frozen=True, slots=True)
class Sample:
    """Everything one call of NVML told.

    Attributes:
        start_s, end_s: the host's clock before and after the call.
        energy_j: the counter; ``None`` where there is none, as for all that follow.
        power_w: instant power.
        average_power_w: its average over the last second.
        power_cap_s: time since the driver was loaded in which the power limit lowered the clocks.
        thermal_s: the same for heat and the power brake.
    """

    start_s: float
    end_s: float
    energy_j: float | None
    power_w: float | None
    average_power_w: float | None
    power_cap_s: float
    thermal_s: float

    @property
    def time_s(self) -> float:
        """The middle of the call."""
        return (self.start_s + self.end_s) / 2


class NvmlSensor:
    """One GPU as NVML shows it.

    Args:
        device: UUID (``"GPU-..."``) or PCI bus id; not needed where there is only one GPU. Never an
            index: CUDA and NVML count differently.
        library: the ``pynvml`` module, or a stand-in such as
            :class:`layer_energy.meters.virtual_nvml.VirtualNvml`.
        clock: seconds of the host.

    Raises:
        MeterError: if NVML, the device or every power reading is missing, or the device is shared
            by several MIG instances.

    Attributes:
        name, uuid, driver: as NVML prints them.
        source: the best of ``SOURCES`` that answers.
        answered: names of the fields that answer.
        power_limit_w: the enforced limit, ``None`` if unknown.
    """

    def __init__(
        self,
        device: str | None = None,
        library: Any = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._nvml = _load() if library is None else library
        self._clock = clock
        self._calls: deque[float] = deque()
        self._errors: deque[float] = deque()
        self._bookkeeping = threading.Lock()  # the counter is read in a thread of its own
        self._handle = self._find(device)
        self._refuse_mig()
        self.name = str(self._optional("nvmlDeviceGetName", "unknown"))
        self.uuid = str(self._optional("nvmlDeviceGetUUID", ""))
        self.driver = str(self._ask(self._nvml.nvmlSystemGetDriverVersion))
        limit_mw = self._optional("nvmlDeviceGetEnforcedPowerLimit", None)
        self.power_limit_w = None if limit_mw is None else limit_mw / 1e3
        self._usage_is_instant = self._optional("nvmlDeviceGetArchitecture", _AMPERE) < _AMPERE
        self._fields, self._functions = self._probe()
        self._last_raw_mj: int | None = None
        self._wrapped_mj = 0
        self.answered = tuple(_NAMES[f] for f in (*self._fields, *self._functions))
        first = self.sample()
        values = (first.energy_j, first.power_w, first.average_power_w)
        found = [s for s, v in zip(SOURCES, values, strict=True) if v is not None]
        if not found:
            raise MeterError(
                f"{self.name} answers neither its energy counter nor its power to NVML "
                f"{self.driver}; sandboxes and laptops may hide both: use the estimated meter"
            )
        self.source = found[0]

    def energy_j(self) -> Sample:
        """Read the counter alone; see :meth:`sample`.

        This takes milliseconds on recent boards, and blocks who asks: ask in a thread.
        """
        start_s = self._clock()
        if _ENERGY in self._fields:
            entry = self._ask_fields((_ENERGY,))[0]
            raw_mj = self._unwrapped(getattr(entry.value, _UNION[entry.valueType]), entry.valueType)
        else:
            raw_mj = self._ask(self._functions[_ENERGY], self._handle)
        return Sample(start_s, self._clock(), raw_mj / 1e3, None, None, 0.0, 0.0)

    def power(self) -> Sample:
        """Read what takes microseconds: power and power-cap time; see :meth:`sample`."""
        return self._read(_QUICK)

    def thermal_s(self) -> float:
        """Time in which heat or the power brake slowed the GPU down; 0 where it is hidden."""
        return self._read(_THERMAL).thermal_s

    def sample(self) -> Sample:
        """Read all fields in one call.

        Raises:
            MeterError: after three transient errors in a row, or when more than 5 % of the calls of
                a minute failed.
            DeviceLost: if the GPU fell off the bus or needs a reset.
        """
        return self._read(_FIELDS)

    def _read(self, wanted: Sequence[int]) -> Sample:
        start_s = self._clock()
        values: dict[int, Any] = {}
        fields = [field for field in self._fields if field in wanted]
        raw = self._ask_fields(fields) if fields else []
        for entry in raw:
            value = getattr(entry.value, _UNION[entry.valueType])
            if entry.fieldId == _ENERGY:
                value = self._unwrapped(value, entry.valueType)
            values[entry.fieldId] = value
        for field, read in self._functions.items():
            if field in wanted:
                values[field] = self._ask(read, self._handle)
        end_s = self._clock()
        energy, instant, average = (values.get(f) for f in (_ENERGY, _INSTANT, _AVERAGE))
        return Sample(
            start_s,
            end_s,
            None if energy is None else energy / 1e3,
            None if instant is None else instant / 1e3,
            None if average is None else average / 1e3,
            values.get(_POWER_CAP, 0) / 1e9,
            sum(values.get(field, 0) for field in _THERMAL) / 1e9,
        )

    def temperature_c(self) -> float:
        """Temperature of the GPU, 0 where it is hidden."""
        return float(self._optional("nvmlDeviceGetTemperature", 0, 0))

    def clocks_mhz(self) -> tuple[float, float]:
        """Clocks of the multiprocessors and of the memory, 0 where they are hidden."""
        sm = self._optional("nvmlDeviceGetClockInfo", 0, _SM_CLOCK)
        return float(sm), float(self._optional("nvmlDeviceGetClockInfo", 0, _MEMORY_CLOCK))

    def foreign_processes(self) -> list[int]:
        """Process ids that compute on this GPU besides this one; takes some 5 ms."""
        running = self._optional("nvmlDeviceGetComputeRunningProcesses", [])
        return [process.pid for process in running if process.pid != os.getpid()]

    def _find(self, device: str | None) -> Any:
        nvml = self._nvml
        try:
            if device is None:
                if (n := nvml.nvmlDeviceGetCount()) != 1:
                    raise MeterError(
                        f"{n} GPUs are visible to NVML; name one by its UUID, see `nvidia-smi -L`"
                    )
                return nvml.nvmlDeviceGetHandleByIndex(0)
            if device.startswith(("GPU-", "MIG-")):
                return nvml.nvmlDeviceGetHandleByUUID(device)
            return nvml.nvmlDeviceGetHandleByPciBusId(device)
        except nvml.NVMLError as error:
            raise MeterError(f"NVML finds no GPU {device or 0}: {error}") from error

    def _refuse_mig(self) -> None:
        enabled, _ = self._optional("nvmlDeviceGetMigMode", (0, 0))
        if not enabled:
            return
        instances = 0
        for index in range(self._optional("nvmlDeviceGetMaxMigDeviceCount", 0)):
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlDeviceGetMigDeviceHandleByIndex(self._handle, index)
                instances += 1
        if instances != 1:
            raise MeterError(
                f"this GPU is divided into {instances} MIG instances and counts the joules of all "
                "of them together; measure where MIG is off, or where yours is the only instance"
            )

    def _probe(self) -> tuple[tuple[int, ...], dict[int, Callable[[Any], int]]]:
        """Fields that answer, and functions for those that do not but have one."""
        try:
            raw = self._ask(self._nvml.nvmlDeviceGetFieldValues, self._handle, list(_FIELDS))
            fields = tuple(entry.fieldId for entry in raw if entry.nvmlReturn == 0)
        except MeterError:
            fields = ()
        usage = _INSTANT if self._usage_is_instant else _AVERAGE
        functions = {
            field: getattr(self._nvml, name)
            for field, name in (
                (_ENERGY, "nvmlDeviceGetTotalEnergyConsumption"),
                (usage, "nvmlDeviceGetPowerUsage"),
            )
            if field not in fields and self._optional(name, None) is not None
        }
        return fields, functions

    def _ask_fields(self, fields: Sequence[int]) -> Any:
        def nvmlDeviceGetFieldValues() -> Any:  # noqa: N802  # the name an error message shows
            values = self._nvml.nvmlDeviceGetFieldValues(self._handle, list(fields))
            for entry in values:  # these answered when they were probed
                if entry.nvmlReturn != 0:
                    raise self._nvml.NVMLError(entry.nvmlReturn)
            return values

        return self._ask(nvmlDeviceGetFieldValues)

    def _unwrapped(self, raw_mj: int, value_type: int) -> int:
        """A 32-bit counter wraps every 4.3 MJ, some two hours of a busy board."""
        if value_type == _UNSIGNED_INT and self._last_raw_mj is not None:
            self._wrapped_mj += 2**32 if raw_mj < self._last_raw_mj else 0
        self._last_raw_mj = raw_mj
        return raw_mj + self._wrapped_mj

    def _optional(self, function: str, default: Any, *arguments: Any) -> Any:
        """The answer of a function of this device, or a default where it gives none."""
        try:
            return getattr(self._nvml, function)(self._handle, *arguments)
        except (self._nvml.NVMLError, AttributeError):
            return default

    def _ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        nvml = self._nvml
        for attempt in range(RETRIES + 1):
            now_s = self._clock()
            with self._bookkeeping:
                self._calls.append(now_s)
            try:
                return function(*arguments)
            except nvml.NVMLError as error:
                name = getattr(function, "__name__", "NVML")
                if error.value in (nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED):
                    raise DeviceLost(f"the GPU is lost ({name}: {error})") from error
                with self._bookkeeping:
                    self._errors.append(now_s)
                    self._check_error_rate(now_s)
                if attempt == RETRIES:
                    raise MeterError(
                        f"{name} failed {RETRIES + 1} times in a row: {error}"
                    ) from error
        raise AssertionError("unreachable")

    def _check_error_rate(self, now_s: float) -> None:
        for times in (self._calls, self._errors):
            while times and times[0] < now_s - _ERROR_WINDOW_S:
                times.popleft()
        calls, errors = len(self._calls), len(self._errors)
        if calls > _MIN_CALLS and errors > MAX_ERROR_SHARE * calls:
            raise MeterError(
                f"{errors} of {calls} NVML calls of the last minute failed; something is wrong "
                "with the driver: stop, look at `nvidia-smi`, then run the same command to go on"
            )


class AssumedSensor:
    """Stands in for :class:`NvmlSensor` where nothing can be read: time × an assumed power.

    Args:
        power_limit_w: of the board.
        reason: why nothing can be read.
        clock: seconds of the host.

    Raises:
        InvalidInput: unless the limit is positive.
    """

    source = ASSUMED_POWER
    driver, uuid = "", ""
    answered: tuple[str, ...] = ()

    def __init__(
        self,
        power_limit_w: float,
        reason: str,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if not 0 < power_limit_w < math.inf:
            raise InvalidInput(f"a power limit is above 0 W, got {power_limit_w}")
        self.name, self.reason = "assumed power", reason
        self.power_limit_w = power_limit_w
        self._clock = clock

    def power(self) -> Sample:
        """The assumed power of a busy GPU."""
        now_s = self._clock()
        return Sample(now_s, now_s, None, LOAD_SHARE * self.power_limit_w, None, 0.0, 0.0)

    def thermal_s(self) -> float:
        """Unknown: 0."""
        return 0.0

    def temperature_c(self) -> float:
        """Unknown: 0."""
        return 0.0

    def clocks_mhz(self) -> tuple[float, float]:
        """Unknown: 0."""
        return 0.0, 0.0

    def foreign_processes(self) -> list[int]:
        """Unknown: none."""
        return []


Sensor = NvmlSensor | AssumedSensor


@register("nvml", rank=10, kind="cuda")
class NvmlMeter:
    """Joules of one GPU, for work that lasts long against ``period_s``.

    A board without an energy counter is sampled by a background thread twenty times a second.

    Args:
        device: see :class:`NvmlSensor`, as for the rest.

    Raises:
        MeterError: see :class:`NvmlSensor`.
    """

    name = "nvml"
    quality = "measured"
    relative_uncertainty = 0.05
    period_s = 0.1

    def __init__(
        self,
        device: str | None = None,
        library: Any = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._sensor = NvmlSensor(device, library, clock)
        sentence = f"NVML ({self._sensor.source}) counts the whole board {self._sensor.name}, ±5 %."
        self.assumptions: tuple[str, ...] = (sentence,)
        self._integral: _PowerIntegral | None = None
        if self._sensor.source != COUNTER:
            self._integral = _PowerIntegral(self._sensor)
            self.assumptions += ("No energy counter: power is sampled twenty times a second.",)

    def read(self) -> Reading:
        """Joules since the driver was loaded, or since this meter was made."""
        if self._integral is not None:
            return self._integral.read()
        sample = self._sensor.sample()
        assert sample.energy_j is not None
        return Reading(sample.time_s, sample.energy_j)


class _PowerIntegral:
    """Trapezoids over power, sampled by a thread and at every read."""

    INTERVAL_S = 0.05

    def __init__(self, sensor: NvmlSensor) -> None:
        self._sensor = sensor
        self._lock = threading.Lock()
        self._energy_j = 0.0
        self._last = self._power()
        threading.Thread(target=self._run, daemon=True).start()

    def read(self) -> Reading:
        with self._lock:
            before_s, before_w = self._last
            self._last = now_s, now_w = self._power()
            self._energy_j += (now_s - before_s) * (before_w + now_w) / 2
            return Reading(now_s, self._energy_j)

    def _power(self) -> tuple[float, float]:
        sample = self._sensor.sample()
        power_w = sample.average_power_w if sample.power_w is None else sample.power_w
        assert power_w is not None
        return sample.time_s, power_w

    def _run(self) -> None:
        with contextlib.suppress(MeterError, DeviceLost):  # the next read of the user raises it
            while True:
                time.sleep(self.INTERVAL_S)
                self.read()


def _load() -> Any:
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        raise MeterError(
            "the package nvidia-ml-py is not installed: pip install nvidia-ml-py"
        ) from None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise MeterError(f"NVML cannot be used here ({error}): no NVIDIA driver?") from error
    return nvml
