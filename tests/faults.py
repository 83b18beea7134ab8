"""Faults that tests inject."""

import errno

from layer_energy import collect
from layer_energy.journal import Journal


def full_disk(monkeypatch, rows, rescue):
    """Let the journal of a collection be refused once it holds more than ``rows``.

    Returns the folder in which what was measured is rescued.
    """
    monkeypatch.setattr(collect.tempfile, "mkdtemp", lambda prefix: str(rescue))
    written = Journal._write

    def full(self, line):
        if len(self.rows) > rows:
            raise OSError(errno.ENOSPC, "No space left on device")
        written(self, line)

    monkeypatch.setattr(Journal, "_write", full)
    return rescue
