"""One JSON value a line, each with its checksum, so that a damaged line is known to be one."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any


def encode(key: str, value: Any) -> bytes:
    """The line ``{"crc": ..., key: value}``.

    Raises:
        ValueError: for numbers that are not finite, which JSON does not have.
    """
    record = {"crc": _crc(value), key: value}
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


def decode(key: str, line: bytes) -> Any:
    """The value of a line that :func:`encode` made, ``None`` if it is not intact."""
    try:
        record = json.loads(line)
        return record[key] if record["crc"] == _crc(record[key]) else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def canonical(value: Any) -> str:
    """The same text for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def differences(was: Mapping[str, Any], now: Mapping[str, Any], within: str = "") -> str:
    """``"study.seed was 1 and is now 2; ..."``, empty if nothing differs.

    Args:
        was, now: JSON objects; of objects in them only what differs is told.
        within: what to put before each key.
    """
    found = []
    for key in sorted(was.keys() | now.keys()):
        old, new = was.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found.append(differences(old, new, f"{within}{key}."))
        elif old != new:
            found.append(f"{within}{key} was {old!r} and is now {new!r}")
    return "; ".join(filter(None, found))


def _crc(value: Any) -> str:
    return f"{zlib.crc32(canonical(value).encode()):08x}"
