"""``predict_energy`` and its report: sums, coverage, intervals, what is said."""

import json
import subprocess
import sys

import pytest
import torch
import torchvision
from torch import nn

from layer_energy import EnergyModel, predict_energy
from layer_energy.errors import InvalidInput, ProfileError, UnmodelledOperation
from tests.synthetic import POWER_W, make_dataset, true_time_s

KINDS = ("conv2d", "relu", "max_pool2d", "linear", "adaptive_avg_pool2d", "copy", "add", "cat",
         "attention")  # fmt: skip


@pytest.fixture(scope="module")
def synthetic():
    return EnergyModel.fit(make_dataset(dict.fromkeys(KINDS, 120), noise=0.01), "physical")


@pytest.fixture(scope="module")
def vgg(synthetic):
    return predict_energy(torchvision.models.vgg11(init_weights=False), device=synthetic)


def test_the_total_is_that_of_the_known_device(vgg):
    truth = sum(true_time_s(layer.call.workload) for layer in vgg.layers)
    assert vgg.time_s == pytest.approx(truth, rel=0.1)
    assert vgg.energy_j == pytest.approx(POWER_W * truth, rel=0.1)


def test_parts_add_up_to_the_total(vgg):
    for parts in (vgg.by_kind(), vgg.by_module(1), vgg.by_module(depth=2)):
        assert sum(p.energy_j for p in parts) == pytest.approx(vgg.energy_j)
        assert sum(p.time_s for p in parts) == pytest.approx(vgg.time_s)
        assert sum(p.macs for p in parts) == vgg.macs
        assert sum(p.calls for p in parts) == len(vgg.layers)
        assert sum(p.share for p in parts) == pytest.approx(1)
    assert [p.name for p in vgg.by_module(1)] == ["features", "avgpool", "classifier"]
    assert vgg.by_kind()[0].name == "conv2d"
    frame = vgg.to_frame()
    assert frame["energy_j"].sum() == pytest.approx(vgg.energy_j)
    assert frame["path"].iloc[0] == "features.0"


def test_the_interval_holds_the_estimate_and_the_meters_error(vgg):
    low, high = vgg.interval_j
    assert low <= 0.5 * vgg.energy_j
    assert high >= 1.5 * vgg.energy_j


def test_json_is_plain_and_complete(vgg):
    state = json.loads(json.dumps(vgg.to_dict()))
    assert set(state) >= {
        "model", "device", "dtype", "mode", "batch_size", "input", "energy_j", "energy_low_j",
        "energy_high_j", "time_s", "coverage", "quality", "assumptions", "layers",
    }  # fmt: skip
    assert set(state["layers"][0]) >= {
        "path", "kind", "params", "macs", "bytes", "energy_j", "energy_low_j", "energy_high_j",
        "time_s", "in_domain",
    }  # fmt: skip
    assert state["layers"][0]["params"]["out_channels"] == 64


def test_the_text_says_where_numbers_come_from(vgg):
    text = str(vgg)
    for expected in ("VGG", "conv2d", "total", "ESTIMATED", "±50%", "1x3x224x224", "Synthetic",
                     "Power is assumed", "0.0% of the joules come from operations"):  # fmt: skip
        assert expected in text
    assert all(len(line) <= 96 for line in text.splitlines())


def test_the_model_is_linear_in_the_batch(synthetic, vgg):
    four = predict_energy(torchvision.models.vgg11(init_weights=False), batch_size=4,
                          device=synthetic)  # fmt: skip
    assert four.macs == 4 * vgg.macs
    assert 2 < four.energy_j / vgg.energy_j < 4


class WithSort(nn.Module):
    def forward(self, x):
        return torch.sort(torch.relu(x))[0]


def test_unclaimed_operations_are_priced_shown_and_refused_when_strict(synthetic):
    report = predict_energy(WithSort(), (1000, 100), device=synthetic)
    assert 0 < report.coverage < 1
    assert report.unmodelled() == ["sort"]
    assert "sort" in str(report)
    with pytest.raises(UnmodelledOperation, match="sort"):
        predict_energy(WithSort(), (1000, 100), device=synthetic, strict=True)


def test_an_empty_model(synthetic):
    report = predict_energy(nn.Identity(), (1, 3), device=synthetic)
    assert report.energy_j == 0
    assert report.coverage == 1
    assert "total" in str(report)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mode": "dreaming"}, InvalidInput, "inference, training"),
        ({"mode": "training"}, ProfileError, "forward passes only"),
        ({"dtype": "float31"}, InvalidInput, "float31"),
        ({"dtype": "bfloat16"}, ProfileError, "measured in float32"),
        ({"batch_size": 0}, InvalidInput, "at least 1"),
    ],
)
def test_wrong_options_say_what_is_right(synthetic, options, error, message):
    with pytest.raises(error, match=message):
        predict_energy(nn.Linear(3, 3), device=synthetic, **options)


def test_a_shipped_profile_is_the_default():
    report = predict_energy(nn.Linear(64, 64))
    assert report.device
    assert report.energy_j > 0
    assert report.interval_j[0] < report.energy_j < report.interval_j[1]


def test_importing_the_package_imports_nothing_slow():
    code = (
        "import sys, layer_energy; "
        "print(sorted({'torch', 'sklearn', 'pandas', 'numpy', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_predicting_needs_neither_pandas_nor_sklearn():
    code = (
        "import sys, torch, layer_energy; "
        "layer_energy.predict_energy(torch.nn.Linear(8, 8)); "
        "print(sorted({'sklearn', 'pandas', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names():
    import layer_energy

    assert set(layer_energy.__all__) == {
        "Cost", "Dataset", "Device", "EnergyModel", "EnergyReport", "Measurement", "Trace",
        "TrainingForecast", "Verification", "Workload", "__version__", "compare", "diff",
        "largest_within", "plot_sweep", "predict_energy", "predict_training", "profiles", "score",
        "sweep", "verify", "walk",
    }  # fmt: skip
    for name in layer_energy.__all__:
        assert getattr(layer_energy, name)
    with pytest.raises(AttributeError, match="no attribute 'predict_power'"):
        _ = layer_energy.predict_power
