"""``verify``: predictions of a known device beside measurements with a meter of known power."""

import json

import pytest
import torch
from torch import nn

from layer_energy import EnergyModel, verify
from layer_energy.errors import InvalidInput, MeasureError, WalkError
from layer_energy.meters.simulated import SimulatedMeter
from tests.synthetic import make_dataset

POWER_W = 20.0
KINDS = ("linear", "relu", "batch_norm", "copy", "add", "dropout")


@pytest.fixture(scope="module")
def synthetic():
    return EnergyModel.fit(make_dataset(dict.fromkeys(KINDS, 60)), "physical")


@pytest.fixture
def meter():
    return SimulatedMeter(POWER_W)


class Sorting(nn.Module):
    """A batch norm in training, an argument by keyword, and an operation no layer type builds."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(256, 256)
        self.norm = nn.BatchNorm1d(256)
        self.second = nn.Linear(256, 256)

    def forward(self, x, *, shift):
        self.seen = x
        return torch.sort(self.second(self.norm(self.first(x)).relu()))[0] + shift["by"]


@pytest.fixture(scope="module")
def model():
    return Sorting().train()


@pytest.fixture(scope="module")
def before(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def verified(model, before, synthetic):
    shift = {"by": torch.zeros(64, 256)}
    return verify(model, (64, 256), kwargs={"shift": shift}, device=synthetic,
                  meter=SimulatedMeter(POWER_W))  # fmt: skip


def test_measured_joules_are_those_of_the_meter(verified):
    assert verified.network.energy_j == pytest.approx(POWER_W * verified.network.time_s)
    frame = verified.to_frame().dropna(subset=["measured_time_s"])
    assert frame["measured_energy_j"].to_numpy() == pytest.approx(
        POWER_W * frame["measured_time_s"].to_numpy()
    )


def test_gaps_are_predicted_over_measured(verified):
    assert verified.energy_gap == pytest.approx(
        verified.report.energy_j / verified.network.energy_j - 1
    )
    assert verified.time_gap == pytest.approx(verified.report.time_s / verified.network.time_s - 1)
    frame = verified.to_frame()
    assert list(frame["kind"]) == ["linear", "batch_norm", "relu", "linear", "generic", "add"]
    assert list(frame["path"][:2]) == ["first", "norm"]
    assert frame["predicted_energy_j"].sum() == pytest.approx(verified.report.energy_j)
    known = frame["kind"] != "generic"
    assert frame.loc[known, "time_gap"].to_numpy() == pytest.approx(
        (frame["predicted_time_s"] / frame["measured_time_s"] - 1)[known].to_numpy()
    )
    assert frame.loc[~known, ["measured_time_s", "energy_gap"]].isna().all(axis=None)


def test_the_whole_takes_at_least_as_long_as_its_largest_layer(verified):
    largest_s = max(row.time_s for row in verified.layers.values())
    assert 0.5 * largest_s < verified.network.time_s < 1.0


def test_the_model_is_left_as_it_was(verified, model, before):
    assert all(module.training for module in model.modules())
    assert not hasattr(model, "seen")
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)


def test_the_text_and_the_json_say_what_was_measured_and_how(verified):
    text = str(verified)
    for expected in ("whole model", "sum of the layers", "2 × linear, first", "simulated",
                     "1 of 6 layers cannot be measured by themselves", "90 % interval",
                     "the profile is of synthetic-1t, this machine is"):  # fmt: skip
        assert expected in text
    assert ("lie inside it" in text) == verified.within_interval
    state = json.loads(json.dumps(verified.to_dict()))
    assert state["quality"] == "simulated"
    assert state["energy_gap"] == verified.energy_gap
    assert len(state["layers"]) == 6


class Broken(nn.Linear):
    def forward(self, x):
        if not x.is_meta:
            raise RuntimeError("no luck")
        return super().forward(x)


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (nn.Linear(4, 4, device="meta"), {}, InvalidInput, "to_empty"),
        (nn.Linear(4, 4).half(), {}, InvalidInput, r"model\.float\(\)"),
        (nn.LazyLinear(4), {}, WalkError, "Run the model once"),
        (nn.Linear(4, 4), {"device": "nvidia-a100"}, InvalidInput, "is not of a CPU"),
        ("vgg61", {}, InvalidInput, "did you mean vgg"),
        (nn.ReLU(), {}, InvalidInput, r"predict_energy\(model, \(1, 3, 224, 224\)\)"),
        (Broken(4, 4), {}, MeasureError, "Broken: no luck"),
    ],
)
def test_mistakes(synthetic, meter, model, options, error, message):
    with pytest.raises(error, match=message):
        verify(model, **{"device": synthetic, "meter": meter, **options})
