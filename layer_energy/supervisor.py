"""Restart a worker process whose device context is gone, for as long as that brings progress.

An error on a GPU can be *sticky*: every later call of the same process fails too. The worker then
writes down what it has and leaves; a new process goes on behind the row that did it.
"""

from __future__ import annotations

import contextlib
import math
import signal
import subprocess
import time
from collections.abc import Callable, Sequence

LOST = 75
"""Exit code of a worker that lost its device (EX_TEMPFAIL of sysexits.h)."""

STOPPED = 3
"""Exit code of a collection that can be resumed."""

ENDINGS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
"""Signals by which someone asks for the end; Windows has no SIGHUP."""

GRACE_S = 60.0
"""A worker may outlast the deadline by this much before it is taken for hung."""

HANG_S, START_S = 40.0, 180.0
"""A worker without a sign for this long hangs; it may take longer to import and warm up."""

WORTHWHILE_S = 60.0
"""With less time left no worker is started again: it would only warm up."""

MAX_FRUITLESS = 3
"""Restarts in a row without a new row, before the supervisor gives up."""


def supervise(
    command: Callable[[], Sequence[str]],
    progress: Callable[[], int],
    deadline_s: float = math.inf,
    on_restart: Callable[[int], None] = lambda code: None,
    silent_s: Callable[[], float] = lambda: 0.0,
) -> int:
    """Run a command until it ends other than by losing its device.

    A worker that hangs is aborted, which lets it print where, and a new one goes on.

    Args:
        command: gives the worker to start now.
        progress: a number that grows with every row that is measured.
        deadline_s: moment of ``time.monotonic`` by which the work should be done: a worker that
            runs on is ended, and none is started shortly before.
        on_restart: called with the exit code of a worker that is started again.
        silent_s: seconds since something last came from a worker, of this run or an earlier one.

    Returns:
        The last worker's exit code; ``STOPPED`` when restarts brought nothing any more.
    """
    workers: list[subprocess.Popen[bytes]] = []

    def forward(number: int, frame: object) -> None:
        workers[-1].send_signal(number)

    # Ctrl-C reaches the worker too, as a member of the same group: it is the one to react
    previous = {
        number: signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else forward)
        for number in ENDINGS
    }
    try:
        fruitless = 0
        while True:
            before = progress()
            workers.append(subprocess.Popen(command()))
            code = _exit_code(workers[-1], deadline_s + GRACE_S, silent_s)
            died = code < 0 and -code not in ENDINGS
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


def _exit_code(worker: subprocess.Popen[bytes], end_s: float, silent_s: Callable[[], float]) -> int:
    """Wait for a worker; one that runs on past the end is ended and counts as stopped."""
    started_s = time.monotonic()
    while time.monotonic() < end_s:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return worker.wait(min(1.0, max(end_s - time.monotonic(), 0.0)))
        alive_s, quiet_s = time.monotonic() - started_s, silent_s()
        # a sign older than this worker is one of an earlier run
        if min(quiet_s, alive_s) > (HANG_S if quiet_s < alive_s else START_S):
            worker.send_signal(signal.SIGABRT)
            return _ended(worker, 2.0)
    worker.terminate()
    _ended(worker, GRACE_S / 6)
    return STOPPED


def _ended(worker: subprocess.Popen[bytes], patience_s: float) -> int:
    try:
        return worker.wait(patience_s)
    except subprocess.TimeoutExpired:
        worker.kill()
        return worker.wait()
