"""Wrapped, exported, sharded, quantised: the oracle is the same model without any of it."""

import copy
import threading
import warnings

import pytest
import torch
import torch.distributed
from torch import nn
from torch.nn.utils import parametrizations, prune

from layer_energy import predict_energy
from layer_energy.errors import InvalidInput, WalkError
from layer_energy.models import build_model
from layer_energy.walk import walk

SHAPE = (2, 3, 16, 16)


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU()), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 5),
    ).eval()  # fmt: skip


PLAIN = walk(net(), SHAPE)


def located(trace):
    return [(c.path, c.module, c.call, c.workload, c.gradients) for c in trace.calls]


def assert_as_plain(trace, *sentences):
    assert located(trace) == located(PLAIN)
    assert trace.via == "meta clone"
    for sentence in sentences:
        assert any(sentence in note for note in trace.notes), trace.notes


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """A group of this one process, without a network."""
    file = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def compiled_inside(model):
    model[3] = torch.compile(model[3])
    return model


def compiled_in_place(model):
    model.compile()
    return model


@pytest.mark.parametrize(
    ("wrap", "sentence"),
    [
        (torch.compile, "compiled: priced as eager; fusion is not modelled"),
        (compiled_inside, "compiled: priced as eager; fusion is not modelled"),
        (compiled_in_place, "compiled: priced as eager; fusion is not modelled"),
        (nn.DataParallel, "DataParallel was taken off: priced as one replica"),
        (torch.optim.swa_utils.AveragedModel, "AveragedModel was taken off"),
        (lambda m: nn.DataParallel(torch.compile(m)), "compiled: priced as eager"),
    ],
)
def test_wrappers_are_taken_off(wrap, sentence):
    trace = walk(wrap(net()), SHAPE)
    assert trace.model == "Sequential"
    assert_as_plain(trace, sentence)
    assert sentence in "\n".join(predict_energy(wrap(net()), SHAPE).assumptions)


def ddp(model):
    return nn.parallel.DistributedDataParallel(model)


def fully_sharded(model):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))
    fully_shard(model[3], mesh=mesh)
    return fully_shard(model, mesh=mesh)


def sharded_in_groups(model):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))
    fully_shard([model[0], model[6]], mesh=mesh)
    model[3] = torch.compile(model[3], backend="eager")
    return fully_shard(model, mesh=mesh)


def flattened(use_orig_params):
    def wrap(model):
        from torch.distributed.fsdp import FullyShardedDataParallel

        options = {"use_orig_params": use_orig_params, "device_id": torch.device("cpu")}
        model[3] = FullyShardedDataParallel(model[3], **options)
        return FullyShardedDataParallel(model, **options)

    return wrap


@pytest.mark.parametrize(
    "wrap", [ddp, fully_sharded, sharded_in_groups, flattened(True), flattened(False)]
)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_distributed_models_are_priced_as_one_replica_and_still_run(processes, wrap):
    model, x = wrap(net()), torch.randn(SHAPE)
    with torch.no_grad():
        expected = model(x)
        shapes = [(n, type(p), p.shape) for n, p in model.named_parameters()]
        trace = walk(model, SHAPE)
        assert trace.model == "Sequential"
        assert_as_plain(trace, "was taken off: priced as one")
        assert walk(model).inputs == "1x3x224x224"
        assert [(n, type(p), p.shape) for n, p in model.named_parameters()] == shapes
        assert torch.equal(model(x), expected)


def test_sharded_models_that_resist_copying_say_what_to_do(processes):
    model = net()
    model.lock = threading.Lock()
    with pytest.raises(
        WalkError, match=r"cannot be copied without it: TypeError.*before it is sha"
    ):
        walk(fully_sharded(model), SHAPE)


class Tied(nn.Module):
    def __init__(self, frozen):
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        self.body = nn.Linear(8, 8).requires_grad_(not frozen)
        self.head = nn.Linear(8, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.body(self.embedding(x)))


@pytest.mark.parametrize("original", [True, False])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_tied_weights_and_frozen_ones_survive_sharding(processes, original):
    from torch.distributed.fsdp import FullyShardedDataParallel

    ids = torch.zeros(2, 7, dtype=torch.int64)
    sharded = FullyShardedDataParallel(
        Tied(frozen=original), use_orig_params=original, device_id=torch.device("cpu")
    )
    assert located(walk(sharded, ids)) == located(walk(Tied(frozen=original), ids))


def test_exported_programs_need_no_input_and_keep_their_paths():
    program = torch.export.export(net(), (torch.zeros(SHAPE),))
    for exported in (program, program.module()):
        trace = walk(exported)
        assert located(trace) == [(p, m, c, w, g) for p, m, c, w, g in located(PLAIN)]
        assert "input 2x3x16x16, as it was exported for" in trace.notes
        assert_as_plain(walk(exported, SHAPE))
    assert walk(program).model == "ExportedProgram"
    assert predict_energy(program).energy_j == predict_energy(net(), SHAPE).energy_j


