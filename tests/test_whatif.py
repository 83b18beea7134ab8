"""``sweep`` and ``largest_within``: against single predictions, and against a known search."""

import pytest
import torch
from torch import nn

from layer_energy import EnergyModel, largest_within, plot_sweep, predict_energy, sweep
from layer_energy.errors import InvalidInput, ProfileError
from layer_energy.whatif import IMAGE_STEP

GPU, CPU = "nvidia-a100", "amd-epyc-2t"


@pytest.fixture(scope="module")
def model():
    return nn.Sequential(nn.Conv2d(3, 16, 7, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(16, 10))  # fmt: skip


def test_every_row_is_the_prediction_of_its_combination(model):
    frame = sweep(model, batch_size=[1, 4], image_size=[64, 96], dtype=["float32", "bfloat16"],
                  device=[GPU])  # fmt: skip
    assert len(frame) == 8
    for row in frame.itertuples():
        shape = (row.batch_size, 3, row.image_size, row.image_size)
        report = predict_energy(model, shape, dtype=row.dtype, device=GPU)
        assert row.energy_j == pytest.approx(report.energy_j)
        assert (row.energy_low_j, row.energy_high_j) == pytest.approx(report.interval_j)
        assert row.energy_per_sample_j == pytest.approx(report.energy_j / row.batch_size)
        assert row.input == "x".join(map(str, shape))
        assert (row.device, row.quality, row.error) == (GPU, report.quality, "")


def test_what_is_not_varied_is_as_in_a_single_prediction(model):
    (row,) = sweep(model, device=[EnergyModel.load(CPU)]).itertuples()
    report = predict_energy(model, device=CPU)
    assert row.energy_j == report.energy_j
    assert (row.batch_size, row.image_size, row.device) == (1, 0, CPU)


def test_given_inputs_are_resized(model):
    frame = sweep(model, (2, 3, 50, 60), batch_size=[3])
    assert list(frame["input"]) == ["3x3x50x60"]
    tokens = nn.Embedding(10, 4)
    frame = sweep(tokens, torch.zeros(1, 7, dtype=torch.int64), batch_size=[2, 5])
    assert list(frame["input"]) == ["2x7", "5x7"]
    frame = sweep(nn.LSTM(8, 8), batch_size=[4])  # the batch is its second dimension
    assert list(frame["input"]) == ["128x4x8"]


def test_a_combination_that_cannot_be_priced_says_why(model):
    frame = sweep(model, dtype=["bfloat16"], device=[CPU, GPU])
    assert frame["energy_j"].isna().tolist() == [True, False]
    assert "measured in float32" in frame["error"][0]
    assert frame["error"][1] == ""
    with pytest.raises(ProfileError, match="measured in float32"):
        sweep(model, dtype=["bfloat16"], device=[CPU])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": []}, "at least one value"),
        ({"dtype": "float32"}, "must be a list"),
        ({"batch_size": [0]}, "at least 1"),
        ({"image_size": [-2]}, "at least 1"),
    ],
)
def test_wrong_axes_are_refused(model, options, message):
    with pytest.raises(InvalidInput, match=message):
        sweep(model, **options)


def test_image_size_needs_images():
    with pytest.raises(InvalidInput, match="four dimensions or more, got 1x8"):
        sweep(nn.Linear(8, 8), image_size=[32])


@pytest.mark.parametrize(("varied", "step"), [("batch_size", 1), ("image_size", IMAGE_STEP)])
def test_the_largest_is_that_of_trying_them_all(model, varied, step):
    def energy_j(n):
        return sweep(model, device=[CPU], **{"image_size": [64], varied: [n * step]})["energy_j"][0]

    energies = [energy_j(n) for n in range(1, 12)]
    assert energies == sorted(energies)
    for n in (1, 4, 5, 10):
        budget_j = (energies[n - 1] + energies[n]) / 2
        held = {} if varied == "image_size" else {"image_size": 64}
        found = largest_within(model, budget_j, varied=varied, device=CPU, **held)
        assert found.value == n * step
        assert found.next_value == (n + 1) * step
        assert found.report.energy_j == pytest.approx(energies[n - 1])
        assert found.next_energy_j == pytest.approx(energies[n])


def test_budgets_without_an_answer_say_so(model):
    with pytest.raises(InvalidInput, match="even batch_size 1 is predicted"):
        largest_within(model, 1e-9, device=CPU)
    with pytest.raises(InvalidInput, match="above 0"):
        largest_within(model, float("nan"))
    with pytest.raises(InvalidInput, match="batch_size or image_size"):
        largest_within(model, 1.0, varied="hat")


def test_small_images_that_the_model_refuses_are_skipped():
    deep = nn.Sequential(nn.Conv2d(3, 8, 11, stride=4), nn.MaxPool2d(9), nn.Conv2d(8, 8, 1))
    found = largest_within(deep, 1e-2, varied="image_size", device=CPU)
    assert found.value >= 64
    assert found.report.energy_j <= 1e-2 < found.next_energy_j


def test_the_plot_has_a_line_a_combination(model):
    pytest.importorskip("matplotlib").use("Agg")
    frame = sweep(model, batch_size=[1, 2, 4], dtype=["float32", "bfloat16"], device=[GPU])
    axes = plot_sweep(frame)
    assert axes.get_xlabel() == "batch size"
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert set(lines) == {"dtype float32", "dtype bfloat16"}
    expected = frame[frame["dtype"] == "float32"]["energy_j"]
    assert list(lines["dtype float32"].get_ydata()) == list(expected)
    assert "predicted" in axes.get_title()
    assert "measured joules" in axes.get_title()
