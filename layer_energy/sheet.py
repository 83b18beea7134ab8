"""Data sheets of devices: what a law starts from, and what carries it over to a GPU unmeasured."""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from layer_energy.errors import InvalidInput
from layer_energy.layers.base import count
from layer_energy.workload import Device, Measurement

CATALOGUE = Path(__file__).parent / "gpus.csv"


@dataclass(frozen=True)
class Sheet:
    """What the maker says of a device, and its idle power.

    Attributes:
        name: as NVML prints it, or the CPU.
        units: multiprocessors of a GPU, threads of a CPU.
        fp32_tflops, tf32_tflops, half_tflops: peaks without sparsity, 10¹² operations per second,
            two a multiply-accumulate; half precision adds up in float32.
        memory_bytes_per_s: bandwidth.
        cache_bytes: of L2.
        limit_w, idle_w: power limit; power with a context open and without work.
        source: of these figures.
        kind: ``"cuda"`` or ``"cpu"``.
    """

    name: str
    units: int
    fp32_tflops: float
    tf32_tflops: float
    half_tflops: float
    memory_bytes_per_s: float
    cache_bytes: int
    limit_w: float
    idle_w: float
    source: str = ""
    kind: str = "cuda"


KINDS = ("cuda", "cpu")
_INTEGERS = ("units", "cache_bytes")
_TEXTS = ("name", "source", "kind")
_LEAST, _LARGEST = 1e-9, 1e18


@functools.cache
def sheets() -> Mapping[str, Sheet]:
    """The catalogue, by name."""
    with CATALOGUE.open(encoding="utf-8", newline="") as file:
        return {row["name"]: sheet_from_dict(row) for row in csv.DictReader(file)}


def sheet_from_dict(state: Mapping[str, Any]) -> Sheet:
    """A sheet out of a row of the catalogue, or out of a profile.

    Raises:
        ValueError, KeyError, TypeError: if a figure is missing or not positive.
    """
    values: dict[str, Any] = {}
    for field in fields(Sheet):
        cell = state.get("kind", "cuda") if field.name == "kind" else state[field.name]
        if field.name in _TEXTS:
            values[field.name] = str(cell)
        else:
            values[field.name] = int(cell) if field.name in _INTEGERS else float(cell)
            if not _LEAST <= values[field.name] <= _LARGEST:
                raise ValueError(f"{field.name} is {cell!r}, not a plausible positive number")
    if values["kind"] not in KINDS:
        raise ValueError(f"kind is {values['kind']!r}, not one of {', '.join(KINDS)}")
    if values["idle_w"] >= values["limit_w"]:
        raise ValueError(f"idle_w {values['idle_w']} is not below limit_w {values['limit_w']}")
    return Sheet(**values)


def sheet_of(name: str) -> Sheet:
    """The data sheet of a GPU by its name.

    Raises:
        InvalidInput: if the catalogue lacks it.
    """
    known = sheets()
    if name not in known:
        raise InvalidInput(
            f"there is no data sheet of {name!r} in the catalogue; it holds {', '.join(known)}"
        )
    return known[name]


_BEST = 0.98
"""Quantile of the rates that rows reached: the very best may be an error of measurement."""

_IDLE = 0.2
"""Share of the limit that a device draws without work, where nobody measured it."""


def implied_sheet(
    device: Device,
    rows: Sequence[Measurement],
    idle_w: float | None = None,
    limit_w: float | None = None,
) -> Sheet:
    """What rows say of a device whose data sheet nobody wrote down.

    The peaks are what the fastest rows reached, tensor cores included where they ran.

    Args:
        device: the one measured.
        rows: at least one.
        idle_w: measured idle power; a fifth of the limit if not given.
        limit_w: its power limit; the largest power of a row if not given.
    """
    rates: dict[str, list[float]] = {}
    bytes_per_s = []
    for row in rows:
        cost, _ = count(row.workload)
        bytes_per_s.append(cost.bytes / row.time_s)
        if cost.macs:
            rates.setdefault(row.workload.dtype, []).append(2e-12 * cost.macs / row.time_s)
    peaks = {dtype: float(np.quantile(found, _BEST)) for dtype, found in rates.items()}
    single = peaks.get("float32") or max(peaks.values(), default=1.0)
    half = max(peaks.get(dtype, single) for dtype in ("bfloat16", "float16"))
    limit_w = limit_w or max(row.power_w for row in rows)
    if idle_w is None or idle_w >= limit_w:
        idle_w = _IDLE * limit_w
    return Sheet(
        device.name,
        int(device.details.get("multiprocessors", device.threads)),
        single,
        peaks.get("tf32", single),
        half,
        float(np.quantile(bytes_per_s, _BEST)),
        device.cache_bytes,
        limit_w,
        idle_w,
        "the fastest of its rows",
        device.kind,
    )
