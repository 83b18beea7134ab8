"""Training steps: what the walker sees of one, held against autograd itself, and its price."""

import functools
import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from layer_energy import EnergyModel, plot_sweep, predict_energy, sweep
from layer_energy.dataset import Dataset
from layer_energy.errors import InvalidInput, MeasureError, ProfileError, WalkError
from layer_energy.evaluate import evaluate_networks, fit_profile
from layer_energy.layers import count
from layer_energy.measure import CpuBench
from layer_energy.measure.layer import _staggered, execute, executions
from layer_energy.measure.network import network
from layer_energy.model import PASSES
from layer_energy.networks import measure_networks
from layer_energy.optimization import MODES, TrainingStep, default_loss, freeze_backbone
from layer_energy.walk import walk
from layer_energy.walk.training import ACCUMULATION, LOSS, OPTIMIZER
from layer_energy.workload import NetworkMeasurement, Params, Workload
from tests.conftest import Functional, Shared
from tests.synthetic import DEVICE, make_dataset, training_time_s

KINDS = ("conv2d", "batch_norm", "relu", "max_pool2d", "linear", "adaptive_avg_pool2d", "copy",
         "add", "mul", "cat", "log_softmax", "nll_loss", "fill")  # fmt: skip


class Sliced(nn.Module):
    """Views whose gradients cost something, and a tensor that three operations use."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 12))
        self.linear = nn.Linear(12, 12)

    def forward(self, x):
        x = self.linear(x)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        a, b, c = x.split(4, dim=-1)
        return a * b + c * x[:, :1, 4:8] + x[..., 8:]


class Tied(nn.Module):
    """An embedding whose weight is the head's, too."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        self.head = nn.Linear(8, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.embedding(x))


class NormalisedVector(nn.Sequential):
    """Batch normalisation of one value per channel and image."""

    def __init__(self):
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3), nn.Flatten())


MODELS = [
    (lambda: torchvision.models.resnet18(), (2, 3, 64, 64)),
    (lambda: torchvision.models.densenet121(), (1, 3, 64, 64)),
    (lambda: torchvision.models.mobilenet_v3_small(), (2, 3, 64, 64)),
    (lambda: torchvision.models.shufflenet_v2_x0_5(), (2, 3, 64, 64)),
    (Functional, (4, 6, 16)),
    (Shared, (5, 8)),
    (Sliced, (3, 5, 12)),
    (Tied, torch.zeros(2, 7, dtype=torch.int64)),
]


def backward_graph(loss):
    """Nodes of autograd's graph, and how many gradients arrive at each of their outputs."""
    arriving, waiting, nodes = Counter(), [loss.grad_fn], {loss.grad_fn}
    while waiting:
        for node, output in waiting.pop().next_functions:
            if node is None:
                continue
            arriving[node, output] += 1
            if node not in nodes:
                nodes.add(node)
                waiting.append(node)
    return nodes, arriving


def real(shape):
    return shape if isinstance(shape, torch.Tensor) else torch.randn(shape)


@pytest.mark.parametrize(("make", "shape"), MODELS)
def test_gradients_are_added_where_autograd_adds_them(make, shape):
    model = make().train()
    _, arriving = backward_graph(default_loss(model(real(shape))))
    expected = Counter()
    for (node, output), times in arriving.items():
        if times > 1:
            shape_of = (
                node.variable.shape
                if hasattr(node, "variable")
                else node._input_metadata[output].shape
            )
            expected[torch.Size(shape_of).numel()] += times - 1
    trace = walk(model, shape, step=TrainingStep())
    added = Counter(
        call.workload.params["elements"]
        for call in trace.calls
        if call.op.endswith(" backward") and call.workload.kind == "add"
    )
    assert added == expected


