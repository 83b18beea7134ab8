"""The protocol for GPUs on a virtual one, whose joules are known."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from layer_energy.errors import DroppedInterval, MeasureError, OutOfMemory
from layer_energy.layers import workload
from layer_energy.measure import GpuBench, GpuProtocol, gpu_bench
from layer_energy.measure.calibration import calibrate
from layer_energy.measure.counter import CounterReader
from layer_energy.measure.virtual import Truth, VirtualGpu
from layer_energy.meters.nvml import AssumedSensor, NvmlSensor
from layer_energy.meters.virtual_nvml import VirtualSensor
from layer_energy.plan import make_plan

ROWS = [job.workload for job in make_plan({"conv2d": 10, "relu": 7, "linear": 8}, 5).jobs]
RELU = workload("relu", elements=10**7, in_place=0)
QUICK = GpuProtocol(warm_up_s=0.5)
GRID = list(
    itertools.product((0.02, 0.05, 0.1), (0.01, 0.025, 0.1), (False, True), (0.0, 0.03, 0.06),
                      (0.0, 0.004))
)  # fmt: skip
"""Period, window, part-time, lag and jitter of the sensor."""


def virtual(sensor=None, **options):
    gpu = VirtualGpu(sensor=sensor, seed=1, **options)
    return gpu, NvmlSensor(library=gpu.nvml, clock=gpu.clock)


def bench(sensor=None, **options):
    gpu, reader = virtual(sensor, **options)
    return gpu, GpuBench(gpu, reader, QUICK)


def errors(gpu, measure, rows=ROWS):
    """Relative error of each row's joules."""
    return np.array([measure(work) / gpu.truth.of(work)[1] - 1 for work in rows])


def found_by(gpu, sensor):
    reader = CounterReader(gpu, sensor) if sensor.source == "counter" else None
    return calibrate(gpu, sensor, reader)


def as_an_h200(gpu):
    """Reads of the counter take 2.2 to 16 ms, those of power microseconds."""
    gpu.nvml.counter_s = lambda rng: min(2.2e-3 + rng.expovariate(1 / 1e-3), 16e-3)
    return gpu


H200 = {"period_s": 0.099976, "power_period_s": 0.1015, "window_s": 0.1, "lag_s": 0.035}


def naive(gpu, dwell_s):
    """Reads the counter before and after a loop, as most collectors do."""
    reader = NvmlSensor(library=gpu.nvml, clock=gpu.clock)

    def measure(work):
        program = gpu.load(work)
        for _ in range(3):
            program.submit()
        gpu.sleep(3 * program.submission_s)
        before = reader.sample().energy_j
        times = max(1, round(dwell_s / program.submission_s))
        for _ in range(times):
            program.submit()
        gpu.sleep(times * program.submission_s)
        joules = reader.sample().energy_j - before
        gpu.sleep(0.2)
        return joules / (times * program.executions)

    return measure


def accepted(found):
    return (
        abs(found.mean()) < 0.01 and found.std() < 0.015 and np.quantile(np.abs(found), 0.95) < 0.03
    )


class TestAcceptance:
    @pytest.mark.parametrize("period", [0.02, 0.05, 0.1])
    def test_rows_are_right_over_the_whole_grid(self, period):
        everything = []
        for point in (p for p in GRID if p[0] == period):
            gpu, device = bench(VirtualSensor(point[0], point[1], point[3], point[4], point[2]))
            found = errors(gpu, lambda work, d=device: d.measure(work).energy_j, ROWS[:12])
            assert accepted(found), (point, found)
            everything.append(found)
        assert accepted(np.concatenate(everything))

    @pytest.mark.parametrize("absent", [set(), {186, 185}])
    def test_a_board_like_an_h200(self, absent):
        gpu, _ = virtual(VirtualSensor(**H200))
        as_an_h200(gpu).nvml.absent = absent
        device = GpuBench(gpu, NvmlSensor(library=gpu.nvml, clock=gpu.clock), QUICK)
        assert accepted(errors(gpu, lambda work: device.measure(work).energy_j))

    @pytest.mark.parametrize("dwell_s", [0.2, 1.0])
    def test_the_naive_reader_fails_it(self, dwell_s):
        gpu, _ = virtual(VirtualSensor(0.1, 0.1, 0.03, 0.004))
        assert not accepted(errors(gpu, naive(gpu, dwell_s)))

    def test_the_gain_of_a_board_comes_through(self):
        gpu, device = bench(VirtualSensor(gain=0.95))
        found = errors(gpu, lambda work: device.measure(work).energy_j)
        assert found.mean() == pytest.approx(-0.05, abs=0.002)

    def test_leakage_of_a_hot_chip_is_part_of_the_truth(self):
        gpu, device = bench(leakage_w_per_k=0.5)
        hot = device.measure(RELU)
        assert hot.conditions.temperature_c > 40
        assert hot.energy_j > gpu.truth.of(RELU)[1]

    @pytest.mark.parametrize("per_minute", [150])
    def test_a_row_costs_two_updates_after_settling(self, per_minute):
        gpu, device = bench(VirtualSensor(0.1, 0.025))
        start = gpu.time()
        for work in ROWS:
            device.measure(work)
        assert 60 * len(ROWS) / (gpu.time() - start) > per_minute


