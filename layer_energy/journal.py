"""The collector's checkpoint: one JSON line a row, so that a crash costs the row in flight.

This is also the one place where a measurement becomes a plain dict and back, checked on the way.
"""

from __future__ import annotations

import json
import os
import sys
import time
import zlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from layer_energy.errors import DatasetError
from layer_energy.meters.base import QUALITIES
from layer_energy.workload import GRADIENTS, Measurement, Params, Workload

SCHEMA_VERSION = 1
SYNC_INTERVAL_S = 2.0
WITHOUT_TIME = frozenset({"failed", "too_slow"})
"""Flags of rows that may lack time, energy and power (0)."""

_KEYS = {"kind", "params", "dtype", "gradients"} | {
    field.name for field in fields(Measurement) if field.name != "workload"
}


def text(row: Mapping[str, Any], key: str) -> str:
    """Return ``row[key]`` if it is non-empty printable text, else raise DatasetError."""
    value = row.get(key)
    if not isinstance(value, str) or not value or not value.isprintable():
        raise DatasetError(f"{key} must be non-empty printable text, got {value!r}")
    return value


def integer(row: Mapping[str, Any], key: str) -> int:
    """Return ``row[key]`` if it is a non-negative integer, else raise DatasetError."""
    value = row.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise DatasetError(f"{key} must be a non-negative integer, got {value!r}")
    return value


def number(row: Mapping[str, Any], key: str, *, positive: bool = False) -> float:
    """Return ``row[key]`` if it is finite and not negative (or zero), else raise DatasetError."""
    value = row.get(key)
    if (
        not isinstance(value, (int, float))
        or isinstance(value, bool)
        or not 0 <= value <= sys.float_info.max
        or (positive and value == 0)
    ):
        sign = "positive" if positive else "non-negative"
        raise DatasetError(f"{key} must be a finite {sign} number, got {value!r}")
    return float(value)


