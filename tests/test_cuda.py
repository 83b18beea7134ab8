"""The CUDA programs on a stand-in for ``torch.cuda`` that executes on the CPU, at once."""

import gc
import math
import time
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from layer_energy.errors import DeviceLost, InvalidInput, MeasureError, OutOfMemory
from layer_energy.layers import kinds, layer_type, workload
from layer_energy.measure import cuda
from layer_energy.measure.cuda import CudaGpu
from layer_energy.measure.layer import _fill
from layer_energy.workload import Workload

RELU = workload("relu", elements=1000, in_place=0)


class Event:
    def __init__(self, enable_timing):
        assert enable_timing
        self.time_s = None

    def record(self, stream):
        self.time_s = time.perf_counter()

    def query(self):
        return self.time_s is not None

    def synchronize(self):
        assert self.time_s is not None

    def elapsed_time(self, other):
        return 1e3 * (other.time_s - self.time_s)


class Runtime:
    """Has of ``torch.cuda`` what :class:`CudaGpu` uses."""

    OutOfMemoryError = torch.OutOfMemoryError
    Event = Event

    def __init__(self):
        self.lost = self.broken = False
        self.capturing = None
        self.recording, self.alive = set(), {}
        self.replayed = 0
        self.reserved = self.emptied = 0

    def is_available(self):
        return True

    def device_count(self):
        return 1

    def get_device_properties(self, index):
        return SimpleNamespace(
            name="NVIDIA Test", L2_cache_size=1 << 16, uuid="1-2", major=9, minor=0,
            multi_processor_count=4, total_memory=1 << 30,
        )  # fmt: skip

    def set_device(self, index):
        pass

    def Stream(self):  # noqa: N802
        return "stream"

    def set_stream(self, stream):
        pass

    def graph_pool_handle(self):
        return object()

    def memory_reserved(self):
        return self.reserved

    def empty_cache(self):
        assert not self.recording, "memory is not given back while a pool records"
        self.emptied += 1

    def synchronize(self):
        if self.lost:
            raise RuntimeError("CUDA error: device-side assert triggered")

    def CUDAGraph(self):  # noqa: N802
        runtime = self

        class Graph:
            """Like torch's: a failed end leaves its pool recording."""

            pool = None

            def capture_begin(self, pool):
                if pool in runtime.recording:
                    raise RuntimeError("already recording to mempool_id")
                if runtime.alive.get(pool) == 0:
                    raise RuntimeError("INTERNAL ASSERT FAILED: the pool's last graph is gone")
                runtime.capturing = self.pool = pool
                runtime.recording.add(pool)
                runtime.alive[pool] = runtime.alive.get(pool, 0) + 1

            def capture_end(self):
                pool, runtime.capturing = runtime.capturing, None
                if runtime.broken:
                    runtime.broken = False
                    raise RuntimeError("CUDA error: operation failed due to a previous error")
                runtime.recording.discard(pool)

            def reset(self):
                if self.pool is not None:
                    runtime.alive[self.pool] -= 1
                    self.pool = None

            __del__ = reset

            def replay(self):
                runtime.replayed += 1

        return Graph()


class Allocator:
    """Has of ``torch._C`` what brings torch's allocator back to normal."""

    def __init__(self, runtime):
        self.runtime, self.released = runtime, []

    def _cuda_endAllocateToPool(self, device, pool):  # noqa: N802
        self.runtime.recording.discard(pool)

    def _cuda_releasePool(self, device, pool):  # noqa: N802
        assert pool not in self.released, "a pool released twice breaks empty_cache for good"
        self.released.append(pool)


@pytest.fixture
def gpu():
    made = CudaGpu(0, Runtime(), "cpu")
    made._allocator = Allocator(made._runtime)
    made.time_cap_s = math.inf
    return made


def test_the_device_says_what_it_is(gpu):
    assert gpu.device.slug == "nvidia-test"
    assert gpu.device.cache_bytes == 1 << 16
    assert gpu.device.details["uuid"] == "GPU-1-2"


def test_a_missing_gpu_is_an_error_that_says_where_to_look():
    with pytest.raises(InvalidInput, match=r"torch sees 1 CUDA devices.*number 3"):
        CudaGpu(3, Runtime(), "cpu")


@pytest.mark.parametrize("kind", [kind for kind in kinds() if kind != "generic"])
def test_every_layer_type_becomes_a_program(gpu, kind):
    from random import Random

    rng = Random(3)
    while True:
        p = layer_type(kind).sample(rng)
        if p is None:
            continue
        work = workload(kind, **p)
        if layer_type(kind).cost(work.params, 4).bytes < 1 << 20 and (
            layer_type(kind).cost(work.params, 4).macs < 1e7
        ):
            break
    program = gpu.load(work, submission_s=1e-3)
    program.submit()
    assert program.executions >= 1
    assert program.pending() == 0
    assert len(program.completions_s()) == 1
    assert program.host_time_s > 0
    program.close()


