"""Which workloads to measure: random, log-uniform, and stratified on MACs and bytes."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from layer_energy.errors import InvalidInput
from layer_energy.layers.base import count, differentiated, kinds, layer_type
from layer_energy.layers.memory import GENERIC
from layer_energy.layers.optimizer import OPTIMIZER_STEPS
from layer_energy.workload import Cost, Gradients, Params, Workload

PAPER_KINDS = ("conv2d", "max_pool2d", "linear", "relu", "tanh", "sigmoid", "softmax", "batch_norm")
"""The seven layer types of Getzner et al. 2023, and batch normalisation."""

CONVOLUTIONS = {"dense": 0.64, "depthwise": 0.2, "grouped": 0.16}
"""Share of two-dimensional convolutions by kernel: each has a price of its own."""

CANDIDATES = 12
"""Draws per row, of which the one in the emptiest stratum is kept."""

CPU_SECONDS_PER_ROW, CPU_SECONDS_PER_NETWORK = 0.3, 10.0
GPU_SECONDS_PER_ROW, GPU_SECONDS_PER_NETWORK = 0.45, 3.5
"""What they took on a small CPU, and on an H100; for the estimate of ``--dry-run``."""


@dataclass(frozen=True)
class Limits:
    """Rough rates of a device: they only keep hopelessly large layers out of the plan."""

    macs_per_s: float
    bytes_per_s: float
    time_s: float
    bytes: int

    def allow(self, cost: Cost) -> bool:
        """Whether a workload of this cost is worth its time."""
        time_s = cost.macs / self.macs_per_s + cost.bytes / self.bytes_per_s
        return time_s < self.time_s and cost.bytes < self.bytes and cost.elements < 2**31


CPU_LIMITS = Limits(4e10, 4e9, 0.3, 320 << 20)
CPU_TRAINING_LIMITS = Limits(4e10, 4e9, 0.4, 640 << 20)
GPU_LIMITS = Limits(2e13, 1.5e12, 5e-3, 16 << 30)


@dataclass(frozen=True, slots=True)
class Job:
    """A row to measure.

    Attributes:
        workload: what.
        flags: remarks that end up in the row: ``"hot"`` and ``"autotuned"`` change how it runs,
            ``"test"``, ``"repeat"`` and ``"validation"`` say what it is for.
    """

    workload: Workload
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NetworkJob:
    """A whole network to measure.

    Attributes:
        model: see :func:`layer_energy.models.build_model`.
        input: shape without the batch, such as ``"3,224,224"`` or ``"128:int64"``; inferred if
            empty.
        batch_size: samples.
        dtype: ``"float32"``, ``"tf32"``, ``"bfloat16"`` or ``"float16"``.
        mode: one of :data:`layer_energy.optimization.MODES`.
        exact: each of its layers is among the plan's rows, measured exactly.
    """

    model: str
    input: str
    batch_size: int
    dtype: str = "float32"
    mode: str = "inference"
    exact: bool = False


@dataclass(frozen=True)
class Plan:
    """Everything that a collection is to measure.

    Attributes:
        jobs: rows; the position is the ``row_id``.
        networks: whole networks, interleaved with the rows.
        identity: JSON-able facts; an interrupted collection is resumed only by an equal plan.
        fills_budget: it holds more than time allows: nothing is put off, and however a collection
            of it ends, what was measured is written as a dataset.
    """

    jobs: tuple[Job, ...]
    networks: tuple[NetworkJob, ...] = ()
    identity: dict[str, Any] = field(default_factory=dict)
    fills_budget: bool = False

    def __post_init__(self) -> None:
        content = repr((self.jobs, self.networks))
        self.identity["plan_crc"] = zlib.crc32(content.encode())


def default_rows() -> dict[str, int]:
    """Rows per layer type: most for the types where the joules of networks go."""
    rows = {kind: 105 for kind in kinds() if kind not in (GENERIC, *OPTIMIZER_STEPS)}
    rows |= dict.fromkeys(PAPER_KINDS, 315)
    rows |= {"conv2d": 800, "linear": 420, "matmul": 160, "attention": 160, "add": 160, "copy": 200}
    return rows


def default_training_rows() -> dict[str, int]:
    """The same for forward and backward passes, and steps of optimizers."""
    rows = {}
    for kind in kinds():
        if kind != GENERIC and layer_type(kind).differentiable:
            rows[kind] = 100 if _has_weights(kind) else 30
    rows |= {"conv2d": 700, "linear": 360, "batch_norm": 300, "layer_norm": 150, "matmul": 120}
    rows |= {"attention": 140, "relu": 120, "max_pool2d": 120, "add": 100, "mul": 100, "cat": 100}
    return rows | dict.fromkeys(OPTIMIZER_STEPS, 105)


def make_plan(
    rows: Mapping[str, int], seed: int = 0, dtype: str = "float32", training: bool = False
) -> Plan:
    """Draw ``rows[kind]`` distinct workloads of each kind, in random order, for a CPU.

    The same arguments give the same plan.

    Args:
        rows: layer type → how many.
        seed: of the drawing.
        dtype: of the workloads.
        training: forward and backward passes instead of forward passes.

    Raises:
        InvalidInput: for a kind that cannot be sampled or a non-positive number of rows.
    """
    chosen: list[Workload] = []
    for kind in sorted(rows):
        if rows[kind] < 1:
            raise InvalidInput(f"rows of {kind} must be at least 1, got {rows[kind]}")
        rng = Random(f"{seed}/{kind}")
        if training:
            drawn = sample(kind, rows[kind], rng, CPU_TRAINING_LIMITS, dtype)
            chosen += dict.fromkeys(with_gradients(i, work, rng) for i, work in enumerate(drawn))
        else:
            chosen += sample(kind, rows[kind], rng, CPU_LIMITS, dtype)
    Random(seed).shuffle(chosen)  # sorted by size, thermal drift would look like a size effect
    identity: dict[str, Any] = {"seed": seed, "rows": dict(sorted(rows.items()))}
    if training:
        identity["mode"] = "training"
    return Plan(tuple(map(Job, chosen)), identity=identity)


def with_gradients(number: int, work: Workload, rng: Random) -> Workload:
    """A forward workload, the ``number``-th of its kind → one of a training step.

    Every other one has all its gradients.
    """
    gradients: Gradients = ("both", "weight", "both", "input")[number % 4]
    if work.kind == "embedding":
        gradients = "weight"
    if work.params.get("affine") == 0:
        gradients = "input"
    if "training" in work.params and rng.random() < 0.9:
        params = Params({**work.params, "training": 1})
        if params["batch"] * params["spatial"] > 1:
            work = Workload(work.kind, params, work.dtype)
    return differentiated(work, gradients)


def _has_weights(kind: str) -> bool:
    rng = Random(0)
    drawn = (layer_type(kind).sample(rng) for _ in range(100))
    return any(count(Workload(kind, Params(p)))[0].bytes_weight for p in drawn if p is not None)


def sample(
    kind: str,
    rows: int,
    rng: Random,
    limits: Limits,
    dtype: str = "float32",
    keep: Callable[[Workload], bool] = lambda workload: True,
    seen: Iterable[Workload] = (),
) -> list[Workload]:
    """Draw distinct workloads of one layer type, always into the emptiest stratum.

    Of two-dimensional convolutions each kind of kernel gets its share.

    Args:
        kind: the layer type.
        rows: how many; fewer come back where its space is too small.
        rng: source of randomness.
        limits: of what is worth measuring.
        dtype: of the workloads.
        keep: only workloads for which this is true.
        seen: workloads that are there already; they fill strata and do not come again.

    Raises:
        InvalidInput: for a kind that cannot be sampled.
    """
    if kind == GENERIC:
        raise InvalidInput("'generic' prices what no layer type claims; it cannot be measured")
    if kind != "conv2d":
        return _sample(kind, rows, rng, limits, dtype, keep, seen)
    parts = {part: round(share * rows) for part, share in CONVOLUTIONS.items()}
    parts["dense"] += rows - sum(parts.values())
    chosen: list[Workload] = []
    for part, wanted in parts.items():

        def fits(work: Workload, part: str = part) -> bool:
            return _convolution(work) == part and keep(work)

        chosen += _sample(kind, wanted, rng, limits, dtype, fits, [*seen, *chosen])
    return chosen


def _convolution(work: Workload) -> str:
    groups = work.params["groups"]
    if groups == 1:
        return "dense"
    return "depthwise" if groups == work.params["in_channels"] else "grouped"


def _sample(
    kind: str,
    rows: int,
    rng: Random,
    limits: Limits,
    dtype: str,
    keep: Callable[[Workload], bool],
    seen: Iterable[Workload],
) -> list[Workload]:
    known = dict.fromkeys(seen)
    filled = Counter(_stratum(count(w)[0]) for w in known)
    chosen: dict[Workload, None] = {}
    for _ in range(rows * 50):
        if len(chosen) == rows:
            break
        candidates = []
        for _ in range(CANDIDATES):
            drawn = _draw(kind, rng, limits, dtype, keep)
            if drawn is not None and drawn not in chosen and drawn not in known:
                candidates.append(drawn)
        if candidates:
            best = min(candidates, key=lambda w: filled[_stratum(count(w)[0])])
            filled[_stratum(count(best)[0])] += 1
            chosen[best] = None
    return list(chosen)


def _draw(
    kind: str, rng: Random, limits: Limits, dtype: str, keep: Callable[[Workload], bool]
) -> Workload | None:
    params = layer_type(kind).sample(rng)
    if params is None:
        return None
    workload = Workload(kind, Params(params), dtype)
    if not keep(workload):
        return None
    return workload if limits.allow(count(workload)[0]) else None


def _stratum(cost: Cost) -> tuple[int, int]:
    """Decade of MACs and half-decade of bytes; all below 1e4 of either is one stratum."""
    return (
        max(4, int(math.log10(max(cost.macs, 1)))),
        max(8, int(2 * math.log10(max(cost.bytes, 1)))),
    )
