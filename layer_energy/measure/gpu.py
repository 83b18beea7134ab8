"""What the protocol needs of a GPU, and how it keeps one busy.

A *program* is a workload made ready: its weights and inputs lie on the device and a *submission*
(a CUDA graph of some milliseconds) runs it ``executions`` times over rotating copies.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from layer_energy.workload import Device, Workload

QUEUE_S = 0.03
"""Work kept in the device's queue, so that a pause of the host does not reach the device."""

TOP_UP_S = 1e-3
"""Longest time the host spends on submitting before it looks at the sensor again."""

Build = Callable[[], tuple[Any, tuple[Any, ...]]]
"""Makes a ``torch.nn.Module`` and its positional inputs."""

Variant = Sequence[str]
"""Names of everything that departs from the default state: ``"hot"``, ``"autotuned"``."""


class Program(Protocol):
    """Work that can be submitted again and again.

    Attributes:
        executions: executions of the workload in one submission.
        submission_s: seconds one submission takes, about.
        burst_time_s: seconds per execution of the first submission after a pause.
        host_time_s: seconds of the host per eager execution; ``None`` if not measured.
        host_bound: every execution is launched by the host, which may be slower than the device.
        flags: names of everything unusual, such as ``"launch_bound"``.
        input: shape of a whole model's first input, such as ``"8x128:int64"``.
    """

    executions: int
    submission_s: float
    burst_time_s: float
    host_bound: bool
    flags: tuple[str, ...]
    input: str

    @property
    def host_time_s(self) -> float | None:
        """See above."""
        ...

    def submit(self) -> None:
        """Put one submission into the device's queue; returns at once."""
        ...

    def completions_s(self) -> list[float]:
        """Moments, by the host's clock, at which the finished submissions ended."""
        ...

    def pending(self) -> int:
        """Submissions that have not finished."""
        ...

    def close(self) -> None:
        """Free what the program holds, its pending work having finished."""
        ...


class Gpu(Protocol):
    """A device that executes programs.

    Attributes:
        device: what it is.
        quality: of joules measured on it: ``"measured"``, or ``"simulated"`` if it is virtual.
    """

    device: Device
    quality: str

    def clock(self) -> float:
        """Seconds of the host."""
        ...

    def sleep(self, duration_s: float) -> None:
        """Let the host wait."""
        ...

    def load(
        self, workload: Workload, variant: Variant = (), submission_s: float = 0.0075
    ) -> Program:
        """Make a workload ready.

        Args:
            workload: what to execute.
            variant: ``"hot"`` for one copy that stays in the cache, ``"autotuned"`` for
                ``cudnn.benchmark``.
            submission_s: how long a submission should take.

        Raises:
            OutOfMemory: if the device has too little memory.
            MeasureError: if torch cannot run it.
            DeviceLost: if the process's context on the device is gone.
        """
        ...

    def load_module(self, build: Build, dtype: str, mode: str) -> Program:
        """Make a whole model ready, run eagerly; the same errors as :meth:`load`.

        Args:
            build: makes the model and its positional inputs on torch's default device.
            dtype: ``"float32"``, ``"tf32"``, ``"bfloat16"`` or ``"float16"``.
            mode: one of :data:`layer_energy.optimization.MODES`.
        """
        ...

    def graph_of(self, program: Any) -> Program | None:
        """A model's program as one CUDA graph; ``None`` if it cannot be captured.

        Args:
            program: from :meth:`load_module`, for inference.
        """
        ...

    def background(self, step: Callable[[], float | None]) -> None:
        """Call ``step`` again and again beside everything else.

        Args:
            step: returns the seconds until its next call, or ``None`` to end.
        """
        ...

    def release(self) -> None:
        """Give cached memory back to the device."""
        ...


def input_text(inputs: Sequence[Any]) -> str:
    """Shape of the first tensor, and its dtype unless floating: ``"8x3x224x224"``."""
    first = inputs[0]
    shape = "x".join(map(str, first.shape))
    return shape if first.is_floating_point() else f"{shape}:{str(first.dtype).split('.')[-1]}"


def in_thread(step: Callable[[], float | None]) -> None:
    """Call ``step`` in a thread of its own; see :meth:`Gpu.background`."""

    def run() -> None:
        while (pause_s := step()) is not None:
            time.sleep(pause_s)

    threading.Thread(target=run, daemon=True).start()


class Pump:
    """Keeps a device busy with one program."""

    def __init__(self, gpu: Gpu, program: Program) -> None:
        self._gpu = gpu
        self._program = program
        self._depth = max(2, round(QUEUE_S / program.submission_s))

    def top_up(self) -> bool:
        """Fill the queue, for a millisecond at most; whether it is full."""
        end_s = self._gpu.clock() + TOP_UP_S
        for _ in range(self._depth - self._program.pending()):
            if self._gpu.clock() > end_s:
                return False
            self._program.submit()
        return True

    def until(self, time_s: float) -> None:
        """Keep the device busy until a moment of the host's clock."""
        while True:
            full = self.top_up()
            left_s = time_s - self._gpu.clock()
            if left_s <= 0:
                return
            if full:
                self._gpu.sleep(min(left_s, QUEUE_S / 4))


class Idle:
    """Stands in for a :class:`Pump`: leaves the device without work."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu

    def top_up(self) -> bool:
        """Nothing to do."""
        return True

    def until(self, time_s: float) -> None:
        """Wait."""
        while (left_s := time_s - self._gpu.clock()) > 0:
            self._gpu.sleep(left_s)
