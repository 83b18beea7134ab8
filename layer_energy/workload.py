"""The values that every other room exchanges. Standard library only.

A *workload* (layer type, parameters, dtype, gradients) is the one currency: the sampler draws
workloads, the collector measures them, the regressors are fitted on them, and the walker turns
any ``nn.Module`` into them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Gradients = Literal["none", "input", "weight", "both"]
GRADIENTS: tuple[Gradients, ...] = ("none", "input", "weight", "both")

ITEMSIZE_BYTES = {
    "float64": 8, "float32": 4, "tf32": 4, "float16": 2, "bfloat16": 2,
    "complex64": 8, "complex128": 16,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1,
    "qint8": 1, "quint8": 1, "qint32": 4, "float8_e4m3fn": 1, "float8_e5m2": 1,
}  # fmt: skip


class Params(Mapping[str, int]):
    """Immutable, hashable parameters of a layer: name → integer (booleans are 0 or 1)."""

    __slots__ = ("_hash", "_items")

    def __init__(self, items: Mapping[str, int]) -> None:
        self._items = dict(items)
        self._hash = hash(tuple(sorted(self._items.items())))

    def __getitem__(self, key: str) -> int:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Params):
            return self._hash == other._hash and self._items == other._items
        return isinstance(other, Mapping) and self._items == dict(other)

    def __repr__(self) -> str:
        return "Params(" + ", ".join(f"{k}={v}" for k, v in self._items.items()) + ")"


@dataclass(frozen=True, slots=True)
class Workload:
    """One layer execution, complete enough to build it, count it and price it.

    Attributes:
        kind: name of a registered layer type, such as ``"conv2d"``.
        params: the layer type's parameters, batch included.
        dtype: torch's name of the compute dtype, such as ``"float32"``; ``"tf32"`` is float32 with
            matrix products in TensorFloat-32.
        gradients: what a training step pays for this call besides the forward pass.
    """

    kind: str
    params: Params
    dtype: str = "float32"
    gradients: Gradients = "none"

    @property
    def itemsize_bytes(self) -> int:
        """Bytes per element of the compute dtype (4 for a dtype this table does not know)."""
        return ITEMSIZE_BYTES.get(self.dtype, 4)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a forward execution does, counted from its parameters alone.

    Attributes:
        macs: multiply-accumulate operations of convolutions and matrix products; 0 for the rest.
        bytes_in: bytes of activations read.
        bytes_weight: bytes of weights, biases and running statistics read.
        bytes_out: bytes written.
        elements: elements written.
    """

    macs: int
    bytes_in: int
    bytes_weight: int
    bytes_out: int
    elements: int

    def __mul__(self, times: int) -> Cost:
        """Of so many executions."""
        if times == 1:
            return self
        return Cost(
            times * self.macs, times * self.bytes_in, times * self.bytes_weight,
            times * self.bytes_out, times * self.elements,
        )  # fmt: skip

    @property
    def bytes(self) -> int:
        """All memory traffic, were nothing kept in a cache."""
        return self.bytes_in + self.bytes_weight + self.bytes_out


@dataclass(frozen=True, slots=True)
class Conditions:
    """The state of a GPU while a row was measured.

    Attributes:
        energy_source: where the joules came from: ``"counter"``, ``"instant power"``,
            ``"average power"`` or ``"assumed power"``.
        burst_time_s: seconds per execution in the first milliseconds, before power capping.
        host_time_s: seconds of the host per eager execution; ``None`` if not measured.
        idle_power_w: power of the device, ready and without work, last time it was measured.
        temperature_c: of the GPU; ``None`` if not read.
        sm_clock_mhz: clock of the multiprocessors; ``None`` if not read.
        memory_clock_mhz: clock of the memory; ``None`` if not read.
        power_cap_s: seconds of the dwell in which the power limit lowered the clocks.
        counter_power_w: what the energy counter gave for the row; ``None`` if not kept.
        instant_power_w: what instant power gave for it; ``None`` if not kept.
        burst_power_w: power in the first tenths of a second, before the power limit acted;
            ``None`` if it did not act.
        board: name of the board, where a dataset holds several of one model.
    """

    energy_source: str
    burst_time_s: float
    host_time_s: float | None
    idle_power_w: float
    temperature_c: float | None
    sm_clock_mhz: float | None
    memory_clock_mhz: float | None
    power_cap_s: float
    counter_power_w: float | None = None
    instant_power_w: float | None = None
    burst_power_w: float | None = None
    board: str | None = None


