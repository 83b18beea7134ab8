"""Profiles: fitting, intervals, domain, and files that are damaged, newer or not profiles."""

import json
from dataclasses import replace

import numpy as np
import pytest

from layer_energy.dataset import Dataset
from layer_energy.errors import DatasetError, InvalidInput, ProfileError
from layer_energy.layers import workload
from layer_energy.model import EnergyModel, default_profile, profiles
from layer_energy.workload import Params, Workload
from tests.synthetic import DEVICE, make_dataset, true_time_s


@pytest.fixture(scope="module")
def model():
    return EnergyModel.fit(make_dataset({"relu": 60, "linear": 60, "copy": 60}, noise=0.05))


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("profiles") / "synthetic.json"
    model.save(path)
    return path


def test_a_saved_profile_prices_the_same(model, saved):
    works = [m.workload for m in make_dataset({"relu": 20, "linear": 20}, seed=5).measurements]
    here, there = model.price(works), EnergyModel.load(saved).price(works)
    for w in works:
        assert there[w].energy_j == pytest.approx(here[w].energy_j, rel=1e-3)
        assert there[w].in_domain == here[w].in_domain


def test_ninety_percent_intervals_hold_about_ninety_percent():
    model = EnergyModel.fit(make_dataset({"relu": 150, "copy": 40}, noise=0.1))
    fresh = make_dataset({"relu": 300}, noise=0.1, seed=9).measurements
    prices = model.price([m.workload for m in fresh])
    inside = [
        prices[m.workload].energy_low_j <= m.energy_j <= prices[m.workload].energy_high_j
        for m in fresh
    ]
    assert 0.82 <= np.mean(inside) <= 0.97


def test_outside_the_fitted_range_is_flagged_with_the_feature_and_its_range(model):
    giant = workload("relu", elements=2**40, in_place=0)
    estimate = model.price([giant])[giant]
    assert not estimate.in_domain
    assert "elements 1.1e+12 is outside" in estimate.outside
    small = workload("relu", elements=5000, in_place=0)
    inside = model.price([small])[small]
    assert inside.in_domain
    assert inside.outside == ""
    assert estimate.energy_high_j / estimate.energy_j > inside.energy_high_j / inside.energy_j


def test_what_was_not_measured_is_priced_by_all_other_rows_and_flagged(model):
    unknown = Workload("generic", Params({"bytes_in": 4000, "bytes_out": 4000}))
    other = workload("tanh", elements=1000, in_place=0)
    longs = workload("relu", dtype="int64", elements=1000, in_place=0)
    prices = model.price([unknown, other, longs])
    for w in (unknown, other, longs):
        assert not prices[w].in_domain
        assert prices[w].time_s == pytest.approx(true_time_s(w), rel=0.3)
    assert "no row of tanh/float32/none was measured" in prices[other].outside
    assert "relu/int64/none was not measured; priced as relu/float32" in prices[longs].outside
    assert [prices[w].own_law for w in (unknown, other, longs)] == [False, False, True]


def test_few_rows_of_many_layer_types_price_them_all():
    """Eight rows of a type are too few for a regressor of its own, and enough for the law."""
    kinds = ("relu", "linear", "conv2d", "batch_norm", "max_pool2d", "add")
    model = EnergyModel.fit(make_dataset(dict.fromkeys(kinds, 8)))
    assert not model.kinds
    assert model.layer_types == sorted(kinds)
    fresh = make_dataset(dict.fromkeys(kinds, 20), seed=7).measurements
    prices = model.price([m.workload for m in fresh])
    errors = [abs(np.log(prices[m.workload].time_s / m.time_s)) for m in fresh]
    assert np.median(errors) < 0.2
    assert {prices[m.workload].host_s for m in fresh} == {0.0}
    assert all(prices[m.workload].own_law for m in fresh)


@pytest.mark.parametrize(("steady", "heeded"), [(40, False), (39, True)])
def test_rows_beside_slow_references_are_left_out_where_enough_remain(steady, heeded):
    dataset = make_dataset({"linear": steady + 30})
    slow = [
        replace(m, time_s=20 * m.time_s, energy_j=20 * m.energy_j, flags=("drift",))
        for m in dataset.measurements[steady:]
    ]
    mixed = Dataset([*dataset.measurements[:steady], *slow], DEVICE)
    alone = EnergyModel.fit(Dataset(dataset.measurements[:steady], DEVICE))
    works = [m.workload for m in make_dataset({"linear": 20}, seed=3).measurements]
    expected, found = alone.price(works), EnergyModel.fit(mixed).price(works)
    same = [found[w] == expected[w] for w in works]
    assert not any(same) if heeded else all(same)


def test_an_unknown_regressor_is_refused_however_few_the_rows():
    with pytest.raises(InvalidInput, match="no regressor is called 'oracle'"):
        EnergyModel.fit(make_dataset({"relu": 10, "linear": 10}), "oracle")


@pytest.mark.parametrize("regressor", ["pooled", "physical"])
def test_rows_kept_for_testing_are_not_fitted(regressor):
    rows = make_dataset({"linear": 30, "copy": 30}).measurements
    wrong = [replace(m, time_s=50 * m.time_s, flags=("test",)) for m in rows[::3]]
    alone = EnergyModel.fit(Dataset(rows, DEVICE), regressor)
    both = EnergyModel.fit(Dataset([*rows, *wrong], DEVICE), regressor)
    works = [m.workload for m in rows]
    assert both.price(works) == alone.price(works)


def test_too_few_rows():
    with pytest.raises(DatasetError, match="has 5 usable rows, 20 are needed"):
        EnergyModel.fit(make_dataset({"relu": 5}))
    with pytest.raises(DatasetError, match="layer-energy collect"):
        EnergyModel.fit(Dataset([], DEVICE))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(schema_version=99), "upgrade layer_energy"),
        (lambda s: s.pop("schema_version"), "no schema_version"),
        (lambda s: s.pop("kinds"), "damaged"),
        (lambda s: s["kinds"]["relu/float32/none"].pop("rows"), "damaged"),
        (lambda s: s["kinds"]["relu/float32/none"]["regressor"].update(name="x"), "regressor 'x'"),
        (lambda s: s["kinds"]["relu/float32/none"]["regressor"].update(rows=[[1]]), "damaged"),
    ],
)
def test_damaged_profiles(saved, tmp_path, change, message):
    state = json.loads(saved.read_text())
    change(state)
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(state))
    with pytest.raises(ProfileError, match=message):
        EnergyModel.load(path)


def test_not_json_and_not_there(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("{")
    with pytest.raises(ProfileError, match="not a readable profile"):
        EnergyModel.load(path)
    with pytest.raises(ProfileError, match="no profile file"):
        EnergyModel.load(tmp_path / "y.json")
    with pytest.raises(ProfileError, match=f"shipped ones: .*{profiles()[0]}"):
        EnergyModel.load("nvidia-z900")


def test_every_shipped_profile_loads():
    assert default_profile() in profiles()
    for name in profiles():
        shipped = EnergyModel.load(name)
        assert shipped.device["slug"] == name
        assert shipped.quality in ("measured", "estimated")
        assert shipped.assumptions or shipped.quality == "measured"


def test_network_calibration_sets_the_interval_of_totals(model):
    import copy

    calibrated = copy.copy(model)
    calibrated.calibrate_networks([(r, 1.0) for r in np.linspace(0.8, 1.25, 40)])
    low, high = calibrated.totals["inference"].ratio["energy_j"]
    assert 0.75 < low < 0.85
    assert 1.18 < high < 1.35
    assert calibrated.totals["inference"].count == 40
