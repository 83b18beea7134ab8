"""The raw log of a campaign: what was measured, and what the sensor said meanwhile.

JSON lines in the folder ``raw`` of a dataset, written at once; :mod:`layer_energy.gpu_log` reads
them. While a campaign runs, its log is plain text; when it ends, it is compressed.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RAW = "raw"
LOG = ".jsonl.gz"
FORMAT = 2
_OPEN = ".jsonl"

Tell = Callable[..., None]
"""``tell(what, **facts)``: writes a line of a raw log."""


def unheard(what: str, **facts: Any) -> None:
    """Where nobody keeps a log."""


def logs(folder: str | Path) -> list[Path]:
    """The finished logs in ``folder/raw``, in the order of their names."""
    return sorted((Path(folder) / RAW).glob(f"*{LOG}"))


class RawLog:
    """Appends lines to a new log in ``folder/raw``.

    A full disk is no reason to stop measuring: the log then ends early.

    Args:
        folder: of the dataset.

    Attributes:
        path: of the log, while it is written.
    """

    def __init__(self, folder: str | Path) -> None:
        raw = Path(folder) / RAW
        raw.mkdir(parents=True, exist_ok=True)
        for left in sorted(raw.glob(f"*{_OPEN}")):  # of a process that was killed
            _compress(left)
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H%M%S")
        names = (f"{stamp}{suffix}" for suffix in ("", *(f"_{n}" for n in range(2, 1000))))
        self.path = next(raw / f"{n}{_OPEN}" for n in names if not (raw / f"{n}{LOG}").exists())
        self._file = self.path.open("x", encoding="utf-8", buffering=1)
        self._begun_s = time.monotonic()
        self.tell("format", version=FORMAT)

    def tell(self, what: str, **facts: Any) -> None:
        """Write a line: ``what`` happened, when, and its JSON-able facts."""
        if self._file.closed:
            return
        line = {"what": what, "at": round(time.monotonic() - self._begun_s, 3), **facts}
        with contextlib.suppress(OSError):
            self._file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """Compress the log; closing twice is harmless."""
        if not self._file.closed:
            with contextlib.suppress(OSError):
                self._file.close()
                _compress(self.path)


def _compress(path: Path) -> None:
    """Write beside, rename, and remove the text."""
    beside = path.with_name(f".{path.name}.tmp")
    with (
        path.open("rb") as text,
        beside.open("wb") as packed,
        gzip.GzipFile(fileobj=packed, mode="wb", filename="", mtime=0) as file,
    ):
        while part := text.read(1 << 20):
            file.write(part)
    beside.replace(path.with_name(path.name.removesuffix(_OPEN) + LOG))
    path.unlink()
