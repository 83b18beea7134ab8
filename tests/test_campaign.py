"""Campaigns on a virtual GPU: plans, faults, kills, budgets, and the joules at the end."""

import json
import os
import signal
import time
from dataclasses import replace
from random import Random

import pytest

from layer_energy import campaign, measure
from layer_energy.campaign import cpu_campaign
from layer_energy.collect import JOURNAL_NAME, collect
from layer_energy.datapackage import PACKAGE
from layer_energy.dataset import Dataset, merge
from layer_energy.errors import (
    DatasetError,
    DeviceLost,
    DroppedInterval,
    InvalidInput,
    MeasureError,
    MeterError,
)
from layer_energy.layers import workload
from layer_energy.measure import GpuBench, GpuProtocol
from layer_energy.measure.virtual import VirtualGpu
from layer_energy.meters.nvml import NvmlSensor
from layer_energy.model import EnergyModel
from layer_energy.networks import layers, layers_of
from layer_energy.optimization import MODES
from layer_energy.plan import GPU_LIMITS, Job, NetworkJob, Plan, sample
from tests.faults import full_disk

QUICK = GpuProtocol(warm_up_s=0.5)
RESNET = NetworkJob("resnet18", "3,64,64", 2, exact=True)


def virtual_bench():
    gpu = VirtualGpu(layers=layers, seed=1)
    return gpu, GpuBench(gpu, NvmlSensor(library=gpu.nvml, clock=gpu.clock), QUICK)


def relus(rows, networks=(), **options):
    jobs = tuple(Job(workload("relu", elements=1000 * (i + 1), in_place=0)) for i in range(rows))
    return Plan(jobs, networks, **options)


NAMES = ("squeezenet1_1", "alexnet")


def small_cpu_campaign(seed):
    return cpu_campaign({"conv2d": 40, "relu": 40}, {"linear": 40}, NAMES, seed)


@pytest.fixture(scope="module")
def plan():
    return small_cpu_campaign(seed=3)