@pytest.mark.parametrize("gradients", ["none", "input", "weight", "both"])
def test_gradients_are_computed_inside_the_program(gpu, gradients, monkeypatch):
    wanted = []
    grad = torch.autograd.grad
    monkeypatch.setattr(
        torch.autograd, "grad", lambda outputs, inputs, *a, **k: (
            wanted.append([t.dim() for t in inputs]), grad(outputs, inputs, *a, **k))
    )  # fmt: skip
    linear = workload("linear", tokens=4, in_features=8, out_features=3, bias=1)
    gpu.load(Workload(linear.kind, linear.params, "float32", gradients), submission_s=1e-4)
    expected = {"none": [], "input": [2], "weight": [2, 1], "both": [2, 2, 1]}[gradients]
    assert all(each == expected for each in wanted)
    assert bool(wanted) == bool(expected)


def test_copies_rotate_unless_hot(gpu, monkeypatch):
    built = []
    original = cuda.passes
    monkeypatch.setattr(cuda, "passes", lambda *a, **k: (built.append(1), original(*a, **k))[1])
    gpu.load(RELU)
    cold = len(built)
    built.clear()
    gpu.load(RELU, ("hot",))
    assert len(built) == 1 < cold


@pytest.mark.parametrize(("dtype", "tf32"), [("float32", False), ("tf32", True)])
def test_precision_is_set_explicitly(gpu, dtype, tf32):
    gpu.load(Workload(RELU.kind, RELU.params, dtype), submission_s=1e-4)
    assert torch.backends.cuda.matmul.allow_tf32 is tf32
    assert torch.backends.cudnn.allow_tf32 is tf32


class Uncapturable(torch.nn.Module):
    """Synchronises, which a capture does not survive."""

    def __init__(self, runtime, error):
        super().__init__()
        self.runtime, self.error = runtime, error

    def forward(self, x):
        if self.runtime.capturing is not None:
            self.runtime.broken = True
            raise self.error
        return x.relu_()


@pytest.fixture
def uncapturable(gpu, monkeypatch):
    def use(error):
        module = Uncapturable(gpu._runtime, error)
        monkeypatch.setattr(
            layer_type("relu"), "build", lambda p: (module, (torch.empty(p["elements"]),))
        )

    return use


def test_what_cannot_be_captured_runs_eagerly_and_spoils_nothing(gpu, uncapturable):
    uncapturable(RuntimeError("operation not permitted when stream is capturing"))
    program = gpu.load(RELU, submission_s=1e-4)
    assert program.flags == ("launch_bound",)
    assert program.host_bound
    program.submit()
    assert len(program.completions_s()) == 1
    gelu = gpu.load(workload("gelu", elements=1000, in_place=0), submission_s=1e-4)
    assert gelu.flags == ()
    replayed = gpu._runtime.replayed
    gelu.submit()
    assert gpu._runtime.replayed == replayed + 1


