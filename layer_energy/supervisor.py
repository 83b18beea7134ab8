"""Restart a worker process whose device context is gone, for as long as that brings progress.

An error on a GPU can be *sticky*: every later call of the same process fails too. The worker then
writes down what it has and leaves; a new process goes on behind the row that did it.
"""

from __future__ import annotations

import math
import signal
import subprocess
import time
from collections.abc import Callable, Sequence

LOST = 75
"""Exit code of a worker that lost its device (EX_TEMPFAIL of sysexits.h)."""

STOPPED = 3
"""Exit code of a collection that can be resumed."""

GRACE_S = 60.0
"""A worker may outlast the deadline by this much before it is taken for hung."""

WORTHWHILE_S = 60.0
"""With less time left no worker is started again: it would only warm up."""

MAX_FRUITLESS = 3
"""Restarts in a row without a new row, before the supervisor gives up."""


def supervise(
    command: Callable[[], Sequence[str]],
    progress: Callable[[], int],
    deadline_s: float = math.inf,
    on_restart: Callable[[int], None] = lambda code: None,
) -> int:
    """Run a command until it ends other than by losing its device.

    Args:
        command: gives the worker to start now.
        progress: a number that grows with every row that is measured.
        deadline_s: moment of ``time.monotonic`` by which the work should be done: a worker that
            runs on is ended, and none is started shortly before.
        on_restart: called with the exit code of a worker that is started again.

    Returns:
        The last worker's exit code; ``STOPPED`` when restarts brought nothing any more.
    """
    workers: list[subprocess.Popen[bytes]] = []

    def forward(number: int, frame: object) -> None:
        workers[-1].send_signal(number)

    # Ctrl-C reaches the worker too, as a member of the same group: it is the one to react
    previous = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN),
        signal.SIGTERM: signal.signal(signal.SIGTERM, forward),
    }
    try:
        fruitless = 0
        while True:
            before = progress()
            workers.append(subprocess.Popen(command()))
            code = _exit_code(workers[-1], deadline_s - time.monotonic() + GRACE_S)
            died = code < 0 and -code not in (signal.SIGINT, signal.SIGTERM)
            if code != LOST and not died:
                return code
            if time.monotonic() > deadline_s - WORTHWHILE_S:
                return STOPPED
            fruitless = 0 if progress() > before else fruitless + 1
            if fruitless == MAX_FRUITLESS:
                return STOPPED
            on_restart(code)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _exit_code(worker: subprocess.Popen[bytes], timeout_s: float) -> int:
    """Wait for a worker; one that hangs is terminated, then killed, and counts as stopped."""
    if timeout_s == math.inf:
        return worker.wait()
    try:
        return worker.wait(max(timeout_s, 0.0))
    except subprocess.TimeoutExpired:
        worker.terminate()
    try:
        worker.wait(GRACE_S / 6)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()
    return STOPPED
