"""Measuring on a GPU: steady power × time per execution, of the same interval.

One row: load the next program while the last one's queue drains, keep the device busy with it, let
power and sensor settle, then watch (:mod:`layer_energy.measure.interval`). The time of the first
milliseconds is stored beside it and never multiplied by steady power: at the power limit the clocks
come down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from layer_energy.errors import DroppedInterval, MeasureError, MeterError, OutOfMemory
from layer_energy.layers.base import count
from layer_energy.measure.bench import GPU_REFERENCES, References
from layer_energy.measure.calibration import Calibration, calibrate
from layer_energy.measure.counter import CounterReader, slope_w, told
from layer_energy.measure.gpu import Build, Gpu, Idle, Program, Pump
from layer_energy.measure.interval import Interval, Watch
from layer_energy.meters.nvml import AVERAGE_POWER, COUNTER, AssumedSensor, NvmlSensor, Sensor
from layer_energy.raw_log import Tell, unheard
from layer_energy.workload import (
    LAUNCHES,
    Conditions,
    Launch,
    Measurement,
    NetworkMeasurement,
    Params,
    Workload,
)

DRIFT_LIMIT = 0.03
DROPS_BEFORE_CALIBRATION = 3
RECALIBRATIONS = 2
"""At most; a sensor that keeps failing is not helped by more."""

IDLE_EVERY = 4
"""Blocks between two measurements of idle power."""

REFERENCE_TRIES = 3
PROCESSES_EVERY_S = 10.0

_GAIN = "NVML ({}) counts the whole board; its gain is known to ±5 % and differs by card."

BOARD = 12
"""Characters of its UUID that name a board: ``GPU-`` and eight more."""

BATCH_NAMES = ("batch", "tokens", "rows", "outer", "elements", "kept")
"""Parameters to halve when memory is short, the first that a layer type has."""


@dataclass(frozen=True)
class GpuProtocol:
    """How long a row is watched.

    Attributes:
        dwell_s: shortest time to watch a row.
        submissions: fewest submissions within that.
        average_dwell_s: the same where there is nothing but average power.
        network_dwell_s: shortest time to watch a whole network.
        part_time_dwell_s: the same where the counter integrates only part of the time.
        warm_up_s: load before anything is measured.
        bytes_cap: a layer larger than this is refused.
    """

    dwell_s: float = 0.1
    submissions: int = 5
    average_dwell_s: float = 3.0
    network_dwell_s: float = 0.8
    part_time_dwell_s: float = 2.0
    warm_up_s: float = 2.0
    bytes_cap: int = 16 << 30


class GpuBench:
    """One GPU and its sensor.

    Args:
        gpu: executes.
        sensor: of the same board.
        protocol: how long rows are watched.
        calibration: how this sensor behaves, if that was found before.
        tell: writes what happens into a raw log.

    Raises:
        MeterError: if the sensor shows nothing that can be measured with.

    Attributes:
        raw: what the sensor said during the last measurement.
    """

    meter = "nvml"

    def __init__(
        self,
        gpu: Gpu,
        sensor: Sensor,
        protocol: GpuProtocol | None = None,
        calibration: Calibration | None = None,
        tell: Tell = unheard,
    ) -> None:
        self.device = gpu.device
        assumed = isinstance(sensor, AssumedSensor)
        self.quality = "estimated" if assumed else gpu.quality
        self._uncertainty = 0.5 if assumed else 0.05
        self._gpu, self._sensor, self._tell = gpu, sensor, tell
        self._protocol = protocol or GpuProtocol()
        self._previous: Program | None = None
        self._drops = self._blocks = 0
        self._foreign: set[int] = set()
        self._processes_s = gpu.clock()
        self._references = References(GPU_REFERENCES, self._reference, DRIFT_LIMIT)
        self.raw: Mapping[str, Any] = {}
        self._reader: CounterReader | None = None
        if isinstance(sensor, NvmlSensor) and sensor.source == COUNTER:
            self._reader = CounterReader(gpu, sensor)
        self._warm_up()
        # whoever is there already: in a container, this very process under another number
        self._neighbours = set(sensor.foreign_processes())
        self.calibrations: list[Calibration] = []
        self.idle_power_w = 0.0
        self._tell(
            "sensor", name=sensor.name, driver=sensor.driver, uuid=sensor.uuid,
            answered=sensor.answered, limit=sensor.power_limit_w,
        )  # fmt: skip
        if calibration is None:
            self.calibrate()
        else:
            self._take(calibration)
            self._measure_idle()

    def calibrate(self) -> Calibration:
        """Find out again how the sensor behaves."""
        found = calibrate(self._gpu, self._sensor, self._reader)
        self._take(found)
        return found

    def _take(self, found: Calibration) -> None:
        self.calibrations.append(found)
        self.idle_power_w = found.idle_power_w
        if self._reader is not None and not found.counter:
            self._reader.close()
            self._reader = None
        self._watch = Watch(self._gpu, self._sensor, self._reader, found)
        self._tell("calibration", board=self._sensor.uuid, found=asdict(found))
        self._tell("bench", idle=self.idle_power_w)

    def energy_j(self) -> float | None:
        """See :class:`layer_energy.measure.bench.Bench`."""
        return None if self._reader is None else self._reader.energy_j()

    def close(self) -> None:
        """Leave the sensor alone, and give memory back."""
        if self._reader is not None:
            self._reader.close()
        self._close_previous()

    def measure(self, work: Workload, row_id: int = 0, flags: Sequence[str] = ()) -> Measurement:
        """See :class:`layer_energy.measure.bench.Bench`."""
        program, work, halved = self._load(work, flags)
        interval = self._checked(program, self._protocol.dwell_s)
        return Measurement(
            workload=work,
            time_s=interval.time_s,
            energy_j=interval.power_w * interval.time_s,
            power_w=interval.power_w,
            spread=interval.spread,
            repeats=interval.submissions,
            executions=interval.submissions * program.executions,
            quality=self.quality,
            meter=self.meter,
            flags=(*flags, *halved, *program.flags, *interval.remarks),
            row_id=row_id,
            conditions=self._conditions(program, interval),
        )

    def measure_model(self, name: str, build: Build, dtype: str, mode: str) -> NetworkMeasurement:
        """See :class:`layer_energy.measure.bench.Bench`."""
        self._release_previous()
        program = self._gpu.load_module(build, dtype, mode)
        self._previous = program
        return self._network(program, name, dtype, mode, "eager")

    def measure_as_graph(self, eager: NetworkMeasurement) -> NetworkMeasurement | None:
        """See :class:`layer_energy.measure.bench.Bench`."""
        model = self._previous
        if model is None or eager.mode != "inference":
            return None
        program = self._gpu.graph_of(model)
        if program is None:
            return None
        try:
            return self._network(program, eager.model, eager.dtype, eager.mode, "graph")
        finally:
            program.close()

    def _network(
        self, program: Program, name: str, dtype: str, mode: str, launch: Launch
    ) -> NetworkMeasurement:
        protocol, found = self._protocol, self.calibrations[-1]
        dwell_s = protocol.part_time_dwell_s if found.part_time else protocol.network_dwell_s
        interval = self._checked(program, dwell_s)
        return NetworkMeasurement(
            model=name,
            batch_size=int(program.input.partition("x")[0]),
            input=program.input,
            dtype=dtype,
            mode=mode,
            time_s=interval.time_s,
            energy_j=interval.power_w * interval.time_s,
            power_w=interval.power_w,
            spread=interval.spread,
            repeats=interval.submissions,
            quality=self.quality,
            meter=self.meter,
            flags=(*(f for f in program.flags if f not in LAUNCHES), *interval.remarks),
            conditions=self._conditions(program, interval),
            launch=launch,
        )

    def drifted(self) -> bool:
        """One reference in turn, idle power now and then, and whether others use the GPU."""
        self._blocks += 1
        if self._blocks % IDLE_EVERY == 0:
            self._measure_idle()
        if self._reader is not None:
            self._tell("edges", all=told(self._reader.take_new()))
        foreign, self._foreign = self._foreign, set()
        for _ in range(REFERENCE_TRIES):
            try:
                return self._references.drifted(self._blocks % 2) or bool(foreign)
            except DroppedInterval:
                continue
        return True

    def between_rows(self) -> None:
        """Every ten seconds, ask who else computes on this GPU."""
        if self._gpu.clock() - self._processes_s > PROCESSES_EVERY_S:
            self._foreign.update(set(self._sensor.foreign_processes()) - self._neighbours)
            self._processes_s = self._gpu.clock()

    def clock(self) -> float:
        """See :class:`layer_energy.measure.bench.Bench`."""
        return self._gpu.clock()

    def protocol(self) -> Mapping[str, Any]:
        """See :class:`layer_energy.measure.bench.Bench`."""
        return asdict(self._protocol)

    def facts(self) -> Mapping[str, Any]:
        """See :class:`layer_energy.measure.bench.Bench`."""
        sensor, found = self._sensor, self.calibrations[-1]
        gain = _GAIN.format(COUNTER if found.counter else found.power_source)
        return {
            "calibrations": [asdict(each) for each in self.calibrations],
            "sensor": {
                "answered": list(sensor.answered),
                "driver": sensor.driver,
                "power_limit_w": sensor.power_limit_w,
                "uuid": sensor.uuid,
                "other_processes_at_start": len(self._neighbours),
            },
            "idle_power_w": self.idle_power_w,
            **({} if sensor.power_limit_w is None else {"max_power_w": sensor.power_limit_w}),
            "reference_time_s": [list(values) for values in self._references.values],
            "meter_relative_uncertainty": self._uncertainty,
            "assumptions": [
                *([gain] if sensor.answered else []),
                *dict.fromkeys(w for each in self.calibrations for w in each.warnings),
            ],
        }

    def _warm_up(self) -> None:
        program, _, _ = self._load(GPU_REFERENCES[0], ())
        Pump(self._gpu, program).until(self._gpu.clock() + self._protocol.warm_up_s)

    def _reference(self, work: Workload) -> float:
        row = self.measure(work)
        self._tell("reference", kind=work.kind, time_s=row.time_s, power_w=row.power_w)
        return row.time_s

    def _load(
        self, work: Workload, flags: Sequence[str]
    ) -> tuple[Program, Workload, tuple[str, ...]]:
        """Make a program ready; where memory is short, of half the batch."""
        cost, _ = count(work)
        if cost.bytes > self._protocol.bytes_cap:
            raise MeasureError(
                f"{work.kind} moves {cost.bytes / 2**30:.1f} GiB, above the cap of "
                f"{self._protocol.bytes_cap / 2**30:.1f} GiB"
            )
        variant = [flag for flag in flags if flag in ("hot", "autotuned")]
        halved: tuple[str, ...] = ()
        program = self._load_or_none(work, variant)
        if program is None:  # what is cached, and the last program, may be in the way
            self._release_previous()
            program = self._load_or_none(work, variant)
        if program is None:
            work, halved = _half(work), ("out_of_memory", "halved")
            self._release_previous()
            program = self._gpu.load(work, variant)
        self._close_previous()
        self._previous = program
        return program, work, halved

    def _load_or_none(self, work: Workload, variant: Sequence[str]) -> Program | None:
        """``None`` if memory is short; the failed attempt is gone when this returns."""
        try:
            return self._gpu.load(work, variant)
        except OutOfMemory:
            return None

    def _close_previous(self) -> None:
        if self._previous is not None:
            self._previous.close()
            self._previous = None

    def _release_previous(self) -> None:
        self._close_previous()
        self._gpu.release()

    def _checked(self, program: Program, dwell_s: float) -> Interval:
        if self.calibrations[-1].power_source == AVERAGE_POWER:
            dwell_s = self._protocol.average_dwell_s
        dwell_s = max(dwell_s, self._protocol.submissions * program.submission_s)
        try:
            interval = self._watch.interval(program, dwell_s)
        except DroppedInterval:
            self._drops += 1
            if self._drops == DROPS_BEFORE_CALIBRATION and len(self.calibrations) <= RECALIBRATIONS:
                self._drops = 0
                with suppress(MeterError, DroppedInterval):  # then the old one must do
                    self.calibrate()
            raise
        self._drops = 0
        self.raw = interval.raw
        return interval

    def _conditions(self, program: Program, interval: Interval) -> Conditions:
        sm_mhz, memory_mhz = self._sensor.clocks_mhz()
        return Conditions(
            energy_source=interval.energy_source,
            burst_time_s=program.burst_time_s,
            host_time_s=program.host_time_s,
            idle_power_w=self.idle_power_w,
            temperature_c=self._sensor.temperature_c(),
            sm_clock_mhz=sm_mhz,
            memory_clock_mhz=memory_mhz,
            power_cap_s=interval.power_cap_s,
            counter_power_w=interval.counter_power_w,
            instant_power_w=interval.instant_power_w,
            burst_power_w=interval.burst_power_w,
            board=self._sensor.uuid[:BOARD] or None,
        )

    def _measure_idle(self) -> None:
        """Idle power by the counter; where it is not used, that of the calibration stays."""
        if self._reader is None:
            return
        found = self.calibrations[-1]
        self._close_previous()
        idle = Idle(self._gpu)
        idle.until(self._gpu.clock() + found.settle_s + 0.02)
        start_s = self._gpu.clock()
        idle.until(start_s + 3.5 * found.period_s)
        power_w = slope_w(self._reader.between(start_s, self._gpu.clock()))
        if power_w is not None and power_w > 0:
            self.idle_power_w = power_w
            self._tell("idle", power_w=power_w)


def _half(work: Workload) -> Workload:
    name = next((n for n in BATCH_NAMES if work.params.get(n, 0) > 1), None)
    if name is None:
        raise OutOfMemory(f"the device has too little memory for {work.kind} {dict(work.params)}")
    return replace(work, params=Params({**work.params, name: work.params[name] // 2}))