class Twice(nn.Module):
    """One module called twice, and a keyword argument."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x, *, scale):
        return self.inner(self.inner(x).relu()) * scale


def test_dynamic_batches_of_exported_programs():
    x = torch.zeros(3, 4)
    batch = {0: torch.export.Dim("batch")}
    shapes = {"x": batch, "scale": batch}
    program = torch.export.export(Twice(), (x,), {"scale": x}, dynamic_shapes=shapes)
    assert located(walk(program)) == located(walk(Twice(), x, kwargs={"scale": x}))
    trace = walk(program, batch_size=7)
    y = torch.zeros(7, 4)
    assert located(trace) == located(walk(Twice(), y, kwargs={"scale": y}))
    assert trace.batch_size == 7
    fixed = torch.export.export(Twice(), (x,), {"scale": x})
    with pytest.raises(InvalidInput, match=r"for a batch of 3, not 7; export it with"):
        walk(fixed, batch_size=7)


def test_a_graph_of_the_users_is_not_written_to():
    module = torch.export.export(net(), (torch.zeros(SHAPE),)).module()
    before = str(module.graph)
    walk(module)
    assert str(module.graph) == before


def test_decomposed_programs_count_the_same_products():
    program = torch.export.export(net(), (torch.zeros(SHAPE),)).run_decompositions()
    trace = walk(program)
    assert trace.macs == PLAIN.macs
    assert all(call.modelled for call in trace.calls)


def test_saved_programs_are_refused_by_name_since_loading_runs_pickles(tmp_path):
    path = tmp_path / "program.pt2"
    torch.export.save(torch.export.export(net(), (torch.zeros(SHAPE),)), path)
    with pytest.raises(InvalidInput, match=r"runs pickles.*predict_energy\(torch.export.load\("):
        build_model(str(path))
    assert walk(torch.export.load(path)).workloads() == PLAIN.workloads()


def make_program():
    return torch.export.export(net(), (torch.zeros(SHAPE),))


def test_a_factory_may_make_a_program():
    assert walk(build_model(f"{__name__}:make_program")).workloads() == PLAIN.workloads()


@pytest.mark.parametrize(
    "make",
    [torch.jit.script, lambda m: torch.jit.trace(m, torch.zeros(SHAPE)), torch.fx.symbolic_trace],
)
def test_torchscript_and_fx_are_walked(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = make(net())
    assert walk(model, SHAPE).workloads() == PLAIN.workloads()


@pytest.mark.parametrize(
    ("change", "extra"),
    [
        (parametrizations.weight_norm, ["generic"]),
        (parametrizations.spectral_norm, ["copy", "copy", "div", "generic", "matmul"]),
        (parametrizations.orthogonal, ["add", "compare", "generic", "matmul"]),
        (lambda m: prune.l1_unstructured(m, "weight", 0.5), ["mul"]),
    ],
)
def test_parametrised_weights_are_paid_for_on_top(change, extra):
    model = net()
    change(model[0])
    trace = walk(model, SHAPE)
    assert not PLAIN.workloads() - trace.workloads()
    on_top = trace.workloads() - PLAIN.workloads()
    assert sorted(workload.kind for workload in on_top.elements()) == extra


def test_adapters_are_plain_modules():
    class Adapted(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base = base.requires_grad_(False)
            self.down = nn.Linear(base.in_features, 4, bias=False)
            self.up = nn.Linear(4, base.out_features, bias=False)

        def forward(self, x):
            return self.base(x) + self.up(self.down(x))

    trace = walk(Adapted(nn.Linear(16, 32)), (2, 16))
    assert trace.macs == 2 * (16 * 32 + 16 * 4 + 4 * 32)
    assert [c.gradients for c in trace.calls] == ["none", "weight", "both", "input"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_dynamically_quantised_layers_count_as_the_plain_ones():
    quantised = torch.ao.quantization.quantize_dynamic(net(), {nn.Linear})
    trace = walk(quantised, SHAPE)
    assert trace.macs == PLAIN.macs
    call = trace.calls[-1]
    assert (call.op, call.workload.kind, call.workload.dtype) == (
        "quantized.linear_dynamic", "linear", "qint8",
    )  # fmt: skip
    report = predict_energy(quantised, SHAPE, device="amd-epyc-2t")
    assert "quantised operations were not measured: priced as in float32" in report.assumptions
    assert "linear/qint8/none was not measured" in report.layers[-1].estimate.outside


def test_lightning_modules_bring_their_input():
    lightning = pytest.importorskip("lightning")

    class Lit(lightning.LightningModule):
        def __init__(self, example):
            super().__init__()
            self.net = net()
            self.example_input_array = example

        def forward(self, x):
            return self.net(x)

    x = torch.zeros(SHAPE)
    for example in (x, (x,), {"x": x}):
        trace = walk(Lit(example))
        assert trace.workloads() == PLAIN.workloads()
        assert trace.notes == ["input 2x3x16x16 from Lit.example_input_array"]
    assert walk(Lit(x), batch_size=3).inputs == "3x3x224x224"


def test_lightning_fabric_is_taken_off():
    fabric = pytest.importorskip("lightning.fabric").Fabric(accelerator="cpu", devices=1)
    assert_as_plain(walk(fabric.setup(net()), SHAPE), "Lightning Fabric was taken off")


def test_accelerate_is_taken_off():
    accelerate = pytest.importorskip("accelerate")
    offloaded = accelerate.cpu_offload(net())
    assert_as_plain(walk(offloaded, SHAPE), "accelerate's hooks were taken off")
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        mixed = accelerate.Accelerator(cpu=True, mixed_precision="bf16").prepare(net())
        before = copy.copy(mixed.forward)
        assert_as_plain(walk(mixed, SHAPE), "mixed precision was taken off: give dtype")
        assert mixed.forward == before
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
