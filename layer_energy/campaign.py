"""Campaigns: rows and networks together; on a GPU, disjoint shards of them that fill a budget."""

from __future__ import annotations

import csv
import functools
import zlib
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

from layer_energy.errors import InvalidInput, LayerEnergyError
from layer_energy.layers.base import count, layer_type
from layer_energy.networks import build_on_meta, layers_of
from layer_energy.optimization import MODES
from layer_energy.plan import (
    GPU_LIMITS,
    OPTIMIZER_STEPS,
    Job,
    NetworkJob,
    Plan,
    make_plan,
    sample,
    with_gradients,
)
from layer_energy.workload import Workload

NETWORKS_FILE = Path(__file__).with_name("campaign_networks.csv")

ROWS = {
    "conv1d": 120, "conv2d": 1050, "conv3d": 160, "conv_transpose1d": 44, "conv_transpose2d": 130,
    "conv_transpose3d": 44, "linear": 530, "matmul": 350, "batch_norm": 180, "layer_norm": 170,
    "group_norm": 110, "instance_norm": 60, "rms_norm": 100, "attention": 450, "relu": 110,
    "gelu": 100, "silu": 100, "sigmoid": 50, "tanh": 60, "hardswish": 50, "hardsigmoid": 44,
    "relu6": 50, "leaky_relu": 40, "elu": 40, "mish": 40, "softplus": 40, "max_pool1d": 40,
    "max_pool2d": 110, "max_pool3d": 40, "avg_pool1d": 40, "avg_pool2d": 60, "avg_pool3d": 40,
    "adaptive_avg_pool1d": 40, "adaptive_avg_pool2d": 60, "adaptive_avg_pool3d": 40,
    "adaptive_max_pool1d": 40, "adaptive_max_pool2d": 40, "adaptive_max_pool3d": 40, "add": 110,
    "mul": 100, "div": 40, "cat": 100, "copy": 110, "fill": 40, "dropout": 50, "transcendental": 50,
    "compare": 44, "gather": 50, "reduction": 70, "softmax": 160, "log_softmax": 60,
    "embedding": 130, "lstm": 60, "gru": 50, "rnn": 50, "interpolate_bilinear": 50,
    "interpolate_nearest": 50, "interpolate_bicubic": 40, "grid_sample": 40,
    "nll_loss": 40, "mse_loss": 40,
}  # fmt: skip
"""Rows per layer type in three shards of nine minutes at an update every 100 ms."""

OPTIMIZER_ROWS = 34
"""Rows per kind of optimizer step, in a campaign of training."""

OVERSIZE = 1.6
"""Plans hold this many times those rows, for boards whose counter is faster."""

MANY_ROWS, ENOUGH_ROWS = 400, 100
"""Layer types with many rows are measured in every precision, those with enough in the usual ones;
of the others every row in float32 is needed for a fit."""

ARITHMETIC = {"float32": 0.31, "tf32": 0.29, "bfloat16": 0.4}
ARITHMETIC_AND_HALF = {"float32": 0.28, "tf32": 0.27, "bfloat16": 0.4, "float16": 0.05}
MEMORY = {"float32": 0.5, "bfloat16": 0.5}
"""Share of rows by precision, of layers with and without multiply-accumulates."""

REAL_SHARE, HOT_SHARE, AUTOTUNED_SHARE, REPEAT_SHARE = 0.15, 0.15, 0.05, 0.03
TEST_MODULUS = 10
"""One workload in this many is for testing only, always the same ones."""

REAL_NETWORKS = (
    "vgg16_bn", "resnext101_64x4d", "densenet169", "mnasnet0_75", "shufflenet_v2_x1_0",
    "efficientnet_b2", "regnet_y_1_6gf", "convnext_small", "vit_l_32", "swin_s", "hf:mpnet",
)  # fmt: skip
"""Their layers are among the rows; none of them is among the networks that judge."""

REAL_BATCHES = (1, 16, 64)
CPU_BATCHES = (1, 8)

NETWORK_MODES = (
    ("float32", "inference"),
    ("tf32", "inference"),
    ("bfloat16", "inference"),
    ("tf32", "training"),
)
TRAINING_MODES = (
    ("tf32", "training"),
    ("bfloat16", "training"),
    ("bfloat16", "training-adamw"),
    ("tf32", "head-training"),
)


