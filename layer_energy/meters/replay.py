"""A recorded log of joules or watts, read back one sample at a time."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from layer_energy.errors import InvalidInput, MeterError
from layer_energy.meters.base import Reading, register


@register("replay")
class ReplayMeter:
    """Returns the given readings in order, one per :meth:`read`.

    Args:
        readings: neither time nor energy may go backwards.

    Raises:
        InvalidInput: naming the first reading at fault.
    """

    name = "replay"
    quality = "replayed"
    relative_uncertainty = 0.0
    period_s = 0.0
    assumptions: tuple[str, ...] = (
        "Energy is replayed from a recording; the recording's own uncertainty is not included.",
    )

    def __init__(self, readings: Iterable[Reading]) -> None:
        self._readings = _checked((f"reading {n}", r) for n, r in enumerate(readings, 1))
        self._next = 0

    @classmethod
    def from_csv(cls, path: str | Path) -> ReplayMeter:
        """Read a file with a header and the columns ``time_s`` and ``energy_j`` or ``power_w``.

        Power is integrated by the trapezoidal rule; where there are both, energy is used.

        Raises:
            InvalidInput: if the file is not such a table, naming the first line at fault.
            MeterError: if the file cannot be opened.
        """
        try:
            with Path(path).open(encoding="utf-8-sig", newline="") as file:
                rows = list(_rows(str(path), csv.DictReader(file)))
        except OSError as error:
            raise MeterError(f"the recording cannot be opened: {error}") from error
        except (csv.Error, UnicodeDecodeError) as error:
            raise InvalidInput(f"{path} is not a text table: {error}") from error
        return cls(_checked(rows))

    def read(self) -> Reading:
        """The next reading.

        Raises:
            MeterError: after the last one.
        """
        if self._next == len(self._readings):
            raise MeterError(f"the recording ends after {self._next} readings")
        self._next += 1
        return self._readings[self._next - 1]


def _rows(path: str, table: csv.DictReader[str]) -> Iterator[tuple[str, Reading]]:
    """Name of the line and reading, for each row of the table."""
    columns = set(table.fieldnames or ())
    if "time_s" not in columns or not columns & {"energy_j", "power_w"}:
        raise InvalidInput(
            f"{path} needs the columns time_s and energy_j or power_w, has {sorted(columns)}"
        )
    value = "energy_j" if "energy_j" in columns else "power_w"
    energy_j, last = 0.0, None
    for row in table:
        line = f"{path} line {table.line_num}"
        try:
            now_s, now = float(row["time_s"]), float(row[value])
        except (TypeError, ValueError):
            raise InvalidInput(f"{line}: time_s and {value} must be numbers, got {row}") from None
        if value == "energy_j":
            energy_j = now
        elif not 0 <= now < math.inf:
            raise InvalidInput(f"{line}: power_w must be 0 or more and finite, got {now}")
        elif last is not None:
            energy_j += (now_s - last[0]) * (now + last[1]) / 2
        last = now_s, now
        yield line, Reading(now_s, energy_j)
    if last is None:
        raise InvalidInput(f"{path} has a header but no rows")


def _checked(rows: Iterable[tuple[str, Reading]]) -> list[Reading]:
    """The readings, once each is known to be finite and not before the last."""
    readings: list[Reading] = []
    for where, reading in rows:
        if not (math.isfinite(reading.time_s) and math.isfinite(reading.energy_j)):
            raise InvalidInput(f"{where}: time and energy must be finite, got {reading}")
        if readings and reading.time_s < readings[-1].time_s:
            raise InvalidInput(f"{where}: time goes backwards, {readings[-1]} to {reading}")
        if readings and reading.energy_j < readings[-1].energy_j:
            raise InvalidInput(f"{where}: energy goes backwards, {readings[-1]} to {reading}")
        readings.append(reading)
    if not readings:
        raise InvalidInput("a recording needs one reading at least, got none")
    return readings
