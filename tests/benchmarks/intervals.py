"""What 90 % intervals of whole networks hold, calibrated without the networks they are tested on.

Three datasets: the committed CPU, the paper's, and a synthetic GPU whose truth is known.

Run:  python -m tests.benchmarks.intervals
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from layer_energy.dataset import Dataset
from layer_energy.evaluate import evaluate_networks, evaluate_paper, held_out_coverage
from layer_energy.model import EnergyModel
from layer_energy.models import build_model
from layer_energy.walk import walk
from tests.synthetic import POWER_W, gpu_time_s, make_dataset

ROOT = Path(__file__).parents[2]
PAPER = ROOT.parent / "shared" / "external" / "getzner2023"
KINDS = ("adaptive_avg_pool2d", "add", "avg_pool2d", "batch_norm", "cat", "conv2d", "copy",
         "linear", "max_pool2d", "relu", "relu6")  # fmt: skip
NETWORKS = ("alexnet", "vgg11", "vgg16", "resnet18", "resnet50", "densenet121", "squeezenet1_1",
            "mobilenet_v2", "googlenet", "shufflenet_v2_x1_0", "mnasnet1_0", "wide_resnet50_2",
            "resnext50_32x4d")  # fmt: skip


def cpu() -> dict[str, float]:
    dataset = Dataset.load(ROOT / "datasets" / "amd-epyc-2t")
    table = evaluate_networks(dataset.networks, EnergyModel.load("amd-epyc-2t"))
    ratios = table["measured_energy_j"] / table["layer_energy_energy_j"]
    return held_out_coverage(ratios, table["model"], table["input"])


def gpu() -> dict[str, float]:
    model = EnergyModel.fit(make_dataset(dict.fromkeys(KINDS, 120), 0.02, truth=gpu_time_s))
    ratios, names, inputs = [], [], []
    for name in NETWORKS:
        network = build_model(name)
        for batch in (1, 8, 32):
            calls = [c.workload for c in walk(network, (batch, 3, 224, 224)).calls]
            prices = model.price(calls)
            predicted_j = sum(prices[w].energy_j for w in calls)
            ratios.append(POWER_W * sum(map(gpu_time_s, calls)) / predicted_j)
            names.append(name)
            inputs.append(f"{batch}x3x224x224")
    return held_out_coverage(ratios, names, inputs)


def paper() -> Mapping[str, float]:
    return evaluate_paper(PAPER, "hybrid").coverage["whole_networks"]


def main() -> None:
    shown = Table("dataset", "networks left out singly", "with all batches of the architecture")
    rows = {"amd-epyc-2t": cpu, "synthetic GPU": gpu}
    if PAPER.is_dir():
        rows["paper, Xeon Gold 5120"] = paper
    for name, coverage in rows.items():
        held = coverage()
        shown.add_row(name, f"{held['held_out']:.0%}", f"{held['architecture_held_out']:.0%}")
    Console().print(shown)


if __name__ == "__main__":
    main()
