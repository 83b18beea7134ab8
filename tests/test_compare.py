"""``compare``: its numbers are those of single predictions, its front that of the definition."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from layer_energy import EnergyModel, compare, predict_energy, profiles
from layer_energy.comparison import pareto_front
from layer_energy.errors import InvalidInput, ProfileError
from layer_energy.models import build_model, classifiers, default_input, published_accuracy
from tests.synthetic import make_dataset

DEVICES = ["nvidia-a100", "nvidia-a10"]
MODELS = ["resnet18", "mobilenet_v2", "alexnet"]

few = st.one_of(st.integers(0, 5).map(float), st.just(math.nan))  # few values: many ties
choices = st.lists(st.tuples(few, st.integers(0, 5)), max_size=12)


def beats(one, other):
    return (one[0] >= other[0] and one[1] < other[1]) or (one[0] > other[0] and one[1] <= other[1])


@given(choices)
def test_the_front_is_what_nothing_beats(rows):
    expected = [
        not math.isnan(row[0]) and not any(beats(other, row) for other in rows) for row in rows
    ]
    assert pareto_front([g for g, _ in rows], [c for _, c in rows]).tolist() == expected


@given(choices)
def test_the_front_holds_the_most_accurate_and_something_that_beats_each_other(rows):
    known = [row for row in rows if not math.isnan(row[0])]
    on_front = pareto_front([g for g, _ in known], [c for _, c in known])
    front = [row for row, on in zip(known, on_front, strict=True) if on]
    assert max((g for g, _ in front), default=0) == max((g for g, _ in known), default=0)
    assert all(row in front or any(beats(best, row) for best in front) for row in known)


@pytest.fixture(scope="module")
def table():
    return compare(MODELS, DEVICES, batch_size=4)


def test_every_row_is_the_prediction_of_that_model_on_that_device(table):
    assert list(zip(table["model"], table["device"], strict=True)) == [
        (model, device) for model in MODELS for device in DEVICES
    ]
    for row in table.to_dict("records"):
        report = predict_energy(build_model(row["model"]), batch_size=4, device=row["device"])
        low_j, high_j = report.interval_j
        assert row["energy_per_sample_j"] == pytest.approx(report.energy_j / 4)
        assert row["energy_per_sample_low_j"] == pytest.approx(low_j / 4)
        assert row["energy_per_sample_high_j"] == pytest.approx(high_j / 4)
        assert row["time_s"] == pytest.approx(report.time_s)
        assert row["input"] == report.input
        assert row["quality"] == report.quality


def test_accuracies_are_those_torchvision_publishes(table):
    # https://docs.pytorch.org/vision/stable/models.html, weights .DEFAULT
    published = {"resnet18": 0.69758, "mobilenet_v2": 0.72154, "alexnet": 0.56522}
    assert dict(zip(table["model"], table["accuracy"], strict=True)) == pytest.approx(published)
    assert all(0.5 < (published_accuracy(name) or 0) < 0.9 for name in classifiers())
    for name in ("timm:resnet18", "fcn_resnet50", "quantized_resnet18", "os:getcwd", "vgg61"):
        assert published_accuracy(name) is None


def test_the_fronts_are_of_each_device_and_of_all(table):
    for device in DEVICES:
        part = table[table["device"] == device]
        expected = pareto_front(part["accuracy"], part["energy_per_sample_j"])
        assert part["pareto_on_device"].tolist() == expected.tolist()
    expected = pareto_front(table["accuracy"], table["energy_per_sample_j"])
    assert table["pareto"].tolist() == expected.tolist()
    assert set(table[table["pareto"]].index) <= set(table[table["pareto_on_device"]].index)


def test_the_table_says_where_its_numbers_come_from(table):
    origin = table.attrs["profiles"]["nvidia-a100"]
    assert origin["quality"] == "measured"
    assert "900 MHz" in origin["assumptions"][0]
    assert json.loads(json.dumps(table.attrs)) == table.attrs


def test_a_vision_transformer_is_built_for_the_size_of_its_best_weights():
    assert default_input("vit_h_14") == (3, 518, 518)
    assert build_model("vit_h_14").image_size == 518


def test_modules_and_fitted_models_can_be_compared_too():
    synthetic = EnergyModel.fit(make_dataset({"linear": 30, "copy": 30}), "physical")
    table = compare(nn.Linear(64, 64), synthetic)
    assert table["model"].tolist() == ["Linear"]
    assert table["device"].tolist() == ["synthetic-1t"]
    assert table["accuracy"].isna().all()
    assert not table["pareto"].any()


def test_all_shipped_profiles_are_the_default():
    assert set(compare("alexnet")["device"]) == set(profiles())


@pytest.mark.parametrize(
    ("models", "options", "error", "message"),
    [
        ([], {}, InvalidInput, "give at least one model"),
        (["alexnot"], {}, InvalidInput, "did you mean alexnet"),
        (["alexnet"], {"batch_size": 0}, InvalidInput, "at least 1"),
        (["alexnet"], {"devices": ["z80"]}, ProfileError, "shipped ones: .*amd-epyc-2t"),
        (["alexnet"], {"devices": ["amd-epyc-2t"] * 2}, InvalidInput, "give each once"),
        (
            ["alexnet"],
            {"devices": "amd-epyc-2t", "dtype": "bfloat16"},
            ProfileError,
            "amd-epyc-2t was measured in float32, not in bfloat16",
        ),
    ],
)
def test_mistakes(models, options, error, message):
    with pytest.raises(error, match=message):
        compare(models, **options)
