"""Published totals of real GPUs: counts against their operator lists, and the shipped profiles.

The measurements are EnergAIzer's (ISPASS'26, arXiv 2604.20105) and are no part of this package.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from layer_energy.calibrate import fit_law, leave_one_network_out
from layer_energy.layers.base import count
from layer_energy.model import EnergyModel
from tests.benchmarks import totals as study

DATA = Path(__file__).parents[2] / "shared" / "external" / "energaizer2026"
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="EnergAIzer's measurements are not part of this repository"
)
ONE_OF_EACH = (
    "bertmodel_large_pbf16_b2_s256_modeprefill", "gpt2model_gpt2_pbf16_b8_s512_modeprefill",
    "optmodel_opt-1p3b_pbf16_b1_s1024_modeprefill",
    "qwen2model_qwen2-1p5b_pbf16_b2_s512_modeprefill",
    "vitmodel_large_pbf16_b16_freq900", "mobilevitmodel_small_pbf16_b16_freq900",
    "resnet101__pbf16_b32_freq900",
)  # fmt: skip


@needs_data
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_multiply_accumulates_are_those_of_the_published_operator_lists(name):
    calls = study.workloads(*study.parse(name))
    products = convolutions = 0
    for w, n in calls.items():
        if w.kind.startswith("conv"):
            # their lists count every convolution as dense
            convolutions += n * count(w)[0].macs * w.params["groups"]
        else:
            products += n * count(w)[0].macs
    theirs = {"gemm": 0, "conv2d": 0}
    for sizes, (kind, *_) in json.loads((DATA / "workloads" / "all" / f"{name}.json").read_text()):
        if kind in theirs:
            theirs[kind] += sizes["batch"] * sizes["dimM"] * sizes["dimN"] * sizes["dimK"]
    assert products == pytest.approx(theirs["gemm"], rel=1e-4)
    assert convolutions == pytest.approx(theirs["conv2d"], rel=1e-4)


@needs_data
@pytest.mark.parametrize("device", study.DEVICES)
def test_the_shipped_profile_is_rebuilt_from_the_totals(device):
    shipped = EnergyModel.load(f"nvidia-{device}")
    law = fit_law(study.read(DATA, device), study.PRIORS[device])
    assert shipped.law.coefficients == pytest.approx(law.coefficients, rel=0.01)
    assert shipped.law.seen == {
        key: pytest.approx(limits, rel=1e-4) for key, limits in law.seen.items()
    }


@needs_data
def test_networks_left_out_are_predicted_as_the_readme_says():
    rows = study.read(DATA, "a10")
    measured = np.array([[t.energy_j, t.time_s] for t in rows])
    error = np.abs(leave_one_network_out(rows, study.PRIORS["a10"]) / measured - 1)[:, 0]
    baseline = np.abs(study.flops_and_bytes(rows, study.PRIORS["a10"]) / measured - 1)[:, 0]

    def among(names):
        return np.array([t.dtype == "bfloat16" and t.model in names for t in rows])

    transformers = among(study.TRANSFORMERS)
    assert np.median(error[transformers]) <= 0.04 < np.median(baseline[transformers])
    assert np.median(error[among(("ResNet-101",))]) <= 0.15


def test_the_shipped_profiles_say_where_they_are_from():
    for device in study.DEVICES:
        model = EnergyModel.load(f"nvidia-{device}")
        assert model.dtypes == ["bfloat16", "float32"]
        text = " ".join(model.assumptions)
        assert "published" in text
        assert "locked at 900 MHz" in text
        assert "not measured one by one" in text
        assert "2604.20105" in model.dataset["name"]
        low, high = model.totals_of("inference").ratio["energy_j"]
        assert 0.7 < low < 1 < high < 1.4
