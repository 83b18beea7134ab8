"""An NVIDIA GPU under PyTorch: programs are CUDA graphs, timed by events."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from layer_energy.device import local_gpu
from layer_energy.errors import DeviceLost, LayerEnergyError, MeasureError, OutOfMemory
from layer_energy.layers.base import count
from layer_energy.layers.optimizer import OPTIMIZER_STEPS
from layer_energy.measure.gpu import Build, Variant, in_thread, input_text
from layer_energy.measure.layer import Forward, behind_relu, execute, passes, rotation
from layer_energy.measure.network import HALF, network
from layer_energy.workload import Workload

MAX_EXECUTIONS = 512
MIN_SUBMISSION_S = 1e-3
TRAINING_SUBMISSION_S = 3e-3
"""Capturing hundreds of backward passes takes the host 30 to 60 ms: fewer do."""

TIME_CAP_S = 0.04
"""A layer that takes longer is not worth its time."""

RESERVED_BYTES = 40 << 30
"""With more than this cached by the allocator, the cache is emptied before a capture."""

OPTIMIZER_COPIES = 8
"""Of thousands of tensors each; more take a second to make."""

TIMED = 4
"""Eager executions that tell how long one takes."""


class CudaGpu:
    """See :class:`layer_energy.measure.gpu.Gpu`.

    Everything runs on one stream, so that programs follow each other without waiting.

    Args:
        index: torch's index of the GPU.
        runtime: ``torch.cuda``, or a stand-in for tests.
        torch_device: where tensors go; ``cuda:<index>`` if not given.
    """

    quality = "measured"
    _allocator: Any = torch._C

    def __init__(
        self, index: int = 0, runtime: Any = torch.cuda, torch_device: str | None = None
    ) -> None:
        self.device = local_gpu(index, runtime)
        self._runtime = runtime
        self._torch_device = torch_device or f"cuda:{index}"
        runtime.set_device(index)
        self._stream = runtime.Stream()
        runtime.set_stream(self._stream)
        self.time_cap_s = TIME_CAP_S
        self._index = index
        self._failed: list[Any] = []
        self._pool: Any = None
        self._keeper: Any = None

    clock = staticmethod(time.perf_counter)
    sleep = staticmethod(time.sleep)
    background = staticmethod(in_thread)

    def load(
        self, workload: Workload, variant: Variant = (), submission_s: float = 0.0075
    ) -> CudaProgram:
        """See :class:`layer_energy.measure.gpu.Gpu`."""
        with self.errors(f"{workload.kind} {dict(workload.params)}"):
            _set_precision(workload.dtype)
            torch.backends.cudnn.benchmark = "autotuned" in variant
            if workload.gradients != "none":
                submission_s = min(submission_s, TRAINING_SUBMISSION_S)
            return self._layer(workload, "hot" in variant, submission_s)

    def load_module(self, build: Build, dtype: str, mode: str) -> CudaProgram:
        """See :class:`layer_energy.measure.gpu.Gpu`."""
        with self.errors("the model"):
            _set_precision(dtype)
            torch.backends.cudnn.benchmark = False
            with torch.device(self._torch_device):  # random weights are drawn there, fast
                model, inputs = build()
            model = model.to(self._torch_device)
            if mode == "inference" and dtype in HALF:
                model = model.to(HALF[dtype])
            inputs = tuple(_moved(t, self._torch_device, model) for t in inputs)
            run = network(model, [inputs], mode, dtype)
            for _ in range(3):
                run()
            program = CudaProgram(self, run, 1, host_bound=True, flags=("eager",))
            program.host_time_s, _ = self._time(run)
            program.input = input_text(inputs)
            program.start()
            return program

    def graph_of(self, program: CudaProgram) -> CudaProgram | None:
        """See :class:`layer_energy.measure.gpu.Gpu`."""
        with self.errors("the model as a graph"):
            graph = self._captured(program.run)
            if graph is None:
                return None
            made = CudaProgram(self, graph.replay, 1, flags=("graph",))
            made.holds(graph, program.run)
            made.input = program.input
            made.start()
            return made

    def release(self) -> None:
        """See :class:`layer_energy.measure.gpu.Gpu`."""
        with self.errors("releasing memory"):
            self._runtime.synchronize()
            self._pool = self._keeper = None
            gc.collect()  # models may hold circles
            self._runtime.empty_cache()

    def event(self) -> Any:
        """An event at the end of everything submitted so far."""
        event = self._runtime.Event(enable_timing=True)
        event.record(self._stream)
        return event

    def _layer(self, workload: Workload, hot: bool, submission_s: float) -> CudaProgram:
        cost, _ = count(workload)
        rectified = behind_relu(workload)
        first = passes(workload, self._torch_device, rectified, captured=True)

        def once() -> None:
            execute([first], 1)

        once()
        self._refuse_slow(once)
        for _ in range(2):  # the first launch after waiting for the device takes the host longer
            once()
        host_s, time_s = self._time(once)
        repeats = _clamped(submission_s / time_s)
        copies = 1 if hot else min(rotation(self.device, cost.bytes), repeats)
        if workload.kind in OPTIMIZER_STEPS:
            copies = min(copies, OPTIMIZER_COPIES)
        runs = [first]
        runs += [
            passes(workload, self._torch_device, rectified, captured=True)
            for _ in range(copies - 1)
        ]
        if workload.gradients != "none":
            execute(runs[1:], 1)  # the first pass makes the gradients that arrive
        program = self._program(runs, repeats)
        if program.submission_s < MIN_SUBMISSION_S and repeats < MAX_EXECUTIONS:
            # the host was slower than the device: more of them fit
            more = _clamped(repeats * submission_s / program.submission_s)
            program.close()
            program = self._program(runs, more)
        program.host_time_s = host_s
        return program

    def _refuse_slow(self, once: Callable[[], None]) -> None:
        """Refuse what takes the device too long, once it is warm.

        Raises:
            MeasureError: if it does.
        """
        begin = self.event()
        once()
        end = self.event()
        end.synchronize()
        took_s = begin.elapsed_time(end) / 1e3
        if took_s > self.time_cap_s:
            raise MeasureError(
                f"one execution takes {took_s:.3f} s, and {self.time_cap_s:g} s are allowed"
            )

    def _program(self, runs: list[Forward], repeats: int) -> CudaProgram:
        rotating = itertools.cycle(runs)

        def submit() -> None:
            execute(itertools.islice(rotating, repeats), lag=len(runs))

        graph = self._captured(submit)
        program = (
            CudaProgram(self, submit, repeats, host_bound=True, flags=("launch_bound",))
            if graph is None
            else CudaProgram(self, graph.replay, repeats)
        )
        program.holds(graph, runs)
        program.start()
        return program

    def _captured(self, submit: Callable[[], Any]) -> Any:
        """A graph of what ``submit`` launches, ``None`` if that cannot be captured."""
        if self._runtime.memory_reserved() > RESERVED_BYTES:
            self._runtime.empty_cache()
        if self._pool is None:
            self._renew_pool()
        graph = self._runtime.CUDAGraph()
        begun = False
        try:
            graph.capture_begin(pool=self._pool)
            begun = True
            submit()
            graph.capture_end()
        except self._runtime.OutOfMemoryError:
            self._forget(graph, begun)
            raise
        except (RuntimeError, NotImplementedError):
            self._forget(graph, begun)
            self._runtime.synchronize()  # raises if the error is there to stay
            return None
        return graph

    def _renew_pool(self) -> None:
        """A new memory pool for graphs, with one in it that stays.

        A pool whose last graph is gone takes no other: ``capture_begin`` then fails an assertion
        of torch's, and everything after it would run uncaptured.
        """
        self._pool = self._runtime.graph_pool_handle()
        tiny = torch.zeros(8, device=self._torch_device)
        tiny.add_(1)
        self._runtime.synchronize()
        keeper = self._runtime.CUDAGraph()
        keeper.capture_begin(pool=self._pool)
        tiny.add_(1)
        keeper.capture_end()
        self._keeper = keeper, tiny

    def _forget(self, graph: Any, begun: bool) -> None:
        """Bring the allocator back to normal after a capture that failed, and leave its pool.

        A capture that ended is undone by ``reset``. One whose end fails leaves the allocator
        recording to the pool, for ever: it is told to stop, and the graph is kept, since what it
        recorded to must not be freed.
        """
        ended = False
        if begun:
            with suppress(RuntimeError):  # the first error is the one to tell
                graph.capture_end()
                ended = True
        if ended:
            with suppress(RuntimeError):
                graph.reset()
        else:
            self._failed.append((graph, self._keeper))
            if begun:
                self._stop_recording()
        self._pool = self._keeper = None

    def _stop_recording(self) -> None:
        for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
            undo = getattr(self._allocator, name, None)
            if undo is not None:
                with suppress(RuntimeError):
                    undo(self._index, self._pool)

    def _time(self, run: Callable[[], Any]) -> tuple[float, float]:
        """Seconds of the host and of the device for one eager execution."""
        begin = self.event()
        start_s = time.perf_counter()
        for _ in range(TIMED):
            run()
        host_s = time.perf_counter() - start_s
        end = self.event()
        end.synchronize()
        return host_s / TIMED, max(begin.elapsed_time(end) / 1e3 / TIMED, 1e-7)

    @contextmanager
    def errors(self, what: str) -> Iterator[None]:
        """Turn torch's errors into this package's; one that stays means the context is lost."""
        try:
            yield
        except self._runtime.OutOfMemoryError as error:
            raise OutOfMemory(f"{what}: {error}") from error
        except LayerEnergyError:
            raise
        except Exception as error:  # torch and the models of strangers raise anything
            try:
                self._runtime.synchronize()
            except RuntimeError as lost:
                raise DeviceLost(f"{what}: {lost}") from error
            raise MeasureError(f"{what}: {type(error).__name__}: {error}") from error


class CudaProgram:
    """See :class:`layer_energy.measure.gpu.Program`.

    Attributes:
        run: submits once.
    """

    submission_s = burst_time_s = 0.0
    host_time_s: float | None = None
    input = ""

    def __init__(
        self,
        gpu: CudaGpu,
        run: Callable[[], Any],
        executions: int,
        host_bound: bool = False,
        flags: tuple[str, ...] = (),
    ) -> None:
        self.executions, self.host_bound, self.flags = executions, host_bound, flags
        self._gpu = gpu
        self.run = run
        self._held: tuple[Any, ...] = ()
        self._events: list[Any] = []
        self._ends: list[float] = []

    def holds(self, *values: Any) -> None:
        """Keep what the device still reads."""
        self._held = values

    def start(self) -> None:
        """Time a submission after a pause, the very first one left out, and set the clock."""
        self.run()
        self._gpu.event().synchronize()
        begin = self._gpu.event()
        self.run()
        end = self._gpu.event()
        end.synchronize()
        self.submission_s = max(begin.elapsed_time(end) / 1e3, 1e-6)
        self.burst_time_s = self.submission_s / self.executions
        self._base = self._gpu.event()
        self._base.synchronize()
        self._base_s = time.perf_counter()

    def submit(self) -> None:
        """See :class:`layer_energy.measure.gpu.Program`."""
        with self._gpu.errors("a submission"):
            self.run()
            self._events.append(self._gpu.event())

    def completions_s(self) -> list[float]:
        """See :class:`layer_energy.measure.gpu.Program`."""
        with self._gpu.errors("looking for completions"):
            while len(self._ends) < len(self._events):
                event = self._events[len(self._ends)]
                if not event.query():
                    break
                self._ends.append(self._base_s + self._base.elapsed_time(event) / 1e3)
        return self._ends

    def pending(self) -> int:
        """See :class:`layer_energy.measure.gpu.Program`."""
        return len(self._events) - len(self.completions_s())

    def close(self) -> None:
        """See :class:`layer_energy.measure.gpu.Program`."""
        with self._gpu.errors("waiting for the queue"):
            if self._events:
                self._events[-1].synchronize()
        self.run = _nothing
        self._held = ()


def _nothing() -> None:
    raise AssertionError("this program is closed")


def _clamped(executions: float) -> int:
    return max(1, min(MAX_EXECUTIONS, round(executions)))


def _set_precision(dtype: str) -> None:
    """Matrix products and convolutions of float32 exactly, or in TensorFloat-32."""
    tf32 = dtype == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32


def _moved(value: Any, device: str, model: torch.nn.Module) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    parameter = next(model.parameters(), None)
    if parameter is not None and value.is_floating_point():
        return value.to(device, parameter.dtype)
    return value.to(device)
