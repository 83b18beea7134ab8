"""PRE as published, and the law on the walked network, against simulated and recorded runs."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import mean_absolute_percentage_error, r2_score
from torch import nn

from layer_energy.errors import InvalidInput
from layer_energy.training.pre import INPUTS, REGRESSORS, PreTrainingRegressor
from layer_energy.training.run import DeviceFigures, NetworkCost, TrainingRun
from layer_energy.training.run_law import RunLaw

RECORDED = Path(__file__).parents[2] / "shared" / "external" / "delrey2024"


class TestRegressor:
    def rows(self):
        rng = np.random.default_rng(0)
        x = rng.uniform(1, 100, (60, len(INPUTS)))
        return x, 3 * x[:, 0] + x[:, 9] + 7

    def test_a_linear_truth_is_found(self):
        x, y = self.rows()
        fitted = clone(PreTrainingRegressor("linear")).fit(x[:40], y[:40])
        assert fitted.predict(x[40:]) == pytest.approx(y[40:])
        assert fitted.score(x[40:], y[40:]) == pytest.approx(1)

    @pytest.mark.parametrize("name", REGRESSORS)
    def test_units_of_the_inputs_do_not_matter(self, name):
        x, y = self.rows()
        here = PreTrainingRegressor(name).fit(x, y).predict(x[:5])
        there = PreTrainingRegressor(name).fit(1e3 * x, y).predict(1e3 * x[:5])
        assert there == pytest.approx(here)

    def test_mistakes(self):
        x, y = self.rows()
        with pytest.raises(InvalidInput, match="X has 3 columns; expected batch_size"):
            PreTrainingRegressor().fit(x[:, :3], y)
        with pytest.raises(InvalidInput, match="kernel_ridge"):
            PreTrainingRegressor("oracle").fit(x, y)
        with pytest.raises(ValueError, match="NaN"):
            PreTrainingRegressor().fit(np.full_like(x, np.nan), y)
        with pytest.raises(NotFittedError):
            PreTrainingRegressor().predict(x)


class TestNetworkCost:
    def model(self):
        return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))

    def test_backward_of_a_network_trained_in_full(self):
        cost = NetworkCost.of(self.model(), (5, 8))
        assert cost.macs == 8 * 16 + 16 * 4
        assert cost.training_macs == 2 * 8 * 16 + 3 * 16 * 4  # the data need no gradient
        assert cost.layers == 3
        assert cost.training_layers == 2 + 2 + 3
        assert cost.bytes == 4 * (8 + 16 + 16 + 16 + 16 + 4)

    def test_what_is_frozen_costs_no_backward(self):
        model = self.model()
        model[0].requires_grad_(False)
        cost = NetworkCost.of(model, (5, 8))
        assert cost.training_macs == 8 * 16 + 2 * 16 * 4
        assert cost.training_layers == 1 + 1 + 2


DEVICES = [
    DeviceFigures("small", 2e12, 1e11, 60.0),
    DeviceFigures("middle", 1e13, 4e11, 200.0),
    DeviceFigures("large", 4e13, 1e12, 400.0),
]


def simulated():
    """Runs, watts and joules: a step lasts the longer of the host's 5 ms and a quarter of peak."""
    runs, power, energy = [], [], []
    for device in DEVICES:
        for macs in (1e7, 1e8, 1e9, 5e9):
            for batch in (16, 64, 256):
                network = NetworkCost(macs, 1.0, 50, 3 * macs, 1.0, 150)
                run = TrainingRun(network, device, batch, 10_000, 2_000)
                busy = [2 * batch * m / (device.peak_flops / 4) for m in (3 * macs, macs)]
                steps = [10_000 / batch, 2_000 / batch]
                time_s = sum(n * max(b, 5e-3) for n, b in zip(steps, busy, strict=True))
                share = sum(n * b for n, b in zip(steps, busy, strict=True)) / time_s
                runs.append(run)
                power.append(device.max_power_w * (0.3 + 0.5 * share))
                energy.append(power[-1] * time_s)
    return runs, np.array(power), np.array(energy)


class TestRunLaw:
    @pytest.mark.parametrize("out", ["small", "middle", "large"])
    def test_a_device_never_measured(self, out):
        runs, power, energy = simulated()
        test = np.array([run.device.name == out for run in runs])
        train = [run for run, t in zip(runs, test, strict=True) if not t]
        law = RunLaw().fit(train, power[~test], energy[~test])
        predicted = law.predict([run for run, t in zip(runs, test, strict=True) if t])
        assert np.abs(predicted[:, 0] / power[test] - 1).mean() < 0.08
        assert np.abs(predicted[:, 1] / energy[test] - 1).mean() < 0.2
        assert all(value > 0 for value in law.constants.values())

    def test_repetitions_count_as_one(self):
        runs, power, energy = simulated()
        once = RunLaw().fit(runs, power, energy).predict(runs)
        again = RunLaw().fit(
            [runs[0]] * 50 + runs, np.append([power[0]] * 50, power),
            np.append([energy[0]] * 50, energy),
        )  # fmt: skip
        assert again.predict(runs) == pytest.approx(once)

    def test_mistakes(self):
        runs, power, energy = simulated()
        with pytest.raises(InvalidInput, match="not fitted"):
            RunLaw().predict(runs)
        with pytest.raises(InvalidInput, match="all positive"):
            RunLaw().fit(runs, power, -energy)
        with pytest.raises(InvalidInput, match="as many rows"):
            RunLaw().fit(runs[1:], power, energy)
        with pytest.raises(InvalidInput, match="batch_size=0"):
            TrainingRun(runs[0].network, DEVICES[0], 0, 1, 1)


@pytest.mark.skipif(not RECORDED.is_dir(), reason="the recorded runs are not beside this checkout")
class TestRecordedRuns:
    @pytest.fixture(scope="class")
    @classmethod
    def rows(cls):
        from tests.benchmarks.pre import load

        return load(RECORDED)

    @pytest.mark.parametrize("target", ["mean power (W)", "mean epoch energy (kJ)"])
    def test_the_published_scores(self, rows, target):
        from tests.benchmarks.pre import PUBLISHED, random_split

        assert len(rows) == 857
        r2, mape = random_split(rows, target, "kernel_ridge")
        assert (round(r2, 3), round(mape, 3)) == PUBLISHED[target]

    @pytest.mark.parametrize("group", ["gpu", "architecture"])
    def test_the_law_holds_where_the_look_up_breaks(self, rows, group):
        from tests.benchmarks.pre import TARGETS, law_held_out, pre_held_out, runs

        law = law_held_out(rows, runs(rows), group)
        for target, column in TARGETS.items():
            y = rows[column].to_numpy()
            assert r2_score(y, law[target]) > 0.6
            for name in REGRESSORS:
                pre = pre_held_out(rows, group, target, name)
                assert r2_score(y, law[target]) > r2_score(y, pre)
                assert mean_absolute_percentage_error(
                    y, law[target]
                ) < mean_absolute_percentage_error(y, pre)
