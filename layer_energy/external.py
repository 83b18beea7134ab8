"""Other people's measurements as this project's: CSV files by a declared column mapping.

A mapping says, for each parameter of a layer type, where its value is: a column, a constant, or a
product of columns. The data stay where they are; nothing of them is part of this package.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from layer_energy.errors import DatasetError, InvalidInput
from layer_energy.layers.base import layer_type
from layer_energy.workload import Measurement, Params, Workload

Source = str | int | tuple[str, ...]


@dataclass(frozen=True)
class ColumnMapping:
    """How the rows of a CSV file become measurements of one layer type.

    Attributes:
        kind: the layer type.
        params: parameter → a column, a constant, or the columns whose product it is; must name
            every parameter of the layer type.
        time_s: column of the seconds per execution.
        energy_j: column of the joules per execution.
        dtype: compute dtype of all rows.
        quality: what the joules are.
        meter: what gave them.
    """

    kind: str
    params: Mapping[str, Source]
    time_s: str = "duration_s"
    energy_j: str = "energy_j"
    dtype: str = "float32"
    quality: str = "measured"
    meter: str = "external"

    def __post_init__(self) -> None:
        expected = set(layer_type(self.kind).space)
        if set(self.params) != expected:
            missing, unknown = expected - set(self.params), set(self.params) - expected
            raise InvalidInput(
                f"a mapping to {self.kind} lacks {sorted(missing)} and has {sorted(unknown)} too "
                "many"
            )


def read_csv(path: str | Path, mapping: ColumnMapping) -> list[Measurement]:
    """Read one CSV file, in file order; ``row_id`` is the number of the row.

    Raises:
        DatasetError: if the file or a column is missing, or a value is no positive number; names
            the line and the column.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [
                _measurement(row, i, f"{path}, line {i + 2}", mapping)
                for i, row in enumerate(csv.DictReader(file))
            ]
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error


def _measurement(
    row: Mapping[str, str], row_id: int, place: str, mapping: ColumnMapping
) -> Measurement:
    params = {name: _integer(row, source, place) for name, source in mapping.params.items()}
    time_s = _number(row, mapping.time_s, place)
    energy_j = _number(row, mapping.energy_j, place)
    if time_s <= 0 or energy_j <= 0:
        raise DatasetError(
            f"{place}: time and energy must be positive, got {time_s} and {energy_j}"
        )
    ordered = {name: params[name] for name in layer_type(mapping.kind).space}
    return Measurement(
        workload=Workload(mapping.kind, Params(ordered), mapping.dtype),
        time_s=time_s,
        energy_j=energy_j,
        power_w=energy_j / time_s,
        spread=0.0,
        repeats=1,
        executions=1,
        quality=mapping.quality,
        meter=mapping.meter,
        row_id=row_id,
    )


def _integer(row: Mapping[str, str], source: Source, place: str) -> int:
    if isinstance(source, int):
        return source
    columns = (source,) if isinstance(source, str) else source
    value = math.prod(_number(row, column, place) for column in columns)
    if value != int(value) or value < 0:
        raise DatasetError(f"{place}: {' × '.join(columns)} must be a whole number, got {value}")
    return int(value)


def _number(row: Mapping[str, str], column: str, place: str) -> float:
    if column not in row:
        raise DatasetError(f"{place}: there is no column {column!r}; there are {', '.join(row)}")
    try:
        value = float(row[column])
    except (TypeError, ValueError):
        raise DatasetError(f"{place}: {column} is {row[column]!r}, not a number") from None
    if not math.isfinite(value):
        raise DatasetError(f"{place}: {column} is {value}, not a finite number")
    return value
