"""``score``: single predictions and single walks are the oracle."""

import gc
import random
import weakref
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torchvision import models

from layer_energy import EnergyModel, predict_energy, score
from layer_energy.errors import InvalidInput, ProfileError, WalkError
from layer_energy.layers import layer_type, workload
from layer_energy.optimization import TrainingStep
from layer_energy.walk import Walks, infer, walk
from layer_energy.workload import Params, Workload
from tests.search_space import INPUT, OPERATIONS, network, random_network
from tests.synthetic import make_dataset

CPU, GPU = "amd-epyc-2t", "nvidia-a100"

edges = st.tuples(st.sampled_from(OPERATIONS), st.sampled_from((1, 3, 5)))
nodes = st.integers(1, 3).flatmap(
    lambda n: st.tuples(*(st.lists(edges, min_size=i, max_size=i) for i in range(1, n + 1)))
)
cells = st.lists(st.tuples(st.integers(1, 40), nodes.map(list)), min_size=1, max_size=2)
walks = Walks((INPUT,), None, None)
"""Shared by all examples, so that most of what later ones do was seen in earlier ones."""


def random_networks(n, seed=0):
    rng = random.Random(seed)
    return [random_network(rng) for _ in range(n)]


@settings(deadline=None, max_examples=40)
@given(cells, st.booleans())
def test_a_quick_walk_sees_what_a_thorough_one_sees(cells, on_meta):
    model = network(cells).to("meta" if on_meta else "cpu")
    expected = walk(model, INPUT)
    for _ in range(2):  # the second time from memory
        walked = walks.walk(model)
        assert walked.workloads == [call.workload for call in expected.calls]
        assert (walked.inputs, walked.batch_size) == (expected.inputs, expected.batch_size)
        assert walked.parameters == sum(p.numel() for p in model.parameters())


class Stateful(nn.Module):
    """Whatever a forward may do to itself."""

    def __init__(self):
        super().__init__()
        self.calls, self.shapes = 0, []
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("total", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        self.shapes.append(x.shape)
        self.total += 1
        self.last = x = self.conv(x)
        return x[:, ::2, 1:].contiguous() + torch.arange(30).float()


class PicksItsPadding(nn.Module):
    """Changes a layer of torch's own while it runs."""

    def __init__(self, padding):
        super().__init__()
        self.padding = padding
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        self.conv.padding = (self.padding, self.padding)
        return self.conv(x)


class DependsOnValues(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.register_buffer("n", torch.tensor(n))
        self.linear = nn.Linear(32, 8)

    def forward(self, x):
        kept = x[x > 0].reshape(-1, 32)
        chosen = self.n.expand(3).nonzero()
        return self.linear(kept)[: int(self.n)].relu(), chosen + 1


class Reshapes(nn.Module):
    def forward(self, x):
        x = x.clone().unsqueeze_(0)
        first, second = x.chunk(2, dim=-1)
        first.relu_()
        return functional.softmax(first.flatten(1) @ second.flatten(1).T, dim=1)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(32, 32)
        self.same = self.layer

    def forward(self, x):
        return functional.linear(self.same(self.layer(x)), self.layer.weight).sum()


class Aliased(nn.Module):
    """A layer that is also held outside the tree of modules."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())
        self.parts = [self.layers[0]]

    def forward(self, x):
        return self.parts[0](x)


class Layouts(nn.Module):
    """Two tensors of one shape that differ in their strides."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.conv(x), self.conv(x.to(memory_format=torch.channels_last))


def hooked(where):
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.ReLU())
    model[where].register_forward_hook(lambda module, args, out: out + out)
    return model


def scripted():
    @torch.jit.script
    def double(x):
        return torch.cat([x, x], 1)

    class Calls(nn.Module):
        def forward(self, x):
            return double(x)

    return Calls()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize(
    "make",
    [
        Stateful,
        lambda: PicksItsPadding(1),
        lambda: PicksItsPadding(2),
        lambda: DependsOnValues(2),
        lambda: DependsOnValues(0),
        Layouts,
        Reshapes,
        Tied,
        Aliased,
        lambda: hooked(1),
        lambda: hooked(0),
        scripted,
        lambda: nn.Sequential(nn.Conv2d(3, 3, 3), nn.Flatten(0, 2), nn.LSTM(30, 8)),
        lambda: nn.Sequential(nn.Flatten(0, 2), nn.TransformerEncoderLayer(32, 4)),
        lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)),
        lambda: nn.Sequential(nn.Dropout(), nn.InstanceNorm2d(3), nn.Softmax(1)).train(),
    ],
)
def test_models_that_resist_are_walked_all_the_same(make):
    for model in (make(), make()):
        before = dict(vars(model))
        expected = walk(model, INPUT)
        for _ in range(2):
            walked = walks.walk(model)
            assert walked.workloads == [call.workload for call in expected.calls]
            assert set(walked.notes) == set(expected.notes) - {"walked by meta in place"}
        assert vars(model) == before


