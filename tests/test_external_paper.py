"""Readers of the paper's data, on files made by hand: all of their numbers are invented."""

from pathlib import Path

import pytest

from layer_energy.errors import DatasetError
from layer_energy.external import read_codecarbon, read_getzner2023

SHARED = Path(__file__).parents[2] / "shared" / "external" / "getzner2023"
KWH = 3.6e6
CONV = "batch_size:{b},image_size:8,kernel_size:3,in_channels:3,out_channels:4,stride:1,padding:1"
POOL = "batch_size:{b},image_size:8,kernel_size:2,in_channels:4,stride:2,padding:0"
LINEAR = "batch_size:{b},input_size:12,output_size:5"
ACTIVATION = "batch_size:{b},input_size:20"


def project(module, rep, configuration, text="", passes=10):
    run = f"module:{module},rep_no:{rep},macs:99,{configuration}"
    return f"{run},freeText:{text},forward_passes:{passes}"


def write_raw(path, runs):
    """CodeCarbon's columns, as far as they are read; ``runs`` are (name, joules, seconds)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["timestamp,project_name,run_id,duration,cpu_power,cpu_energy,gpu_energy"]
    lines += [f'2023-01-01,"{name}",x,{s},75,{j / KWH!r},0.1' for name, j, s in runs]
    path.write_text("\n".join(lines) + "\n")


def test_repetitions_are_averaged_per_forward_pass(tmp_path):
    one, two = CONV.format(b=1), CONV.format(b=2)
    write_raw(
        tmp_path / "raw.csv",
        [
            (project("Conv2d", 1, one), 100, 1),
            (project("Conv2d", 2, one, passes=20), 400, 4),
            (project("Conv2d", 1, two), 50, 0.5),
            (project("Conv2d", 2, two), -1, 0.5),
        ],
    )
    rows = [row for _, row in read_codecarbon(tmp_path / "raw.csv")]
    assert [float(row["energy_j"]) for row in rows] == pytest.approx([15, 5])
    assert [float(row["duration_s"]) for row in rows] == pytest.approx([0.15, 0.05])
    assert [row["repeats"] for row in rows] == ["2", "1"]  # negative energy is no measurement
    assert rows[0]["out_channels"] == "4"


ERROR = "[codecarbon ERROR @ 03:43:24] In RAPLFile : Current energy value is lower\n"


def test_the_log_names_the_repetition_that_failed(tmp_path):
    one, two = (CONV.format(b=b) for b in (1, 2))
    write_raw(
        tmp_path / "raw.csv",
        [(project("Conv2d", rep, c), 100 * rep, 1) for c in (one, two) for rep in (1, 2)],
    )
    (tmp_path / "log.out").write_text(
        f"Starting data-collection for conv2d...\n"
        f"0/1 (config_no/rep_no) [{one},freeText:] (0.0% done)\n"
        f"0/2 (config_no/rep_no) [{one},freeText:] (0.1% done)\n{ERROR}{ERROR}"
        f"1/1 (config_no/rep_no) [{two},freeText:] (0.2% done)\n"
        f"1/2 (config_no/rep_no) [{two},freeText:] (0.3% done)\n"
    )
    rows = [row for _, row in read_codecarbon(tmp_path / "raw.csv", tmp_path / "log.out")]
    assert [float(row["energy_j"]) for row in rows] == pytest.approx([10, 15])


def test_a_progress_bar_drops_all_repetitions_of_its_configuration(tmp_path):
    one, two = (ACTIVATION.format(b=b) for b in (1, 2))
    write_raw(
        tmp_path / "raw.csv",
        [(project("ReLU", rep, c), 100, 1) for c in (one, two) for rep in (1, 2)],
    )
    (tmp_path / "log.out").write_text(
        f"current config:[{one},freeText:]:   0%|      | 0/2 [00:00<?, ?it/s]{ERROR}"
        f"current config:[{two},freeText:]:  50%|###   | 1/2 [02:00<02:00, 120.12s/it]\n"
    )
    rows = [row for _, row in read_codecarbon(tmp_path / "raw.csv", tmp_path / "log.out")]
    assert [row["batch_size"] for row in rows] == ["2"]


def test_a_damaged_file_is_named_with_its_line(tmp_path):
    path = tmp_path / "raw.csv"
    write_raw(path, [("nonsense", 1, 1)])
    with pytest.raises(DatasetError, match="line 2: project_name lacks forward_passes"):
        read_codecarbon(path)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(DatasetError, match="no column 'project_name'"):
        read_codecarbon(path)
    with pytest.raises(DatasetError, match="cannot be read"):
        read_codecarbon(tmp_path / "none.csv")
    write_raw(path, [(project("ReLU", 1, ACTIVATION.format(b=1)), 1, 1)])
    with pytest.raises(DatasetError, match=r"log\.out cannot be read"):
        read_codecarbon(path, tmp_path / "log.out")


@pytest.fixture
def clone(tmp_path):
    """A clone of the repository: one configuration a file, AlexNet in the layer-wise files."""
    data = tmp_path / "data"
    files = {
        "conv2d/00_conv2d": ("Conv2d", CONV), "conv2d/02_conv2d": ("Conv2d", CONV),
        "maxpool2d/00_maxpool2d": ("MaxPool2d", POOL),
        "maxpool2d/02_maxpool2d": ("MaxPool2d", POOL),
        "linear/00_linear": ("Linear", LINEAR), "linear/02_linear": ("Linear", LINEAR),
        "activations/00_relu": ("ReLU", ACTIVATION),
        "activations/00_sigmoid": ("Sigmoid", ACTIVATION),
        "activations/00_tanh": ("Tanh", ACTIVATION),
        "activations/00_softmax": ("Softmax", ACTIVATION),
    }  # fmt: skip
    for i, (name, (module, configuration)) in enumerate(files.items(), start=1):
        write_raw(data / f"{name}-raw.csv", [(project(module, 1, configuration.format(b=i)), 9, 1)])
        (data / f"{name}-slurm-log.out").write_text("")
    (data / "activations" / "00_activations-slurm-log.out").write_text("")
    write_raw(
        data / "activations" / "01_relu_raw.csv",
        [(project("ReLU", 1, ACTIVATION.format(b=99)), 9, 1)],
    )
    (data / "activations" / "01_relu-slurm-log.out").write_text("")
    for n, batch in enumerate((4, 4)):
        name = data / "architectures" / f"0{n}_architectures-layerwise"
        text = "architecture=alexnet;layer_idx={}"
        runs = [("AlexNet", 0, 210 + 20 * n)]
        runs += [("Conv2d", 1, 100), ("ReLU", 2, 40), ("MaxPool2d", 3, 30), ("Dropout", 15, 10)]
        write_raw(
            name.with_name(name.name + "-raw.csv"),
            [
                (project(module, 1, f"batch_size:{batch}", text.format(i)), joules, 1)
                for module, i, joules in runs
            ],
        )
        name.with_name(name.name + "-slurm-log.out").write_text("")
    return tmp_path


def test_a_clone_is_read_with_the_layers_inside_its_networks(clone):
    data = read_getzner2023(clone)
    assert {name: len(rows) for name, rows in data.random.items()} == {
        "conv2d": 2, "maxpool2d": 2, "linear": 2, "relu": 2, "sigmoid": 1, "tanh": 1, "softmax": 1,
    }  # fmt: skip
    assert data.random["relu"][0].workload.params["elements"] == 99 * 20  # the authors' order
    assert data.random["maxpool2d"][0].workload.params["kernel_w"] == 2
    # positions are those of AlexNet: 11 x 11 from 3 channels, then in place, then 3 x 3 pooling
    first = data.real["conv2d"][0].workload.params
    assert (first["batch"], first["in_channels"], first["kernel_h"]) == (4, 3, 11)
    assert data.real["relu"][0].workload.params == {"elements": 4 * 64 * 55 * 55, "in_place": 1}
    assert data.real["maxpool2d"][0].workload.params["kernel_h"] == 3
    assert data.real["relu"][0].energy_j == pytest.approx(4)
    # measured in both collections: averaged; the floor is the sum of all layers, dropout included
    (network,) = data.networks
    assert (network.model, network.batch_size, network.repeats) == ("alexnet", 4, 2)
    assert network.energy_j == pytest.approx(22)
    assert network.layers_energy_j == pytest.approx(18)


def test_a_folder_of_neither_layout(tmp_path):
    with pytest.raises(DatasetError, match="dl-energy-estimator"):
        read_getzner2023(tmp_path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the reference data are not beside this checkout")
def test_the_tidy_copies():
    data = read_getzner2023(SHARED)
    assert {name: len(rows) for name, rows in data.random.items()} == {
        "conv2d": 976, "maxpool2d": 985, "linear": 992, "relu": 988, "sigmoid": 489, "tanh": 491,
        "softmax": 493,
    }  # fmt: skip
    assert {name: len(rows) for name, rows in data.real.items()} == {
        "conv2d": 36, "maxpool2d": 18, "linear": 12,
    }  # fmt: skip
    assert len(data.networks) == 62
    assert all(70 < network.power_w < 90 for network in data.networks)