class TestCalibration:
    @pytest.mark.parametrize(
        ("period", "window", "part_time", "lag", "jitter"),
        [(0.1, 0.025, True, 0.0, 0.002), (0.1, 0.1, False, 0.06, 0.0), (0.02, 0.01, False, 0, 0)],
    )
    def test_finds_the_sensor_it_is_given(self, period, window, part_time, lag, jitter):
        found = found_by(*virtual(VirtualSensor(period, window, lag, jitter, part_time)))
        assert found.period_s == pytest.approx(period, rel=1e-3)
        assert found.jitter_s == pytest.approx(0.9 * jitter, abs=7e-4)  # the distance of two reads
        assert found.part_time == part_time
        assert found.settle_s >= lag
        if not part_time:
            assert found.lag_s == pytest.approx(lag, abs=3e-3)
        assert found.counter_over_power == pytest.approx(1.0, abs=0.01)
        assert found.idle_power_w == pytest.approx(90.0, rel=0.01)
        assert not found.warnings

    @pytest.mark.parametrize(("ratio", "source"), [(0.9, "counter"), (0.5, "instant power")])
    def test_a_counter_that_disagrees_with_power_is_told_or_left(self, ratio, source):
        gpu, sensor = virtual()
        original = gpu.nvml.sensor.energy_j
        gpu.nvml.sensor.energy_j = lambda *a: ratio * original(*a)
        found = found_by(gpu, sensor)
        assert found.power_source == source
        assert found.counter == (source == "counter")
        assert f"{ratio:.2f} × the instant power" in found.warnings[0]

    def test_a_counter_that_hardly_changes_is_left(self):
        gpu, sensor = virtual()
        gpu.nvml.sensor.energy_j = lambda *a: 1e4 * int(gpu.time())
        found = found_by(gpu, sensor)
        assert (found.counter, found.power_source) == (False, "instant power")
        assert "changed" in found.warnings[0]

    @pytest.mark.parametrize("wander", [0.01, 0.02])
    def test_power_that_wanders_does_not_look_like_settling(self, wander):
        found = found_by(*virtual(VirtualSensor(lag_s=0.03), wander=wander))
        assert 0.03 <= found.settle_s < 0.2

    def test_a_counter_that_is_all_but_continuous_needs_no_edges(self):
        gpu, device = bench(VirtualSensor(period_s=0.001, window_s=0.001))
        found = errors(gpu, lambda work: device.measure(work).energy_j, ROWS[:8])
        assert accepted(found)

    def test_a_gpu_that_is_always_slowed_by_heat_is_told_and_measured(self):
        gpu, sensor = virtual()
        original = gpu.nvml.nvmlDeviceGetFieldValues

        def hot(handle, wanted):
            gpu.nvml.thermal_s = gpu.time()
            return original(handle, wanted)

        gpu.nvml.nvmlDeviceGetFieldValues = hot
        device = GpuBench(gpu, sensor, QUICK)
        assert device.calibrations[0].always_slowed
        assert device.measure(RELU).energy_j == pytest.approx(gpu.truth.of(RELU)[1], rel=0.01)


class TestSources:
    @pytest.mark.parametrize(("absent", "source"), [({83}, "instant"), ({83, 186}, "average")])
    def test_power_takes_over_where_nothing_counts(self, absent, source):
        gpu, _ = virtual()
        gpu.nvml.absent = absent
        device = GpuBench(gpu, NvmlSensor(library=gpu.nvml, clock=gpu.clock), QUICK)
        found = errors(gpu, lambda work: device.measure(work).energy_j, ROWS[:6])
        assert accepted(found)
        state = device.measure(RELU).conditions
        assert state.energy_source == f"{source} power"
        assert (state.instant_power_w is None) == (source == "average")

    def test_assumed_power_is_never_called_measured(self):
        gpu, _ = virtual()
        device = GpuBench(gpu, AssumedSensor(700.0, "NVML is hidden", gpu.clock), QUICK)
        row = device.measure(RELU)
        assert row.quality == "estimated"
        assert row.conditions.energy_source == "assumed power"
        assert row.conditions.instant_power_w is None, "an assumption is no reading"
        assert row.time_s == pytest.approx(gpu.truth.of(RELU)[0], rel=0.01)
        assert "NVML is hidden" in device.facts()["assumptions"][0]
        assert device.facts()["meter_relative_uncertainty"] == 0.5


