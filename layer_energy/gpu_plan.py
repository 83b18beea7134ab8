"""The plan of a collection on a GPU, drawn once and shipped: the most joules first.

``tests/benchmarks/gpu_plan.py`` draws it. Each row carries its *gain*: the share of all joules of
popular networks that lies in its neighbourhood, and in that of no earlier row; see
:mod:`layer_energy.coverage`.
"""

from __future__ import annotations

import functools
import gzip
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from layer_energy.errors import DatasetError, InvalidInput
from layer_energy.layers.base import workload
from layer_energy.layers.optimizer import OPTIMIZER_STEPS
from layer_energy.optimization import MODES
from layer_energy.plan import Job, NetworkJob, Plan
from layer_energy.records import flag_names, integer, number, one_of, text
from layer_energy.workload import GRADIENTS, Workload

PLAN_FILE = Path(__file__).with_name("gpu_plan.jsonl.gz")
SCHEMA = 1
DTYPES = ("float32", "tf32", "bfloat16", "float16")

_ROW_KEYS = {"kind", "params", "dtype", "gradients", "flags", "gain"}
_NETWORK_KEYS = {"model", "input", "batch_size", "dtype", "mode", "exact"}


@dataclass(frozen=True)
class Drawn:
    """What the file holds.

    Attributes:
        jobs: rows, in the order in which they are to be measured.
        gains: share of all joules that each adds to those before it.
        networks: whole networks, likewise in order.
    """

    jobs: tuple[Job, ...]
    gains: tuple[float, ...]
    networks: tuple[NetworkJob, ...]


def gpu_plan(
    shard: tuple[int, int] = (1, 1), mode: str = "all", measured: Iterable[Workload] = ()
) -> Plan:
    """The plan for a GPU, more than time allows; a budget ends it.

    Args:
        shard: ``(k, n)``, the k-th of n disjoint parts. Networks of which every layer is measured
            are in the first, with these layers.
        mode: ``"inference"``; ``"training"``: forward and backward passes and steps of optimizers;
            or ``"all"``.
        measured: workloads of a dataset that is there already: only blind repeats measure them
            again.

    Raises:
        InvalidInput: for a shard or a mode that is none.
        DatasetError: if the file of the plan is damaged.
    """
    k, n = shard
    if not 1 <= k <= n:
        raise InvalidInput(f"a shard is K/N with 1 <= K <= N, got {k}/{n}")
    if mode not in ("inference", "training", "all"):
        raise InvalidInput(f"mode must be inference, training or all, got {mode!r}")
    drawn, known = _shipped(), frozenset(measured)
    jobs = [
        job
        for job in drawn.jobs
        if mode in ("all", mode_of(job.workload))
        and (job.workload not in known or "repeat" in job.flags)
    ]
    networks = [
        job
        for job in drawn.networks
        if mode == "all" or (mode == "inference") == (job.mode == "inference")
    ]
    identity = {"shard": f"{k}/{n}", "mode": mode}
    return Plan(_part(jobs, k, n), _networks_part(networks, k, n), identity, fills_budget=True)


def joules_covered(workloads: Iterable[Workload]) -> float:
    """The share of all joules of popular networks near these workloads, as far as planned.

    It is exact for the first rows of the whole plan, and a lower bound for others.
    """
    gains = _gains()
    return sum(gains.get(work, 0.0) for work in dict.fromkeys(workloads))


def encode(drawn: Drawn) -> bytes:
    """The file of a plan: a line of facts, a line for each row, a line for each network."""
    facts = {"schema": SCHEMA, "rows": len(drawn.jobs), "networks": len(drawn.networks)}
    rows = [
        {
            "kind": job.workload.kind,
            "params": dict(job.workload.params),
            "dtype": job.workload.dtype,
            "gradients": job.workload.gradients,
            "flags": list(job.flags),
            "gain": gain,
        }
        for job, gain in zip(drawn.jobs, drawn.gains, strict=True)
    ]
    lines = [facts, *rows, *map(asdict, drawn.networks)]
    content = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    return gzip.compress(content.encode(), mtime=0)