def flag_names(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return ``row["flags"]`` if it is a list of names free of ``|``, else raise DatasetError."""
    names = row.get("flags")
    if not isinstance(names, list) or not all(
        isinstance(name, str) and name and name.isprintable() and "|" not in name for name in names
    ):
        raise DatasetError(f"flags must be a list of non-empty names without '|', got {names!r}")
    return tuple(names)


def one_of(row: Mapping[str, Any], key: str, allowed: tuple[str, ...]) -> Any:
    """Return ``row[key]`` if it is one of ``allowed``, else raise DatasetError."""
    if row.get(key) not in allowed:
        raise DatasetError(f"{key} must be one of {', '.join(allowed)}, got {row.get(key)!r}")
    return row[key]


def measurement_to_dict(measurement: Measurement) -> dict[str, Any]:
    """Return a JSON-able dict, lossless; raise DatasetError if reading would refuse it."""
    workload = measurement.workload
    row = {
        "row_id": int(measurement.row_id),
        "kind": workload.kind,
        "params": {name: int(value) for name, value in workload.params.items()},
        "dtype": workload.dtype,
        "gradients": workload.gradients,
        "time_s": float(measurement.time_s),
        "energy_j": float(measurement.energy_j),
        "power_w": float(measurement.power_w),
        "spread": float(measurement.spread),
        "repeats": int(measurement.repeats),
        "executions": int(measurement.executions),
        "quality": measurement.quality,
        "meter": measurement.meter,
        "flags": list(measurement.flags),
    }
    measurement_from_dict(row)
    return row


def measurement_from_dict(row: Any) -> Measurement:
    """Return the measurement that :func:`measurement_to_dict` wrote, checked field by field.

    Raises:
        DatasetError: if a field is missing, unknown, of the wrong type or out of its range.
    """
    if not isinstance(row, dict):
        raise DatasetError(f"a row must be an object, got {type(row).__name__}")
    if row.keys() != _KEYS:
        missing, unknown = sorted(_KEYS - row.keys()), sorted(row.keys() - _KEYS)
        raise DatasetError(f"a row lacks the fields {missing} and has the unknown ones {unknown}")
    params = row["params"]
    if not isinstance(params, dict):
        raise DatasetError(f"params must be an object, got {params!r}")
    flags = flag_names(row)
    timed = WITHOUT_TIME.isdisjoint(flags)
    return Measurement(
        workload=Workload(
            kind=text(row, "kind"),
            params=Params({name: integer(params, name) for name in params}),
            dtype=text(row, "dtype"),
            gradients=one_of(row, "gradients", GRADIENTS),
        ),
        time_s=number(row, "time_s", positive=timed),
        energy_j=number(row, "energy_j", positive=timed),
        power_w=number(row, "power_w", positive=timed),
        spread=number(row, "spread"),
        repeats=integer(row, "repeats"),
        executions=integer(row, "executions"),
        quality=one_of(row, "quality", QUALITIES),
        meter=text(row, "meter"),
        flags=flags,
        row_id=integer(row, "row_id"),
    )


class Journal:
    """Append-only file of measurements of one plan; opening an existing one reads it.

    Attributes:
        rows: row_id → measurement; of several rows with one row_id the last counts.
        dropped: lines that were corrupt or cut short, and are ignored.
        duplicates: rows that a later one with the same row_id replaced.
    """

    def __init__(self, path: str | Path, plan: Mapping[str, Any]) -> None:
        """Open or create the journal at ``path``.

        Args:
            path: the file; a missing folder is created.
            plan: JSON-able identity of what is being collected.

        Raises:
            DatasetError: if the file is no journal, or one of another plan.
        """
        self.path = Path(path)
        self.rows: dict[int, Measurement] = {}
        self.dropped = 0
        self.duplicates = 0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        header = {"schema_version": SCHEMA_VERSION, "plan": json.loads(_canonical(plan))}
        content = self.path.read_bytes() if self.path.exists() else b""
        kept, missing = self._read(content, header)
        self._file = self.path.open("ab")
        self._file.truncate(kept)
        self._file.write(missing)
        self._sync()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def append(self, measurement: Measurement) -> None:
        """Add a row. It is in ``rows`` even if the disk then refuses it (OSError)."""
        line = _line("row", measurement_to_dict(measurement))
        self._take(measurement)
        self._file.write(line)
        self._file.flush()
        if time.monotonic() - self._synced_s >= SYNC_INTERVAL_S:
            self._sync()

    def close(self) -> None:
        """Bring everything to the disk and close the file; closing twice is harmless."""
        if not self._file.closed:
            try:
                self._sync()
            finally:
                self._file.close()

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._synced_s = time.monotonic()

    def _take(self, measurement: Measurement) -> None:
        self.duplicates += measurement.row_id in self.rows
        self.rows[measurement.row_id] = measurement

    def _read(self, content: bytes, header: dict[str, Any]) -> tuple[int, bytes]:
        """Fill ``rows``; return how many bytes to keep and what must follow them."""
        expected = _line("header", header)
        if expected.startswith(content):  # new, or died in its first line
            return 0, expected
        first, _, rest = content.partition(b"\n")
        self._check_header(_value("header", first), header)
        *lines, last = rest.split(b"\n")
        for line in lines:
            self._take_line(line)
        if not last:
            return len(content), b""
        if self._take_line(last):
            return len(content), b"\n"
        return len(content) - len(last), b""

    def _take_line(self, line: bytes) -> bool:
        try:
            self._take(measurement_from_dict(_value("row", line)))
        except DatasetError:
            self.dropped += 1
            return False
        return True

    def _check_header(self, found: Any, expected: dict[str, Any]) -> None:
        if not isinstance(found, dict) or not isinstance(found.get("plan"), dict):
            raise DatasetError(
                f"{self.path} does not begin with a journal's header; choose another folder, or "
                "delete the file if nothing in it is needed"
            )
        if found.get("schema_version") != SCHEMA_VERSION:
            raise DatasetError(
                f"{self.path} has the journal schema {found.get('schema_version')!r} and this "
                f"version of layer_energy reads {SCHEMA_VERSION}; use the version that wrote it, "
                "or choose another folder"
            )
        was, now = found["plan"], expected["plan"]
        differing = [
            f"{key} was {was.get(key)!r} and is now {now.get(key)!r}"
            for key in sorted(was.keys() | now.keys())
            if was.get(key) != now.get(key)
        ]
        if differing:
            raise DatasetError(
                f"{self.path} belongs to another plan: {'; '.join(differing)}. Repeat the former "
                "settings to go on with it, choose another folder, or delete the file to start over"
            )


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _crc(value: Any) -> str:
    return f"{zlib.crc32(_canonical(value).encode()):08x}"


def _line(key: str, value: Any) -> bytes:
    record = {"crc": _crc(value), key: value}
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


def _value(key: str, line: bytes) -> Any:
    """The value of a line that :func:`_line` made, ``None`` if it is not intact."""
    try:
        record = json.loads(line)
        return record[key] if record["crc"] == _crc(record[key]) else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