def test_a_forward_leaves_its_model_alone():
    model = Stateful().train()
    layers = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).train()
    before = [{**vars(m)} for m in (model, *layers)]
    score([model, layers, model], INPUT)
    assert [vars(m) for m in (model, *layers)] == before
    assert (model.calls, model.shapes, float(model.total)) == (0, [], 0)
    assert layers.training
    assert layers[1].training


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "vit_b_16", "googlenet", "swin_t"])
def test_published_networks(name):
    with torch.device("meta"):
        model = models.get_model(name, **({"init_weights": False} if name == "googlenet" else {}))
    inputs = infer(model)
    published = Walks(inputs.args, None, None)
    expected = [call.workload for call in walk(model, *inputs.args).calls]
    for _ in range(2):
        assert published.walk(model).workloads == expected


@pytest.fixture(scope="module")
def synthetic():
    return EnergyModel.fit(make_dataset({"conv2d": 60, "relu": 60, "copy": 60}), "physical")


@pytest.mark.parametrize("device", [CPU, GPU, "synthetic"])
def test_every_row_is_the_prediction_of_its_candidate(device, synthetic):
    device = synthetic if device == "synthetic" else device
    networks = random_networks(12)
    frame = score(networks, INPUT, device=device)
    assert len(frame) == 12
    for row, model in zip(frame.itertuples(), networks, strict=True):
        report = predict_energy(model, INPUT, device=device)
        assert row.energy_j == pytest.approx(report.energy_j, rel=1e-9)
        interval_j = (row.energy_low_j, row.energy_high_j)
        assert interval_j == pytest.approx(report.interval_j, rel=1e-9)
        assert row.time_s == pytest.approx(report.time_s, rel=1e-9)
        assert row.coverage == pytest.approx(report.coverage, rel=1e-9)
        assert row.in_domain == pytest.approx(report.in_domain, rel=1e-9)
        assert (row.macs, row.input, row.batch_size) == (report.macs, report.input, 1)
        assert (row.device, row.quality, row.dtype) == (report.device, report.quality, "float32")
        assert row.parameters == sum(p.numel() for p in model.parameters())
        assert (row.notes, row.error) == ("", "")
    assert frame.attrs["source"] == report.source
    assert set(frame.attrs["assumptions"]) <= set(report.assumptions)


def test_the_interval_is_what_its_definition_says():
    prices = EnergyModel.load(CPU)
    inside = predict_energy(nn.Conv2d(64, 64, 3, padding=1), (8, 64, 56, 56), device=prices)
    low, high = prices.totals_of("inference").ratio["energy_j"]
    meter = prices.relative_uncertainty
    assert inside.in_domain == 1
    expected_j = (
        min(low, 1) * inside.energy_j * (1 - meter), max(high, 1) * inside.energy_j * (1 + meter)
    )  # fmt: skip
    assert inside.interval_j == pytest.approx(expected_j)
    outside = predict_energy(nn.Conv2d(64, 64, 31), (8, 64, 56, 56), device=prices)
    parts = [layer.estimate for layer in outside.layers]
    assert outside.in_domain == 0
    expected_j = (
        sum(e.energy_low_j for e in parts) * (1 - meter),
        sum(e.energy_high_j for e in parts) * (1 + meter),
    )
    assert outside.interval_j == pytest.approx(expected_j)