def read_plan(path: Path) -> Drawn:
    """Read a file that :func:`encode` made, checked line by line.

    Raises:
        DatasetError: naming the line at fault.
    """
    lines = _lines(path)
    facts = _checked(path, 1, lines[0], _facts)
    expected = 1 + facts["rows"] + facts["networks"]
    if len(lines) != expected:
        raise DatasetError(f"{path} has {len(lines)} lines, its first one says {expected}")
    end = 1 + facts["rows"]
    rows = [_checked(path, i, line, _row) for i, line in enumerate(lines[1:end], 2)]
    networks = [_checked(path, i, line, _network) for i, line in enumerate(lines[end:], end + 1)]
    return Drawn(tuple(job for job, _ in rows), tuple(gain for _, gain in rows), tuple(networks))


@functools.cache
def _shipped() -> Drawn:
    return read_plan(PLAN_FILE)


@functools.cache
def _gains() -> Mapping[Workload, float]:
    drawn = _shipped()
    found: dict[Workload, float] = {}
    for job, gain in zip(drawn.jobs, drawn.gains, strict=True):
        found.setdefault(job.workload, gain)  # a repeat adds nothing
    return found


def mode_of(work: Workload) -> str:
    """``"inference"`` or ``"training"``: of what a workload is part."""
    if work.gradients != "none" or work.kind in OPTIMIZER_STEPS:
        return "training"
    return "inference"


def _part(jobs: Sequence[Job], k: int, n: int) -> tuple[Job, ...]:
    """The k-th of n parts; a repeat goes where the row is that it repeats."""
    parts: dict[Workload, int] = {}
    turn = 0
    for job in jobs:
        if "validation" in job.flags:
            parts.setdefault(job.workload, 1)
        elif job.workload not in parts:
            parts[job.workload] = turn % n + 1
            turn += 1
    return tuple(job for job in jobs if parts[job.workload] == k)


def _networks_part(networks: Sequence[NetworkJob], k: int, n: int) -> tuple[NetworkJob, ...]:
    exact = [job for job in networks if job.exact]
    others = [job for job in networks if not job.exact]
    return (*(exact if k == 1 else ()), *others[k - 1 :: n])


def _lines(path: Path) -> list[str]:
    try:
        return gzip.decompress(path.read_bytes()).decode().splitlines() or [""]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DatasetError(
            f"{path}, the plan of a collection on a GPU, cannot be read: {error}; install "
            "layer-energy again"
        ) from error


def _checked(path: Path, place: int, line: str, parse: Any) -> Any:
    try:
        value = json.loads(line)
        if not isinstance(value, dict):
            raise DatasetError(f"it must be an object, got {type(value).__name__}")
        return parse(value)
    except (ValueError, RecursionError, DatasetError) as error:
        raise DatasetError(f"{path}, line {place}: {error}") from error


def _facts(line: Mapping[str, Any]) -> Mapping[str, int]:
    if line.get("schema") != SCHEMA:
        raise DatasetError(
            f"the plan's schema is {line.get('schema')!r}, this version reads {SCHEMA}"
        )
    return {key: integer(line, key) for key in ("rows", "networks")}


def _row(line: Mapping[str, Any]) -> tuple[Job, float]:
    _check_keys(line, _ROW_KEYS)
    if not isinstance(line["params"], dict):
        raise DatasetError(f"params must be an object, got {line['params']!r}")
    params = {name: integer(line["params"], name) for name in line["params"]}
    work = workload(text(line, "kind"), one_of(line, "dtype", DTYPES), **params)
    work = replace(work, gradients=one_of(line, "gradients", GRADIENTS))
    return Job(work, flag_names(line)), number(line, "gain")


def _network(line: Mapping[str, Any]) -> NetworkJob:
    _check_keys(line, _NETWORK_KEYS)
    if not isinstance(line["exact"], bool):
        raise DatasetError(f"exact must be true or false, got {line['exact']!r}")
    return NetworkJob(
        text(line, "model"),
        text(line, "input"),
        integer(line, "batch_size"),
        one_of(line, "dtype", DTYPES),
        one_of(line, "mode", tuple(MODES)),
        line["exact"],
    )


def _check_keys(line: Mapping[str, Any], expected: set[str]) -> None:
    if line.keys() != expected:
        raise DatasetError(f"it must have the fields {sorted(expected)}, got {sorted(line)}")
