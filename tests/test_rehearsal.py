"""The nine minutes of a campaign on a virtual board like an H200, rehearsed with every fault.

Each must end in time, with a dataset that loads and rows right to 3 %.
"""

import contextlib
import random
from contextlib import closing

import numpy as np
import pytest

from layer_energy.collect import collect
from layer_energy.dataset import Dataset
from layer_energy.errors import DatasetError, DeviceLost, OutOfMemory
from layer_energy.gpu_log import dataset_from_logs, last_calibration
from layer_energy.gpu_plan import gpu_plan
from layer_energy.layers import workload
from layer_energy.measure import GpuBench
from layer_energy.measure.virtual import VirtualGpu
from layer_energy.meters.nvml import NvmlSensor
from layer_energy.meters.virtual_nvml import VirtualSensor
from layer_energy.networks import layers
from layer_energy.plan import Job, NetworkJob, Plan
from layer_energy.raw_log import RawLog, logs
from tests.faults import full_disk

MINUTES = 9
NETWORKS = tuple(
    NetworkJob("resnet18", "3,224,224", size, dtype, mode)
    for size, dtype, mode in ((8, "bfloat16", "inference"), (32, "tf32", "training"))
)


def h200(**options):
    """A board like an H200: slow reads of the counter, two beats, a limit that acts late."""
    sensor = VirtualSensor(0.099976, 0.1, 0.035, power_period_s=0.1015, **options)
    gpu = VirtualGpu(sensor=sensor, layers=layers, seed=3)
    gpu.nvml.counter_s = lambda rng: min(2.2e-3 + rng.expovariate(1 / 1e-3), 16e-3)
    return gpu


def plan(rows=4000):
    return Plan(gpu_plan().jobs[:rows], NETWORKS, fills_budget=True)


class Campaign:
    """Runs a plan in a folder, as the command does; again until its time is over."""

    def __init__(self, folder, gpu, minutes=MINUTES):
        self.folder, self.gpu, self.end_s = folder, gpu, 60 * minutes
        self.should_stop = lambda: False

    def run(self, work):
        sensor = NvmlSensor(library=self.gpu.nvml, clock=self.gpu.clock)
        with closing(RawLog(self.folder)) as log:
            device = self.gpu.device
            log.tell("device", name=device.name, slug=device.slug, cache=device.cache_bytes)
            known = last_calibration(self.folder, sensor.uuid, sensor.driver)
            bench = GpuBench(self.gpu, sensor, calibration=known, tell=log.tell)
            try:
                return collect(
                    self.folder, bench, work, self.end_s - self.gpu.time(), clock=bench.clock,
                    should_stop=self.should_stop, tell=log.tell,
                )  # fmt: skip
            finally:
                bench.close()

    def errors(self):
        """Of the joules of all rows that were measured and not limited."""
        rows = [m for m in Dataset.load(self.folder).measurements if m.time_s > 0]
        free = [m for m in rows if "power_capped" not in m.flags and "halved" not in m.flags]
        return np.array([m.energy_j / self.gpu.truth.of(m.workload)[1] - 1 for m in free])

    def good(self, rows):
        """In time, with at least so many rows, right to 3 %."""
        found = self.errors()
        assert self.gpu.time() <= self.end_s + 1
        assert len(found) >= rows
        assert np.quantile(np.abs(found), 0.99) < 0.03
        return True


def test_nine_minutes(tmp_path):
    campaign = Campaign(tmp_path, h200())
    summary = campaign.run(plan())
    assert campaign.good(rows=900)
    assert summary.rows_per_minute > 110
    assert (summary.dropped, summary.networks) == (0, 2)
    launches = [(n.mode, n.launch) for n in Dataset.load(tmp_path).networks]
    assert set(launches) == {
        ("inference", "eager"), ("inference", "graph"), ("training", "eager"),
    }  # fmt: skip
    again, _ = dataset_from_logs(tmp_path)
    kept = [m for m in Dataset.load(tmp_path).measurements if m.time_s > 0]
    kept.sort(key=lambda m: m.row_id)
    rows = sorted(again.measurements, key=lambda m: m.row_id)
    assert [m.energy_j for m in rows] == pytest.approx([m.energy_j for m in kept], rel=1e-5)
    assert [m.flags for m in rows] == [m.flags for m in kept]


def test_two_minutes_have_both_passes_and_a_network(tmp_path):
    campaign = Campaign(tmp_path, h200(), minutes=2)
    assert campaign.run(plan()).networks >= 1
    assert campaign.good(rows=150)
    passes = {m.workload.gradients != "none" for m in Dataset.load(tmp_path).measurements}
    assert passes == {True, False}


class TestLimit:
    HARD = workload("linear", "bfloat16", tokens=8192, in_features=8192, out_features=8192, bias=0)
    EASY = workload("relu", elements=10**6, in_place=0)

    def limited(self):
        """A limit that the reference load of the calibration does not reach."""
        gpu = h200()

        def lower(work):
            if work in (self.EASY, self.HARD):
                gpu.nvml.power_limit_w = 300.0

        gpu.failure = lower
        return gpu

    def test_before_and_after_it_acts(self, tmp_path):
        gpu = self.limited()
        time_s, energy_j = gpu.truth.of(self.HARD)
        campaign = Campaign(tmp_path, gpu)
        campaign.run(Plan((Job(self.EASY), Job(self.HARD)), fills_budget=True))
        row = next(m for m in Dataset.load(tmp_path).measurements if m.workload == self.HARD)
        assert "power_capped" in row.flags
        assert row.conditions.energy_source == "counter"
        assert row.power_w == pytest.approx(300.0, rel=0.02)
        assert row.conditions.burst_power_w == pytest.approx(
            min(energy_j / time_s, 1.15 * 300.0), rel=0.02
        )
        assert row.conditions.burst_time_s == pytest.approx(time_s, rel=0.01)
        assert row.time_s > 1.05 * time_s

    def test_that_acted_just_before_is_not_the_rows(self, tmp_path):
        gpu = self.limited()
        campaign = Campaign(tmp_path, gpu)
        campaign.run(Plan((Job(self.HARD), Job(self.EASY)), fills_budget=True))
        assert [m.flags for m in Dataset.load(tmp_path).measurements] == [("power_capped",), ()]