def test_inferred_inputs_and_dtypes_are_those_of_a_single_prediction():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    (row,) = score([model], batch_size=4, dtype="bfloat16", device=GPU).itertuples()
    report = predict_energy(model, batch_size=4, dtype="bfloat16", device=GPU)
    assert row.energy_j == pytest.approx(report.energy_j, rel=1e-9)
    assert (row.dtype, row.batch_size, row.input) == ("bfloat16", 4, "4x3x224x224")
    assert row.notes == report.assumptions[0]


def test_traces_and_lists_of_workloads():
    model = random_networks(1)[0]
    trace = walk(model, INPUT)
    relu = workload("relu", elements=4096, in_place=0)
    frame = score([model, trace, [call.workload for call in trace.calls], [], [relu, relu]], INPUT)
    assert frame["energy_j"][:3].tolist() == pytest.approx([frame["energy_j"][0]] * 3, rel=1e-9)
    assert frame["energy_j"][3] == 0
    single = score([[relu]])
    assert frame["energy_j"][4] == pytest.approx(2 * single["energy_j"][0])
    assert frame["model"].tolist() == ["Sequential", "Sequential", "", "", ""]
    assert frame["parameters"].isna().tolist() == [False, True, True, True, True]
    assert frame["macs"].dtype == "Int64"


def test_traces_of_what_score_does_not_price_are_refused_as_by_a_single_prediction():
    model = nn.Conv2d(3, 8, 3)
    mixed = walk(model, INPUT, autocast="bfloat16")
    with pytest.raises(InvalidInput, match="autocast='bfloat16'"):
        predict_energy(mixed, device=CPU)
    with pytest.raises(InvalidInput, match=r"^candidate 1: .*autocast='bfloat16'"):
        score([model, mixed], INPUT, device=CPU)
    with pytest.raises(InvalidInput, match=r"^candidate 0: .*training step"):
        score([walk(model, INPUT, step=TrainingStep())], device=CPU)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Workload("reul", Params({"elements": 4})), "no layer type is called 'reul'"),
        (Workload("relu", Params({"elements": 4})), r"relu takes .*'in_place'\], in order; got"),
        (Workload("relu", Params({"in_place": 0, "elements": 4})), "in order; got"),
        (Workload("relu", Params({"elements": "4", "in_place": 0})), "relu takes whole numbers"),
        (
            Workload("conv2d", Params(dict.fromkeys(layer_type("conv2d").space, 0))),
            "conv2d cannot be counted",
        ),
    ],
)
def test_workloads_made_by_hand_are_checked(wrong, message):
    good = workload("relu", elements=4, in_place=0)
    trace = walk(nn.ReLU(), (4,))
    by_hand = replace(trace, calls=[replace(trace.calls[0], workload=wrong)])
    for candidate in ([wrong], by_hand):
        with pytest.raises(InvalidInput, match=f"^candidate 1: .*{message}"):
            score([[good], candidate])
        frame = score([[good], candidate, [good]], errors="coerce")
        assert frame["energy_j"].isna().tolist() == [False, True, False]
        assert frame["error"].str.contains(message).tolist() == [False, True, False]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_notes_say_what_a_single_prediction_says_of_quantised_operations():
    model = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(8, 8)), {nn.Linear})
    (row,) = score([model], (1, 8), device=CPU).itertuples()
    report = predict_energy(model, (1, 8), device=CPU)
    assert row.notes == "; ".join(report.assumptions[: -len(EnergyModel.load(CPU).assumptions)])
    assert "quantised" in row.notes


