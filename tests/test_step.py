"""STEP: runs whose joules are known in closed form, published figures, and recorded runs."""

import importlib.util
import io
import math
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import nn

from layer_energy.errors import InvalidInput, MeterError
from layer_energy.meters import RaplMeter, Reading, ReplayMeter, SimulatedMeter, VirtualClock
from layer_energy.training import EnergyProjector, interval, progress, project_trace
from layer_energy.training.baselines import (
    first_epoch_j,
    flops_proportional_j,
    green_algorithms_j,
    tdp_time_j,
)
from layer_energy.training.progress import EnergyProgress, track
from layer_energy.training.step import step_epoch_j, step_power_j
from layer_energy.training.window import stable_start
from tests.test_meters import add_zone

RECORDED = Path(__file__).parents[2] / "shared" / "external" / "delrey2024"


def live(seconds, power_w=100.0, **options):
    """The projections of a simulated run whose epochs last ``seconds``."""
    clock = VirtualClock()
    projector = EnergyProjector(SimulatedMeter(power_w, clock), len(seconds), **options)
    projector.start()
    projections = []
    for epoch_s in seconds:
        clock.advance(epoch_s)
        projections.append(projector.end_epoch())
    return projections


class TestPublishedCase:
    """RTX 3090, InceptionV3, Caltech-101 at 75², batch 64, 126 epochs (arXiv 2307.05520).

    Durations and means with the digits of the replication package's rows, where its text has less.
    """

    time_s = 0.086514167 * 3600
    first_j = (2723.082, 503.744, 316.998, 294.829, 445.645)
    window_sums_j = (299.985, 597.966, 1038.102, 1338.087, 1788.390)

    def energies(self):
        before_stable_j = 47423.381 - 41490.645  # of the printed total and its stable part
        rest = [(before_stable_j - sum(self.first_j)) / 5] * 5
        return [*self.first_j, *rest, *np.diff([0.0, *self.window_sums_j])]

    def test_the_baselines(self):
        assert tdp_time_j(350, self.time_s) / 1e3 == pytest.approx(109.00785, abs=6e-6)
        green = green_algorithms_j(350, 0.29153846, 16, self.time_s) / 1e3
        assert green == pytest.approx(33.636229, abs=2e-6)

    def test_the_power_form(self):
        assert step_power_j(148.850674, self.time_s) / 1e3 == pytest.approx(46.359692, abs=1e-6)

    def test_the_epoch_form(self):
        energies = self.energies()
        before_j = sum(energies[:10])
        assert step_epoch_j(energies, 126) / 1e3 == pytest.approx(47.423381, abs=5e-6)
        assert step_epoch_j(energies, 126) - before_j == pytest.approx(41490.645, abs=5e-3)
        for window, sum_j in enumerate(self.window_sums_j, 1):
            stable_j = step_epoch_j(energies, 126, window=window) - before_j
            assert stable_j == pytest.approx(116 * sum_j / window)

    def test_a_window_outside_the_epochs(self):
        with pytest.raises(InvalidInput, match="does not fit into 14"):
            step_epoch_j(self.energies()[:14], 126)


def test_the_other_baselines():
    assert flops_proportional_j(3e12, 2e12, 10.0) == pytest.approx(15.0)
    assert first_epoch_j(12.5, 8) == 100.0
    with pytest.raises(InvalidInput, match="utilisation"):
        green_algorithms_j(350, 29, 16, 1)
    with pytest.raises(InvalidInput, match="time_s"):
        tdp_time_j(350, math.nan)


class TestStableStart:
    def test_warm_up_is_left_out(self):
        assert stable_start([5.0]) == 0
        assert stable_start([5.0, 1.0]) == 1
        assert stable_start([5.0, 1.0, 1.0, 1.0]) >= 1

    def test_the_last_change_opens_the_window(self):
        assert stable_start([1.0] * 10 + [2.0] * 8) == 11
        assert stable_start([1.0] * 10 + [2.0] * 8 + [1.5] * 6) == 19

    def test_one_odd_epoch_is_no_change(self):
        assert stable_start([1.0] * 10 + [3.0] + [1.0] * 9) == 1
        assert stable_start([1.0] * 12 + [0.6]) == 1

    @given(st.lists(st.floats(0, 1e9), min_size=1, max_size=40), st.floats(1e-3, 1e3))
    def test_it_lies_inside_and_has_no_unit(self, values, unit):
        start = stable_start(values)
        assert 0 <= start < len(values)
        if all(v == 0 or v > 1e-3 for v in values):
            assert stable_start([v * 4.0 for v in values]) == start  # exact in binary


