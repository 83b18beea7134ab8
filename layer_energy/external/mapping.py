"""Other people's measurements as this project's: CSV files by a declared column mapping.

A mapping says, for each parameter of a layer type, where its value is: a column, a constant, or a
product of columns.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
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
        where: column → the value it must have; rows with another one are of no interest.
    """

    kind: str
    params: Mapping[str, Source]
    time_s: str = "duration_s"
    energy_j: str = "energy_j"
    dtype: str = "float32"
    quality: str = "measured"
    meter: str = "external"
    where: Mapping[str, str] = field(default_factory=dict)

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
    return to_measurements(read_rows(path), mapping)


def read_rows(path: str | Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each row of a CSV file with its place, such as ``"file.csv, line 2"``.

    Raises:
        DatasetError: if the file is missing or unreadable.
    """
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            for i, row in enumerate(csv.DictReader(file)):
                yield f"{path}, line {i + 2}", row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error


def to_measurements(
    rows: Iterable[tuple[str, Mapping[str, str]]], mapping: ColumnMapping
) -> list[Measurement]:
    """Turn (place, row) pairs into measurements; ``row_id`` counts all rows, wanted or not."""
    return [
        _measurement(row, i, place, mapping)
        for i, (place, row) in enumerate(rows)
        if all(cell(row, column, place) == value for column, value in mapping.where.items())
    ]


def _measurement(
    row: Mapping[str, str], row_id: int, place: str, mapping: ColumnMapping
) -> Measurement:
    params = {name: _integer(row, source, place) for name, source in mapping.params.items()}
    ordered = {name: params[name] for name in layer_type(mapping.kind).space}
    workload = Workload(mapping.kind, Params(ordered), mapping.dtype)
    columns = (mapping.time_s, mapping.energy_j)
    return to_measurement(row, place, workload, row_id, columns, mapping.quality, mapping.meter)


def to_measurement(
    row: Mapping[str, str],
    place: str,
    workload: Workload,
    row_id: int,
    columns: tuple[str, str] = ("duration_s", "energy_j"),
    quality: str = "measured",
    meter: str = "external",
) -> Measurement:
    """A row whose workload is known; ``columns`` are those of the seconds and of the joules.

    Raises:
        DatasetError: if they are not positive numbers.
    """
    time_s, energy_j = (number(row, column, place) for column in columns)
    if time_s <= 0 or energy_j <= 0:
        raise DatasetError(
            f"{place}: time and energy must be positive, got {time_s} and {energy_j}"
        )
    return Measurement(
        workload=workload,
        time_s=time_s,
        energy_j=energy_j,
        power_w=energy_j / time_s,
        spread=0.0,
        repeats=1,
        executions=1,
        quality=quality,
        meter=meter,
        row_id=row_id,
    )


def _integer(row: Mapping[str, str], source: Source, place: str) -> int:
    if isinstance(source, int):
        return source
    columns = (source,) if isinstance(source, str) else source
    value = math.prod(number(row, column, place) for column in columns)
    if value != int(value) or value < 0:
        raise DatasetError(f"{place}: {' × '.join(columns)} must be a whole number, got {value}")
    return int(value)


def number(row: Mapping[str, str], column: str, place: str) -> float:
    """A finite number out of a row.

    Raises:
        DatasetError: if there is no such column, or something else in it.
    """
    text = cell(row, column, place)
    try:
        value = float(text)
    except (TypeError, ValueError):
        raise DatasetError(f"{place}: {column} is {text!r}, not a number") from None
    if not math.isfinite(value):
        raise DatasetError(f"{place}: {column} is {value}, not a finite number")
    return value


def cell(row: Mapping[str, str], column: str, place: str) -> str:
    """The text in a column of a row.

    Raises:
        DatasetError: if there is no such column; lists those there are.
    """
    if column not in row:
        raise DatasetError(f"{place}: there is no column {column!r}; there are {', '.join(row)}")
    return row[column]