Launch = Literal["eager", "graph"]
LAUNCHES: tuple[Launch, ...] = ("eager", "graph")
"""How a GPU gets its kernels: one call of the host after the other, or all as one CUDA graph."""


UNUSABLE_FLAGS = frozenset({"failed", "too_slow", "hot", "autotuned", "launch_bound", "validation"})
"""Flags of rows that no regressor is fitted on: without result, of another state than that of
layers in a network by default, slowed by the host, or kept to judge."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One measured workload.

    Attributes:
        workload: what ran.
        time_s: median seconds per execution.
        energy_j: joules per execution: mean power over the dwell × ``time_s``.
        power_w: mean power over the dwell.
        spread: relative half-width of the middle half of the repeats' times.
        repeats: timed repeats.
        executions: executions inside them.
        quality: of the joules: ``"measured"`` (a counter), ``"estimated"`` (time × assumed power),
            ``"simulated"`` or ``"replayed"``.
        meter: name of the energy source.
        flags: names of everything unusual about this row; empty for a clean one.
        row_id: position in the plan that asked for it.
        conditions: of a GPU; ``None`` for rows of a CPU.
    """

    workload: Workload
    time_s: float
    energy_j: float
    power_w: float
    spread: float
    repeats: int
    executions: int
    quality: str
    meter: str
    flags: tuple[str, ...] = ()
    row_id: int = 0
    conditions: Conditions | None = None

    @property
    def usable(self) -> bool:
        """Whether a regressor may be fitted on this row."""
        return self.time_s > 0 and UNUSABLE_FLAGS.isdisjoint(self.flags)

    @property
    def energy_above_idle_j(self) -> float | None:
        """Joules above what the device draws without work; ``None`` where that is not known."""
        if self.conditions is None:
            return None
        return self.energy_j - self.conditions.idle_power_w * self.time_s


@dataclass(frozen=True, slots=True)
class NetworkMeasurement:
    """One measured execution of a whole network.

    Attributes:
        model: name of the network.
        batch_size: samples in the input.
        input: shape of the input, such as ``"8x3x224x224"`` or ``"8x128:int64"``.
        dtype: torch's name of the compute dtype.
        mode: what ran, such as ``"inference"``.
        time_s: median seconds per execution.
        energy_j: joules per execution.
        power_w: mean power over the dwell.
        spread: relative half-width of the middle half of the repeats' times.
        repeats: timed repeats.
        quality: ``"measured"`` or ``"estimated"``.
        meter: name of the energy source.
        flags: names of everything unusual about this row.
        layers_time_s: sum over its layers, each measured exactly; ``None`` if not measured.
        layers_energy_j: the same for energy.
        conditions: of a GPU; ``None`` for rows of a CPU.
        launch: of a GPU, one of ``LAUNCHES``; ``None`` for a CPU and where it is not known.
    """

    model: str
    batch_size: int
    input: str
    dtype: str
    mode: str
    time_s: float
    energy_j: float
    power_w: float
    spread: float
    repeats: int
    quality: str
    meter: str
    flags: tuple[str, ...] = ()
    layers_time_s: float | None = None
    layers_energy_j: float | None = None
    conditions: Conditions | None = None
    launch: Launch | None = None


@dataclass(frozen=True, slots=True)
class Device:
    """The hardware and software a dataset was measured on.

    Attributes:
        name: as the vendor prints it.
        kind: ``"cpu"`` or ``"cuda"``.
        slug: file-system name, ``datasets/<slug>/`` and ``profiles/<slug>.json``.
        threads: compute threads used (CPU) or 1.
        cache_bytes: size of the last-level cache.
        details: further facts: torch version, driver, allocator settings.
    """

    name: str
    kind: str
    slug: str
    threads: int
    cache_bytes: int
    details: Mapping[str, Any] = field(default_factory=dict, hash=False)