class TestLive:
    def test_warm_up_then_steady(self):
        projections = live([30.0] + [10.0] * 9)
        truth = 3000 + 9 * 1000
        assert projections[0].energy_j == 30000  # nothing better is known
        assert projections[0].low_j < truth < projections[0].high_j
        assert "1 of 10 epochs, start-up among them" in projections[0].notes[0]
        for p in projections[1:]:
            assert p.energy_j == pytest.approx(truth)
            assert p.low_j <= truth <= p.high_j
            assert p.window[0] >= 1
            assert p.time_s == pytest.approx(120)
        widths = [p.high_j - p.low_j for p in projections]
        assert widths == sorted(widths, reverse=True)
        assert widths[-1] == 0

    def test_the_interval_tells_quiet_from_noisy(self):
        noisy = live([10, 12, 8, 11, 9, 12, 8, 10, 10, 10])
        quiet = live([10.0] * 10)
        for n, q in zip(noisy[3:8], quiet[3:8], strict=True):
            assert n.high_j - n.low_j > 2 * (q.high_j - q.low_j)

    def test_intervals_hold_nine_in_ten_noisy_runs(self):
        rng = np.random.default_rng(0)
        held = []
        for _ in range(200):
            seconds = 10 * np.exp(rng.normal(0, 0.08, 40))
            p = live(seconds, model=nn.Linear(2, 2))[7]
            held.append(p.low_j <= 100 * seconds.sum() <= p.high_j)
        assert 0.83 < np.mean(held) < 0.97

    def test_unfreezing_is_detected_by_what_is_trained(self):
        """Too small a step for a change point, and too early: only ``requires_grad`` tells."""
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        model[0].requires_grad_(False)
        clock = VirtualClock()
        projector = EnergyProjector(SimulatedMeter(100.0, clock), 10, model)
        projector.start()
        for epoch in range(6):
            if epoch == 4:
                model[0].requires_grad_(True)
            clock.advance(10.0 if epoch < 4 else 30.0)
            p = projector.end_epoch()
            if epoch == 3:
                assert any("2 parameters are frozen" in note for note in p.notes)
            if epoch == 4:
                assert p.window == (4, 5)
        assert p.energy_j == pytest.approx(100 * (4 * 10 + 6 * 30))
        assert p.window == (5, 6)
        assert any("changed in epoch 4" in note for note in p.notes)

    def test_nothing_frozen_narrows_the_early_interval(self):
        known = live([10.0] * 40, model=nn.Linear(2, 2))[3]
        unknown = live([10.0] * 40)[3]
        assert known.high_j < 0.9 * unknown.high_j

    def test_the_power_form_is_mean_power_times_projected_duration(self):
        clock = VirtualClock()
        power = SimulatedMeter(lambda t: 50.0 if t < 10 else 100.0, clock)
        projector = EnergyProjector(power, 5, form="power")
        projector.start()
        for _ in range(3):
            clock.advance(10.0)
            p = projector.end_epoch()
        assert p.energy_j == pytest.approx(100 * 50, rel=1e-3)
        assert p.low_j <= 500 + 4000 <= p.high_j

    def test_early_stopping(self):
        clock = VirtualClock()
        projector = EnergyProjector(SimulatedMeter(100.0, clock), 10)
        projector.start()
        for _ in range(4):
            clock.advance(10.0)
            p = projector.end_epoch(may_stop_in=2)
        assert p.energy_j == pytest.approx(10_000)
        assert p.soonest_j == pytest.approx(6_000)
        assert "6.00 kJ if stopped early" in str(p)
        done = projector.finish()
        assert done.energy_j == done.low_j == done.high_j == pytest.approx(4000)
        assert "ended after 4 of 10 epochs" in done.notes[0]

    def test_epochs_shorter_than_the_meters_period_are_joined(self):
        clock = VirtualClock()
        meter = SimulatedMeter(100.0, clock, period_s=1.0)
        projector = EnergyProjector(meter, 400)
        projector.start()
        for _ in range(200):
            clock.advance(0.1)
            p = projector.end_epoch()
        assert p.energy_j == pytest.approx(4000, rel=0.06)
        assert any("40 epochs are taken as one" in note for note in p.notes)

    def test_a_plain_loop(self):
        clock = VirtualClock()
        projector = EnergyProjector(SimulatedMeter(100.0, clock), 5)
        seen = []
        for epoch in track(projector, Console(file=io.StringIO())):
            seen.append(epoch)
            clock.advance(10.0)
        assert seen == [0, 1, 2, 3, 4]
        assert projector.projection.energy_j == pytest.approx(5000)
        for _ in track(projector, Console(file=io.StringIO())):
            clock.advance(10.0)
            if projector.epochs_done == 2:
                break
        assert projector.projection.energy_j == pytest.approx(3000)

    def test_track_reads_counters_that_wrap_within_an_epoch(self, tmp_path, monkeypatch):
        range_uj, true_uj = 1_000_000, 0
        counter = add_zone(tmp_path, "intel-rapl:0", "package-0", range_uj=range_uj)
        monkeypatch.setattr(progress, "READ_EVERY_S", 0.001)
        meter = RaplMeter(tmp_path)
        projector = EnergyProjector(meter, epochs=2)
        for _ in track(projector, Console(file=io.StringIO())):
            for _ in range(3):
                true_uj += 700_000
                counter.write_text(str(true_uj % range_uj))
                until_s = time.monotonic() + 2
                while meter._zones[0].total_uj < true_uj and time.monotonic() < until_s:
                    time.sleep(0.001)
        assert projector.projection.energy_j == pytest.approx(true_uj / 1e6)
        assert projector.projection.epochs_done == 2

    def test_the_display_tells_what_was_measured_from_what_is_projected(self):
        shown = Console(file=io.StringIO(), width=160)
        with EnergyProgress(5, shown) as progress:
            progress.show(live([10.0] * 5)[1])
        text = shown.file.getvalue()
        assert "2/5" in text
        assert "2.00 kJ so far (simulated), 3.00 kJ to come (projected, " in text

    @pytest.mark.parametrize("epochs", [0, -3, math.nan, math.inf])
    def test_epochs_must_be_positive(self, epochs):
        with pytest.raises(InvalidInput, match="positive"):
            EnergyProjector(SimulatedMeter(1.0), epochs)

    def test_order_of_calls_and_too_many_epochs(self):
        clock = VirtualClock()
        projector = EnergyProjector(SimulatedMeter(1.0, clock), 1)
        with pytest.raises(InvalidInput, match="start"):
            projector.end_epoch()
        projector.start()
        clock.advance(1)
        projector.end_epoch()
        clock.advance(1)
        with pytest.raises(InvalidInput, match="epoch 2 ends, but the run was to have 1"):
            projector.end_epoch()
        with pytest.raises(InvalidInput, match="form must be one of"):
            EnergyProjector(SimulatedMeter(1.0), 1, form="guess")

    def test_meters_that_lie(self):
        class Broken:
            name, quality, relative_uncertainty, period_s = "broken", "measured", 0.0, 0.0
            assumptions = ()

            def __init__(self, *readings):
                self.readings = iter(readings)

            def read(self):
                return next(self.readings)

        for bad, message in (
            (Reading(0.5, 20.0), "goes backwards"),
            (Reading(2.0, 5.0), "goes backwards"),
            (Reading(2.0, math.nan), "finite"),
            (Reading(1.0, 10.0), "stood still"),
        ):
            projector = EnergyProjector(Broken(Reading(1.0, 10.0), bad), 3)
            projector.start()
            with pytest.raises(MeterError, match=message):
                projector.end_epoch()

    def test_any_meter_will_do(self):
        readings = [Reading(float(t), 50.0 * t) for t in range(4)]
        projector = EnergyProjector(ReplayMeter(readings), 6)
        projector.start()
        for _ in range(3):
            p = projector.end_epoch()
        assert p.energy_j == pytest.approx(300)
        assert p.quality == "replayed"


