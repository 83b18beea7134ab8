"""One workload on the CPU → one ``Measurement``.

Protocol: the layer is built ``k`` times, so that weights and inputs rotate over three
times the last-level cache, as they do inside a network; it is warmed up, then executed in
``repeats`` timed segments that together last ``dwell_s``. Time per execution is the median of the
segments, ``spread`` the half-width of their middle half, power is the meter's mean over the whole
dwell, and energy per execution is that power times that time. A row whose spread is large is
measured again, and flagged if it stays so.
"""

from __future__ import annotations

import ctypes
import functools
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from layer_energy.errors import MeasureError
from layer_energy.layers.base import count
from layer_energy.measure.gpu import Build, input_text
from layer_energy.measure.layer import executions, rotation
from layer_energy.measure.network import network
from layer_energy.meters.base import Meter, average_power_w
from layer_energy.workload import Device, Measurement, NetworkMeasurement, Workload


@dataclass(frozen=True)
class Protocol:
    """How long and how often; the defaults give a repeat spread near 1 % on a quiet machine.

    Attributes:
        dwell_s: measured seconds per attempt.
        repeats: timed segments, at most; slow layers get at least three.
        attempts: measurements of a noisy row before it is flagged.
        noisy_spread: relative spread above which a row is measured again.
        time_cap_s: a layer slower than this is recorded as ``too_slow`` and not used.
        bytes_cap: a layer larger than this is refused.
    """

    dwell_s: float = 0.1
    repeats: int = 7
    attempts: int = 3
    noisy_spread: float = 0.05
    time_cap_s: float = 0.6
    bytes_cap: int = 1 << 30


MODEL_PROTOCOL = Protocol(dwell_s=3.0, repeats=9, time_cap_s=30.0, noisy_spread=0.03)
"""For whole models."""


@dataclass(frozen=True)
class Timing:
    """What a dwell gave; see ``Measurement`` for the fields."""

    time_s: float
    power_w: float
    spread: float
    repeats: int
    executions: int


@functools.cache
def steady_allocator() -> str:
    """Keep freed memory inside the process, as a long-running service does; return what was set.

    glibc hands large blocks back to the system and faults them in again at every execution, which
    can triple the time of a network of large activations. Measured rows and measured networks both
    run under this setting, and the dataset's provenance names it.
    """
    if platform.libc_ver()[0] != "glibc":
        return "default"
    libc = ctypes.CDLL(None)
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(top_pad, 64 << 20)
    return "glibc: M_MMAP_MAX=0 M_TRIM_THRESHOLD=2^31-1 M_TOP_PAD=64MiB"


def release_memory() -> None:
    """Give the heap's free pages back to the system; between rows, never inside a dwell."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def measure(
    workload: Workload,
    device: Device,
    meter: Meter,
    protocol: Protocol | None = None,
    row_id: int = 0,
    flags: Sequence[str] = (),
) -> Measurement:
    """Measure one workload; the flags given come first in the row's.

    Raises:
        MeasureError: if the layer needs more than ``bytes_cap``, memory runs out, or torch cannot
            run it on this device.
    """
    protocol = protocol or Protocol()
    cost, _ = count(workload)
    if cost.bytes > protocol.bytes_cap:
        raise MeasureError(
            f"{workload.kind} moves {cost.bytes / 2**30:.1f} GiB, above the cap of "
            f"{protocol.bytes_cap / 2**30:.1f} GiB"
        )
    flags = list(flags)
    try:
        with torch.inference_mode(workload.gradients == "none"):
            runs = executions(workload, rotation(device, cost.bytes))

            def execute(times: int) -> None:
                for _ in range(times):
                    next(runs)()

            timing = dwell(execute, meter, protocol)
    except (RuntimeError, MemoryError) as error:
        raise MeasureError(f"{workload.kind} {dict(workload.params)}: {error}") from error
    if timing.time_s > protocol.time_cap_s:
        flags.append("too_slow")
    if timing.spread > protocol.noisy_spread:
        flags.append("noisy")
    return Measurement(
        workload=workload,
        time_s=timing.time_s,
        energy_j=timing.power_w * timing.time_s,
        power_w=timing.power_w,
        spread=timing.spread,
        repeats=timing.repeats,
        executions=timing.executions,
        quality=meter.quality,
        meter=meter.name,
        flags=tuple(flags),
        row_id=row_id,
    )


def measure_model(
    name: str,
    build: Build,
    dtype: str,
    mode: str,
    meter: Meter,
    protocol: Protocol = MODEL_PROTOCOL,
) -> NetworkMeasurement:
    """Measure the forward pass, or a training step, of a whole model.

    Args:
        name: what to call it.
        build: makes the model and its positional inputs, of which four copies rotate.
        dtype: ``"float32"``; others are not measured on a CPU.
        mode: one of :data:`layer_energy.optimization.MODES`.
        meter: the source of joules.
        protocol: how long and how often.

    Raises:
        MeasureError: if it cannot be run.
    """
    if dtype != "float32":
        raise MeasureError(f"{name}: a CPU is measured in float32, not {dtype}")
    steady_allocator()
    try:
        model, inputs = build()
        rotating = [
            [torch.randn_like(t) if t.is_floating_point() else t for t in inputs] for _ in "1234"
        ]
        run = network(model, rotating, mode)

        def execute(times: int) -> None:
            for _ in range(times):
                run()

        timing = dwell(execute, meter, protocol)
    except (RuntimeError, ValueError, MemoryError) as error:
        raise MeasureError(f"{name}: {error}") from error
    return NetworkMeasurement(
        model=name,
        batch_size=inputs[0].shape[0],
        input=input_text(inputs),
        dtype=dtype,
        mode=mode,
        time_s=timing.time_s,
        energy_j=timing.power_w * timing.time_s,
        power_w=timing.power_w,
        spread=timing.spread,
        repeats=timing.repeats,
        quality=meter.quality,
        meter=meter.name,
        flags=("noisy",) if timing.spread > protocol.noisy_spread else (),
    )


def dwell(execute: Callable[[int], None], meter: Meter, protocol: Protocol) -> Timing:
    """Warm up, then time ``execute(n)``; the quietest of up to ``attempts`` dwells."""
    start = time.perf_counter()
    execute(1)
    first = time.perf_counter() - start
    if first > protocol.time_cap_s:  # one more, now warm, is all that the cap allows
        return _timed(execute, meter, segments=1, executions=1)
    start = time.perf_counter()
    execute(1)
    warm = time.perf_counter() - start
    while warm < 0.002 and time.perf_counter() - start < 0.01:
        before = time.perf_counter()
        execute(8)
        warm = (time.perf_counter() - before) / 8
    segments = max(3, min(protocol.repeats, int(protocol.dwell_s / warm)))
    executions = max(1, round(protocol.dwell_s / segments / warm))
    best = _timed(execute, meter, segments, executions)
    for _ in range(protocol.attempts - 1):
        if best.spread <= protocol.noisy_spread:
            break
        best = min(best, _timed(execute, meter, segments, executions), key=lambda t: t.spread)
    return best


def _timed(execute: Callable[[int], None], meter: Meter, segments: int, executions: int) -> Timing:
    times = []
    first = meter.read()
    for _ in range(segments):
        start = time.perf_counter()
        execute(executions)
        times.append((time.perf_counter() - start) / executions)
    power_w = average_power_w(first, meter.read())
    median = statistics.median(times)
    low, _, high = statistics.quantiles(times) if len(times) > 1 else (median,) * 3
    return Timing(median, power_w, (high - low) / 2 / median, segments, segments * executions)