@pytest.mark.parametrize(
    "fault",
    ["slow reads", "jitter", "stuck counter", "reset counter", "no counter", "no instant power"],
)
def test_of_the_sensor(tmp_path, fault):
    gpu = h200(jitter_s=0.03 if fault == "jitter" else 0.0)
    if fault == "slow reads":
        gpu.nvml.counter_s = lambda rng: rng.uniform(2e-3, 40e-3)
    elif fault == "stuck counter":
        gpu.nvml.sensor.stuck_from_s = 100.0
    elif fault == "reset counter":
        original, seen = gpu.nvml.sensor.energy_j, []

        def reset(history, now_s):
            if now_s > 100.0 and not seen:
                seen.append(gpu.nvml.sensor.__setattr__("offset_j", -original(history, now_s)))
            return original(history, now_s)

        gpu.nvml.sensor.energy_j = reset
    elif fault == "no counter":
        gpu.nvml.absent = {83}
    elif fault == "no instant power":
        gpu.nvml.absent = {185, 186}
    campaign = Campaign(tmp_path, gpu, minutes=4)
    campaign.run(plan())
    assert campaign.good(rows=200)


def test_layers_that_cannot_run_are_told_and_left(tmp_path):
    gpu = h200()

    def failing(work):
        if work.kind == "batch_norm":
            raise OutOfMemory("no room")

    gpu.failure = failing
    campaign = Campaign(tmp_path, gpu, minutes=3)
    summary = campaign.run(plan())
    assert summary.failed
    assert campaign.good(rows=150)


def test_a_sticky_error_costs_one_row(tmp_path):
    gpu = h200()
    poison = gpu_plan().jobs[100].workload

    def sticky(work):
        if work == poison:
            raise DeviceLost("an illegal memory access was encountered")

    gpu.failure = sticky
    campaign = Campaign(tmp_path, gpu, minutes=4)
    with pytest.raises(DeviceLost):
        campaign.run(plan())
    assert len(campaign.errors()) >= 90, "what was measured is a dataset at once"
    campaign.run(plan())
    assert campaign.good(rows=300)
    (lost,) = [m for m in Dataset.load(tmp_path).measurements if "device_lost" in m.flags]
    assert lost.workload == poison
    calibrations = [log.read_bytes() for log in logs(tmp_path)]
    assert len(calibrations) == 2, "each process has its log"


@pytest.mark.parametrize("seed", range(4))
def test_a_signal_at_a_random_moment(tmp_path, seed):
    at_s = random.Random(seed).uniform(20, 170)
    campaign = Campaign(tmp_path, h200(), minutes=3)
    campaign.should_stop = lambda: campaign.gpu.time() > at_s
    summary = campaign.run(plan())
    assert not summary.complete
    assert campaign.gpu.time() < at_s + 10
    assert campaign.good(rows=10)


def test_a_full_disk(tmp_path, monkeypatch):
    rescue = full_disk(monkeypatch, 100, tmp_path / "rescue")
    campaign = Campaign(tmp_path / "out", h200(), minutes=3)
    with pytest.raises(DatasetError, match="what was measured so far is in"):
        campaign.run(plan())
    assert len(Dataset.load(rescue).measurements) == 101


def test_a_log_that_cannot_be_written_does_not_stop_the_campaign(tmp_path):
    campaign = Campaign(tmp_path, h200(), minutes=1)
    tell = RawLog.tell

    def full(self, what, **facts):
        if what == "row":
            with contextlib.suppress(OSError):
                self._file.close()
        tell(self, what, **facts)

    RawLog.tell = full
    try:
        campaign.run(plan())
    finally:
        RawLog.tell = tell
    assert campaign.good(rows=50)


def test_a_second_board_is_added(tmp_path):
    for seed in (1, 2):
        gpu = h200()
        gpu.nvml.UUID = f"GPU-{seed}0000000-0000"
        measured = [m.workload for m in Dataset.load(tmp_path).measurements] if seed == 2 else []
        work = gpu_plan(measured=measured)
        campaign = Campaign(tmp_path, gpu, minutes=1)
        sensor = NvmlSensor(library=gpu.nvml, clock=gpu.clock)
        with closing(RawLog(tmp_path)) as log:
            device = gpu.device
            log.tell("device", name=device.name, slug=device.slug, cache=device.cache_bytes)
            bench = GpuBench(gpu, sensor, tell=log.tell)

            def save(dataset, log=log):
                log.close()
                whole = dataset_from_logs(tmp_path)[0] if len(logs(tmp_path)) > 1 else dataset
                whole.save(tmp_path)

            collect(
                tmp_path, bench, Plan(work.jobs, fills_budget=True), campaign.end_s - gpu.time(),
                clock=bench.clock, tell=log.tell, save=save,
            )  # fmt: skip
        (tmp_path / "journal.jsonl").unlink()
    rows = Dataset.load(tmp_path).measurements
    assert {m.conditions.board for m in rows} == {"GPU-10000000", "GPU-20000000"}
    fresh = [m.workload for m in rows if "repeat" not in m.flags]
    assert len(fresh) == len(set(fresh)), "no row comes twice"