@pytest.mark.skipif(not RECORDED.is_dir(), reason="the recorded runs are not beside this checkout")
@pytest.mark.skipif(not importlib.util.find_spec("pyarrow"), reason="reading them needs pyarrow")
class TestRecordedRuns:
    @pytest.fixture(scope="class")
    @classmethod
    def runs(cls):
        from tests.benchmarks.step import load

        return load(RECORDED)

    def error(self, runs, share):
        return np.mean(
            [
                abs(project_trace(r.trace, r.epochs, share).energy_j / r.trace.energy_j - 1)
                for r in runs
            ]
        )

    def test_a_fifth_of_the_run_gives_its_joules_within_1_7_percent(self, runs):
        assert len(runs) == 60
        errors = [self.error(runs, share) for share in (0.02, 0.05, 0.1, 0.2, 0.5)]
        assert errors == sorted(errors, reverse=True)
        assert errors[3] <= 0.017

    def test_intervals_hold_the_runs_they_were_not_made_from(self, runs):
        from tests.benchmarks.step import SHARES, intervals

        made = intervals(runs, lambda r: r.name)
        held = [[p.low_j <= r.trace.energy_j <= p.high_j for p in made[r.name]] for r in runs]
        by_share = np.mean(held, axis=0)
        assert len(by_share) == len(SHARES)
        assert by_share.min() >= 0.85
        assert 0.87 <= by_share.mean() <= 0.97

    def test_the_table_of_drift_is_that_of_the_runs(self, runs):
        from tests.benchmarks.step import calibrate, to_come_ratios

        assert calibrate(map(to_come_ratios, runs)) == interval.DRIFT