def test_short_memory_while_capturing_is_short_memory(gpu, uncapturable):
    uncapturable(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(OutOfMemory):
        gpu.load(RELU)
    gpu.release()  # memory can be given back


def test_what_a_capture_that_ended_held_is_given_back(gpu, monkeypatch):
    def fails(x):
        if gpu._runtime.capturing is not None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x + 1

    module = torch.nn.Module()
    module.forward = fails
    monkeypatch.setattr(layer_type("relu"), "build", lambda p: (module, (torch.empty(4),)))
    with pytest.raises(OutOfMemory):
        gpu.load(RELU)
    assert gpu._failed == []
    assert gpu._allocator.released == []
    gc.collect()
    assert sum(gpu._runtime.alive.values()) == 0


def test_a_capture_whose_end_failed_stops_recording_and_is_kept(gpu, uncapturable):
    uncapturable(RuntimeError("operation not permitted when stream is capturing"))
    gpu.load(RELU, submission_s=1e-4)
    assert gpu._runtime.recording == set()
    assert len(gpu._failed) == len(gpu._allocator.released) > 0


def test_a_pool_outlives_its_graphs(gpu):
    for _ in range(3):
        program = gpu.load(RELU, submission_s=1e-4)
        assert program.flags == ()
        program.close()
        del program
        gc.collect()
    gpu.release()
    assert gpu.load(RELU, submission_s=1e-4).flags == ()


def test_much_cached_memory_is_given_back_before_a_capture(gpu):
    gpu.load(RELU, submission_s=1e-4)
    assert gpu._runtime.emptied == 0
    gpu._runtime.reserved = cuda.RESERVED_BYTES + 1
    gpu.load(RELU, submission_s=1e-4)
    assert gpu._runtime.emptied > 0


def test_captures_of_training_are_short(gpu, monkeypatch):
    asked = []
    monkeypatch.setattr(gpu, "_layer", lambda work, hot, submission_s: asked.append(submission_s))
    gpu.load(RELU)
    gpu.load(Workload(RELU.kind, RELU.params, "float32", "input"))
    assert asked == [0.0075, cuda.TRAINING_SUBMISSION_S]


def test_what_takes_too_long_is_refused(gpu):
    gpu.time_cap_s = 0.0
    with pytest.raises(MeasureError, match=r"takes .* s, and 0 s are allowed"):
        gpu.load(RELU)


def test_optimizer_steps_have_few_copies(gpu, monkeypatch):
    built = []
    original = cuda.passes
    monkeypatch.setattr(cuda, "passes", lambda *a, **k: (built.append(1), original(*a, **k))[1])
    monkeypatch.setattr(cuda, "rotation", lambda device, size: 64)
    gpu.load(workload("adamw_step", elements=64, tensors=4), submission_s=1.0)
    assert len(built) == cuda.OPTIMIZER_COPIES
    built.clear()
    gpu.load(RELU, submission_s=1.0)
    assert len(built) == 64


def test_steps_of_an_optimizer_reach_the_device_in_one_copy():
    _, (parameters, _, _, steps) = layer_type("adamw_step").build({"elements": 64, "tensors": 4})
    assert len(parameters) == 4
    assert isinstance(steps, torch.Tensor)
    assert steps.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(("elements", "run", "kernel"), [(64, 64, True), (64, 4, False)])
def test_a_contiguous_copy_is_a_kernel_inside_a_graph(gpu, elements, run, kernel):
    class Seen(TorchDispatchMode):
        names = ()

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.names = (*self.names, function._opname)
            return function(*args, **(kwargs or {}))

    with Seen() as seen:
        gpu.load(workload("copy", elements=elements, run=run), submission_s=1e-5)
    assert ("add" in seen.names) == kernel
    assert ("clone" in seen.names) == (not kernel)


def test_a_model_becomes_one_graph(gpu):
    model = torch.nn.Linear(8, 4)
    eager = gpu.load_module(lambda: (model, (torch.randn(2, 8),)), "float32", "inference")
    graph = gpu.graph_of(eager)
    assert (graph.flags, graph.host_bound, graph.input) == (("graph",), False, "2x8")
    assert graph.host_time_s is None
    replayed = gpu._runtime.replayed
    graph.submit()
    assert gpu._runtime.replayed == replayed + 1


def test_a_model_that_waits_for_the_device_becomes_no_graph(gpu):
    module = Uncapturable(gpu._runtime, RuntimeError("not permitted when stream is capturing"))
    eager = gpu.load_module(lambda: (module, (torch.randn(2, 8),)), "float32", "inference")
    assert gpu.graph_of(eager) is None


def test_an_error_of_a_submission_is_not_the_end_of_the_device(gpu):
    program = gpu.load(RELU, submission_s=1e-4)
    program.run = _fails
    with pytest.raises(MeasureError, match="an operator's own"):
        program.submit()
    gpu._runtime.lost = True
    with pytest.raises(DeviceLost):
        program.submit()


def _fails():
    raise RuntimeError("an operator's own")


def test_weights_that_share_one_storage_are_filled():
    flat = torch.zeros(10)
    _fill(flat[4:])
    assert flat.count_nonzero() == 10


def test_an_error_that_stays_means_the_device_is_lost(gpu, monkeypatch):
    def fails(*args, **options):
        gpu._runtime.lost = True
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(cuda, "passes", fails)
    with pytest.raises(DeviceLost, match="device-side assert"):
        gpu.load(RELU)


def test_an_error_of_one_layer_is_only_its_own(gpu, monkeypatch):
    def fails(*args, **options):
        raise RuntimeError("not implemented for 'Half'")

    monkeypatch.setattr(cuda, "passes", fails)
    with pytest.raises(MeasureError, match="not implemented for 'Half'"):
        gpu.load(RELU)


def test_short_memory_has_an_error_of_its_own(gpu, monkeypatch):
    def fails(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(cuda, "passes", fails)
    with pytest.raises(OutOfMemory):
        gpu.load(RELU)


@pytest.mark.parametrize(
    ("dtype", "mode"), [("float32", "inference"), ("bfloat16", "inference"), ("tf32", "training")]
)
def test_a_model_runs_eagerly(gpu, dtype, mode):
    model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU())
    before = model[0].weight.detach().clone()
    program = gpu.load_module(lambda: (model, (torch.randn(2, 8),)), dtype, mode)
    program.submit()
    assert program.flags == ("eager",)
    assert program.input == "2x8"
    assert program.executions == 1
    moved = not torch.equal(before, model[0].weight.detach().float())
    assert moved == (mode == "training") or dtype == "bfloat16"


def test_a_closed_program_cannot_be_submitted(gpu):
    program = gpu.load(RELU, submission_s=1e-4)
    program.close()
    with pytest.raises(MeasureError, match="closed"):
        program.submit()
