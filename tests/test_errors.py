"""Mistakes of users: each has a message that says what is wrong and what to do."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses import FakeTensorMode

from layer_energy import EnergyModel, model, predict_energy, score, walk
from layer_energy.dataset import Dataset
from layer_energy.errors import InvalidInput, LayerEnergyError, ProfileError, WalkError
from layer_energy.models import build_model
from tests.synthetic import DEVICE, make_dataset
from tests.test_cli import run  # noqa: F401  # a fixture


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.norm(self.conv(x)).relu())


class ByValue(nn.Linear):
    """Its forward needs values, so it cannot be walked without memory."""

    def forward(self, x):
        return super().forward(torch.from_numpy(x.numpy() * 2))


class LazyBuffers(nn.Sequential):
    """Lazy in its buffers alone."""

    def __init__(self):
        super().__init__(nn.Linear(3, 3), nn.LazyBatchNorm1d(affine=False))


IMAGE = (1, 3, 32, 32)
SAY_INPUT = r"predict_energy\(model, \(1, 3, 224, 224\)\)"
SHIPPED = "amd-epyc-2t, nvidia-a10, nvidia-a100"


@pytest.mark.parametrize(
    ("wrong", "messages"),
    [
        (Small, ["torch.nn.Module", "got the class Small; call it first"]),
        ("resnet18", ["torch.nn.Module, got str", r"build_model\('resnet18'\)"]),
        (Small().state_dict(), ["got OrderedDict", "build the model they belong to"]),
        (None, ["got NoneType"]),
    ],
)
def test_what_is_no_model(wrong, messages):
    for message in messages:
        with pytest.raises(InvalidInput, match=message):
            predict_energy(wrong)


@pytest.mark.parametrize(
    ("args", "kwargs", "messages"),
    [
        (((1, 4, 32, 32),), {}, ["module conv, operation conv2d", "expects 3 input", SAY_INPUT]),
        (((3, 32, 32),), {}, ["input 3x32x32", "module norm", "expected 4D input", SAY_INPUT]),
        (((1, 3, 2, 2),), {}, ["kernel is larger than the padded input", SAY_INPUT]),
        ((1, 3, 32, 32), {}, [r"No tensor is among the inputs \(int, int, int, int\)", SAY_INPUT]),
        (("1,3,32,32",), {}, [r"among the inputs \(str\)", "tuples of whole numbers"]),
        ((np.zeros(IMAGE, "float32"),), {}, [r"among the inputs \(ndarray\): give tensors"]),
        (((1, 3, 32.0, 32),), {}, [r"among the inputs \(tuple\)", "tuples of whole numbers"]),
        (((1, 3, -1, 32),), {}, [r"\(1, 3, -1, 32\) has a negative size"]),
        ((), {"image": torch.zeros(IMAGE)}, ["unexpected keyword argument 'image'"]),
    ],
)
def test_wrong_inputs(args, kwargs, messages):
    for message in messages:
        with pytest.raises(LayerEnergyError, match=message):
            predict_energy(Small(), *args, kwargs=kwargs)


@pytest.mark.parametrize(
    ("options", "error", "messages"),
    [
        ({"batch_size": 0}, InvalidInput, ["whole number, at least 1; got 0"]),
        ({"batch_size": "4"}, InvalidInput, ["whole number, at least 1; got '4'"]),
        ({"batch_size": 2.5}, InvalidInput, ["got 2.5"]),
        ({"dtype": "fp16"}, InvalidInput, ["'float16'", r"got 'fp16' \(torch has none\)"]),
        ({"dtype": torch.float16}, InvalidInput, ["the name of a floating", "got torch.float16$"]),
        ({"dtype": "int8"}, InvalidInput, ["'fp16-amp'; got 'int8'$"]),
        ({"dtype": "float16"}, ProfileError, ["measured in float32, not in float16", "choose one"]),
        ({"mode": "train"}, InvalidInput, ["inference, training, got 'train'"]),
        ({"device": "cuda"}, ProfileError, ["no profile is called 'cuda'", SHIPPED, "json file"]),
        ({"device": torch.device("cpu")}, ProfileError, ["named by a string or a path", SHIPPED]),
        ({"device": 0}, ProfileError, ["got 0; shipped ones", SHIPPED]),
        ({"device": "gone.json"}, ProfileError, ["no profile file gone.json", "layer-energy fit"]),
        ({"device": "."}, ProfileError, ["there is no profile file", SHIPPED]),
    ],
)
def test_wrong_options(options, error, messages):
    for message in messages:
        with pytest.raises(error, match=message):
            predict_energy(Small(), **{"device": "amd-epyc-2t", **options})


def test_batch_normalisation_of_one_value():
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3))
    with pytest.raises(WalkError, match=r"give batch_size=2 or more, or set .* to eval\(\)"):
        walk.walk(model, IMAGE, training=True)
    model.train()[1].eval()
    assert walk.walk(model, IMAGE, training=True).calls


def test_a_trace_takes_no_inputs():
    trace = walk.walk(Small(), IMAGE)
    assert predict_energy(trace).energy_j == predict_energy(Small(), IMAGE).energy_j
    with pytest.raises(InvalidInput, match="give them to walk"):
        predict_energy(trace, IMAGE)


@pytest.mark.parametrize(
    ("lazy", "path"),
    [
        (nn.Sequential(nn.LazyLinear(4)), "0.weight"),
        (nn.Sequential(nn.Linear(3, 3), nn.LazyLinear(4)), "1.weight"),
        (LazyBuffers(), "1.running_mean"),
    ],
)
def test_half_initialised_lazy_modules(lazy, path):
    with pytest.raises(WalkError, match=f"'{path}' of .* still lazy.*Run the model once"):
        predict_energy(lazy, (2, 3))
    lazy(torch.zeros(2, 3))
    assert predict_energy(lazy, (2, 3)).energy_j > 0


def test_a_half_initialised_candidate_is_told_by_its_number():
    lazy = nn.Sequential(nn.LazyLinear(4))
    with pytest.raises(
        WalkError, match=r"^candidate 1: '0\.weight' of .* still lazy.*Run the mode"
    ):
        score([nn.Linear(3, 3), lazy], (2, 3))
    table = score([nn.Linear(3, 3), lazy, nn.Linear(3, 3)], (2, 3), errors="coerce")
    assert "still lazy" in table["error"][1]
    assert table["energy_j"].notna().tolist() == [True, False, True]


def test_a_model_on_another_device():
    here = predict_energy(Small(), IMAGE)
    there = predict_energy(Small().to("meta"), torch.zeros(IMAGE))
    assert there.energy_j == here.energy_j
    with pytest.raises(WalkError, match="needs the model on the CPU, it is on meta; give it weigh"):
        predict_energy(ByValue(4, 4).to("meta"), (1, 4))
    assert predict_energy(ByValue(4, 4), (1, 4)).energy_j > 0


def test_a_model_on_a_gpu_whose_forward_needs_values():
    with FakeTensorMode():  # as if on a GPU, also where there is none
        there = ByValue(4, 4, device="cuda")
    message = r"needs the model on the CPU, it is on cuda:0; move it there with model\.cpu\(\)"
    with pytest.raises(WalkError, match=message):
        predict_energy(there, (1, 4))


@pytest.fixture(scope="module")
def trained():
    """A profile that prices training steps."""
    rows = dict.fromkeys(("conv2d", "batch_norm", "relu", "copy"), 30)
    forward, backward = make_dataset(rows), make_dataset(rows, training=True)
    rows = [*forward.measurements, *backward.measurements]
    return EnergyModel.fit(Dataset(rows, DEVICE, dict(forward.provenance)), "physical")


def hooks_of(net):
    """Module → its hooks, of all kinds."""
    return {
        path: {
            name: list(h.values()) for name, h in vars(m).items() if name.endswith("_hooks") and h
        }
        for path, m in net.named_modules()
    }


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_a_model_in_the_middle_of_training(trained, mode):
    net = Small().train()
    net.conv.register_forward_hook(lambda *_: None)
    net.norm.register_forward_pre_hook(lambda *_: None)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.randn(4, *IMAGE[1:])).square().mean().backward()
    optimizer.step()
    net.last = net.conv(torch.randn(IMAGE))  # part of a graph: cannot be copied
    before = copy.deepcopy(net.state_dict())
    gradients = [p.grad.clone() for p in net.parameters()]
    hooks = hooks_of(net)
    report = predict_energy(net, IMAGE, device=trained, mode=mode)
    fresh = predict_energy(Small(), IMAGE, device=trained, mode=mode)
    assert report.energy_j == fresh.energy_j > 0
    assert hooks_of(net) == hooks
    assert all(module.training for module in net.modules())
    assert all(torch.equal(net.state_dict()[name], before[name]) for name in before)
    for parameter, gradient in zip(net.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)
    assert net.last.grad_fn is not None


def test_no_profile_at_all(monkeypatch, tmp_path, run):  # noqa: F811
    monkeypatch.setattr(model, "PROFILES", tmp_path)
    with pytest.raises(InvalidInput, match=r"device='path/to/profile\.json'.*layer-energy fit"):
        predict_energy(Small())
    code, out, err = run("predict", "alexnet")
    assert (code, out) == (2, "")
    assert "error: no profile" in " ".join(err.split())


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    path = tmp_path_factory.mktemp("profile") / "synthetic.json"
    EnergyModel.fit(make_dataset({"linear": 30, "copy": 30})).save(path)
    return json.loads(path.read_text())


LINEAR = "linear/float32/none"
A_GPU = {"name": "x", "kind": "cuda", "slug": "x", "threads": 1, "details": {}}
ROWS = {"name": "x", "rows": 60, "finished": "2026-01-01"}


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        ({"schema_version": 0}, ["schema 0, which this version no longer reads", "rebuild it"]),
        ({"schema_version": "1"}, ["schema '1'", "layer-energy fit DATASET"]),
        ({"schema_version": 1}, ["schema 1, which this version no longer reads", "rebuild it"]),
        ({"schema_version": 3}, ["schema 3, this version reads up to 2; upgrade layer_energy"]),
        ({"kinds": {}, "pooled": None}, ["it prices nothing", "fetch it again or rebuild it with"]),
        ({"device": A_GPU}, ["the law is not of a device of kind 'cuda'"]),
        ({"dataset": {**ROWS, "max_power_w": -5}}, ["dataset.max_power_w is -5, not a plausible"]),
        ({"dataset": {**ROWS, "idle_power_w": "abc"}}, ["TypeError", "fetch it again"]),
        ({"quality": "perfect"}, ["quality is 'perfect', not one of measured, estimated"]),
        ({"relative_uncertainty": -1}, ["relative_uncertainty is -1, not from 0 to 1"]),
        ({"relative_uncertainty": float("nan")}, ["NaN is not a number", "rebuild it"]),
        ({"assumptions": "none"}, ["not a list of sentences"]),
        ({"device": {"slug": "x"}}, ["KeyError", "fetch it again"]),
    ],
)
def test_profiles_that_are_old_or_damaged(profile, tmp_path, run, change, messages):  # noqa: F811
    path = tmp_path / "bad.json"
    path.write_text(json.dumps({**profile, **change}))
    for message in messages:
        with pytest.raises(ProfileError, match=message):
            predict_energy(nn.Linear(4, 4), device=path)
    code, out, err = run("predict", "alexnet", "--device", path)
    assert (code, out) == (2, "")
    assert messages[0] in " ".join(err.split())


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '{"kinds": {}}', "\x00", "[" * 99999])
def test_files_that_are_no_profiles(tmp_path, text):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ProfileError, match=r"bad\.json .*(rebuild it with|give a file made by)"):
        EnergyModel.load(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ProfileError, match=r"not a readable profile.*layer-energy fit"):
        EnergyModel.load(path)


def places(state, path=()):
    for key, value in state.items() if isinstance(state, dict) else ():
        yield (*path, key)
        yield from places(value, (*path, key))


scribbles = st.one_of(
    st.none(), st.booleans(), st.text(max_size=3), st.integers(-2, 2), st.just(1e308),
    st.just(float("nan")), st.lists(st.floats(-1, 1), max_size=3), st.just({}),
)  # fmt: skip


@settings(deadline=None, max_examples=200)  # the first example imports a lot
@given(st.data())
def test_no_scribble_on_a_profile_makes_a_wrong_number_or_a_traceback(profile, scribbled, data):
    """Whatever one field is overwritten with: a ``ProfileError`` that helps, or finite joules."""
    shipped = json.loads(model.find_profile("nvidia-a10").read_text())
    state = data.draw(st.sampled_from([profile, shipped]).map(copy.deepcopy))
    path = data.draw(st.sampled_from(sorted(places(state))))
    holder = state
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = data.draw(scribbles)
    scribbled.write_text(json.dumps(state))
    try:
        report = predict_energy(nn.Linear(4, 4), device=EnergyModel.load(scribbled))
    except ProfileError as error:
        message = str(error)
    else:
        low_j, high_j = report.interval_j
        assert 0 <= low_j <= high_j < math.inf
        message = "collect" if str(report) else ""
    assert any(word in message for word in ("rebuild", "upgrade", "give a file", "collect"))


@pytest.fixture(scope="module")
def scribbled(tmp_path_factory):
    return tmp_path_factory.mktemp("scribbled") / "bad.json"


def test_names_of_models():
    for name, message in (
        ("resnet81", "did you mean resnet18"),
        ("", "Other sources: timm:NAME, hf:PATH, package.module:factory"),
        ("no_such_module:f", "expected package.module:factory, importable from here"),
        ("program.pt2", "torch.export.load runs pickles"),
        ("math:pi", "math:pi is not callable; expected a function or class making a model"),
        ("os:getcwd", "made a str, not a torch.nn.Module"),
        ("torch.nn:Linear", "could not be built: TypeError"),
    ):
        with pytest.raises(InvalidInput, match=message):
            build_model(name)
