"""Data sheets of GPUs: what a law starts from, and what carries it over to a GPU unmeasured."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

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


def sheets() -> dict[str, Sheet]:
    """The catalogue, by name."""
    with CATALOGUE.open(encoding="utf-8", newline="") as file:
        rows = [_sheet(row) for row in csv.DictReader(file)]
    return {sheet.name: sheet for sheet in rows}


def _sheet(row: dict[str, str]) -> Sheet:
    values = {
        key: cell if key in _TEXTS else int(cell) if key in _INTEGERS else float(cell)
        for key, cell in row.items()
    }
    return Sheet(**values)  # type: ignore[arg-type]  # the columns are the fields


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
