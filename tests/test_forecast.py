"""Training runs before they start: steps, validation and waiting, added up."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from layer_energy import EnergyModel, predict_energy, predict_training
from layer_energy.cli import app
from layer_energy.dataset import Dataset
from layer_energy.errors import InvalidInput, ProfileError
from layer_energy.model import PASSES
from layer_energy.models import build_model
from layer_energy.optimization import freeze_backbone
from layer_energy.walk import walk
from layer_energy.walk.training import ACCUMULATION, OPTIMIZER
from tests.synthetic import DEVICE, make_dataset, training_time_s

KINDS = ("conv2d", "batch_norm", "relu", "max_pool2d", "linear", "adaptive_avg_pool2d", "copy",
         "add", "mul", "log_softmax", "nll_loss", "fill")  # fmt: skip
RUN = {"images": 1000, "epochs": 10, "batch_size": 50, "validation_images": 200}


@pytest.fixture(scope="module")
def rows():
    forward = make_dataset(dict.fromkeys(KINDS, 40), truth=training_time_s)
    rows = {kind: 120 for kind in KINDS if kind != "fill"}
    backward = make_dataset(rows, truth=training_time_s, training=True)
    facts = {**forward.provenance, "idle_power_w": 2.0, "max_power_w": 12.0}
    measurements = [*forward.measurements, *backward.measurements]
    return Dataset(measurements, DEVICE, facts)


@pytest.fixture(scope="module")
def profile(rows):
    return EnergyModel.fit(rows, "physical")


def model():
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 100), nn.ReLU(), nn.Linear(100, 10))


@pytest.fixture(scope="module")
def forecast(profile):
    return predict_training(model(), input=(3, 8, 8), device=profile, optimizer="sgd", **RUN)


def test_a_run_is_its_steps_and_its_validation(profile, forecast):
    step = predict_energy(
        model(), (50, 3, 8, 8), device=profile, mode="training", optimizer="sgd"
    )  # fmt: skip
    passed = predict_energy(model(), (50, 3, 8, 8), device=profile)
    assert forecast.energy_j == pytest.approx(10 * (20 * step.energy_j + 4 * passed.energy_j))
    assert forecast.time_s == pytest.approx(10 * (20 * step.time_s + 4 * passed.time_s))
    assert forecast.image_energy_j == pytest.approx(forecast.energy_j / 10 / 1200)
    low, high = forecast.interval_j
    assert low == pytest.approx(10 * (20 * step.interval_j[0] + 4 * passed.interval_j[0]))
    assert low < forecast.energy_j < high
    assert forecast.waiting_time_s == 0


def test_epochs_and_images_are_proportional(profile, forecast):
    twice = predict_training(
        model(), input=(3, 8, 8), device=profile, optimizer="sgd", **{**RUN, "epochs": 20}
    )
    assert twice.energy_j == pytest.approx(2 * forecast.energy_j)
    assert twice.carbon_g == pytest.approx(2 * forecast.carbon_g)


def sums(step):
    """Joules of a step's passes, and of what is done once in it."""
    once = sum(x.estimate.energy_j for x in step.layers if x.call.path in (OPTIMIZER, ACCUMULATION))
    return step.energy_j - once, once


@pytest.mark.parametrize(
    ("images", "accumulation", "steps"), [(1025, 1, 21), (1025, 4, 6), (20, 1, 1), (20, 2, 1)]
)
def test_the_last_step_is_a_whole_one_of_fewer_images(profile, images, accumulation, steps):
    run = {**RUN, "images": images, "validation_images": 0}
    odd = predict_training(
        model(), input=(3, 8, 8), device=profile, accumulation=accumulation, **run
    )
    passes_j, once_j = sums(odd.step)
    assert once_j > 0
    assert odd.steps == steps
    full = images / (50 * accumulation)
    assert odd.epoch_energy_j == pytest.approx(full * passes_j + steps * once_j)
    whole = predict_energy(
        model(), (50, 3, 8, 8), device=profile, mode="training", accumulation=accumulation
    )
    assert passes_j + once_j == pytest.approx(whole.energy_j)


@pytest.mark.parametrize("batch_size", [1, 64])
def test_an_epoch_of_one_step_is_that_step(batch_size):
    """Waiting for the host is shared by the passes and the update, so it is counted once."""
    model = nn.Sequential(*(nn.Linear(512, 512) for _ in range(4)))
    options = {"input": (512,), "device": "nvidia-h200"}
    run = predict_training(model, images=batch_size, epochs=1, batch_size=batch_size, **options)
    assert run.step.waiting_s > 0
    assert run.time_s == pytest.approx(run.step.time_s)
    assert run.energy_j == pytest.approx(run.step.energy_j)
    assert run.interval_j == pytest.approx(run.step.interval_j)
    assert run.to_dict()["step_waiting_for_host_s"] == run.step.waiting_s


