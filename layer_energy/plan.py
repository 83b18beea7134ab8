"""Which workloads to measure: random, log-uniform, and stratified on MACs and bytes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from random import Random

from layer_energy.errors import InvalidInput
from layer_energy.layers.base import count, kinds, layer_type
from layer_energy.layers.memory import GENERIC
from layer_energy.workload import Cost, Params, Workload

PAPER_KINDS = ("conv2d", "max_pool2d", "linear", "relu", "tanh", "sigmoid", "softmax", "batch_norm")
"""The seven layer types of Getzner et al. 2023, and batch normalisation."""

CANDIDATES = 12
"""Draws per row, of which the one in the emptiest stratum is kept."""

CPU_MACS_PER_S = 4e10
CPU_BYTES_PER_S = 4e9
CPU_TIME_CAP_S = 0.3
CPU_BYTES_CAP = 320 << 20
"""Rough rates of a small CPU: they only keep hopelessly large layers out of the plan."""


CPU_SECONDS_PER_ROW = 0.22
"""What a row took when the first dataset was collected; for the estimate of ``--dry-run``."""


def default_rows() -> dict[str, int]:
    """Rows per layer type: most for the types where the joules of networks go."""
    rows = {kind: 105 for kind in kinds() if kind != GENERIC}
    rows |= dict.fromkeys(PAPER_KINDS, 315)
    rows |= {"conv2d": 800, "linear": 420, "matmul": 160, "attention": 160, "add": 160, "copy": 200}
    return rows


def make_plan(rows: Mapping[str, int], seed: int = 0, dtype: str = "float32") -> list[Workload]:
    """Draw ``rows[kind]`` distinct workloads of each kind, in random order.

    The same arguments give the same plan; position in it is the ``row_id``.

    Raises:
        InvalidInput: for a kind that cannot be sampled or a non-positive number of rows.
    """
    plan: list[Workload] = []
    for kind in sorted(rows):
        if rows[kind] < 1:
            raise InvalidInput(f"rows of {kind} must be at least 1, got {rows[kind]}")
        if kind == GENERIC:
            raise InvalidInput("'generic' prices what no layer type claims; it cannot be measured")
        plan += _stratified(kind, rows[kind], Random(f"{seed}/{kind}"), dtype)
    Random(seed).shuffle(plan)  # sorted by size, thermal drift would look like a size effect
    return plan


def _stratified(kind: str, rows: int, rng: Random, dtype: str) -> list[Workload]:
    filled: Counter[tuple[int, int]] = Counter()
    chosen: dict[Workload, None] = {}
    for _ in range(rows * 50):
        if len(chosen) == rows:
            break
        candidates = [w for _ in range(CANDIDATES) if (w := _draw(kind, rng, dtype)) is not None]
        fresh = [w for w in candidates if w not in chosen]
        if fresh:
            best = min(fresh, key=lambda w: filled[_stratum(count(w)[0])])
            filled[_stratum(count(best)[0])] += 1
            chosen[best] = None
    return list(chosen)


def _draw(kind: str, rng: Random, dtype: str) -> Workload | None:
    params = layer_type(kind).sample(rng)
    if params is None:
        return None
    workload = Workload(kind, Params(params), dtype)
    cost, _ = count(workload)
    time_s = cost.macs / CPU_MACS_PER_S + cost.bytes / CPU_BYTES_PER_S
    return workload if time_s < CPU_TIME_CAP_S and cost.bytes < CPU_BYTES_CAP else None


def _stratum(cost: Cost) -> tuple[int, int]:
    """Decade of MACs and half-decade of bytes; all below 1e4 of either is one stratum."""
    return (
        max(4, int(math.log10(max(cost.macs, 1)))),
        max(8, int(2 * math.log10(max(cost.bytes, 1)))),
    )
