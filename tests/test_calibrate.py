"""Calibration from totals against a simulated device whose coefficients are known."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from layer_energy import cli
from layer_energy.calibrate import (
    calibrate,
    fit_law,
    law_of,
    leave_one_network_out,
    plausible,
    predict_totals,
    ratios,
)
from layer_energy.errors import DatasetError, ProfileError
from layer_energy.law import COEFFICIENTS, nominal
from layer_energy.layers import workload
from layer_energy.model import EnergyModel
from layer_energy.models import build_model
from layer_energy.predict import predict_energy
from layer_energy.totals import Total, read_totals
from layer_energy.walk import walk
from layer_energy.workload import Workload

NETWORKS = ("alexnet", "resnet18", "mobilenet_v2", "squeezenet1_1", "vit_b_16", "vgg11")
BASE = nominal(1e14, 6e12, 1.5e12, 250, 108, 2.0)


@pytest.fixture(scope="module")
def truth():
    """Another device: slower arithmetic, faster memory, less power, and 20 % of its own each."""
    rng = np.random.default_rng(0)
    factor = {name: np.exp(rng.normal(0, 0.2)) for name in COEFFICIENTS}
    for name in ("mac_s", "half_mac_s"):
        factor[name] *= 2
    for name in ("idle_w", "busy_w", "byte_j", "mac_j", "half_mac_j", "byte_s"):
        factor[name] *= 0.5
    return replace(BASE, coefficients={k: v * factor[k] for k, v in BASE.coefficients.items()})


@pytest.fixture(scope="module")
def totals(truth):
    rng = np.random.default_rng(1)
    made = []
    for name in NETWORKS:
        model = build_model(name)
        for batch in (1, 16, 64):
            for dtype in ("float32", "bfloat16"):
                calls = walk(model, (batch, 3, 224, 224)).workloads()
                typed = {Workload(w.kind, w.params, dtype): n for w, n in calls.items()}
                made.append(Total(name, dtype, batch, 1.0, 1.0, typed))
    exact = predict_totals(made, truth) * np.exp(rng.normal(0, 0.02, (len(made), 2)))
    return [replace(t, energy_j=e, time_s=s) for t, (e, s) in zip(made, exact, strict=True)]


@pytest.fixture(scope="module")
def model(totals):
    return calibrate(totals, BASE, "Simulated GPU", "simulated totals", assumptions=["Made up."])


def off(totals, predicted):
    return np.median(np.abs(1 / ratios(totals, predicted) - 1), axis=0)


def test_a_network_left_out_is_predicted_from_the_others(totals):
    left_out = off(totals, leave_one_network_out(totals, BASE))
    assert left_out[0] < 0.05
    assert left_out[1] < 0.05
    assert (off(totals, predict_totals(totals, BASE)) > 0.25).all()


def test_the_network_left_out_has_no_part_in_its_prediction(totals):
    vgg = np.array([t.model == "vgg11" for t in totals])
    doubled = [replace(t, energy_j=2 * t.energy_j) if t.model == "vgg11" else t for t in totals]
    before, after = (leave_one_network_out(rows, BASE) for rows in (totals, doubled))
    assert after[vgg] == pytest.approx(before[vgg], rel=1e-9)
    assert after[~vgg] != pytest.approx(before[~vgg], rel=1e-3)


def test_what_the_totals_do_not_say_stays_with_the_base(totals):
    float32 = [t for t in totals if t.dtype == "float32"]
    law = fit_law(float32, replace(BASE, tf32=None)).coefficients
    shift = law["mac_s"] / BASE.coefficients["mac_s"]
    assert shift > 1.3
    # half precision was never seen: it moves with the other seconds, by no more than they do
    assert 1 < law["half_mac_s"] / BASE.coefficients["half_mac_s"] < shift


def test_intervals_of_totals_need_several_networks_and_weigh_each_once(totals, model):
    once = model.totals["inference"]
    assert once.count == len(NETWORKS)
    assert once.ratio["energy_j"][0] < 1 < once.ratio["energy_j"][1]
    twice = calibrate([*totals, *[t for t in totals if t.model == "alexnet"]], BASE, "x", "y")
    ratio = twice.totals["inference"].ratio["energy_j"]
    assert ratio == pytest.approx(once.ratio["energy_j"], 0.02)
    few = [t for t in totals if t.model in NETWORKS[:3]]
    assert calibrate(few, BASE, "x", "y").totals == {}


def test_totals_that_no_law_explains(totals):
    absurd = [replace(totals[0], energy_j=1e9), replace(totals[0], energy_j=1e-9)]
    with pytest.raises(DatasetError, match="joules and seconds of one forward pass"):
        calibrate(absurd, BASE, "x", "y")


def test_without_totals_there_is_nothing_to_fit():
    with pytest.raises(DatasetError, match="at least one measured network"):
        fit_law([], BASE)


def test_a_run_that_failed_is_left_out_and_said(totals, model):
    failed = replace(totals[-1], energy_j=totals[-1].energy_j / 40, time_s=totals[-1].time_s / 20)
    spoilt = calibrate([*totals, failed], BASE, "Simulated GPU", "simulated totals")
    assert plausible([failed], spoilt.law) == []
    assert spoilt.law.coefficients == pytest.approx(model.law.coefficients, rel=0.01)
    assert spoilt.dataset["rows"] == len(totals)
    assert any("1 of 37 totals" in line for line in spoilt.assumptions)


def test_the_profile_predicts_and_says_what_it_is(model, totals, tmp_path):
    model.save(tmp_path / "gpu.json")
    report = predict_energy(
        build_model("resnet18"), (16, 3, 224, 224), device=tmp_path / "gpu.json", dtype="bfloat16"
    )
    measured = next(t for t in totals if (t.model, t.batch_size, t.dtype)
                    == ("resnet18", 16, "bfloat16"))  # fmt: skip
    assert report.energy_j == pytest.approx(measured.energy_j, rel=0.1)
    assert report.time_s == pytest.approx(measured.time_s, rel=0.1)
    assert report.interval_j[0] < measured.energy_j < report.interval_j[1]
    assert report.in_domain == 1.0
    assert "layers were not measured one by one" in str(report).replace("\n", " ")
    assert "36 rows of dataset simulated totals" in report.source


def test_a_damaged_law_is_a_damaged_profile(model, tmp_path):
    model.save(tmp_path / "gpu.json")
    state = json.loads((tmp_path / "gpu.json").read_text())
    state["law"]["coefficients"]["mac_j"] = -1
    (tmp_path / "gpu.json").write_text(json.dumps(state))
    with pytest.raises(ProfileError, match=r"damaged.*not a positive number"):
        EnergyModel.load(tmp_path / "gpu.json")


def test_estimated_joules_stay_estimated(totals):
    mixed = [*totals[:5], replace(totals[5], quality="estimated")]
    assert calibrate(mixed, BASE, "x", "y").quality == "estimated"


def test_what_no_network_ran_is_flagged(model):
    sizes = workload("linear", tokens=1, in_features=2, out_features=2, bias=0)
    known = workload("linear", tokens=16, in_features=512, out_features=1000, bias=1)
    strange = workload("tanh", elements=1000, in_place=0)
    prices = model.price([sizes, known, strange])
    assert "macs 4 is outside" in prices[sizes].outside
    assert "no network of the fit ran tanh in float32" in prices[strange].outside
    assert prices[known].in_domain
    width = {w: p.energy_high_j / p.energy_j for w, p in prices.items()}
    assert width[strange] == pytest.approx(width[known] ** 2)


def test_the_law_of_a_layer_wise_profile_is_near_its_prices(totals):
    base = EnergyModel.load("amd-epyc-2t")
    float32 = [t for t in totals if t.dtype == "float32" and t.model in NETWORKS[:3]]
    predicted = predict_totals(float32, law_of(base, float32))
    for total, (joules, _) in zip(float32, predicted, strict=True):
        prices = base.price(list(total.workloads))
        summed = sum(prices[w].energy_j * n for w, n in total.workloads.items())
        assert 0.4 < joules / summed < 2.5


def test_a_file_of_totals(tmp_path):
    path = tmp_path / "totals.csv"
    path.write_text(
        "model,batch_size,input,dtype,energy_j,time_s,quality,comment\n"
        "alexnet,4,,,0.5,0.01,,\n"
        "alexnet,,2x3x64x64,bfloat16,0.25,0.02,estimated,cold\n"
    )
    first, second = read_totals(path)
    assert (first.batch_size, first.dtype, first.quality) == (4, "float32", "measured")
    assert (second.energy_j, second.time_s, second.quality) == (0.25, 0.02, "estimated")
    assert {w.params["batch"] for w in first.workloads if w.kind == "conv2d"} == {4}
    convolutions = [w for w in second.workloads if w.kind == "conv2d"]
    assert {(w.params["batch"], w.dtype) for w in convolutions} == {(2, "bfloat16")}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("alexnet,1,float32,inference,,1", "line 2: energy_j is missing"),
        ("alexnet,1,float32,inference,-1,1", "line 2: energy_j is '-1', not a positive number"),
        ("alexnet,1,float32,inference,1,inf", "line 2: time_s is 'inf', not a positive number"),
        ("alexnet,x,float32,inference,1,1", "line 2: batch_size is 'x', not a positive number"),
        ("alexnet,1,int8,inference,1,1", "line 2: dtype is 'int8'"),
        ("alexnet,1,float32,dreaming,1,1", "line 2: mode is 'dreaming', not one of inference, tr"),
        ("alexnet,1,float32,training,1,1", "no rows; one measured forward pass"),
        ("alexnat,1,float32,inference,1,1", "line 2: alexnat cannot be walked: .*alexnet"),
    ],
)
def test_bad_rows_are_named(tmp_path, row, message):
    path = tmp_path / "totals.csv"
    path.write_text(f"model,batch_size,dtype,mode,energy_j,time_s\n{row}\n")
    with pytest.raises(DatasetError, match=message):
        read_totals(path)


def test_files_that_are_not_totals(tmp_path):
    (tmp_path / "empty.csv").write_text("model,energy_j,time_s\n")
    (tmp_path / "other.csv").write_text("name,energy\nx,1\n")
    for name, message in (("empty", "no rows"), ("other", "model is missing"), ("none", "cannot")):
        with pytest.raises(DatasetError, match=message):
            read_totals(tmp_path / f"{name}.csv")


def test_the_command(tmp_path, monkeypatch, capsys):
    """A GPU that needs twice the joules and seconds of the base for all that was measured."""

    def joules(name, device):
        report = predict_energy(
            build_model(name), (16, 3, 224, 224), device=device, dtype="bfloat16"
        )
        return report.energy_j, report.time_s

    lines = ["model,batch_size,dtype,energy_j,time_s"]
    for name in ("resnet18", "vgg11"):
        energy_j, time_s = joules(name, "nvidia-a100")
        lines.append(f"{name},16,bfloat16,{2 * energy_j},{2 * time_s}")
    (tmp_path / "totals.csv").write_text("\n".join(lines))
    out = tmp_path / "mine.json"
    monkeypatch.setattr(
        sys, "argv",
        ["layer-energy", "calibrate", "--totals", str(tmp_path / "totals.csv"), "--profile",
         "nvidia-a100", "--out", str(out), "--name", "My GPU", "--json"],
    )  # fmt: skip
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    facts = json.loads(capsys.readouterr().out)
    assert (facts["totals"], facts["left_out"], facts["dtypes"]) == (2, 0, ["bfloat16"])
    assert EnergyModel.load(out).device["slug"] == "my-gpu"
    ratio = np.array(joules("resnet34", out)) / joules("resnet34", "nvidia-a100")
    assert ratio == pytest.approx([2, 2], rel=0.1)