def test_candidates_are_taken_one_by_one_and_none_is_kept():
    alive = []

    def candidates():
        for seed in range(5):
            gc.collect()
            assert not any(ref() for ref in alive)
            model = random_networks(1, seed)[0]
            alive.append(weakref.ref(model))
            yield model
            del model

    frame = score(candidates(), INPUT)
    expected = score([random_networks(1, seed)[0] for seed in range(5)], INPUT)
    assert frame.equals(expected)
    assert frame["energy_j"].nunique() == 5
    assert len(score([])) == 0


TOO_SMALL = nn.Sequential(nn.Conv2d(3, 8, 40), nn.ReLU())


def test_an_error_names_the_candidate():
    good = nn.Conv2d(3, 8, 3)
    with pytest.raises(WalkError, match=r"^candidate 2: Sequential could not be walked") as caught:
        score([good, good, TOO_SMALL], INPUT)
    assert "module 0, operation conv2d" in str(caught.value)
    with pytest.raises(InvalidInput, match=r"^candidate 1: .*got str; make one of a name"):
        score([good, "resnet18"], INPUT)
    with pytest.raises(InvalidInput, match=r"^candidate 0: .*must be a torch.nn.Module, got list"):
        score([[good]], INPUT)
    with pytest.raises(InvalidInput, match=r"^candidate 0: no input could be inferred"):
        score([nn.Identity()])


def test_a_profile_that_cannot_price_a_candidate_names_it():
    prices = EnergyModel.fit(make_dataset({"conv2d": 60, "relu": 60}), "physical")
    prices.pooled = None  # as in profiles of older versions
    candidates = [nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.ReLU()]
    with pytest.raises(ProfileError, match=r"^candidate 1: .*max_pool2d"):
        score(candidates, INPUT, device=prices)
    frame = score(candidates, INPUT, device=prices, errors="coerce")
    assert frame["energy_j"].isna().tolist() == [False, True, False]
    assert "max_pool2d" in frame["error"][1]


def test_errors_become_rows_when_coerced():
    good = nn.Conv2d(3, 8, 3)
    frame = score([TOO_SMALL, good], INPUT, errors="coerce")
    assert frame["energy_j"].isna().tolist() == [True, False]
    assert "kernel" in frame["error"][0]
    assert frame["error"][1] == ""
    alone = score([good], INPUT)
    assert frame["energy_j"][1] == alone["energy_j"][0]


@pytest.mark.parametrize(
    ("candidates", "options", "error", "message"),
    [
        ([], {"device": "abacus"}, ProfileError, "no profile is called 'abacus'; shipped ones"),
        ([], {"dtype": "float31"}, InvalidInput, "got 'float31'"),
        ([], {"device": CPU, "dtype": "float16"}, ProfileError, "measured in float32"),
        ([], {"errors": "ignore"}, InvalidInput, "'raise' or 'coerce', got 'ignore'"),
        (nn.Sequential(nn.ReLU()), {}, InvalidInput, r"got one Sequential; score\(\[model\]\)"),
        (3, {}, InvalidInput, "got one int"),
        ("resnet18", {}, InvalidInput, r"got one str; .*build_model\(name\)"),
        ({"small": nn.ReLU()}, {}, InvalidInput, r"got one dict; score\(candidates.values"),
        (nn.ModuleList([nn.ReLU()]), {}, InvalidInput, r"got one ModuleList; score\(list\("),
        (nn.ModuleDict({"a": nn.ReLU()}), {}, InvalidInput, r"got one ModuleDict; .*values"),
        ([nn.ReLU()], {"batch_size": 0}, InvalidInput, "candidate 0: .*at least 1"),
    ],
)
def test_wrong_arguments(candidates, options, error, message):
    with pytest.raises(error, match=message):
        score(candidates, **options)