def campaign(
    shard: tuple[int, int] = (1, 1), seed: int = 0, training: bool = False, rows: float = 1.0
) -> Plan:
    """Plan a campaign, more than time allows; its budget ends it.

    Args:
        shard: ``(k, n)``, the k-th of n disjoint parts.
        seed: of the sampling.
        training: forward and backward passes and optimizer steps, instead of forward passes.
        rows: times the default number of rows.

    Raises:
        InvalidInput: for a shard that is not one.
    """
    k, n = shard
    if not 1 <= k <= n:
        raise InvalidInput(f"a shard is K/N with 1 <= K <= N, got {k}/{n}")
    rng = Random(f"{seed}/{k}/{n}")
    modes = TRAINING_MODES if training else NETWORK_MODES
    networks = _networks_in_turn(campaign_networks()[k - 1 :: n], modes)
    exact = [] if training else _exact(networks)
    jobs = [Job(work, ("validation",)) for work in exact]
    jobs += _random_jobs(shard, f"{seed}/{k}/{n}", OVERSIZE * rows, training)
    jobs += [
        replace(job, flags=(*job.flags, "repeat"))
        for job in rng.sample(jobs[len(exact) :], round(REPEAT_SHARE * (len(jobs) - len(exact))))
    ]
    head, tail = jobs[: len(exact)], jobs[len(exact) :]
    rng.shuffle(tail)
    identity = {
        "seed": seed,
        "shard": f"{k}/{n}",
        "mode": "training" if training else "inference",
    }
    return Plan((*head, *tail), tuple(networks), identity, fills_budget=True)


def cpu_campaign(
    rows: Mapping[str, int],
    training_rows: Mapping[str, int],
    networks: Sequence[str] = (),
    seed: int = 0,
) -> Plan:
    """Plan a campaign on a CPU: everything in random order, so that all sees the same hours.

    The speed of a shared machine wanders within hours: what is measured one after the other cannot
    be compared as well as what is mixed.

    Args:
        rows: layer type → how many forward passes.
        training_rows: the same of forward and backward passes, and steps of optimizers.
        networks: names, see :func:`layer_energy.models.build_model`; measured between the rows.
            Where there are ``rows``, their forward passes are, and each of their layers exactly;
            where there are ``training_rows``, their training steps.
        seed: of the drawing.

    Raises:
        InvalidInput: for a kind that cannot be sampled, a non-positive number of rows, or a network
            that cannot be built.
    """
    whole: list[NetworkJob] = []
    judged: dict[Workload, None] = {}
    for name in networks:
        model, _ = build_on_meta(NetworkJob(name, "", 1))  # a wrong name is told before the work
        if rows:
            forward = [NetworkJob(name, "", size, exact=True) for size in CPU_BATCHES]
            judged |= dict.fromkeys(work for job in forward for work in layers_of(job, model))
            whole += forward
        if training_rows:
            steps = [mode for mode in MODES if mode != "inference"]
            whole += [NetworkJob(name, "", CPU_BATCHES[-1], mode=mode) for mode in steps]
    drawn = (*make_plan(rows, seed).jobs, *make_plan(training_rows, seed, training=True).jobs)
    jobs = [Job(work, ("validation",)) for work in judged]
    jobs += [job for job in drawn if job.workload not in judged]
    rng = Random(seed)
    rng.shuffle(jobs)
    rng.shuffle(whole)
    identity = {
        "seed": seed,
        "mode": "all" if rows and training_rows else "training" if training_rows else "inference",
        "rows": dict(sorted(rows.items())),
        "training_rows": dict(sorted(training_rows.items())),
        "networks": list(networks),
    }
    return Plan(tuple(jobs), tuple(whole), identity)


def campaign_networks() -> list[NetworkJob]:
    """The networks that judge, as the file in this package names them."""
    with NETWORKS_FILE.open(encoding="utf-8", newline="") as file:
        return [
            NetworkJob(
                row["model"], row["input"], int(row["batch_size"]), exact=row["exact"] == "yes"
            )
            for row in csv.DictReader(file)
        ]


def _networks_in_turn(
    networks: Sequence[NetworkJob], modes: Sequence[tuple[str, str]]
) -> list[NetworkJob]:
    """Every network in every mode; each once before any comes again, modes evenly mixed."""
    jobs = []
    for turn in range(len(modes)):
        for i, network in enumerate(networks):
            start = 0 if network.exact else i
            dtype, mode = modes[(start + turn) % len(modes)]
            exact = network.exact and (dtype, mode) == ("float32", "inference")
            jobs.append(replace(network, dtype=dtype, mode=mode, exact=exact))
    return jobs


