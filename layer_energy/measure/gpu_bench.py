"""Measuring on a GPU: steady power between updates of the energy counter × time per execution.

One row: load the next program while the last one's queue drains, keep the device busy with it, let
power and sensor settle, then take the counter from one update to a later one. Energy per execution
is the mean power between those two updates × the time per execution between the same two, both of
the same steady state. The time of the first milliseconds is stored beside it and never multiplied
by steady power: at the power limit the clocks come down within milliseconds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from layer_energy.errors import DroppedInterval, MeasureError, OutOfMemory
from layer_energy.layers.base import count
from layer_energy.measure.bench import GPU_REFERENCES, References
from layer_energy.measure.calibration import Calibration, calibrate
from layer_energy.measure.edges import Edge, Edges
from layer_energy.measure.gpu import TOP_UP_S, Build, Gpu, Idle, Program, Pump
from layer_energy.meters.nvml import (
    ASSUMED_POWER,
    AVERAGE_POWER,
    COUNTER,
    INSTANT_POWER,
    AssumedSensor,
    NvmlSensor,
    Sample,
    Sensor,
)
from layer_energy.workload import (
    Conditions,
    Measurement,
    NetworkMeasurement,
    Params,
    Workload,
)

DRIFT_LIMIT = 0.03
MAX_POWER = 1.3
"""More than this many times the power limit cannot be true."""

DROPS_BEFORE_CALIBRATION = 3
IDLE_EVERY = 4
"""Blocks between two measurements of idle power."""

REFERENCE_TRIES = 3
PROCESSES_EVERY_S = 10.0
STARVED = 0.02
"""Share of a dwell in which the queue may have run dry."""

_GAIN = "NVML ({}) counts the whole board; its gain is known to ±5 % and differs by card."

BATCH_NAMES = ("batch", "tokens", "rows", "outer", "elements", "kept")
"""Parameters to halve when memory is short, the first that a layer type has."""


@dataclass(frozen=True)
class GpuProtocol:
    """How long a row is watched.

    Attributes:
        dwell_s: shortest dwell by the counter; at least one of its periods is taken.
        submissions: fewest submissions within a dwell.
        instant_dwell_s, average_dwell_s: dwell where there is no counter but power.
        network_dwell_s, network_periods: shortest dwell of a whole network.
        warm_up_s: load before the first calibration.
        bytes_cap: a layer larger than this is refused.
    """

    dwell_s: float = 0.1
    submissions: int = 5
    instant_dwell_s: float = 0.4
    average_dwell_s: float = 3.0
    network_dwell_s: float = 0.6
    network_periods: int = 6
    warm_up_s: float = 10.0
    bytes_cap: int = 16 << 30


@dataclass(frozen=True, slots=True)
class _Interval:
    """What a dwell gave."""

    power_w: float
    time_s: float
    spread: float
    submissions: int
    power_cap_s: float


class GpuBench:
    """One GPU and its sensor.

    Raises:
        MeterError: if the sensor shows nothing that can be measured with.
    """

    meter = "nvml"

    def __init__(self, gpu: Gpu, sensor: Sensor, protocol: GpuProtocol | None = None) -> None:
        self.device = gpu.device
        assumed = isinstance(sensor, AssumedSensor)
        self.quality = "estimated" if assumed else gpu.quality
        self._uncertainty = 0.5 if assumed else 0.05
        self._gpu, self._sensor = gpu, sensor
        self._protocol = protocol or GpuProtocol()
        self._previous: Program | None = None
        self._drops = self._blocks = 0
        self._foreign: set[int] = set()
        self._processes_s = gpu.clock()
        self._references = References(GPU_REFERENCES, self._reference, DRIFT_LIMIT)
        self._warm_up()
        # whoever is there already: in a container, this very process under another number
        self._neighbours = set(sensor.foreign_processes())
        self.calibrations: list[Calibration] = []
        self.idle_power_w = 0.0
        self.calibrate()

    def calibrate(self) -> Calibration:
        """Find out again how the sensor behaves."""
        found = calibrate(self._gpu, self._sensor)
        self.calibrations.append(found)
        self.idle_power_w = found.idle_power_w
        if isinstance(self._sensor, NvmlSensor):
            self._edges = Edges(self._sensor, self._gpu.clock, found.period_s, found.jitter_s)
        return found

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
            flags=(*flags, *halved, *program.flags, *self._remarks(interval)),
            row_id=row_id,
            conditions=self._conditions(program, interval),
        )

    def measure_model(self, name: str, build: Build, dtype: str, mode: str) -> NetworkMeasurement:
        """See :class:`layer_energy.measure.bench.Bench`."""
        self._release_previous()
        program = self._gpu.load_module(build, dtype, mode)
        self._previous = program
        period_s = self.calibrations[-1].period_s
        dwell_s = max(self._protocol.network_dwell_s, self._protocol.network_periods * period_s)
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
            flags=(*program.flags, *self._remarks(interval)),
            conditions=self._conditions(program, interval),
            launch="eager",
        )

    def drifted(self) -> bool:
        """One reference in turn, idle power now and then, and whether others use the GPU."""
        self._blocks += 1
        if self._blocks % IDLE_EVERY == 0:
            self._measure_idle()
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
        sensor = self._sensor
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
                *([_GAIN.format(self.calibrations[-1].energy_source)] if sensor.answered else []),
                *dict.fromkeys(w for each in self.calibrations for w in each.warnings),
            ],
        }

    def _warm_up(self) -> None:
        program, _, _ = self._load(GPU_REFERENCES[0], ())
        Pump(self._gpu, program).until(self._gpu.clock() + self._protocol.warm_up_s)

    def _reference(self, work: Workload) -> float:
        return self.measure(work).time_s

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

    def _checked(self, program: Program, dwell_s: float) -> _Interval:
        try:
            interval = self._interval(program, dwell_s)
        except DroppedInterval:
            self._drops += 1
            if self._drops == DROPS_BEFORE_CALIBRATION:
                self._drops = 0
                self.calibrate()
            raise
        self._drops = 0
        return interval

    def _interval(self, program: Program, dwell_s: float) -> _Interval:
        dwell_s = max(dwell_s, self._protocol.submissions * program.submission_s)
        found = self.calibrations[-1]
        settle_s = max(found.settle_s, program.submission_s)
        if found.energy_source == COUNTER and program.host_bound:
            self._edges.next(self._gpu.clock(), Idle(self._gpu))  # while the host has time
        pump = Pump(self._gpu, program)
        settled_s = self._gpu.clock() + settle_s
        pump.top_up()
        if found.energy_source == COUNTER:
            between = self._beats if program.host_bound else self._updates
            first, last = between(pump, settled_s, dwell_s)
            start_s, end_s = first.time_s, last.time_s
            power_w = (last.energy_j - first.energy_j) / (end_s - start_s)
            before, after = first.sample, last.sample
        else:
            minimum_s = {
                INSTANT_POWER: self._protocol.instant_dwell_s,
                AVERAGE_POWER: self._protocol.average_dwell_s,
                ASSUMED_POWER: self._protocol.dwell_s,
            }[found.energy_source]
            pump.until(settled_s)
            samples = self._power_samples(pump, max(dwell_s, minimum_s))
            before, after = samples[0], samples[-1]
            start_s, end_s = before.time_s, after.time_s
            power_w = statistics.median(_shown_power_w(s, found.energy_source) for s in samples)
        self._check_health(before, after, power_w)
        return self._timed(
            program, power_w, start_s, end_s, max(0.0, after.power_cap_s - before.power_cap_s)
        )

    def _updates(self, pump: Pump, settled_s: float, dwell_s: float) -> tuple[Edge, Edge]:
        """Two updates of the counter, each seen when it came."""
        period_s = self.calibrations[-1].period_s
        first = self._edges.next(settled_s, pump)
        periods = max(1, math.ceil(dwell_s / period_s - 0.05))
        last = self._edges.next(first.time_s + (periods - 0.5) * period_s, pump)
        if not self._edges.steady(last.time_s - first.time_s):
            raise DroppedInterval(
                f"two updates of the energy counter are {last.time_s - first.time_s:.4f} s apart, "
                f"no multiple of its period {period_s:.4f} s"
            )
        return first, last

    def _beats(self, pump: Pump, settled_s: float, dwell_s: float) -> tuple[Edge, Edge]:
        """Two updates by the beat alone: eager work leaves the host no time to wait for them."""

        def after(moment_s: float) -> Edge:
            while True:
                if pump.top_up():
                    self._gpu.sleep(TOP_UP_S)
                if self._gpu.clock() >= moment_s:
                    edge = self._edges.shown_by(self._sensor.sample())
                    if edge is not None and edge.time_s >= moment_s:
                        return edge

        first = after(settled_s)
        return first, after(first.time_s + dwell_s)

    def _power_samples(self, pump: Pump, dwell_s: float) -> list[Sample]:
        step_s = min(self.calibrations[-1].period_s / 2, dwell_s / 8)
        end_s = self._gpu.clock() + dwell_s
        samples = [self._sensor.sample()]
        while samples[-1].end_s < end_s:
            pump.until(samples[-1].end_s + step_s)
            samples.append(self._sensor.sample())
        return samples

    def _check_health(self, before: Sample, after: Sample, power_w: float) -> None:
        limit_w = self._sensor.power_limit_w
        if power_w <= 0:
            raise DroppedInterval(f"the energy counter shows {power_w:.1f} W: it went backwards")
        if limit_w is not None and power_w > MAX_POWER * limit_w:
            raise DroppedInterval(f"{power_w:.0f} W is above {MAX_POWER} × the limit {limit_w} W")
        if after.thermal_s > before.thermal_s and not self.calibrations[-1].always_slowed:
            raise DroppedInterval("the GPU was slowed down by heat or by its power brake")

    def _timed(
        self, program: Program, power_w: float, start_s: float, end_s: float, power_cap_s: float
    ) -> _Interval:
        """Time per execution from the submissions that ended within the dwell."""
        ends = [end for end in program.completions_s() if start_s <= end <= end_s]
        if len(ends) < 3:
            raise DroppedInterval(f"only {len(ends)} submissions ended within the dwell")
        gaps = np.diff(ends)
        usual_s = float(np.median(gaps))
        pauses_s = gaps[gaps > 1.5 * usual_s].sum()
        if not program.host_bound and pauses_s > STARVED * (end_s - start_s):
            raise DroppedInterval("the host was too slow to keep the GPU busy")
        low, high = np.quantile(gaps, (0.25, 0.75))
        return _Interval(
            power_w,
            float(gaps.mean()) / program.executions,
            float(high - low) / 2 / usual_s,
            len(gaps),
            power_cap_s,
        )

    def _conditions(self, program: Program, interval: _Interval) -> Conditions:
        sm_mhz, memory_mhz = self._sensor.clocks_mhz()
        return Conditions(
            energy_source=self.calibrations[-1].energy_source,
            burst_time_s=program.burst_time_s,
            host_time_s=program.host_time_s,
            idle_power_w=self.idle_power_w,
            temperature_c=self._sensor.temperature_c(),
            sm_clock_mhz=sm_mhz,
            memory_clock_mhz=memory_mhz,
            power_cap_s=interval.power_cap_s,
        )

    def _remarks(self, interval: _Interval) -> tuple[str, ...]:
        return ("power_capped",) if interval.power_cap_s > 0 else ()

    def _measure_idle(self) -> None:
        """Idle power by the counter; other sources keep that of the calibration."""
        found = self.calibrations[-1]
        if found.energy_source != COUNTER:
            return
        idle = Idle(self._gpu)
        try:
            first = self._edges.next(self._gpu.clock() + found.settle_s + 0.02, idle)
            last = self._edges.next(first.time_s + 1.5 * found.period_s, idle)
        except DroppedInterval:
            return  # the next time will do
        power_w = (last.energy_j - first.energy_j) / (last.time_s - first.time_s)
        if power_w > 0:
            self.idle_power_w = power_w


def _half(work: Workload) -> Workload:
    name = next((n for n in BATCH_NAMES if work.params.get(n, 0) > 1), None)
    if name is None:
        raise OutOfMemory(f"the device has too little memory for {work.kind} {dict(work.params)}")
    return replace(work, params=Params({**work.params, name: work.params[name] // 2}))


def _shown_power_w(sample: Sample, source: str) -> float:
    shown = sample.average_power_w if source == AVERAGE_POWER else sample.power_w
    return shown or 0.0
