"""Measuring and collecting on the local CPU: real runs, kept short."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from typing import ClassVar

import pytest

from layer_energy.collect import JOURNAL_NAME, collect
from layer_energy.dataset import Dataset
from layer_energy.device import local_cpu, slugify
from layer_energy.errors import DatasetError, InvalidInput, MeasureError
from layer_energy.layers import kinds, layer_type, workload
from layer_energy.measure import CpuBench, Protocol, dwell, measure, rotation
from layer_energy.measure.bench import References
from layer_energy.meters import EstimatedMeter, SimulatedMeter, VirtualClock, open_meter
from layer_energy.model import MIN_ROWS
from layer_energy.plan import Job, Plan, default_rows, default_training_rows, make_plan
from layer_energy.workload import Device

QUICK = Protocol(dwell_s=0.01, repeats=3, attempts=1)
ROWS = {"relu": 6, "linear": 4}


@pytest.fixture(scope="module")
def device():
    return local_cpu()


@pytest.mark.parametrize("kind", [kind for kind in kinds() if kind != "generic"])
def test_every_layer_type_can_be_measured(kind, device):
    from random import Random

    rng = Random(1)
    small = Device("test", "cpu", "test", 2, 1 << 16)
    while True:
        p = layer_type(kind).sample(rng)
        if p is None:
            continue
        work = workload(kind, **p)
        try:
            row = measure(work, small, EstimatedMeter(), Protocol(0.002, 3, 1, bytes_cap=1 << 22))
            break
        except MeasureError as error:
            assert "above the cap" in str(error)  # noqa: PT017  # the only failure that is expected
    assert row.time_s > 0
    assert row.energy_j == pytest.approx(row.power_w * row.time_s)
    assert row.quality == "estimated"


def test_energy_is_power_times_time_on_a_device_whose_power_is_known(device):
    meter = SimulatedMeter(power_w=40.0)
    row = measure(workload("relu", elements=10**5, in_place=0), device, meter, QUICK)
    assert row.power_w == pytest.approx(40.0, rel=1e-6)
    assert row.energy_j == pytest.approx(40.0 * row.time_s, rel=1e-6)


def test_a_dwell_times_what_it_executes():
    def execute(times):
        time.sleep(0.002 * times)

    timing = dwell(execute, EstimatedMeter(), Protocol(dwell_s=0.05))
    assert timing.time_s == pytest.approx(0.002, rel=0.25)
    assert timing.executions >= 15
    assert timing.spread < 0.25


def test_a_noisy_dwell_is_repeated_and_the_quietest_kept():
    calls = []

    def execute(times):
        calls.append(times)
        time.sleep(0.003 * (1 + (len(calls) % 3)))

    timing = dwell(execute, EstimatedMeter(), Protocol(dwell_s=0.02, repeats=3, attempts=4))
    assert len(calls) >= 2 + 4 * timing.repeats


def test_slower_work_takes_longer(device):
    small, large = (
        measure(
            workload("linear", tokens=n, in_features=512, out_features=512, bias=0),
            device, EstimatedMeter(), QUICK,
        )
        for n in (8, 16384)
    )  # fmt: skip
    assert large.time_s > 5 * small.time_s


def test_copies_rotate_over_three_caches():
    device = Device("d", "cpu", "d", 1, 1 << 20)
    assert rotation(device, 1 << 20) == 3
    assert rotation(device, 1 << 30) == 1
    assert rotation(device, 10) == 64


def test_too_large_a_layer_is_refused(device):
    with pytest.raises(MeasureError, match="above the cap"):
        measure(workload("fill", elements=2**40), device, EstimatedMeter(), QUICK)


def works(kind, rows):
    return [job.workload for job in make_plan({kind: rows}).jobs]


class SteadyBench(CpuBench):
    """Takes the machine for steady, however busy: what a test counts must not depend on it."""

    def drifted(self):
        return False


def bench(device, protocol=QUICK):
    return SteadyBench(device, open_meter("estimated"), protocol)


class TestPlan:
    def test_is_deterministic_and_distinct(self):
        assert make_plan(ROWS, 3) == make_plan(ROWS, 3)
        assert make_plan(ROWS, 3) != make_plan(ROWS, 4)
        works = [job.workload for job in make_plan({"conv2d": 50}).jobs]
        assert len(set(works)) == len(works) == 50

    def test_is_not_sorted_by_size(self):
        sizes = [w.params["elements"] for w in works("relu", 50)]
        assert sizes not in (sorted(sizes), sorted(sizes, reverse=True))

    def test_spreads_over_the_decades_of_size(self):
        sizes = [w.params["elements"] for w in works("relu", 60)]
        assert sum(n < 10**4 for n in sizes) > 8
        assert sum(n > 10**6 for n in sizes) > 8

    def test_the_default_meets_what_the_paper_measured(self):
        rows = default_rows()
        for kind in ("conv2d", "max_pool2d", "linear", "relu", "tanh", "sigmoid", "softmax"):
            assert rows[kind] >= 300
        assert min(rows.values()) >= 100

    @pytest.mark.parametrize("rows", [1, 2, 50])
    def test_each_kind_of_convolution_gets_its_share(self, rows):
        drawn = works("conv2d", rows)
        groups = [w.params["groups"] for w in drawn]
        depthwise = sum(
            g == w.params["in_channels"] > 1 for g, w in zip(groups, drawn, strict=True)
        )
        assert len(drawn) == rows
        assert (groups.count(1), depthwise) == {1: (1, 0), 2: (2, 0), 50: (32, 10)}[rows]

    @pytest.mark.parametrize("kind", ["conv1d", "group_norm", "instance_norm", "lstm", "rms_norm"])
    def test_every_set_of_gradients_gets_enough_rows_to_be_fitted(self, kind):
        rows = default_training_rows()[kind]
        jobs = make_plan({kind: rows}, training=True).jobs
        sets = Counter(job.workload.gradients for job in jobs)
        assert sets.keys() == {"both", "weight", "input"}
        assert min(sets.values()) >= MIN_ROWS

    def test_what_has_no_weights_is_not_asked_for_their_gradients(self):
        jobs = make_plan({"matmul": 40}, training=True).jobs
        assert any(job.workload.params["bias"] for job in jobs)
        assert {job.workload.gradients for job in jobs} == {"input"}
        for job in make_plan({"batch_norm": 80}, training=True).jobs:
            assert job.workload.params["affine"] or job.workload.gradients == "input"

    def test_refuses_nonsense(self):
        with pytest.raises(InvalidInput, match="at least 1"):
            make_plan({"relu": 0})
        with pytest.raises(InvalidInput, match="no layer type"):
            make_plan({"relux": 1})
        with pytest.raises(InvalidInput, match="cannot be measured"):
            make_plan({"generic": 1})


class TestCollect:
    def test_writes_a_dataset_with_its_provenance(self, tmp_path, device):
        summary = collect(tmp_path, bench(device), make_plan(ROWS))
        assert summary.complete
        assert summary.planned == 10
        dataset = Dataset.load(tmp_path)
        assert {k: len(dataset.of(k)) for k in dataset.kinds} == ROWS
        for fact in ("seed", "meter", "allocator", "protocol", "layer_energy", "assumptions"):
            assert fact in dataset.provenance
        assert not (tmp_path / JOURNAL_NAME).exists()

    def test_a_stopped_collection_goes_on_where_it_was(self, tmp_path, device):
        seen = []
        first = collect(tmp_path, bench(device), make_plan(ROWS), on_row=seen.append,
                        should_stop=lambda: len(seen) >= 4)  # fmt: skip
        assert (first.complete, first.measured) == (False, 4)
        assert not (tmp_path / "datapackage.json").exists()
        second = collect(tmp_path, bench(device), make_plan(ROWS))
        assert second.complete
        assert second.resumed == 4
        ids = sorted(m.row_id for m in Dataset.load(tmp_path).measurements)
        assert ids == list(range(10))

    def test_another_plan_in_the_same_folder_is_refused(self, tmp_path, device):
        collect(tmp_path, bench(device), make_plan(ROWS), budget_s=0.0)
        with pytest.raises(DatasetError, match="seed"):
            collect(tmp_path, bench(device), make_plan(ROWS, seed=1))

    def test_a_killed_collection_loses_no_finished_row(self, tmp_path):
        code = (
            "from layer_energy.collect import collect\n"
            "from layer_energy.device import local_cpu\n"
            "from layer_energy.measure import Protocol\n"
            "from layer_energy.meters import open_meter\n"
            "from layer_energy.plan import make_plan\n"
            "from tests.test_collect import SteadyBench\n"
            "protocol = Protocol(dwell_s=0.01, repeats=3, attempts=1)\n"
            "bench = SteadyBench(local_cpu(), open_meter('estimated'), protocol)\n"
            "collect({!r}, bench, make_plan({!r}),\n"
            "        on_row=lambda row: print(row.row_id, flush=True))\n"
        ).format(str(tmp_path), {"relu": 40})
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout
        told = [int(process.stdout.readline()) for _ in range(5)]
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        summary = collect(tmp_path, bench(local_cpu()), make_plan({"relu": 40}))
        assert summary.resumed >= len(told)
        assert sorted(m.row_id for m in Dataset.load(tmp_path).measurements) == list(range(40))


def test_device_names_become_folder_names():
    assert slugify("NVIDIA H200") == "nvidia-h200"
    assert slugify("Intel(R) Xeon(R) Gold 5120 CPU @ 2.20GHz") == "intel-xeon-gold-5120"
    assert slugify("") == "unknown"


def test_the_virtual_clock_is_public_for_users_tests():
    clock = VirtualClock()
    meter = SimulatedMeter(power_w=2.0, clock=clock)
    first = meter.read()
    clock.advance(3.0)
    assert meter.read().energy_j - first.energy_j == pytest.approx(6.0)


def test_a_finished_dataset_is_not_overwritten(tmp_path, device):
    collect(tmp_path, bench(device), make_plan({"relu": 3}))
    with pytest.raises(DatasetError, match="already holds"):
        collect(tmp_path, bench(device), make_plan({"relu": 3}))


def test_failed_rows_are_flagged_and_not_tried_again(tmp_path, device):
    tiny = Protocol(dwell_s=0.01, repeats=3, attempts=1, bytes_cap=1000)
    summary = collect(tmp_path, bench(device, tiny), make_plan({"relu": 8}))
    assert summary.complete
    assert 0 < len(summary.failed) < 8
    dataset = Dataset.load(tmp_path)
    assert len(dataset.measurements) == 8
    assert len(dataset.of("relu")) == 8 - len(summary.failed)


def test_rows_that_cannot_be_measured_do_not_come_again_beside_a_slow_reference(tmp_path, device):
    class Drifting(CpuBench):
        def drifted(self):
            return True

    tiny = Protocol(dwell_s=0.01, repeats=3, attempts=1, bytes_cap=1000)
    drifting = Drifting(device, open_meter("estimated"), tiny)
    told = []
    summary = collect(tmp_path, drifting, make_plan({"relu": 8}), on_row=told.append)
    assert len(told) == 8
    assert len(summary.failed) == sum("failed" in row.flags for row in told) > 0
    assert summary.measured == 3 * (8 - len(summary.failed)) > 0
    rows = Dataset.load(tmp_path).measurements
    assert all(("drift" in row.flags) != ("failed" in row.flags) for row in rows)


def test_the_plans_remarks_end_up_in_the_rows(tmp_path, device):
    jobs = tuple(Job(work, ("validation",)) for work in works("relu", 2))
    collect(tmp_path, bench(device), Plan(jobs))
    dataset = Dataset.load(tmp_path)
    assert [row.flags[0] for row in dataset.measurements] == ["validation"] * 2
    assert dataset.of("relu") == []


def test_rows_beside_a_slow_reference_are_measured_again(tmp_path, device):
    class OnceDrifting(CpuBench):
        asked: ClassVar[list[int]] = []

        def measure(self, work, row_id=0, flags=()):
            self.asked.append(row_id)
            return super().measure(work, row_id, flags)

        def drifted(self):
            return len(self.asked) == 6

    drifting = OnceDrifting(device, open_meter("estimated"), QUICK)
    summary = collect(tmp_path, drifting, make_plan({"relu": 6}))
    assert summary.suspect_blocks == 1
    assert sorted(drifting.asked) == sorted(2 * list(range(6)))
    assert all("drift" not in m.flags for m in Dataset.load(tmp_path).measurements)


def test_a_reference_drifts_only_if_it_stays_slow():
    values = iter([1.0, 1.0, 1.2, 1.0, 1.2, 1.2, 1.2])
    references = References(("work",), lambda work: next(values), limit=0.1)
    assert [references.drifted() for _ in range(4)] == [False, False, False, True]