def _exact(networks: Iterable[NetworkJob]) -> list[Workload]:
    """Every distinct layer of the networks chosen for that; of those that can be built here."""
    found: dict[Workload, None] = {}
    for job in networks:
        if job.exact:
            found.update(dict.fromkeys(_layers_or_none(job.model, job.input, (job.batch_size,))))
    return list(found)


def _random_jobs(shard: tuple[int, int], seed: str, scale: float, training: bool) -> list[Job]:
    judged, real = _judged_layers(), _real_layers()
    rows = {k: n for k, n in ROWS.items() if not training or layer_type(k).differentiable}
    if training:
        rows |= dict.fromkeys(OPTIMIZER_STEPS, OPTIMIZER_ROWS)
    jobs: list[Job] = []
    for kind, total in rows.items():
        for dtype, share in _precisions(kind, total).items():
            wanted = max(1, round(scale * share * total / shard[1]))
            rng = Random(f"{seed}/{kind}/{dtype}")
            jobs += _jobs_of(kind, dtype, wanted, shard, rng, real[kind], judged, training)
    return jobs


def _jobs_of(
    kind: str,
    dtype: str,
    rows: int,
    shard: tuple[int, int],
    rng: Random,
    real: Iterable[Workload],
    judged: Container[Workload],
    training: bool,
) -> Iterator[Job]:
    """Rows of one layer type and dtype: real shapes first, then the emptiest strata."""
    k, n = shard

    def mine(work: Workload) -> bool:
        crc = zlib.crc32(repr(work).encode())
        if work.dtype == "bfloat16" and work.params.get("channels_last") == 0 and crc % 16 >= 4:
            return False  # with a quarter of these, half of the convolutions are channels last
        return replace(work, dtype="float32") not in judged and crc // 16 % n == k - 1

    shapes = [replace(work, dtype=dtype) for work in real]
    shapes = [w for w in shapes if mine(w) and GPU_LIMITS.allow(count(w)[0])]
    chosen = rng.sample(shapes, min(len(shapes), round(REAL_SHARE * rows)))
    chosen += sample(kind, rows - len(chosen), rng, GPU_LIMITS, dtype, mine, seen=chosen)
    for number, work in enumerate(chosen):
        flags = []
        if _of_the_test_set(work):
            flags.append("test")
        if rng.random() < HOT_SHARE:
            flags.append("hot")
        elif kind.startswith("conv") and rng.random() < AUTOTUNED_SHARE:
            flags.append("autotuned")
        yield Job(with_gradients(number, work, rng) if training else work, tuple(flags))


def _of_the_test_set(work: Workload) -> bool:
    return zlib.crc32(f"test/{work.kind}/{work.params!r}".encode()) % TEST_MODULUS == 0


def _precisions(kind: str, rows: int) -> dict[str, float]:
    if rows < ENOUGH_ROWS:
        return {"float32": 1.0}
    if not (kind in ("linear", "matmul", "attention") or kind.startswith("conv")):
        return MEMORY
    return ARITHMETIC_AND_HALF if rows >= MANY_ROWS else ARITHMETIC


@functools.cache
def _judged_layers() -> frozenset[Workload]:
    """Layers of the networks that are measured exactly: no regressor may know them."""
    return frozenset(
        work
        for job in campaign_networks()
        if job.exact
        for work in _layers_or_none(job.model, job.input, (job.batch_size,))
    )


@functools.cache
def _real_layers() -> Mapping[str, list[Workload]]:
    """Layers of networks that do not judge, by layer type; of those that can be built here."""
    found: dict[str, dict[Workload, None]] = defaultdict(dict)
    for name in REAL_NETWORKS:
        shape = "128:int64" if name.startswith("hf:") else ""
        for work in _layers_or_none(name, shape, REAL_BATCHES):
            if work.dtype == "float32":
                found[work.kind][work] = None
    return defaultdict(list, {kind: list(works) for kind, works in found.items()})


def _layers_or_none(name: str, shape: str, batch_sizes: Iterable[int]) -> list[Workload]:
    jobs = [NetworkJob(name, shape, batch_size) for batch_size in batch_sizes]
    try:
        model, _ = build_on_meta(jobs[0])
        return [work for job in jobs for work in layers_of(job, model)]
    except LayerEnergyError:
        return []
