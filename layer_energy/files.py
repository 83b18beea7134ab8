"""Writing files so that a crash leaves the old one or the new one, never half of one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path


def write_text_atomically(path: str | Path, text: str) -> None:
    """Replace ``path`` by ``text`` (UTF-8, LF), all or nothing; a missing folder is created."""
    write_texts_atomically({Path(path): text})


def write_texts_atomically(texts: Mapping[Path, str]) -> None:
    """Replace several files that belong together, in order, once all of them are on the disk.

    A full disk or an interrupt while they are written leaves the old ones.
    """
    written: dict[Path, Path] = {}
    try:
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
            written[beside] = path
            with beside.open("x", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        _replace(written)
    except BaseException:  # an interrupt too must not leave the temporary files behind
        for beside in written:
            beside.unlink(missing_ok=True)
        raise


def _replace(written: Mapping[Path, Path]) -> None:
    """Rename all; an interrupt waits until all have their names."""
    interrupt = None
    for beside, path in written.items():
        try:
            beside.replace(path)
        except KeyboardInterrupt as error:
            interrupt = error
            if beside.exists():
                beside.replace(path)
    if interrupt is not None:
        raise interrupt
