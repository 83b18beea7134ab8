"""The shipped profile is what one command makes of the committed dataset."""

from pathlib import Path

import numpy as np
import pytest

from layer_energy.dataset import Dataset
from layer_energy.evaluate import evaluate_networks, fit_profile, network_scores
from layer_energy.model import EnergyModel
from layer_energy.plan import PAPER_KINDS

NAME = "amd-epyc-2t"
FOLDER = Path(__file__).parents[1] / "datasets" / NAME


@pytest.fixture(scope="module")
def dataset():
    return Dataset.load(FOLDER)


def test_the_dataset_has_the_rows_it_promises(dataset):
    usable = {kind: len(dataset.of(kind)) for kind in dataset.kinds}
    assert all(usable[kind] >= 300 for kind in PAPER_KINDS)
    assert min(usable.values()) >= 100
    assert {m.quality for m in dataset.measurements} == {"estimated"}
    assert np.median([m.spread for m in dataset.measurements]) <= 0.03


def test_the_shipped_profile_is_rebuilt_from_the_dataset(dataset):
    rebuilt, shipped = fit_profile(dataset), EnergyModel.load(NAME)
    assert list(rebuilt.kinds) == list(shipped.kinds)
    assert rebuilt.dataset["rows"] == shipped.dataset["rows"]
    workloads = [m.workload for m in dataset.measurements[::5]]
    ours, theirs = rebuilt.price(workloads), shipped.price(workloads)
    change = np.array([ours[w].energy_j / theirs[w].energy_j - 1 for w in workloads])
    assert np.median(np.abs(change)) < 1e-3
    assert np.quantile(np.abs(change), 0.99) < 0.05


def test_whole_networks_are_predicted_as_the_readme_says(dataset):
    table = evaluate_networks(dataset.networks, EnergyModel.load(NAME), dataset)
    assert len(set(table["model"])) >= 14
    assert set(table["batch_size"]) >= {1, 8}
    scores = network_scores(table)
    ours = scores["layer_energy"]
    assert ours.median_error <= 0.10
    assert ours.within_25 >= 0.90
    assert ours.median_error < scores["flops+bytes"].median_error < scores["flops"].median_error