def test_a_slow_loader_costs_time_and_idle_power(profile, forecast):
    slow = predict_training(
        model(), input=(3, 8, 8), device=profile, optimizer="sgd", loading_images_per_s=100.0, **RUN
    )
    assert slow.time_s == pytest.approx(10 * 1200 / 100)
    waited_s = slow.time_s - forecast.time_s
    assert slow.energy_j == pytest.approx(forecast.energy_j + 2.0 * waited_s)
    assert any("idle power 2 W" in note for note in slow.notes)
    fast = predict_training(
        model(), input=(3, 8, 8), device=profile, optimizer="sgd", loading_images_per_s=1e12, **RUN
    )
    assert fast.energy_j == forecast.energy_j


def test_baselines(profile, forecast):
    assert forecast.baselines_j["power limit × time (MLCO2)"] == pytest.approx(
        12.0 * forecast.time_s
    )
    assert forecast.baselines_j["Green Algorithms"] == pytest.approx(
        (12.0 + 0.3725 * 16) * forecast.time_s
    )
    calls = walk(model(), (50, 3, 8, 8), training=True).calls
    macs = 20 * sum(c.cost.macs * PASSES[c.gradients] for c in calls)
    macs += 4 * sum(c.cost.macs for c in calls)
    import torchvision

    reference = predict_energy(
        torchvision.models.resnet18(), (8, 3, 224, 224), device=profile, mode="training",
        optimizer="sgd",
    )  # fmt: skip
    of_reference = sum(c.cost.macs * PASSES[c.call.workload.gradients] for c in reference.layers)
    assert forecast.baselines_j["in proportion to FLOPs"] == pytest.approx(
        10 * macs / of_reference * reference.energy_j
    )


def test_the_reference_network_is_priced_in_the_dtype_of_the_run(rows):
    half = [
        replace(m, workload=replace(m.workload, dtype="bfloat16"), energy_j=m.energy_j / 3)
        for m in rows.measurements
    ]
    both = EnergyModel.fit(
        Dataset([*rows.measurements, *half], DEVICE, rows.provenance), "physical"
    )
    shares, references = [], []
    for dtype in ("float32", "bfloat16"):
        run = predict_training(model(), input=(3, 8, 8), device=both, dtype=dtype, **RUN)
        shares.append(run.baselines_j["in proportion to FLOPs"])
        references.append(
            predict_energy(
                build_model("resnet18"), (8, 3, 224, 224), device=both, dtype=dtype,
                mode="training", optimizer="sgd",
            ).energy_j
        )  # fmt: skip
    assert references[1] < 0.5 * references[0]
    assert shares[1] / shares[0] == pytest.approx(references[1] / references[0])