def test_views_are_undone_as_autograd_does():
    nodes, _ = backward_graph(default_loss(Sliced()(torch.randn(3, 5, 12))))
    names = Counter(type(node).__name__ for node in nodes)
    calls = walk(Sliced(), (3, 5, 12), step=TrainingStep()).calls
    undone = Counter((call.op, call.workload.kind) for call in calls if "backward" in call.op)
    slices = sum(n for name, n in names.items() if name == "SliceBackward0")
    assert slices >= undone["slice backward", "fill"] == undone["slice backward", "copy"] > 0
    assert undone["split backward", "cat"] == names["SplitBackward0"] == 1
    assert undone["expand backward", "reduction"] == names["ExpandBackward0"] == 1


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("name", ["resnet18", "vgg11", "squeezenet1_0"])
def test_arithmetic_is_that_of_a_real_step(name, freeze):
    model = torchvision.models.get_model(name, num_classes=10).train()
    if freeze:
        freeze_backbone(model)
    with FlopCounterMode(display=False) as counter:
        default_loss(model(torch.randn(1, 3, 64, 64))).backward()
    calls = walk(model, (1, 3, 64, 64), step=TrainingStep()).calls
    flops = sum(2 * call.cost.macs * PASSES[call.workload.gradients] for call in calls)
    assert flops == counter.get_total_flops()


