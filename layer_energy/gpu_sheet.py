"""Data sheets of GPUs: what a law starts from, and what carries it over to a GPU unmeasured."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from layer_energy.errors import InvalidInput

CATALOGUE = Path(__file__).parent / "gpus.csv"


@dataclass(frozen=True)
class Sheet:
    """What the maker says of a GPU, and its idle power.

    Attributes:
        name: as NVML prints it.
        units: multiprocessors.
        fp32_tflops, tf32_tflops, half_tflops: peaks without sparsity, 10¹² operations per second,
            two a multiply-accumulate; half precision adds up in float32.
        memory_bytes_per_s: bandwidth.
        cache_bytes: of L2.
        limit_w, idle_w: power limit; power with a context open and without work.
        source: of these figures.
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


_INTEGERS = ("units", "cache_bytes")
_TEXTS = ("name", "source")
_LARGEST = 1e18


def sheets() -> dict[str, Sheet]:
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
        cell = state[field.name]
        if field.name in _TEXTS:
            values[field.name] = str(cell)
        else:
            values[field.name] = int(cell) if field.name in _INTEGERS else float(cell)
            if not 0 < values[field.name] <= _LARGEST:
                raise ValueError(f"{field.name} is {cell!r}, not a plausible positive number")
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