class TestRow:
    def test_holds_the_state_of_the_gpu(self):
        gpu, device = bench()
        row = device.measure(RELU, 7, ("test",))
        time_s, energy_j = gpu.truth.of(RELU)
        assert row.time_s == pytest.approx(time_s, rel=0.005)
        assert row.power_w == pytest.approx(energy_j / time_s, rel=0.005)
        assert row.energy_above_idle_j == pytest.approx(energy_j - 90 * time_s, rel=0.01)
        assert (row.row_id, row.flags, row.quality) == (7, ("test",), "simulated")
        state = row.conditions
        assert (state.energy_source, state.sm_clock_mhz) == ("instant power", 1980)
        assert state.counter_power_w == pytest.approx(row.power_w, rel=0.01)
        assert state.board == "GPU-00000000"
        assert state.host_time_s == pytest.approx(2e-5)

    def test_a_capped_row_is_kept_and_flagged(self):
        gpu, device = bench(truth=Truth(byte_j=4e-10))
        free_time_s, energy_j = gpu.truth.of(RELU)
        assert energy_j / free_time_s > gpu.nvml.power_limit_w
        row = device.measure(RELU)
        assert "power_capped" in row.flags
        assert row.power_w == pytest.approx(gpu.nvml.power_limit_w, rel=0.01)
        assert row.time_s > 1.1 * row.conditions.burst_time_s
        assert row.conditions.power_cap_s > 0

    def test_a_model_is_the_sum_of_its_layers(self):
        gpu, device = bench(layers=lambda model, inputs: [(RELU, 30)])
        network = device.measure_model("thirty", _a_model, "float32", "inference")
        assert network.energy_j == pytest.approx(30 * gpu.truth.of(RELU)[1], rel=0.01)
        assert (network.batch_size, network.input) == (2, "2x8")

    @pytest.mark.parametrize("calls", [100, 1000, 6000])
    def test_a_model_that_waits_for_its_host_pays_for_the_idle_gaps(self, calls):
        tiny = workload("relu", elements=1000, in_place=0)
        gpu, device = bench(layers=lambda model, inputs: [(tiny, calls)])
        network = device.measure_model("launches", _a_model, "float32", "inference")
        time_s, energy_j = gpu.truth.of(tiny)
        wall_s = calls * 2e-5  # the host's time per call
        truth_j = calls * (energy_j - 90 * time_s) + 90 * wall_s
        assert network.time_s == pytest.approx(wall_s, rel=0.02)
        assert network.energy_j == pytest.approx(truth_j, rel=0.02)


