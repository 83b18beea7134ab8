"""The command line, as a user types it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from torch import nn
from torch.nn.functional import batch_norm

from layer_energy import cli
from layer_energy.cli import base
from layer_energy.dataset import Dataset
from layer_energy.units import si
from layer_energy.workload import NetworkMeasurement
from tests.synthetic import make_dataset


@pytest.fixture
def run(capsys, monkeypatch):
    """Run ``layer-energy ARGS``; returns (exit code, stdout, stderr)."""

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["layer-energy", *map(str, args)])
        monkeypatch.setattr(base.out, "_width", 120)
        monkeypatch.setattr(base.err, "_width", 200)
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset") / "synthetic"
    rows = dict.fromkeys(("conv2d", "relu", "max_pool2d", "linear", "adaptive_avg_pool2d",
                          "copy", "batch_norm", "add"), 60)  # fmt: skip
    dataset = make_dataset(rows)
    dataset.networks = [
        NetworkMeasurement(name, batch, f"{batch}x3x224x224", "float32", "inference", 0.5, 5.0,
                           10.0, 0.01, 3, "estimated", "estimated", (), 0.5, 5.0)
        for name in ("alexnet", "resnet18") for batch in (1, 8)
    ]  # fmt: skip
    dataset.save(folder)
    return folder


def test_predict_prints_a_table(run):
    code, out, _ = run("predict", "alexnet")
    assert code == 0
    assert "conv2d" in out
    assert "total" in out


def test_predict_json_has_the_keys_of_the_contract(run):
    code, out, _ = run("predict", "alexnet", "--batch-size", 2, "--json")
    report = json.loads(out)
    assert code == 0
    assert list(report["layers"][0])
    assert report["batch_size"] == 2
    assert report["model"] == "alexnet"
    assert {"energy_j", "energy_low_j", "energy_high_j", "time_s", "coverage", "quality",
            "assumptions", "input", "dtype", "mode", "device"} <= set(report)  # fmt: skip


def test_predict_uses_the_size_of_the_weights(run):
    _, out, _ = run("predict", "efficientnet_b3", "--json")
    assert json.loads(out)["input"] == "1x3x300x300"


def test_a_limit_fails_with_its_own_code_and_says_both_numbers(run):
    code, out, err = run("predict", "alexnet", "--fail-above", "1 mJ", "--json")
    energy_j = json.loads(out)["energy_j"]
    assert code == 1
    assert "ABOVE the limit of 1.000 mJ" in " ".join(err.split())
    assert si(energy_j, "J", 4) + " predicted" in " ".join(err.split())
    assert run("predict", "alexnet", "--fail-above", f"{energy_j * 1.01 / 3600:.9f}Wh")[0] == 0
    assert run("predict", "alexnet", "--fail-above", f"{energy_j * 0.99e-3:.9f}kJ")[0] == 1


def test_predict_writes_a_page_and_folded_stacks(run, tmp_path):
    page, stacks = tmp_path / "r.html", tmp_path / "r.folded"
    code, out, err = run("predict", "alexnet", "--html", page, "--folded", stacks, "--json",
                         "--carbon-intensity", 50, "--price", 0.5, "--currency", "CHF")  # fmt: skip
    assert code == 0
    assert str(page) in err.replace("\n", "")
    assert '"rates":{"intensity_g_per_kwh":50.0,"price_per_kwh":0.5,"currency":"CHF"}' in (
        page.read_text(encoding="utf-8")
    )
    joules = sum(int(line.split()[-1]) for line in stacks.read_text().splitlines()) * 1e-9
    assert joules == pytest.approx(json.loads(out)["energy_j"], rel=1e-6)


def test_diff_of_two_models(run):
    args = ("diff", "vgg11", "vgg13", "--depth", 1)
    code, out, _ = run(*args, "--json")
    assert code == 0
    paths = [change["path"] for change in json.loads(out)["changes"]]
    assert paths == ["features", "waiting for the host"]
    graphs = json.loads(run(*args, "--launch", "graph", "--json")[1])
    assert [change["path"] for change in graphs["changes"]] == ["features"]
    assert "2 modules cost the same" in run(*args)[1]


def test_sweep_prints_draws_and_writes(run, tmp_path):
    args = ("sweep", "alexnet", "--batch-size", "1,2", "--image-size", "96,224")
    csv, png = tmp_path / "sweep.csv", tmp_path / "sweep.png"
    code, out, _ = run(*args, "--json", "--csv", csv, "--plot", png)
    assert code == 0
    rows = json.loads(out)
    assert [row["input"] for row in rows] == ["1x3x96x96", "1x3x224x224", "2x3x96x96",
                                              "2x3x224x224"]  # fmt: skip
    assert len(csv.read_text().splitlines()) == 5
    assert png.read_bytes().startswith(b"\x89PNG")
    alone = json.loads(run("predict", "alexnet", "--json")[1])
    assert rows[1]["energy_j"] == pytest.approx(alone["energy_j"])
    out = run(*args)[1]
    assert "predicted, not measured" in out
    assert "joules of nvidia-h200: measured" in out


def test_sweep_finds_the_largest_batch_in_a_budget(run):
    code, out, _ = run("sweep", "alexnet", "--joule-budget", "500mJ", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["energy_j"] <= 0.5 < found["next_energy_j"]
    assert found["next"] == found["batch_size"] + 1
    alone = run("predict", "alexnet", "--batch-size", found["batch_size"], "--json")[1]
    assert json.loads(alone)["energy_j"] == pytest.approx(found["energy_j"])
    out = run("sweep", "alexnet", "--joule-budget", "500mJ")[1]
    assert "predicted, 90 % interval" in " ".join(out.split())


def test_predict_takes_shapes_and_factories(run, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import torch\ndef net():\n    return torch.nn.Embedding(10, 4)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    code, out, _ = run("predict", "mine:net", "--input", "2,7:int64", "--json")
    assert code == 0
    assert json.loads(out)["layers"][0]["params"]["tokens"] == 14


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["predict", "vgg61"], "did you mean vgg"),
        (["predict", "timm:mobilnet"], "timm has no model"),
        (["predict", "hf:no-such-thing"], "config.json"),
        (["predict", "no.such:thing"], "package.module:factory"),
        (["predict", "os:getcwd"], "not a torch.nn.Module"),
        (["predict", "os:sep"], "not callable"),
        (["predict", "alexnet", "--input", "1,a"], "1,3,224,224"),
        (["predict", "alexnet", "--input", "1,4,224,224"], "features.0, operation conv2d"),
        (["predict", "alexnet", "--device", "z80"], "no profile is called"),
        (["predict", "alexnet", "--dtype", "float31"], "float31"),
        (
            ["predict", "alexnet", "--mode", "training", "--device", "nvidia-a100"],
            "forward passes only",
        ),
        (["predict", "alexnet", "--fail-above", "12W"], "mJ, J, kJ, Wh"),
        (["predict", "alexnet", "--fail-above", "J"], "as in 12J"),
        (["sweep", "alexnet", "--batch-size", "1,x"], "--batch-size takes values"),
        (["sweep", "alexnet", "--batch-size", "0"], "at least 1"),
        (["sweep", "alexnet", "--joule-budget", "1mJ"], "even batch_size 1"),
        (["sweep", "alexnet", "--joule-budget", "1J", "--dtype", "a,b"], "give one dtype"),
        (["sweep", "alexnet", "--joule-budget", "1J", "--largest", "hat"], "image_size, got"),
        (["collect", "--out", "/dev/null/nope", "--rows", "relu=3"], "not a writable folder"),
        (["collect", "--out", "x", "--rows", "relux=3"], "no layer type is called"),
        (["collect", "--out", "x", "--rows", "relu=many"], "neither 'default'"),
        (["collect", "--out", "x", "--rows", "-1"], "at least 1"),
        (["collect", "--out", "x", "--meter", "sundial"], "sundial"),
        (["collect", "--out", "x", "--mode", "both"], "inference, training or all"),
        (["collect", "--out", "x", "--mode", "training", "--networks", "nope"], "no model 'nope'"),
        (["collect", "--out", "x", "--device", "virtual", "--mode", "both"], "training or all"),
        (["collect", "--out", "x", "--device", "virtual", "--networks", "alexnet"], "for a CPU"),
        (["fit", "/nowhere", "--out", "x.json"], "layer-energy collect"),
        (["fit", ".", "--out", "x.txt"], ".json"),
        (["evaluate", "networks"], "--measure"),
        (["evaluate", "networks", "--measure", "--batch-sizes", "1,x"], "--batch-sizes"),
        (["evaluate", "paper", "--data", "."], "dl-energy-estimator"),
        (["verify", "alexnet", "--device", "nvidia-a100"], "is not of a CPU"),
        (["compare"], "name at least one model"),
        (["compare", "alexnet", "--dtype", "bfloat16"], "choose one of those or another profile"),
    ],
)
def test_mistakes_are_one_clear_line_and_a_code(run, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*args)
    assert code == 2
    assert message in err.replace("\n", " ")
    assert "Traceback" not in err
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_help_of_every_command_has_an_example(run):
    evaluate = [["evaluate", name] for name in ("networks", "layers", "paper")]
    for command in (["predict"], ["diff"], ["sweep"], ["collect"], ["merge"], ["fit"], *evaluate,
                    ["profiles"], ["doctor"], ["project"], ["calibrate"], ["compare"],
                    ["verify"]):  # fmt: skip
        code, out, _ = run(*command, "--help")
        assert code == 0
        assert "Example: layer-energy" in out
        assert "--json" in out


def test_steps_measured_without_a_profile_to_compare_them_with(run, tmp_path, monkeypatch):
    make_dataset({"copy": 3}).save(tmp_path)
    step = NetworkMeasurement("alexnet", 8, "8x3x224x224", "float32", "training", 1.0, 5.0, 5.0,
                              0.01, 3, "estimated", "estimated")  # fmt: skip
    monkeypatch.setattr(cli.evaluate, "_measure_networks", lambda *args, **options: [step])
    code, out, err = run("evaluate", "networks", "--mode", "training", "--measure", "--dataset",
                         tmp_path, "--device", "nvidia-a100", "--json")  # fmt: skip
    assert code == 0
    assert json.loads(out)["networks"] == []
    assert "fit one to compare them with" in err.replace("\n", " ")


def test_collect_fit_predict(run, tmp_path):
    folder, profile = tmp_path / "mine", tmp_path / "mine.json"
    code, out, _ = run("collect", "--out", folder, "--rows", "copy=25", "--meter", "estimated",
                       "--max-power-w", 65, "--json")  # fmt: skip
    assert code == 0
    assert json.loads(out)["complete"]
    assert "13 W + 52 W" in " ".join(Dataset.load(folder).provenance["assumptions"])
    code, out, _ = run("fit", folder, "--out", profile, "--json")
    assert code == 0
    assert json.loads(out)["rows"] == 25
    code, out, _ = run("predict", "alexnet", "--device", profile, "--json")
    assert code == 0
    assert json.loads(out)["in_domain"] < 0.1


def test_dry_run_writes_nothing(run, tmp_path):
    code, out, _ = run("collect", "--out", tmp_path / "x", "--rows", "8", "--dry-run", "--json")
    assert code == 0
    assert json.loads(out)["rows"]["conv2d"] == 8
    assert not (tmp_path / "x").exists()


def test_mode_all_asks_each_layer_type_for_what_it_has(run, tmp_path):
    code, out, _ = run("collect", "--out", tmp_path / "x", "--mode", "all", "--dry-run", "--json",
                       "--rows", "conv2d=3,sgd_step=2,fill=4", "--networks", "alexnet")  # fmt: skip
    plan = json.loads(out)
    assert code == 0
    judged = plan["flags"]["validation"]
    assert plan["rows"]["sgd_step"] == 2
    assert plan["rows"]["fill"] == 4
    assert sum(plan["rows"].values()) == 2 * 3 + 2 + 4 + judged
    assert plan["networks"] == 5


def test_networks_are_not_added_to_a_collection_that_goes_on(run, dataset_folder, tmp_path):
    shutil.copytree(dataset_folder, tmp_path / "begun")
    (tmp_path / "begun" / "journal.jsonl").touch()
    code, _, err = run("evaluate", "networks", "--measure", "--dataset", tmp_path / "begun")
    assert code == 2
    assert "is not complete" in err


def test_evaluate_networks_of_a_dataset(run, dataset_folder, tmp_path):
    profile = tmp_path / "p.json"
    assert run("fit", dataset_folder, "--out", profile)[0] == 0
    code, out, _ = run("evaluate", "networks", "--dataset", dataset_folder, "--device", profile,
                       "--json")  # fmt: skip
    assert code == 0
    result = json.loads(out)
    assert set(result["scores"]) == {"layer_energy", "floor", "flops", "flops+bytes"}
    assert result["scores"]["floor"]["median_error"] == 0
    code, out, _ = run("evaluate", "networks", "--dataset", dataset_folder, "--device", profile)
    assert "resnet18" in out


def test_networks_are_measured_and_shown_as_what_they_are(run, dataset_folder):
    args = ("evaluate", "networks", "--measure", "--exact", "--models", "squeezenet1_1",
            "--batch-sizes", "1")  # fmt: skip
    code, out, _ = run(*args, "--json")
    assert code == 0
    (row,) = json.loads(out)["networks"]
    assert row["model"] == "squeezenet1_1"
    assert row["floor_time_s"] > 0  # how close the two are is a benchmark, not a test
    assert row["measured_time_s"] > 0
    code, out, err = run(*args, "--dataset", dataset_folder)
    assert code == 2
    assert "do not belong in it" in " ".join(err.split())


class NormalisedVector(nn.Module):
    """Takes the statistics of its batch, which one image has none of."""

    def forward(self, x):
        return batch_norm(x.mean((2, 3)), None, None, training=True)


def test_networks_that_cannot_be_measured_are_told_and_the_others_go_on(run):
    args = (
        "evaluate",
        "networks",
        "--measure",
        "--models",
        f"{__name__}:NormalisedVector",
        "--json",
    )
    code, out, err = run(*args, "--batch-sizes", "1,2")
    assert code == 0
    found = json.loads(out)
    assert [row["batch_size"] for row in found["networks"]] == [2]
    (failure,) = found["not_measured"]
    assert "inference, batch 1: " in failure
    assert "Expected more than 1 value per channel" in " ".join(err.split())
    code, out, err = run(*args, "--batch-sizes", "1")
    assert (code, out) == (2, "")
    assert "none of the networks could be measured" in " ".join(err.split())


def test_every_table_of_joules_says_where_they_come_from(run, dataset_folder, tmp_path):
    profile = tmp_path / "p.json"
    run("fit", dataset_folder, "--out", profile)
    _, out, _ = run("evaluate", "networks", "--dataset", dataset_folder, "--device", profile)
    assert "run (estimated)" in out
    assert "Synthetic, profile synthetic-1t: seconds measured, joules estimated, ±50%" in out
    _, out, _ = run("evaluate", "layers", dataset_folder, "--kinds", "relu")
    assert "Synthetic: seconds measured, joules estimated" in out


def test_a_model_that_needs_values_is_built_for_real(run, tmp_path, monkeypatch):
    (tmp_path / "values.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.linear = torch.nn.Linear(4, 4)\n"
        "    def forward(self, x):\n"
        "        return self.linear(torch.from_numpy(x.numpy() * 2))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    code, out, _ = run("predict", "values:Net", "--json")
    assert code == 0
    assert "walked by CPU forward" in json.loads(out)["assumptions"]


def test_compare_prints_joules_time_accuracy_and_the_front(run):
    args = (
        "compare",
        "vgg16",
        "mobilenet_v2",
        "--device",
        "nvidia-a100",
        "--device",
        "amd-epyc-2t",
    )
    code, out, _ = run(*args)
    assert code == 0
    for expected in ("vgg16", "71.6%", "72.2%", "of all", "of device", "ESTIMATED, ±50%",
                     "measured, ±5%", "900 MHz"):  # fmt: skip
        assert expected in out
    code, out, _ = run(*args, "--front", "--json")
    assert code == 0
    result = json.loads(out)
    assert {row["model"] for row in result["rows"]} == {"mobilenet_v2"}
    assert set(result["profiles"]) == {"nvidia-a100", "amd-epyc-2t"}


def test_verify_measures_here_and_says_so(run):
    code, out, _ = run("verify", "squeezenet1_1", "--batch-size", 2, "--meter", "estimated",
                       "--device", "amd-epyc-2t")  # fmt: skip
    assert code == 0
    for expected in (
        "input 2x3x224x224",
        "whole model",
        "sum of the layers",
        "ESTIMATED",
        "No energy counter",
    ):
        assert expected in out


def test_evaluate_layers(run, dataset_folder):
    code, out, _ = run("evaluate", "layers", dataset_folder, "--kinds", "relu", "--json")
    assert code == 0
    rows = {row["regressor"]: row for row in json.loads(out)}
    assert set(rows) == {"hybrid", "physical", "polynomial"}
    assert rows["physical"]["median_error"] < 0.05
    assert "relu, hybrid" in run("evaluate", "layers", dataset_folder, "--kinds", "relu")[1]


def test_profiles_and_doctor(run):
    code, out, _ = run("profiles", "--json")
    assert code == 0
    assert all(p["quality"] in ("measured", "estimated") for p in json.loads(out).values())
    code, out, _ = run("doctor", "--json")
    assert code == 0
    facts = json.loads(out)
    assert facts["chosen_meter"] in facts["meters"]
    assert run("profiles")[0] == run("doctor")[0] == 0


def test_ctrl_c_stops_after_the_row_and_resumes(tmp_path):
    command = [sys.executable, "-m", "layer_energy", "collect", "--out", str(tmp_path / "d"),
               "--rows", "relu=25", "--meter", "estimated"]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    journal = tmp_path / "d" / "journal.jsonl"
    while not journal.exists() or journal.read_text().count("\n") < 8:
        time.sleep(0.05)
        assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "stopping after this row" in err
    assert "run the same command to go on" in " ".join(out.split())
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["resumed"] >= 3
