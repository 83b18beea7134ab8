"""Which profile a user gets who names none, and GPUs that are inferred from their data sheet."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from layer_energy import predict_energy
from layer_energy.device import local_gpu_name
from layer_energy.errors import ProfileError
from layer_energy.model import (
    EnergyModel,
    default_profile,
    inferred_profiles,
    load_profile,
    profiles,
)
from layer_energy.sheet import sheet_of, sheets

MODEL = nn.Sequential(nn.Linear(4096, 4096), nn.ReLU())
H100 = "nvidia-h100-80gb-hbm3"


def predicted(device=None, **options):
    return predict_energy(MODEL, (8192, 4096), device=device, launch="graph", **options)


@pytest.mark.parametrize(
    ("gpu", "expected"),
    [
        (None, "nvidia-h200"),
        ("NVIDIA H200", "nvidia-h200"),
        ("NVIDIA H100 80GB HBM3", H100),
        ("NVIDIA H20", "nvidia-h20"),
        ("NVIDIA A10", "nvidia-a10"),
        ("NVIDIA GeForce GTX 970", "nvidia-h200"),
    ],
)
def test_the_gpu_at_hand_is_the_default(gpu, expected, monkeypatch):
    monkeypatch.setattr("layer_energy.model.local_gpu_name", lambda: gpu)
    assert default_profile() == expected
    assert load_profile().device["slug"].startswith(expected)


def test_a_gpu_without_a_profile_is_said(monkeypatch):
    said = "the GPU here, NVIDIA GeForce GTX 970, has no profile: priced as on NVIDIA H200"
    monkeypatch.setattr("layer_energy.model.local_gpu_name", lambda: "NVIDIA GeForce GTX 970")
    assert said in predicted().assumptions
    assert said not in predicted("nvidia-h200").assumptions
    monkeypatch.setattr("layer_energy.model.local_gpu_name", lambda: None)
    assert said not in predicted().assumptions


def test_a_gpu_that_cannot_be_asked_is_none(monkeypatch):
    """As in a forked process, where torch raises."""

    def refuse(index):
        raise RuntimeError("Cannot re-initialize CUDA in forked subprocess")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", refuse)
    assert local_gpu_name.__wrapped__() is None


def test_a_cpu_has_a_default_of_its_own(monkeypatch):
    monkeypatch.setattr("layer_energy.model.local_gpu_name", lambda: "NVIDIA H200")
    assert default_profile("cpu") == "amd-epyc-2t"


def test_every_sheet_is_shipped_or_inferred():
    assert set(inferred_profiles()) == {H100, "nvidia-h20"}
    assert len(sheets()) == len(inferred_profiles()) + 1
    assert "nvidia-h200" in profiles()


class TestInferred:
    def test_it_says_so(self):
        report = predicted(H100)
        assert report.quality == "inferred"
        assert report.device_name == "NVIDIA H100 80GB HBM3"
        assert "INFERRED, from a data sheet" in str(report)
        assert any("was not measured: inferred from" in line for line in report.assumptions)
        assert "from 82 measured networks of another GPU, widened" in str(report)
        model = load_profile("nvidia-h20")
        assert set(model.device["details"]) == {"torch"}
        assert model.dataset["idle_power_w"] == sheet_of("NVIDIA H20").idle_w

    def test_its_interval_is_wider(self):
        (low_a, high_a), (low_b, high_b) = (
            predicted("nvidia-h200").interval_j,
            predicted(H100).interval_j,
        )
        assert (high_b / low_b) / (high_a / low_a) > 0.99 * 1.5**2

    def test_the_data_sheets_tell_them_apart(self):
        """Products are as fast on an H100 as on an H200; bytes take longer by the bandwidth."""
        h200, h100 = (load_profile(name).pooled for name in ("nvidia-h200", H100))
        report = predicted("nvidia-h200", dtype="bfloat16")
        linear, relu = (layer.call.workload for layer in report.layers)
        a, b = (law.price([linear, relu], cached=False) for law in (h200, h100))
        assert b.time_s[0] / a.time_s[0] < 1.1
        bandwidths = [
            sheet_of(name).memory_bytes_per_s for name in ("NVIDIA H200", "NVIDIA H100 80GB HBM3")
        ]
        assert b.time_s[1] / a.time_s[1] == pytest.approx(bandwidths[0] / bandwidths[1], rel=0.1)

    def test_an_h20_is_slower_at_products(self):
        fast, slow = (
            predicted("nvidia-h200", dtype="bfloat16"),
            predicted("nvidia-h20", dtype="bfloat16"),
        )
        assert 3 < slow.time_s / fast.time_s < 8  # 989 against 148 Tflop/s, but at 400 W
        assert slow.energy_j / slow.time_s < 1.06 * 400

    def test_it_survives_the_disk(self, tmp_path):
        EnergyModel.load(H100).save(tmp_path / "h100.json")
        again = predicted(tmp_path / "h100.json")
        assert again.quality == "inferred"
        assert again.energy_j == pytest.approx(predicted(H100).energy_j, rel=1e-4)

    def test_only_a_law_of_a_gpu_can_be_carried_over(self):
        with pytest.raises(ProfileError, match="amd-epyc-2t has no law of a GPU"):
            EnergyModel.load("amd-epyc-2t").inferred(sheet_of("NVIDIA H20"))

    def test_an_unknown_name_lists_both(self):
        with pytest.raises(
            ProfileError, match=r"shipped ones: .*nvidia-h200.*inferred ones: .*nvidia-h20"
        ):
            load_profile("nvidia-b300")