class Tokens(nn.Module):
    """A language model of one layer."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(100, 16), nn.Linear(16, 100)

    def forward(self, ids, scores=None, flat=False):
        x = self.embedding(ids)
        return self.head((x if scores is None else x * scores).flatten(0, int(flat)))


def test_inputs_are_those_of_one_sample(profile):
    def forecast_of(**inputs):
        return predict_training(Tokens(), device=profile, **RUN, **inputs)

    ids = torch.zeros(50, 12, dtype=torch.int64)
    step = predict_energy(Tokens(), ids, device=profile, mode="training")
    for inputs in (
        {"input": "12:int64"},
        {"input": ids[0]},
        {"kwargs": {"ids": "12:int64"}},
        {"input": "12:int64", "kwargs": {"flat": False}},
    ):
        found = forecast_of(**inputs)
        assert found.step.input == found.validation.input == "50x12"
        assert found.step.energy_j == step.energy_j
        assert found.steps == 20
    weighed = forecast_of(input="12:int64", kwargs={"scores": (12, 1)})
    assert weighed.step.input == "50x12, 50x12x1"
    assert forecast_of().step.batch_size == 50  # inferred
    listed = predict_training(model(), input=[3, 8, 8], device=profile, **RUN)
    assert listed.step.input == "50x3x8x8"
    with pytest.raises(InvalidInput, match="is not an input shape"):
        forecast_of(input="many words")


def test_whole_numbers_of_numpy(profile, forecast):
    run = {name: np.int64(value) for name, value in RUN.items()}
    found = predict_training(
        model(), input=(3, 8, 8), device=profile, optimizer="sgd", accumulation=np.int64(1), **run
    )
    assert json.loads(json.dumps(found.to_dict())) == forecast.to_dict()


def test_a_frozen_backbone_costs_less(profile, forecast):
    frozen = predict_training(
        freeze_backbone(model()), input=(3, 8, 8), device=profile, optimizer="sgd", **RUN
    )
    assert frozen.energy_j < 0.8 * forecast.energy_j


def test_what_it_says(forecast):
    text = str(forecast)
    assert "predicted: " in text
    assert "90 %" in text
    assert "per image" in text
    assert forecast.to_dict()["quality"] == "estimated"
    assert json.loads(json.dumps(forecast.to_dict()))["energy_j"] == forecast.energy_j


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be a whole number of at least 1"),
        ({"epochs": 1.5}, "epochs must be a whole number"),
        ({"images": -1}, "images must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"validation_images": -1}, "validation_images must be"),
        ({"loading_images_per_s": 0.0}, "loading_images_per_s must be above 0"),
        ({"loading_images_per_s": math.nan}, "loading_images_per_s must be above 0"),
        ({"idle_power_w": -1.0}, "idle_power_w must be above 0"),
        ({"intensity_g_per_kwh": math.nan}, "intensity_g_per_kwh"),
    ],
)
def test_wrong_numbers(profile, options, message):
    with pytest.raises(InvalidInput, match=message):
        predict_training(model(), input=(3, 8, 8), device=profile, **{**RUN, **options})


def test_waiting_needs_an_idle_power():
    dataset = make_dataset(dict.fromkeys(KINDS, 30), truth=training_time_s)
    rows = make_dataset({"linear": 100, "relu": 30}, truth=training_time_s, training=True)
    known = Dataset([*dataset.measurements, *rows.measurements], DEVICE, dataset.provenance)
    profile = EnergyModel.fit(known, "physical")
    with pytest.raises(InvalidInput, match="give idle_power_w"):
        predict_training(model(), input=(3, 8, 8), device=profile, loading_images_per_s=10.0, **RUN)
    assert (
        "Green Algorithms"
        not in predict_training(model(), input=(3, 8, 8), device=profile, **RUN).baselines_j
    )


def test_a_profile_of_forward_passes_refuses():
    profile = EnergyModel.fit(make_dataset({"linear": 40, "copy": 40}), "physical")
    with pytest.raises(ProfileError, match="forward passes only"):
        predict_training(model(), input=(3, 8, 8), device=profile, **RUN)


def test_the_command(profile, tmp_path):
    profile.save(tmp_path / "p.json")
    arguments = ["predict-training", "resnet18", "--images", "1000", "--epochs", "2",
                 "--batch-size", "4", "--input", "3,64,64", "--device",
                 str(tmp_path / "p.json")]  # fmt: skip
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["steps_per_epoch"] == 250
    assert found["energy_low_j"] < found["energy_j"] < found["energy_high_j"]
    text = CliRunner().invoke(app, arguments)
    assert "2 epochs of 1000 images" in text.stdout
    assert "joules of the profile: ESTIMATED" in text.stdout
    assert "fitted on: " in text.stdout


def test_the_command_takes_tokens_keywords_and_models_that_need_values(
    profile, tmp_path, monkeypatch
):
    (tmp_path / "forecast_models.py").write_text(
        "import torch\n"
        "from tests.test_forecast import Tokens\n"
        "class Values(torch.nn.Linear):\n"
        "    def __init__(self):\n"
        "        super().__init__(4, 4)\n"
        "    def forward(self, x):\n"
        "        return super().forward(torch.from_numpy(x.numpy() * 2))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    profile.save("p.json")

    def run(name, *inputs):
        given = [word for text in inputs for word in ("--input", text)]
        return CliRunner().invoke(
            app,
            ["predict-training", f"forecast_models:{name}", "--images", "8", "--epochs", "1",
             "--batch-size", "4", "--device", "p.json", "--json", *given],
        )  # fmt: skip

    for inputs in (("12:int64",), ("ids=12:int64",)):
        found = run("Tokens", *inputs)
        assert found.exit_code == 0, found.output
        assert json.loads(found.stdout)["input"] == "4x12"
    assert isinstance(run("Tokens", "12:int64", "12,1").exception, InvalidInput)
    found = run("Values")
    assert found.exit_code == 0, found.output
    assert "walked by CPU forward" in json.loads(found.stdout)["notes"]