class TestCpuPlan:
    def test_is_deterministic(self, plan):
        assert small_cpu_campaign(seed=3) == plan
        assert small_cpu_campaign(seed=4).jobs != plan.jobs

    def test_mixes_what_is_compared(self, plan):
        for half in (plan.jobs[: len(plan.jobs) // 2], plan.jobs[len(plan.jobs) // 2 :]):
            validation = sum("validation" in job.flags for job in half)
            training = sum(job.workload.gradients != "none" for job in half)
            assert validation >= 10
            assert training >= 10
            assert len(half) - validation - training >= 25

    def test_judges_are_each_layer_of_each_forward_pass_and_no_row_to_fit_on(self, plan):
        judged = {job.workload for job in plan.jobs if "validation" in job.flags}
        whole = {(n.model, n.batch_size, n.mode, n.exact) for n in plan.networks}
        steps = set(MODES) - {"inference"}
        assert whole == {(name, b, "inference", True) for name in NAMES for b in (1, 8)} | {
            (name, 8, mode, False) for name in NAMES for mode in steps
        }
        assert judged == {w for n in plan.networks if n.exact for w in layers_of(n)}
        assert cpu_campaign({}, {"relu": 3}, ["alexnet"]).networks[0].mode in steps
        assert len(cpu_campaign({"relu": 3}, {}).jobs) == 3

    def test_a_random_row_that_is_a_judge_only_judges(self, monkeypatch):
        judged = next(iter(layers_of(NetworkJob("alexnet", "", 8))))
        other = relus(1).jobs[0]
        monkeypatch.setattr(campaign, "make_plan", lambda *a, **k: Plan((Job(judged), other)))
        jobs = cpu_campaign({"relu": 1}, {}, ["alexnet"]).jobs
        assert [job.flags for job in jobs if job.workload == judged] == [("validation",)]
        assert other in jobs

    def test_networks_are_mixed(self, plan):
        names = [network.model for network in plan.networks]
        assert names != sorted(names)
        assert names != sorted(names, reverse=True)

    def test_collections_of_one_seed_and_different_modes_merge(self, tmp_path):
        for mode, rows in {"inference": ({"relu": 2}, {}), "training": ({}, {"relu": 2})}.items():
            _, bench = virtual_bench()
            collect(tmp_path / mode, bench, cpu_campaign(*rows))
        merged = merge(Dataset.load(tmp_path / mode) for mode in ("inference", "training"))
        assert len(merged.measurements) == 4

    def test_a_wrong_name_is_told_before_anything_is_measured(self):
        with pytest.raises(InvalidInput, match="no model 'resnet19'"):
            cpu_campaign({}, {"relu": 3}, ["resnet19"])


class TestCampaign:
    def test_predicts_the_joules_that_the_virtual_gpu_truly_uses(self, tmp_path):
        rows = {"conv2d": 160, "batch_norm": 50, "relu": 40, "max_pool2d": 40, "linear": 60,
                "adaptive_avg_pool2d": 40, "add": 40, "gelu": 30, "layer_norm": 40,
                "attention": 60, "copy": 40, "cat": 40, "relu6": 30, "dropout": 30}  # fmt: skip
        jobs = [Job(w) for k, n in rows.items() for w in sample(k, n, Random(k), GPU_LIMITS)]
        Random(0).shuffle(jobs)
        gpu, bench = virtual_bench()
        summary = collect(tmp_path, bench, Plan(tuple(jobs)), clock=bench.clock)
        assert summary.rows_per_minute > 150
        model = EnergyModel.fit(Dataset.load(tmp_path))
        assert model.quality == "simulated"
        for name, batch_size in (("resnet18", 8), ("resnet50", 32), ("vgg16", 8),
                                 ("mobilenet_v2", 32), ("vit_b_16", 8)):  # fmt: skip
            needed = layers_of(NetworkJob(name, "3,224,224", batch_size))
            truth_j = sum(times * gpu.truth.of(work)[1] for work, times in needed.items())
            prices = model.price(list(needed))
            joules = sum(times * prices[work].energy_j for work, times in needed.items())
            assert joules == pytest.approx(truth_j, rel=0.03), name

    def test_fills_its_budget_and_ends_before_it(self, tmp_path):
        _, bench = virtual_bench()
        plan = relus(3000, (RESNET,), fills_budget=True)
        started = bench.clock()
        summary = collect(tmp_path, bench, plan, budget_s=60.0, clock=bench.clock)
        assert 50 < bench.clock() - started < 60
        assert (summary.complete, summary.saved, summary.networks) == (False, True, 1)
        saved = Dataset.load(tmp_path)
        assert len(saved.measurements) == summary.measured > 130
        assert saved.provenance["calibrations"][0]["power_source"] == "instant power"
        again = collect(tmp_path, bench, plan, budget_s=20.0, clock=bench.clock)
        assert again.resumed == summary.measured
        assert len(Dataset.load(tmp_path).measurements) == summary.measured + again.measured

    def test_networks_get_the_floor_of_their_layers(self, tmp_path):
        gpu, bench = virtual_bench()
        needed = layers_of(RESNET)
        exact = [Job(work, ("validation",)) for work in needed]
        collect(tmp_path, bench, Plan(tuple(exact), (RESNET,)))
        network = Dataset.load(tmp_path).networks[0]
        truth_j = sum(times * gpu.truth.of(work)[1] for work, times in needed.items())
        assert network.layers_energy_j == pytest.approx(truth_j, rel=0.01)
        assert network.energy_j > 2 * truth_j  # so small a network waits for its host
        assert Dataset.load(tmp_path).of("conv2d") == []

    def test_a_network_whose_package_is_missing_is_told_and_skipped(self, tmp_path):
        _, bench = virtual_bench()
        missing = NetworkJob("no_such_package:net", "3", 1)
        summary = collect(tmp_path, bench, relus(3, (missing, RESNET)))
        assert summary.networks == 1
        assert any("no_such_package" in reason for reason in summary.failed)

    def test_shards_merge_into_one_dataset(self, tmp_path):
        for k, first in enumerate((0, 5), 1):
            _, bench = virtual_bench()
            jobs = relus(10).jobs[first : first + 5]
            repeat = Job(jobs[0].workload, ("repeat",))
            collect(tmp_path / str(k), bench, Plan((*jobs, repeat), identity={"shard": f"{k}/2"}))
        joined = merge(Dataset.load(tmp_path / str(k)) for k in (1, 2))
        assert len(joined.measurements) == 12
        assert joined.test_retest_cv() == pytest.approx(0.0, abs=0.01)
        assert len(joined.provenance["shards"]) == 2


class Faulty:
    """A bench that does as its list says: an exception to raise, or ``None``."""

    def __init__(self, *script):
        _, self._bench = virtual_bench()
        self._script = list(script)
        self.asked = []

    def __getattr__(self, name):
        return getattr(self._bench, name)

    def measure(self, work, row_id=0, flags=()):
        self.asked.append(row_id)
        if self._script and (error := self._script.pop(0)) is not None:
            raise error
        return self._bench.measure(work, row_id, flags)


class Busy(Faulty):
    """A machine that is slower than usual as often as it is told to be."""

    def __init__(self, times):
        super().__init__()
        self._times = times
        self.rows_before_networks = []

    def drifted(self):
        self._times -= 1
        return self._times >= 0

    def measure_model(self, name, build, dtype, mode):
        self.rows_before_networks.append(len(self.asked))
        return self._bench.measure_model(name, build, dtype, mode)


class TestSlowMachines:
    def test_networks_wait_until_it_is_as_fast_as_usual(self, tmp_path):
        bench = Busy(times=2)
        summary = collect(tmp_path, bench, relus(100, (RESNET,)))
        assert bench.rows_before_networks == [75]
        assert summary.complete
        assert len(bench.asked) == 150

    def test_networks_that_waited_come_one_at_a_time(self, tmp_path):
        others = [replace(RESNET, batch_size=size) for size in (1, 2, 3)]
        bench = Busy(times=2)
        collect(tmp_path, bench, relus(100, tuple(others)))
        assert bench.rows_before_networks == [75, 100, 125]

    def test_networks_do_not_wait_for_ever(self, tmp_path):
        bench = Busy(times=1000)
        summary = collect(tmp_path, bench, relus(30, (RESNET,)))
        assert summary.networks == 1
        assert summary.complete

    def test_where_time_is_short_they_do_not_wait(self, tmp_path):
        bench = Busy(times=1000)
        plan = relus(3000, (RESNET,), fills_budget=True)
        collect(tmp_path, bench, plan, budget_s=60.0, clock=bench.clock)
        assert bench.rows_before_networks == [25]

    def test_when_time_is_up_what_there_is_becomes_a_dataset(self, tmp_path):
        _, bench = virtual_bench()
        plan = relus(200, (RESNET,))
        summary = collect(tmp_path, bench, plan, budget_s=30.0, clock=bench.clock)
        assert (summary.complete, summary.saved, summary.networks) == (False, True, 1)
        assert len(Dataset.load(tmp_path).measurements) == summary.measured < 200
        again = collect(tmp_path, bench, plan, clock=bench.clock)
        assert (again.complete, again.resumed) == (True, summary.measured)
        assert len(Dataset.load(tmp_path).measurements) == 200
        assert not (tmp_path / JOURNAL_NAME).exists()

    def test_networks_alone_are_a_dataset_too(self, tmp_path):
        _, bench = virtual_bench()
        summary = collect(tmp_path, bench, Plan((), (RESNET,)), clock=bench.clock)
        assert (summary.complete, summary.saved) == (True, True)
        launches = [network.launch for network in Dataset.load(tmp_path).networks]
        assert launches == ["eager", "graph"]

    def test_who_stops_during_the_networks_is_heard_after_the_one_in_flight(self, tmp_path):
        others = tuple(replace(RESNET, batch_size=size) for size in (1, 2, 3))
        bench, plan = Busy(times=0), Plan((), others)
        summary = collect(tmp_path, bench, plan, should_stop=lambda: bench.rows_before_networks)
        assert (summary.networks, summary.complete, summary.saved) == (1, False, False)
        assert collect(tmp_path, bench, plan).networks == 2

    def test_a_network_that_someone_interrupts_is_not_to_blame(self, tmp_path):
        class Impatient(Busy):
            def measure_model(self, name, build, dtype, mode):
                raise KeyboardInterrupt

        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                collect(tmp_path, Impatient(times=0), Plan((), (RESNET,)))
        assert collect(tmp_path, Busy(times=0), Plan((), (RESNET,))).networks == 1

    def test_without_a_row_there_is_no_dataset(self, tmp_path):
        _, bench = virtual_bench()
        summary = collect(tmp_path, bench, relus(3), budget_s=0.0, clock=bench.clock)
        assert not summary.saved
        assert not (tmp_path / PACKAGE).exists()


class TestFaults:
    def test_a_dropped_row_is_measured_again_at_the_end(self, tmp_path):
        bench = Faulty(DroppedInterval("x"))
        summary = collect(tmp_path, bench, relus(4))
        assert bench.asked == [0, 1, 2, 3, 0]
        assert (summary.dropped, summary.failed) == (1, [])
        assert len(Dataset.load(tmp_path).of("relu")) == 4

    def test_a_row_dropped_thrice_is_given_up(self, tmp_path):
        bench = Faulty(*[DroppedInterval("x")] * 3)
        collect(tmp_path, bench, relus(1))
        assert bench.asked == [0, 0, 0]
        assert Dataset.load(tmp_path).measurements[0].flags == ("failed", "dropped")

    def test_an_unmeasurable_row_is_recorded(self, tmp_path):
        collect(tmp_path, Faulty(MeasureError("no")), relus(2))
        assert Dataset.load(tmp_path).measurements[0].flags == ("failed", "unmeasurable")

    def test_a_lost_device_leaves_a_journal_to_go_on_from(self, tmp_path):
        with pytest.raises(DeviceLost):
            collect(tmp_path, Faulty(None, DeviceLost("sticky")), relus(4))
        second = Faulty()
        summary = collect(tmp_path, second, relus(4))
        assert second.asked == [2, 3]
        assert summary.resumed == 2
        assert Dataset.load(tmp_path).measurements[1].flags == ("failed", "device_lost")

    def test_a_meter_that_fails_leaves_a_journal_to_go_on_from(self, tmp_path):
        with pytest.raises(MeterError):
            collect(tmp_path, Faulty(None, MeterError("gone")), relus(3))
        second = Faulty()
        collect(tmp_path, second, relus(3))
        assert second.asked == [1, 2]

    def test_a_row_that_kills_the_process_three_times_is_skipped(self, tmp_path):
        class Deadly(Faulty):
            def measure(self, work, row_id=0, flags=()):
                return os._exit(9) if row_id == 1 else super().measure(work, row_id, flags)

        plan, bench = relus(3), Deadly()
        for _ in range(3):
            child = os.fork()
            if child == 0:
                collect(tmp_path, bench, plan)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        last = Faulty()
        collect(tmp_path, last, plan)
        assert last.asked == [2]
        assert Dataset.load(tmp_path).measurements[1].flags == ("failed", "crashed")

    def test_a_row_that_was_only_interrupted_is_not_skipped(self, tmp_path):
        for _ in range(4):
            with pytest.raises(KeyboardInterrupt):
                collect(tmp_path, Faulty(KeyboardInterrupt()), relus(2))
        last = Faulty()
        collect(tmp_path, last, relus(2))
        assert last.asked == [0, 1]

    def test_a_full_disk_loses_nothing_that_was_measured(self, tmp_path, monkeypatch):
        rescue = full_disk(monkeypatch, 3, tmp_path / "elsewhere")
        with pytest.raises(DatasetError, match=r"No space left.*elsewhere.*run the same command"):
            collect(tmp_path / "out", Faulty(), relus(10))
        assert len(Dataset.load(rescue).measurements) == 4

    def test_a_read_only_folder_is_refused_before_anything_is_measured(self, tmp_path):
        (tmp_path / "file").write_text("")
        bench = Faulty()
        with pytest.raises(OSError, match="Not a directory"):
            collect(tmp_path / "file" / "out", bench, relus(2))
        assert bench.asked == []

    def test_a_damaged_line_is_counted_and_measured_again(self, tmp_path):
        collect(tmp_path, Faulty(), relus(4), should_stop=_after(3))
        journal = tmp_path / JOURNAL_NAME
        lines = journal.read_bytes().split(b"\n")
        lines[2] = lines[2].replace(b"0", b"1", 1)
        journal.write_bytes(b"\n".join(lines))
        summary = collect(tmp_path, Faulty(), relus(4))
        assert summary.lost_lines == 1
        assert len(Dataset.load(tmp_path).measurements) == 4


def _after(calls):
    asked = iter(range(calls))
    return lambda: next(asked, None) is None


def test_fifty_kills_lose_no_complete_row_and_double_none(tmp_path):
    """SIGKILL at random moments of one campaign; every row that was told of must be there."""
    plan = relus(1500)
    _, bench = virtual_bench()
    told, rng, kills = set(), Random(0), 0
    while kills < 50:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            _collect_and_tell(tmp_path, bench, plan, writing)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            lines = pipe.readline()
            time.sleep(rng.uniform(0, 0.04))
            os.kill(child, signal.SIGKILL)
            kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
            lines += pipe.read()
        fresh = [int(line) for line in lines.split(b"\n")[:-1]]
        assert not told & set(fresh)
        told.update(fresh)
        assert len(told) < len(plan.jobs), "the campaign ended before it was killed often enough"
    summary = collect(tmp_path, bench, plan)
    assert told
    assert summary.resumed >= len(told)
    rows = Dataset.load(tmp_path).measurements
    assert sorted(row.row_id for row in rows) == list(range(len(plan.jobs)))
    assert all(row.usable for row in rows)


def _collect_and_tell(folder, bench, plan, writing):
    """In a process of its own: write the number of every row into a pipe."""
    collect(folder, bench, plan, on_row=lambda row: os.write(writing, b"%d\n" % row.row_id))
    os._exit(0)


class TestCommand:
    def test_collects_on_a_virtual_gpu_and_merges(self, tmp_path, capsys, monkeypatch):
        from layer_energy import cli

        def run(*args):
            monkeypatch.setattr("sys.argv", ["layer-energy", *map(str, args)])
            code = 0
            try:
                cli.main()
            except SystemExit as stop:
                code = stop.code
            return code or 0, capsys.readouterr()

        folders = [tmp_path / f"shard-{k}" for k in (1, 2)]
        for k, folder in enumerate(folders, 1):
            code, printed = run("collect", "--device", "virtual", "--minutes", 1.2, "--shard",
                                f"{k}/2", "--out", folder, "--json")  # fmt: skip
            assert code == 0
            assert json.loads(printed.out)["saved"]
        code, printed = run("merge", *folders, "--out", tmp_path / "all", "--json")
        assert code == 0
        facts = json.loads(printed.out)
        assert facts["rows"] == sum(len(Dataset.load(f).measurements) for f in folders)
        assert {m.quality for m in Dataset.load(tmp_path / "all").measurements} == {"simulated"}
        code, printed = run("merge", *folders, "--out", tmp_path / "all")
        assert code == 2
        assert "already holds a dataset" in " ".join(printed.err.split())

    def test_doctor_shows_how_the_sensor_behaves(self, capsys, monkeypatch):
        from layer_energy import cli

        monkeypatch.setattr("sys.argv", ["x", "doctor", "--device", "virtual", "--json"])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 0
        gpu = json.loads(capsys.readouterr().out)["gpu"]
        assert gpu["quality"] == "simulated"
        assert gpu["calibrations"][0]["period_s"] == pytest.approx(0.1, rel=1e-3)
        assert "energy counter" in gpu["sensor"]["answered"]

    def test_doctor_says_it_in_sentences(self, capsys, monkeypatch):
        from layer_energy import cli

        monkeypatch.setattr("sys.argv", ["x", "doctor", "--device", "virtual"])
        with pytest.raises(SystemExit):
            cli.main()
        said = " ".join(capsys.readouterr().out.split())
        assert "Virtual GPU, driver virtual: joules are simulated" in said
        assert "the energy counter is updated every 100.0 ms" in said
        assert "90 W without work" in said

    @pytest.mark.parametrize(
        ("fault", "told"),
        [
            (DeviceLost("it fell off the bus"), "device lost: it fell off the bus"),
            (MeterError("too many errors"), "stopped, resumable: too many errors"),
        ],
    )
    def test_a_fault_that_ends_the_run_leaves_exit_code_3(
        self, fault, told, tmp_path, capsys, monkeypatch
    ):
        from layer_energy import cli

        monkeypatch.setattr(measure, "GpuBench", lambda *a, **k: Faulty(None, None, fault))
        arguments = ["collect", "--device", "virtual", "--minutes", "2", "--out", str(tmp_path)]
        monkeypatch.setattr("sys.argv", ["layer-energy", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 3
        assert told in " ".join(capsys.readouterr().err.split())
        rows = Dataset.load(tmp_path).measurements
        assert sum(row.time_s > 0 for row in rows) == 2
        with pytest.raises(SystemExit):
            cli.main()
        assert len(Dataset.load(tmp_path).measurements) > 2

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            (["--device", "gpu"], "cpu, cuda, cuda:N or virtual"),
            (["--device", "virtual", "--shard", "4/3"], "1 <= K <= N"),
            (["--device", "virtual", "--shard", "x"], "K/N"),
            (["--device", "virtual", "--rows", "5"], "for a CPU"),
            (["--device", "virtual", "--mode", "both"], "inference, training or all"),
            (["--archive", "x.tar.gz"], "--archive is for a GPU"),
        ],
    )
    def test_wrong_input_is_told(self, options, told, tmp_path, capsys, monkeypatch):
        from layer_energy import cli

        monkeypatch.setattr("sys.argv", ["x", "collect", "--out", str(tmp_path / "o"), *options])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 2
        assert told in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / "o").exists()
