"""Whole networks measured by any tool: a CSV file, each network walked into its calls."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from layer_energy.errors import DatasetError, LayerEnergyError
from layer_energy.meters.base import QUALITIES
from layer_energy.models import build_model, default_input
from layer_energy.optimization import MODES
from layer_energy.walk import parse_shape, walk
from layer_energy.workload import ITEMSIZE_BYTES, Workload


@dataclass(frozen=True)
class Total:
    """One measured network.

    Attributes:
        model: name of the network; totals of one name are left out together.
        dtype: compute dtype.
        batch_size: samples of the pass.
        energy_j, time_s: of one forward pass.
        workloads: the calls of its trace and how often each runs.
        quality: what the joules are: ``"measured"`` by a counter, or ``"estimated"`` ...
    """

    model: str
    dtype: str
    batch_size: int
    energy_j: float
    time_s: float
    workloads: Mapping[Workload, int]
    quality: str = "measured"


def read_totals(path: str | Path) -> list[Total]:
    """Read measured totals and walk their networks.

    Columns: ``model`` (a name for :func:`layer_energy.models.build_model`), ``energy_j`` and
    ``time_s`` of a forward pass; optional ``input`` (``8x3x224x224`` or ``1x128:int64``),
    ``batch_size`` of an inferred input where there is none, ``dtype`` (``float32`` if not given),
    ``quality`` of the joules (``measured``) and ``mode`` (``inference``). Other columns are
    ignored, and so are rows of training steps: ``datasets/*/networks.csv`` are such files.

    Raises:
        DatasetError: if the file cannot be read, or a row is wrong; names the line and the column.
    """
    path = Path(path)
    built: dict[tuple[str, str], Any] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            totals = [
                _total(row, f"{path}, line {line}", built)
                for line, row in enumerate(csv.DictReader(file), start=2)
                if row.get("mode") not in MODES.keys() - {"inference"}
            ]
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error
    if not totals:
        raise DatasetError(f"{path} has no rows; one measured forward pass a line is expected")
    return totals


def _total(row: Mapping[str, str | None], place: str, built: dict[tuple[str, str], Any]) -> Total:
    for column in ("model", "energy_j", "time_s"):
        if not row.get(column):
            raise DatasetError(
                f"{place}: {column} is missing; there are {', '.join(map(str, row))}"
            )
    name, dtype = str(row["model"]), row.get("dtype") or "float32"
    energy_j, time_s = (_positive(row, column, place) for column in ("energy_j", "time_s"))
    batch_size = int(_positive({"batch_size": "1", **row}, "batch_size", place)) or 1
    if (row.get("mode") or "inference") != "inference":
        modes = ", ".join(MODES)
        raise DatasetError(f"{place}: mode is {row['mode']!r}, not one of {modes}")
    if "float" not in dtype or dtype not in ITEMSIZE_BYTES:
        raise DatasetError(f"{place}: dtype is {dtype!r}; float32, bfloat16 and float16 are known")
    quality = row.get("quality") or "measured"
    if quality not in QUALITIES:
        raise DatasetError(f"{place}: quality is {quality!r}, not one of {', '.join(QUALITIES)}")
    try:
        workloads = _walked(name, row.get("input") or "", batch_size, dtype, built)
    except LayerEnergyError as error:
        raise DatasetError(f"{place}: {name} cannot be walked: {error}") from error
    return Total(name, dtype, batch_size, energy_j, time_s, workloads, quality)


def _positive(row: Mapping[str, str | None], column: str, place: str) -> float:
    try:
        value = float(row[column] or 1)
    except (TypeError, ValueError):
        value = math.nan
    if not 0 < value < math.inf:
        raise DatasetError(f"{place}: {column} is {row[column]!r}, not a positive number")
    return value


def _walked(
    name: str, shape: str, batch_size: int, dtype: str, built: dict[tuple[str, str], Any]
) -> Counter[Workload]:
    """The calls of a network that really computes in ``dtype``, its casts included."""
    if (name, dtype) not in built:
        built[name, dtype] = build_model(name).to(getattr(torch, dtype))
    model, size = built[name, dtype], default_input(name)
    if not shape and size is None:
        return walk(model, batch_size=batch_size).workloads()
    x = parse_shape(shape or "x".join(map(str, (batch_size, *(size or ())))))
    x = x.to(getattr(torch, dtype)) if x.is_floating_point() else x
    return walk(model, x).workloads()