class Operations(TorchDispatchMode):
    """Names of everything that is executed."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "aten":
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "optimizer", ["sgd", "adam", "adamw", functools.partial(torch.optim.RMSprop, lr=0.1)]
)
@pytest.mark.parametrize("foreach", [False, True])
def test_the_optimizer_does_what_it_really_does(optimizer, foreach):
    model = nn.Sequential(nn.Linear(200, 100), nn.ReLU(), nn.Linear(100, 3))
    step = TrainingStep(optimizer, foreach=foreach)
    made = step.make_optimizer(list(model.parameters()))
    for _ in range(2):
        default_loss(model(torch.randn(2, 200))).backward()
        with Operations() as operations:
            made.step()
    calls = walk(model, (2, 200), step=step).calls
    seen = [call.op for call in calls if call.path == OPTIMIZER]
    free = {"item", "_local_scalar_dense", "empty_strided", "empty", "lift_fresh"}
    assert Counter(seen) == Counter(name for name in operations.names if name not in free)


def test_lists_written_in_place_count_as_written():
    step = TrainingStep(optimizer="sgd", foreach=True)
    calls = walk(nn.Linear(8, 4, bias=False), (2, 8), step=step).calls
    lists = [call for call in calls if call.path == OPTIMIZER and call.op.startswith("_foreach")]
    assert lists
    assert all(call.cost.bytes_out == 4 * 8 * 4 for call in lists)


def test_a_step_is_the_network_the_loss_and_the_optimizer():
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(inplace=True), nn.Linear(32, 10))
    trace = walk(model, (8, 64), step=TrainingStep("sgd"))
    assert trace.mode == "training"
    assert [(c.path, c.workload.kind, c.workload.gradients) for c in trace.calls][:5] == [
        ("0", "linear", "weight"),
        ("1", "relu", "input"),
        ("2", "linear", "both"),
        (LOSS, "fill", "none"),
        (LOSS, "log_softmax", "input"),
    ]
    assert all(not c.workload.params.get("in_place") for c in trace.calls[:3])
    assert {c.path for c in trace.calls} == {"0", "1", "2", LOSS, OPTIMIZER}
    assert any("cross entropy" in note and "sgd" in note for note in trace.notes)


def test_what_is_frozen_pays_for_no_gradient():
    model = freeze_backbone(torchvision.models.resnet18())
    calls = walk(model, (2, 3, 64, 64), step=TrainingStep()).calls
    backbone = [c for c in calls if c.path and not c.path.startswith(("(", "fc"))]
    assert {c.workload.gradients for c in backbone} == {"none"}
    assert [c.workload.gradients for c in calls if c.path == "fc"] == ["weight"]
    steps = [c for c in calls if c.path == OPTIMIZER and c.op == "addcdiv_"]
    assert [c.workload.params["elements"] for c in steps] == [1000 * 512, 1000]


def test_modules_keep_the_mode_of_a_model_in_training():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten())
    model.train()[1].eval()

    def norms(model):
        calls = walk(model, (2, 3, 8, 8), step=TrainingStep()).calls
        return [c.workload.params["training"] for c in calls if c.workload.kind == "batch_norm"]

    assert norms(model) == [0]
    assert norms(model.eval()) == [1]
    assert not model.training


def test_micro_batches_repeat_the_passes_and_add_their_gradients():
    model = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 10))
    once, four = (
        walk(model, (8, 64), step=TrainingStep("sgd", accumulation=n)).workloads() for n in (1, 4)
    )
    optimizer = Counter(
        c.workload
        for c in walk(model, (8, 64), step=TrainingStep("sgd")).calls
        if c.path == OPTIMIZER
    )
    added = Counter(
        {c.workload: c.times
         for c in walk(model, (8, 64), step=TrainingStep("sgd", accumulation=4)).calls
         if c.path == ACCUMULATION}
    )  # fmt: skip
    assert sum(w.params["elements"] * n for w, n in added.items()) == 3 * (64 * 32 + 32 + 330)
    passes = once - optimizer
    expected = optimizer + added
    for work, times in passes.items():
        expected[work] += 4 * times
    assert four == expected
    assert walk(model, (8, 64), step=TrainingStep("sgd", accumulation=4)).batch_size == 32


def test_checkpointed_modules_run_forward_twice():
    model = torchvision.models.resnet18()
    plain = walk(model, (1, 3, 64, 64), step=TrainingStep()).workloads()
    again = walk(
        model, (1, 3, 64, 64), step=TrainingStep(checkpointing=["layer1", "layer2"])
    ).workloads()
    forward = Counter(
        c.workload
        for c in walk(model, (1, 3, 64, 64), training=True).calls
        if c.path.startswith(("layer1.", "layer2."))
    )
    assert again - plain == forward
    whole = walk(model, (1, 3, 64, 64), step=TrainingStep(checkpointing=True)).calls
    assert sum(c.cost.macs for c in whole) == pytest.approx(
        2 * walk(model, (1, 3, 64, 64)).macs, rel=1e-9
    )


def test_losses_of_outputs():
    assert default_loss(torch.zeros(2, 10)).item() == pytest.approx(2.302585)
    assert default_loss({"a": torch.zeros(2, 10), "n": torch.ones(3, dtype=torch.int64)}).dim() == 0
    assert default_loss(torch.zeros(2, 7, 30)).item() == pytest.approx(3.401197)
    assert default_loss(torch.zeros(2, 21, 8, 8)).item() == pytest.approx(3.044522)
    assert default_loss(torch.full((4,), 3.0)).item() == 9
    with pytest.raises(WalkError, match="give one: loss="):
        default_loss(torch.ones(3, dtype=torch.int64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adamax"}, "one of sgd, adam, adamw"),
        ({"optimizer": 3}, "a name or a callable"),
        ({"optimizer": lambda parameters: "sgd"}, "not a torch.optim.Optimizer"),
        ({"loss": 0.5}, "callable"),
        ({"accumulation": 0}, "at least 1"),
        ({"accumulation": True}, "at least 1"),
        ({"checkpointing": "features"}, "list of module paths, got 'features'"),
        ({"checkpointing": None}, "list of module paths, got None"),
        ({"checkpointing": ["blocks"]}, "its modules are 0"),
    ],
)
def test_wrong_steps_say_what_is_right(trained_profile, options, message):
    with pytest.raises(InvalidInput, match=message):
        predict_energy(
            nn.Sequential(nn.Linear(3, 3)), device=trained_profile, mode="training", **options
        )


def test_a_step_that_trains_nothing_is_refused(trained_profile):
    model = nn.Linear(3, 3).requires_grad_(False)
    with pytest.raises(InvalidInput, match="requires_grad is False on all"):
        predict_energy(model, device=trained_profile, mode="training")
    with pytest.raises(InvalidInput, match="ReLU has no parameters, so there is nothing to train"):
        predict_energy(nn.ReLU(), (2, 3), device=trained_profile, mode="training")


@pytest.mark.parametrize(
    ("loss", "made"),
    [
        (lambda outputs: outputs, r"torch\.float32 of shape \(2, 3\)"),
        (lambda outputs: outputs.argmax(), r"torch\.int64 of shape \(\)"),
        (lambda outputs: 0.5, "float"),
    ],
)
def test_a_loss_is_one_number(loss, made):
    with pytest.raises(InvalidInput, match=f"a loss is one floating number.*got {made}; reduce it"):
        TrainingStep(loss=loss).loss_of(torch.zeros(2, 3))
    with pytest.raises(WalkError, match=r"module \(loss\).*a loss is one floating number"):
        walk(nn.Linear(3, 3), (2, 3), step=TrainingStep(loss=loss))


def test_whole_numbers_of_numpy():
    step = TrainingStep(accumulation=np.int64(5))
    assert (type(step.accumulation), step) == (int, TrainingStep(accumulation=5))
    for wrong in (np.int64(0), np.float64(2)):
        with pytest.raises(InvalidInput, match="at least 1"):
            TrainingStep(accumulation=wrong)


def test_an_optimizer_of_other_parameters_is_refused_before_it_steps():
    model = nn.Linear(3, 3)
    mine = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(2, 3)).sum().backward()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(InvalidInput, match="builds a new one of the parameters it is given"):
        walk(model, step=TrainingStep(lambda parameters: mine))
    assert all(map(torch.equal, before, model.parameters()))
    assert not mine.state


def test_options_of_a_step_need_its_mode(trained_profile):
    with pytest.raises(InvalidInput, match="mode='training'"):
        predict_energy(nn.Linear(3, 3), device=trained_profile, optimizer="sgd")
    with pytest.raises(InvalidInput, match="of mode 'inference'"):
        predict_energy(walk(nn.Linear(3, 3)), device=trained_profile, mode="training")
    step = walk(nn.Linear(3, 3), step=TrainingStep())
    with pytest.raises(InvalidInput, match="of mode 'training'"):
        predict_energy(step, device=trained_profile)
    assert predict_energy(step, device=trained_profile, mode="training").energy_j > 0


@pytest.fixture(scope="module")
def trained_dataset():
    forward = make_dataset(dict.fromkeys(KINDS, 60), truth=training_time_s)
    rows = {kind: 150 for kind in KINDS if kind != "fill"}
    backward = make_dataset(rows, truth=training_time_s, training=True)
    return Dataset(
        [*forward.measurements, *backward.measurements], DEVICE, dict(forward.provenance)
    )


@pytest.fixture(scope="module")
def trained_profile(trained_dataset):
    return EnergyModel.fit(trained_dataset, "physical")


@pytest.mark.parametrize("freeze", [False, True])
def test_the_price_of_a_step_is_that_of_the_known_device(trained_profile, freeze):
    model = torchvision.models.resnet18()
    if freeze:
        freeze_backbone(model)
    report = predict_energy(
        model, (4, 3, 96, 96), device=trained_profile, mode="training", optimizer="sgd"
    )
    truth = sum(
        times * training_time_s(work)
        for work, times in walk(model, (4, 3, 96, 96), step=TrainingStep("sgd")).workloads().items()
    )
    assert report.mode == "training"
    assert report.time_s == pytest.approx(truth, rel=0.1)
    assert report.coverage == 1
    assert sum(share.energy_j for share in report.by_module()) == pytest.approx(report.energy_j)
    assert {OPTIMIZER, LOSS} <= {share.name for share in report.by_module()}


def test_accumulation_multiplies_every_part_of_the_report(trained_profile):
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    once, three = (
        predict_energy(
            model, (64, 64), device=trained_profile, mode="training", accumulation=n
        )
        for n in (1, 3)
    )  # fmt: skip

    def of(report, path):
        return next(share for share in report.by_module() if share.name == path)

    for path in ("0", "1", "2", LOSS):
        assert of(three, path).energy_j == pytest.approx(3 * of(once, path).energy_j)
        assert of(three, path).macs == 3 * of(once, path).macs
    assert of(three, OPTIMIZER).energy_j == of(once, OPTIMIZER).energy_j
    assert three.batch_size == 192


def test_an_optimizer_walked_as_on_another_device_is_said(trained_dataset, trained_profile):
    gpu = EnergyModel.fit(replace(trained_dataset, device=replace(DEVICE, kind="cuda")), "physical")
    model = nn.Linear(64, 10)

    def said(report):
        return [note for note in report.assumptions if "priced as it was walked" in note]

    for device in (gpu, trained_profile):
        assert not said(predict_energy(model, device=device, mode="training"))
    for foreach in (False, True):
        trace = walk(model, step=TrainingStep(foreach=foreach))
        notes = [
            said(predict_energy(trace, device=device, mode="training"))
            for device in (trained_profile, gpu)
        ]
        assert [len(found) for found in notes] == [foreach, not foreach]
        assert f"foreach={not foreach}" in notes[not foreach][0]
    own = functools.partial(torch.optim.RMSprop, lr=0.1)
    (note,) = said(predict_energy(model, device=gpu, mode="training", optimizer=own))
    assert "walked, tensor by tensor; on a device of kind cuda" in note


def test_what_is_shown_of_a_step_says_so(trained_profile, tmp_path):
    pytest.importorskip("plotly")
    pytest.importorskip("matplotlib").use("Agg")
    report = predict_energy(nn.Linear(64, 10), device=trained_profile, mode="training")
    assert "for one training step<" in report.to_html(tmp_path / "r.html").read_text("utf-8")
    assert report.plot().get_xlabel() == "predicted J per training step, 90 % interval"
    frame = sweep(
        nn.Linear(64, 10), batch_size=[4, 8], device=[trained_profile], mode="training",
        accumulation=3,
    )  # fmt: skip
    assert list(frame["energy_per_sample_j"] * [12, 24]) == pytest.approx(list(frame["energy_j"]))
    assert plot_sweep(frame).get_ylabel() == "predicted J per training step, 90 % interval"


def test_gradients_that_were_not_measured_are_priced_by_a_rule_and_flagged(trained_dataset):
    rows = [m for m in trained_dataset.measurements if m.workload.kind != "relu"]
    relus = [m for m in trained_dataset.measurements if m.workload.kind == "relu"]
    rows += [m for m in relus if m.workload.gradients == "none"]
    model = EnergyModel.fit(Dataset(rows, DEVICE, trained_dataset.provenance), "physical")
    report = predict_energy(
        nn.Sequential(nn.Linear(64, 64), nn.ReLU()), (512, 64), device=model, mode="training"
    )
    (layer,) = [layer for layer in report.layers if layer.call.path == "1"]
    assert "relu/float32/input was not measured; priced as 2 × relu/float32/none" in (
        layer.estimate.outside
    )
    forward = predict_energy(nn.ReLU(), (512, 64), device=model)
    assert layer.estimate.energy_j == pytest.approx(2 * forward.energy_j)


def test_a_profile_of_forward_passes_refuses():
    model = EnergyModel.fit(make_dataset({"linear": 40, "copy": 40}), "physical")
    assert not model.trains
    with pytest.raises(ProfileError, match="collect --mode training"):
        predict_energy(nn.Linear(3, 3), device=model, mode="training")


def test_totals_of_training_steps_have_an_interval_of_their_own(trained_dataset):
    names = ("resnet18", "vgg11")
    steps = []
    for i, (name, batch, mode) in enumerate(
        itertools.product(names, (1, 2, 4), ("training", "head-training"))
    ):
        model = torchvision.models.get_model(name)
        if MODES[mode].frozen_backbone:
            freeze_backbone(model)
        trace = walk(model, (batch, 3, 64, 64), step=MODES[mode].step)
        time_s = 1.2 * sum(n * training_time_s(w) for w, n in trace.workloads().items())
        time_s *= 1 + 0.01 * (i % 3)
        steps.append(
            NetworkMeasurement(name, batch, f"{batch}x3x64x64", "float32", mode, time_s,
                               10 * time_s, 10.0, 0.01, 5, "estimated", "estimated")
        )  # fmt: skip
    dataset = Dataset(trained_dataset.measurements, DEVICE, trained_dataset.provenance, steps)
    model = fit_profile(dataset, "physical")
    assert set(model.totals) == {"training"}
    low, high = model.totals["training"].ratio["energy_j"]
    assert low < 1.2 < high
    table = evaluate_networks(steps, model, dataset, training=True)
    assert list(table["mode"]) == [step.mode for step in steps]
    assert evaluate_networks(steps, model).empty


def _noted(name, order):
    """A forward pass that notes itself and its backward pass."""

    def forward():
        order.append(f"{name} forward")
        return lambda: order.append(f"{name} backward")

    return forward


class TestMeasuring:
    def test_the_backward_pass_is_on_the_copy_longest_past(self):
        order = []
        runs = _staggered([_noted(name, order) for name in "abc"])
        assert order == ["a forward", "b forward"]
        for run in itertools.islice(runs, 2):
            run()
        assert order[2:] == ["c forward", "a backward", "a forward", "b backward"]

    def test_a_program_ends_every_pass_it_begins(self):
        order = []
        execute([_noted(name, order) for name in "abca"], lag=3)
        assert order == [
            "a forward", "b forward", "c forward", "a backward",
            "a forward", "b backward", "c backward", "a backward",
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("kind", "params", "wanted"),
        [
            ("attention", {"batch": 1, "heads": 1, "kv_heads": 1, "q_length": 4, "k_length": 4,
                           "head_dim": 8, "causal": 0, "mask": 1}, 3),
            ("mse_loss", {"elements": 8}, 1),
            ("gru", {"batch": 1, "length": 2, "in_features": 8, "hidden": 8, "layers": 1,
                     "bidirectional": 0}, 1),
            ("add", {"elements": 8, "other": 8, "in_place": 0}, 2),
        ],
    )  # fmt: skip
    def test_gradients_are_of_what_networks_differentiate(self, kind, params, wanted, monkeypatch):
        given = []
        grad = torch.autograd.grad
        monkeypatch.setattr(
            torch.autograd,
            "grad",
            lambda out, of, *a, **k: (given.append(of), grad(out, of, *a, **k)),
        )
        next(executions(Workload(kind, Params(params), gradients="input"), 1))()
        assert [len(of) for of in given] == [wanted]

    @pytest.mark.parametrize("copies", [1, 2, 7])
    def test_every_execution_has_its_backward_pass(self, copies, monkeypatch):
        backwards = []
        grad = torch.autograd.grad
        monkeypatch.setattr(
            torch.autograd, "grad", lambda *args, **kw: backwards.append(grad(*args, **kw))
        )
        params = Params({"tokens": 2, "in_features": 3, "out_features": 4, "bias": 1})
        runs = executions(Workload("linear", params, gradients="both"), copies)
        for times in range(1, 4):
            next(runs)()
            assert len(backwards) == times
        assert all(len(gradients) == 3 for gradients in backwards)

    @pytest.mark.parametrize("kind", ["conv2d", "batch_norm", "lstm", "embedding", "nll_loss"])
    def test_layers_are_measured_with_their_gradients(self, kind):
        (row,) = make_dataset({kind: 1}, training=True).measurements
        bench = CpuBench(DEVICE, _Meter())
        measured = bench.measure(row.workload)
        assert measured.time_s > 0
        assert measured.workload.gradients != "none"

    @pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "inference"])
    def test_a_step_moves_what_it_trains(self, mode):
        model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))
        before = [p.detach().clone() for p in model.parameters()]
        network(model, [(torch.randn(5, 8),)], mode)()
        moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
        assert moved == ([False, False, True, True] if mode == "head-training" else [True] * 4)

    def test_networks_that_cannot_be_measured_are_told_and_left_out(self):
        names = [f"{__name__}:no_such_network", f"{__name__}:NormalisedVector"]
        failed = []
        measured = measure_networks(
            names, [1, 2], DEVICE, _Meter(), lambda job, error: failed.append((job, str(error))),
            modes=["training"],
        )  # fmt: skip
        assert [(n.model, n.batch_size) for n in measured] == [(names[1], 2)]
        assert [(job.model, job.batch_size) for job, _ in failed] == [
            (names[0], 1), (names[0], 2), (names[1], 1),
        ]  # fmt: skip
        assert "Expected more than 1 value per channel" in failed[2][1]

    def test_a_mode_that_is_none(self):
        with pytest.raises(MeasureError, match="inference, training"):
            network(nn.Linear(2, 2), [(torch.randn(1, 2),)], "dreaming")


class _Meter:
    name, quality, relative_uncertainty, assumptions = "clock", "estimated", 0.0, ()
    period_s = 0.0

    def read(self):
        import time

        from layer_energy.meters.base import Reading

        return Reading(time.perf_counter(), time.perf_counter())


def test_costs_of_gradients_grow_with_what_they_write():
    table = walk(Tied(), torch.zeros(2, 7, dtype=torch.int64), step=TrainingStep()).calls[0]
    assert table.workload.gradients == "weight"
    assert count(table.workload)[1]["table"] == 50 * 8
