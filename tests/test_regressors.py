"""Regressors against a synthetic device whose law is known."""

import functools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layer_energy.errors import InvalidInput, ProfileError
from layer_energy.layers import layer_type
from layer_energy.layers.base import Choice
from layer_energy.regressors import CANDIDATES, Hybrid, Physical, features, load, make, names
from layer_energy.workload import Params, Workload
from tests.synthetic import make_dataset, true_time_s


def table(kind, rows=120, noise=0.01, seed=0):
    dataset = make_dataset({kind: rows}, noise, seed)
    x = features([m.workload for m in dataset.measurements])
    return x, np.array([[m.energy_j, m.time_s] for m in dataset.measurements])


@pytest.mark.parametrize("name", ["hybrid", "physical"])
@pytest.mark.parametrize("kind", ["linear", "relu", "lstm"])
def test_a_known_law_is_found_again(name, kind):
    x, y = table(kind, noise=0.01)
    fresh = make_dataset({kind: 60}, noise=0.0, seed=1)
    workloads = [m.workload for m in fresh.measurements]
    predicted = make(name).fit(x, y).predict(features(workloads))
    truth = np.array([true_time_s(w) for w in workloads])
    error = np.abs(predicted[:, 1] / truth - 1)
    # linear pads its tiles and the lstm re-reads its weights: laws close to the truth, not equal
    assert np.median(error) < 0.05
    assert np.median(np.abs(predicted[:, 0] / predicted[:, 1] - 10)) < 0.3


def test_the_papers_polynomial_fails_on_small_layers_as_the_paper_shows():
    x, y = table("linear", noise=0.01)
    predicted = make("polynomial").fit(x, y).predict(x)
    residual = ((y[:, 0] - predicted[:, 0]) ** 2).sum()
    assert 1 - residual / ((y[:, 0] - y[:, 0].mean()) ** 2).sum() > 0.95
    assert np.abs(predicted[:, 0] / y[:, 0] - 1).max() > 1


@pytest.mark.parametrize("name", names())
def test_state_survives_json(name):
    x, y = table("max_pool2d", rows=60)
    fitted = make(name).fit(x, y)
    again = load(json.loads(json.dumps(fitted.to_dict())))
    np.testing.assert_allclose(again.predict(x), fitted.predict(x), rtol=1e-4)


def test_the_hybrid_learns_what_the_law_cannot_say():
    x, y = table("relu", rows=200, noise=0.0)
    step = np.where(x.macs > 1e4, 1.8, 1.0)[:, None]  # a cache that ends
    law = Physical().fit(x, y * step)
    hybrid = Hybrid().fit(x, y * step)
    law_error = np.abs(np.log(law.predict(x) / (y * step))).mean()
    assert np.abs(hybrid.left_out).mean() < 0.5 * law_error


def test_left_out_errors_are_those_of_fits_without_the_row():
    x, y = table("relu", rows=40, noise=0.1)
    full = Hybrid().fit(x, y)
    keep = np.arange(len(x)) != 7
    z, ratio = full._rows, np.log(y / full.physical.predict(x))
    from layer_energy.regressors.hybrid import _matern

    k = _matern(z / full._lengths, z / full._lengths) + full._noise * np.eye(len(z))
    weights = np.linalg.solve(k[np.ix_(keep, keep)], ratio[keep] - full._mean)
    expected = ratio[7] - full._mean - k[7, keep] @ weights
    np.testing.assert_allclose(full.left_out[7], expected, rtol=1e-6)


@functools.cache
def fitted_with_a_wild_row(kind, name):
    """A fit in which one row is alone in its stratum and a thousand times too expensive."""
    rows = make_dataset({kind: 40}, noise=0.2).measurements
    choices = {
        n: sorted(d.weights) for n, d in layer_type(kind).space.items() if isinstance(d, Choice)
    }
    works, wild = [m.workload for m in rows], dict(rows[0].workload.params)
    for flag, values in choices.items():
        wild[flag] = values[-1]
    first = next(iter(choices), None)
    common = [m for m in rows if first is None or m.workload.params[first] != wild[first]] or rows
    works = [*(m.workload for m in common), Workload(kind, Params(wild))]
    y = np.array([[m.energy_j, m.time_s] for m in common])
    return make(name).fit(features(works), np.vstack([y, 1000 * y.max(axis=0)]))


KINDS = ("conv2d", "max_pool2d", "linear", "relu", "softmax", "attention", "lstm", "embedding")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_regressor_leaves_a_factor_of_five_of_the_law_anywhere(data):
    kind = data.draw(st.sampled_from(KINDS))
    params = {
        name: data.draw(st.sampled_from(sorted(d.weights)))
        if isinstance(d, Choice)
        else data.draw(st.integers(1, 10**6))
        for name, d in layer_type(kind).space.items()
    }
    for axis in "hw":
        if f"in_{axis}" in params:  # keep the output at least one element large
            params[f"in_{axis}"] += params[f"kernel_{axis}"] * params.get(f"dilation_{axis}", 1)
    x = features([Workload(kind, Params(params))])
    for name in CANDIDATES:
        regressor = fitted_with_a_wild_row(kind, name)
        law = regressor.physical if name == "hybrid" else regressor
        predicted = regressor.predict(x)
        assert np.isfinite(predicted).all()
        assert (predicted > 0).all()
        ratio = predicted / law.predict(x)
        assert (ratio <= 5).all()
        assert (ratio >= 1 / 5).all()


def test_far_outside_the_law_alone_remains():
    x, y = table("relu", noise=0.2)
    hybrid = Hybrid().fit(x, y)
    giant = features([Workload("relu", Params({"elements": 2**40, "in_place": 0}))])
    np.testing.assert_allclose(hybrid.predict(giant), hybrid.physical.predict(giant))


def test_prices_are_not_negative():
    for kind in ("conv2d", "max_pool2d", "cat"):
        law = Physical().fit(*table(kind, rows=80, noise=0.3))
        assert all(price >= 0 for price in law.coefficients["energy_j"].values())


def test_drivers_that_no_row_tells_apart_share_the_price():
    dataset = make_dataset({"relu": 120}, noise=0.0)
    fresh = [m for m in dataset.measurements if not m.workload.params["in_place"]]
    y = np.array([[m.energy_j, m.time_s] for m in fresh])
    law = Physical().fit(features([m.workload for m in fresh]), y)
    prices = law.coefficients["time_s"]  # the truth: 1e-10 s for each byte read, and written
    assert prices["bytes_in"] == pytest.approx(prices["bytes_fresh"])
    assert prices["bytes_in"] == pytest.approx(1e-10, rel=0.02)


def test_errors():
    with pytest.raises(InvalidInput, match="hybrid, physical, polynomial"):
        make("magic")
    with pytest.raises(ProfileError, match="magic"):
        load({"name": "magic"})
    with pytest.raises(ProfileError, match="damaged"):
        load({"name": "physical", "drivers": ["a"], "coefficients": [[1, 2]]})
