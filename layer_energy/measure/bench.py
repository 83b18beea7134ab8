"""A bench measures workloads and whole models on one device: what the collector drives."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import Any, Protocol

from layer_energy.layers.base import workload
from layer_energy.measure import cpu
from layer_energy.measure.gpu import Build
from layer_energy.meters.base import Meter
from layer_energy.workload import Device, Measurement, NetworkMeasurement, Workload

CPU_REFERENCES = (
    workload("linear", tokens=256, in_features=1024, out_features=1024, bias=1),
    workload("copy", elements=1 << 22, run=1 << 22),
)
GPU_REFERENCES = (
    workload("linear", tokens=4096, in_features=4096, out_features=4096, bias=1),
    workload("copy", elements=1 << 26, run=1 << 26),
)
"""A compute-bound and a memory-bound layer, measured again and again."""


class Bench(Protocol):
    """Measures on one device.

    Attributes:
        device: which.
        meter: name of the source of joules.
        quality: of those, one of :data:`layer_energy.meters.base.QUALITIES`.
        raw: what a GPU's sensor said during the last measurement; empty on a CPU.
    """

    device: Device
    meter: str
    quality: str
    raw: Mapping[str, Any]

    def measure(self, work: Workload, row_id: int = 0, flags: Sequence[str] = ()) -> Measurement:
        """Measure a workload.

        Args:
            work: what.
            row_id: position in the plan.
            flags: the plan's remarks on the row; ``"hot"`` and ``"autotuned"`` are obeyed.

        Raises:
            DroppedInterval: if it failed a health check and may be tried again.
            MeasureError: if it cannot be measured.
            MeterError: if the source of joules is gone.
            DeviceLost: if this process can no longer use the device.
        """
        ...

    def measure_model(self, name: str, build: Build, dtype: str, mode: str) -> NetworkMeasurement:
        """Measure a whole model, run eagerly; the same errors as :meth:`measure`.

        Args:
            name: what to call it.
            build: makes the model and its positional inputs on torch's default device.
            dtype: ``"float32"``, ``"tf32"``, ``"bfloat16"`` or ``"float16"``.
            mode: one of :data:`layer_energy.optimization.MODES`.
        """
        ...

    def measure_as_graph(self, eager: NetworkMeasurement) -> NetworkMeasurement | None:
        """The model measured last again, as one CUDA graph.

        Args:
            eager: what :meth:`measure_model` just gave.

        Returns:
            ``None`` where that cannot be: on a CPU, for training steps, or if it is not captured.
        """
        ...

    def drifted(self) -> bool:
        """Whether the device is slower, or busier, than it usually is."""
        ...

    def between_rows(self) -> None:
        """Tidy up, before a row."""
        ...

    def clock(self) -> float:
        """Seconds, of which a collection's budget is made."""
        ...

    def energy_j(self) -> float | None:
        """Joules since this bench was made; ``None`` where they are not counted all the time."""
        ...

    def close(self) -> None:
        """Measure no more."""
        ...

    def protocol(self) -> Mapping[str, Any]:
        """How rows are measured: part of a collection's identity."""
        ...

    def facts(self) -> Mapping[str, Any]:
        """JSON-able facts of this run, for the dataset's provenance."""
        ...


class References:
    """Reference layers beside which rows are measured.

    Args:
        works: the layers.
        measure: one of them → what should stay the same, such as seconds.
        limit: relative rise above the median so far that counts as drift, three times in a row.
    """

    def __init__(
        self, works: Sequence[Workload], measure: Callable[[Workload], float], limit: float
    ) -> None:
        self._works = works
        self._measure = measure
        self._limit = limit
        self.values: tuple[list[float], ...] = tuple([] for _ in works)

    def drifted(self, only: int | None = None) -> bool:
        """Measure all references, or the one given; whether any drifted."""
        chosen = range(len(self._works)) if only is None else (only,)
        return max(self._one(self._works[i], self.values[i]) for i in chosen)

    def _one(self, work: Workload, values: list[float]) -> bool:
        usual = statistics.median(values) if values else math.inf
        value = self._measure(work)
        for _ in range(2):
            if value <= usual * (1 + self._limit):
                break
            value = min(value, self._measure(work))
        values.append(value)
        return value > usual * (1 + self._limit)


class CpuBench:
    """The processor torch runs on; see :mod:`layer_energy.measure.cpu` for the protocol."""

    DRIFT_LIMIT = 0.10
    raw: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, device: Device, meter: Meter, protocol: cpu.Protocol | None = None) -> None:
        self.device = device
        self.meter, self.quality = meter.name, meter.quality
        self._meter = meter
        self._protocol = protocol or cpu.Protocol()
        self._allocator = cpu.steady_allocator()
        quick = cpu.Protocol(dwell_s=0.05, attempts=1)
        self._references = References(
            CPU_REFERENCES,
            lambda work: cpu.measure(work, device, meter, quick).time_s,
            self.DRIFT_LIMIT,
        )
        self._references.drifted()

    def measure(self, work: Workload, row_id: int = 0, flags: Sequence[str] = ()) -> Measurement:
        """See :class:`Bench`."""
        return cpu.measure(work, self.device, self._meter, self._protocol, row_id, flags)

    def measure_model(self, name: str, build: Build, dtype: str, mode: str) -> NetworkMeasurement:
        """See :class:`Bench`."""
        return cpu.measure_model(name, build, dtype, mode, self._meter)

    def measure_as_graph(self, eager: NetworkMeasurement) -> NetworkMeasurement | None:
        """See :class:`Bench`."""
        return None

    def drifted(self) -> bool:
        """See :class:`Bench`."""
        return self._references.drifted()

    def between_rows(self) -> None:
        """See :class:`Bench`."""
        cpu.release_memory()

    clock = staticmethod(time.perf_counter)

    def energy_j(self) -> float | None:
        """See :class:`Bench`."""
        return None

    def close(self) -> None:
        """See :class:`Bench`."""

    def protocol(self) -> Mapping[str, Any]:
        """See :class:`Bench`."""
        return asdict(self._protocol)

    def facts(self) -> Mapping[str, Any]:
        """See :class:`Bench`."""
        return {
            "allocator": self._allocator,
            "network_protocol": asdict(cpu.MODEL_PROTOCOL),
            "meter_relative_uncertainty": self._meter.relative_uncertainty,
            "assumptions": list(self._meter.assumptions),
            **{
                name: getattr(self._meter, name)
                for name in ("idle_power_w", "max_power_w")
                if hasattr(self._meter, name)
            },
        }
