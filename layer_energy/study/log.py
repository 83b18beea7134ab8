"""The study's checkpoint: one line a finished run, so that a kill costs the run in flight."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layer_energy.errors import DatasetError
from layer_energy.lines import canonical, decode, differences, encode
from layer_energy.study.table import Run, run_from_dict

SCHEMA_VERSION = 1


class RunLog:
    """Append-only file of the finished runs of one study; opening an existing one reads it.

    Attributes:
        runs: run_id → run.
        dropped: lines that were damaged or cut short; their runs are done again.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Open or create the log at ``path``; its folder is there.

        Args:
            path: the file.
            identity: JSON-able, of the study and of the machine.

        Raises:
            DatasetError: if the file is no log of a study, or one of another study or machine.
        """
        self.path = path
        self.runs: dict[int, Run] = {}
        self.dropped = 0
        header = {"schema_version": SCHEMA_VERSION, **json.loads(canonical(identity))}
        begin = encode("study", header)
        content = path.read_bytes() if path.exists() else b""
        new = begin.startswith(content)  # or died in its first line
        whole = b"" if new else content[: content.rfind(b"\n") + 1]
        self.dropped += not new and len(whole) < len(content)
        first, *lines = whole.splitlines() or [b""]
        if not new:
            self._check(decode("study", first), header)
        for line in lines:
            try:
                run = run_from_dict(decode("run", line))
                self.runs[run.run_id] = run
            except DatasetError:
                self.dropped += 1
        self._file = path.open("ab")
        self._file.truncate(len(whole))
        if new:
            self._write(begin)

    def append(self, run: Run) -> None:
        """Add a run; it is on the disk when this returns."""
        self._write(encode("run", run.to_dict()))
        self.runs[run.run_id] = run

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, line: bytes) -> None:
        self._file.write(line)
        self._file.flush()
        os.fsync(self._file.fileno())

    def _check(self, was: Any, now: dict[str, Any]) -> None:
        if not isinstance(was, dict):
            raise DatasetError(
                f"{self.path} does not begin as the log of a study; choose another folder, or "
                "delete the file if nothing in it is needed"
            )
        if differing := differences(was, now):
            raise DatasetError(
                f"{self.path} belongs to another study or machine: {differing}. Repeat the former "
                "settings to go on with it, choose another folder, or delete the file to start over"
            )
