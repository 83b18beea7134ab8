"""The collector's checkpoint: one JSON line a row, so that a crash costs the row in flight."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from layer_energy.errors import DatasetError
from layer_energy.lines import canonical, decode, differences, encode
from layer_energy.records import (
    measurement_from_dict,
    measurement_to_dict,
    network_from_dict,
    network_to_dict,
)
from layer_energy.workload import Measurement, NetworkMeasurement

JOURNAL_NAME = "journal.jsonl"
SCHEMA_VERSION = 2
SYNC_INTERVAL_S = 2.0


class Journal:
    """Append-only file of measurements of one plan; opening an existing one reads it.

    Attributes:
        rows: row_id → measurement; of several rows with one row_id the last counts.
        networks: whole networks, in the order they were measured.
        networks_begun: key → how often a network's measurement began and was not given up.
        deaths: row_id → how often the process died while it was being measured.
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
        self.networks: list[NetworkMeasurement] = []
        self.networks_begun: Counter[tuple[Any, ...]] = Counter()
        self.deaths: Counter[int] = Counter()
        self._in_flight: int | None = None  # the row during which the last process died
        self._current: int | None = None
        self.dropped = 0
        self.duplicates = 0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        header = {"schema_version": SCHEMA_VERSION, "plan": json.loads(canonical(plan))}
        content = self.path.read_bytes() if self.path.exists() else b""
        kept, missing = self._read(content, header)
        self._file = self.path.open("ab")
        self._file.truncate(kept)
        self._file.write(missing)
        if self._in_flight is not None:
            self.deaths[self._in_flight] += 1
            self._file.write(encode("death", self._in_flight))
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
        line = encode("row", measurement_to_dict(measurement))
        self._take(measurement)
        self._current = None
        self._write(line)

    def append_network(self, network: NetworkMeasurement) -> None:
        """Add a network. It is in ``networks`` even if the disk then refuses it (OSError)."""
        line = encode("network", network_to_dict(network))
        self.networks.append(network)
        self._write(line)

    def begin(self, row_id: int) -> None:
        """Note that a row is being measured: who dies now, dies of it."""
        self._current = row_id
        self._write(encode("begin", row_id))

    def begin_network(self, key: tuple[Any, ...]) -> None:
        """Note that a network is being measured."""
        self.networks_begun[key] += 1
        self._write(encode("begin_network", list(key)))

    def end_network(self, key: tuple[Any, ...]) -> None:
        """Note that a network was given up, not by its own fault."""
        self.networks_begun[key] -= 1
        self._write(encode("end_network", list(key)))

    def _write(self, line: bytes) -> None:
        self._file.write(line)
        self._file.flush()
        if time.monotonic() - self._synced_s >= SYNC_INTERVAL_S:
            self._sync()

    def close(self) -> None:
        """Bring everything to the disk and close the file; closing twice is harmless."""
        if not self._file.closed:
            try:
                if self._current is not None:  # given up, but not by a death
                    self._file.write(encode("end", self._current))
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
        expected = encode("header", header)
        if expected.startswith(content):  # new, or died in its first line
            return 0, expected
        first, _, rest = content.partition(b"\n")
        self._check_header(decode("header", first), header)
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
            if (row := decode("row", line)) is not None:
                self._take(measurement_from_dict(row))
                self._in_flight = None
            elif (row_id := decode("death", line)) is not None:
                self.deaths[row_id] += 1
                self._in_flight = None
            elif (row_id := decode("begin", line)) is not None:
                self._in_flight = row_id
            elif (key := decode("begin_network", line)) is not None:
                self.networks_begun[tuple(key)] += 1
            elif (key := decode("end_network", line)) is not None:
                self.networks_begun[tuple(key)] -= 1
            elif decode("end", line) is not None:
                self._in_flight = None
            else:
                self.networks.append(network_from_dict(decode("network", line)))
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
        differing = differences(was, now)
        if differing:
            raise DatasetError(
                f"{self.path} belongs to another plan: {differing}. Repeat the former "
                "settings to go on with it, choose another folder, or delete the file to start over"
            )