class TestFaults:
    def test_a_stuck_counter_leaves_steady_rows_to_power(self):
        gpu, device = bench()
        gpu.nvml.sensor.stuck_from_s = gpu.time()
        row = device.measure(RELU)
        assert row.energy_j == pytest.approx(gpu.truth.of(RELU)[1], rel=0.01)
        assert row.conditions.counter_power_w is None
        assert row.conditions.energy_source == "instant power"

    def test_a_stuck_counter_where_there_is_no_power(self):
        gpu, _ = virtual()
        gpu.nvml.absent = {185, 186}
        device = GpuBench(gpu, NvmlSensor(library=gpu.nvml, clock=gpu.clock), QUICK)
        gpu.nvml.sensor.stuck_from_s = gpu.time()
        with pytest.raises(DroppedInterval, match="not updated"):
            device.measure(RELU)

    def test_a_counter_that_jumps_back(self):
        gpu, device = bench()
        _between_the_edges(gpu, lambda: setattr(gpu.nvml.sensor, "offset_j", -1e6))
        with pytest.raises(DroppedInterval, match="went backwards"):
            device.measure(RELU)

    def test_more_power_than_the_limit_allows(self):
        gpu, device = bench()
        _between_the_edges(gpu, lambda: setattr(gpu.nvml.sensor, "offset_j", 1e3))
        with pytest.raises(DroppedInterval, match=r"above 1\.3 × the limit"):
            device.measure(RELU)

    def test_power_that_falls_to_nothing(self):
        gpu, _ = virtual()
        gpu.nvml.absent = {83}
        device = GpuBench(gpu, NvmlSensor(library=gpu.nvml, clock=gpu.clock), QUICK)
        gpu.nvml.sensor.power_w = lambda *a: 0.0
        with pytest.raises(DroppedInterval, match=r"instant power shows 0\.0 W"):
            device.measure(RELU)

    def test_heat(self):
        gpu, device = bench()
        _between_the_edges(gpu, lambda: setattr(gpu.nvml, "thermal_s", 0.01))
        with pytest.raises(DroppedInterval, match="slowed down by heat"):
            device.measure(RELU)

    def test_three_in_a_row_calibrate_again(self):
        gpu, device = bench()
        limit_w = gpu.nvml.power_limit_w
        device._sensor.power_limit_w = 1.0
        for calibrations in (1, 1, 2):
            with pytest.raises(DroppedInterval):
                device.measure(RELU)
            assert len(device.calibrations) == calibrations
        device._sensor.power_limit_w = limit_w
        assert device.measure(RELU).energy_j == pytest.approx(gpu.truth.of(RELU)[1], rel=0.01)

    def test_a_sensor_that_keeps_failing_is_not_calibrated_for_ever(self):
        _, device = bench()
        device._sensor.power_limit_w = 1.0
        for _ in range(20):
            with pytest.raises(DroppedInterval):
                device.measure(RELU)
        assert len(device.calibrations) == 1 + gpu_bench.RECALIBRATIONS

    def test_a_host_too_slow_to_keep_up(self):
        gpu, device = bench()
        _between_the_edges(gpu, lambda: gpu.time.advance(0.04), 0.12)  # longer than the queue
        with pytest.raises(DroppedInterval, match="too slow to keep the GPU busy"):
            device.measure(RELU)

    def test_short_memory_halves_the_batch_once(self):
        gpu, device = bench()

        def small(work):
            if work.params["elements"] > 6e6:
                raise OutOfMemory("too large")

        gpu.failure = small
        row = device.measure(RELU)
        assert row.workload == replace(
            RELU, params=workload("relu", elements=5 * 10**6, in_place=0).params
        )
        assert {"out_of_memory", "halved"} <= set(row.flags)
        with pytest.raises(OutOfMemory):
            device.measure(workload("relu", elements=10**8, in_place=0))
        assert device.measure(workload("relu", elements=10**5, in_place=0)).energy_j > 0

    def test_too_large_a_layer_is_refused(self):
        _, device = bench()
        with pytest.raises(MeasureError, match="above the cap"):
            device.measure(workload("fill", elements=2**40))

    def test_a_foreign_process_makes_the_block_suspect(self):
        gpu, device = bench()
        device.measure(RELU)
        assert not device.drifted()
        gpu.nvml.foreign = [1]
        gpu.sleep(11.0)
        device.between_rows()
        assert device.drifted()
        gpu.nvml.foreign = []
        assert not device.drifted()

    def test_who_was_there_from_the_start_is_no_intruder(self):
        gpu, sensor = virtual()
        gpu.nvml.foreign = [4711]  # this very process, as a container's host numbers it
        device = GpuBench(gpu, sensor, QUICK)
        gpu.sleep(11.0)
        device.between_rows()
        assert not device.drifted()

    def test_a_slower_gpu_is_drift(self):
        gpu, device = bench()
        for _ in range(6):
            assert not device.drifted()
        gpu.truth = replace(gpu.truth, macs_per_s=0.95 * gpu.truth.macs_per_s,
                            bytes_per_s=0.95 * gpu.truth.bytes_per_s)  # fmt: skip
        assert device.drifted()

    def test_idle_power_is_measured_again_and_again(self):
        gpu, device = bench()
        gpu.history.idle_w = 120.0
        for _ in range(4):
            device.drifted()
        assert device.idle_power_w == pytest.approx(120.0, rel=0.01)


def _a_model():
    import torch

    return torch.nn.ReLU(), (torch.empty(2, 8),)


def _repeat(device, times):
    for _ in range(times):
        device.measure(RELU)


def _between_the_edges(gpu, change, after_s=0.2):
    """Call ``change`` when the next row is half measured."""
    original, calls = gpu.load, []

    def load(*args, **options):
        program = original(*args, **options)
        start = gpu.time()
        submit = program.submit

        def watched():
            if not calls and gpu.time() > start + after_s:
                calls.append(change())
            submit()

        program.submit = watched
        return program

    gpu.load = load
