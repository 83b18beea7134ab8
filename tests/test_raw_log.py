"""Raw logs, the counter's reader, and what the command makes of them."""

import gzip
import json
import tarfile
import time
from contextlib import closing

import pytest
from typer.testing import CliRunner

from layer_energy.cli import app
from layer_energy.dataset import Dataset
from layer_energy.errors import MeterError
from layer_energy.gpu_log import last_calibration
from layer_energy.measure.counter import CounterReader, Update, slope_w
from layer_energy.measure.gpu import in_thread
from layer_energy.measure.virtual import VirtualGpu
from layer_energy.meters.nvml import NvmlSensor
from layer_energy.meters.simulated import VirtualClock
from layer_energy.raw_log import RawLog, logs


def told(path):
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


class TestLog:
    def test_is_text_while_it_is_written_and_compressed_at_the_end(self, tmp_path):
        with closing(RawLog(tmp_path)) as log:
            log.tell("row", row_id=3)
            assert logs(tmp_path) == []
            assert '"row_id": 3' in log.path.read_text()
        (path,) = logs(tmp_path)
        lines = told(path)
        assert [line["what"] for line in lines] == ["format", "row"]
        assert not log.path.exists()
        log.tell("late")  # harmless

    def test_one_that_a_killed_process_left_is_compressed_by_the_next(self, tmp_path):
        RawLog(tmp_path).tell("row", row_id=1)
        with closing(RawLog(tmp_path)):
            pass
        assert len(logs(tmp_path)) == 2
        assert [line["what"] for line in told(logs(tmp_path)[0])] == ["format", "row"]


class TestReader:
    def test_keeps_the_moments_around_each_update(self):
        gpu = VirtualGpu()
        reader = CounterReader(gpu, NvmlSensor(library=gpu.nvml, clock=gpu.clock))
        gpu.sleep(1.0)
        updates = reader.between(0.05, gpu.time())
        assert 8 <= len(updates) <= 10
        for update in updates:
            beat_s = round(update.time_s, 1)
            half_a_read_s = 1e-4
            assert update.before_s - half_a_read_s <= beat_s <= update.after_s + half_a_read_s
            assert update.after_s - update.before_s < 2e-3
        assert slope_w(updates) == pytest.approx(90.0, rel=0.01)
        assert reader.energy_j() == pytest.approx(90.0, rel=0.15)
        reader.close()
        gpu.sleep(1.0)
        assert reader.between(1.1, gpu.time()) == []

    def test_an_error_is_raised_where_it_matters(self):
        gpu = VirtualGpu()
        reader = CounterReader(gpu, NvmlSensor(library=gpu.nvml, clock=gpu.clock))
        gpu.nvml.errors.extend([999] * 10)
        gpu.sleep(0.5)
        with pytest.raises(MeterError, match="failed 4 times in a row"):
            reader.between(0.0, gpu.time())

    def test_a_line_through_many_updates_forgives_what_two_do_not(self):
        exact = [Update(t / 10, t / 10 + 0.004, 5.0 * t) for t in range(9)]
        late = [*exact[:-1], Update(0.8, 0.824, 40.0)]
        assert slope_w(exact) == pytest.approx(50.0)
        two = slope_w([late[0], late[-1]])
        assert abs(slope_w(late) - 50.0) < abs(two - 50.0)
        assert slope_w(exact[:1]) is None

    def test_in_a_thread_it_goes_on_until_it_says_so(self):
        calls = []
        in_thread(lambda: calls.append(1) or (None if len(calls) == 3 else 0.0))
        deadline = time.monotonic() + 10
        while len(calls) < 3 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert len(calls) == 3

    def test_in_virtual_time_its_reads_take_time_of_their_own(self):
        clock, seen = VirtualClock(), []

        def step():
            clock.advance(0.3)  # blocks who asks, nobody else
            seen.append(round(clock(), 6))
            return 0.2

        clock.background(step)
        clock.advance(1.0)
        assert clock() == 1.0
        assert seen == [0.3, 0.8, 1.3]


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_the_command_goes_on_adds_boards_and_packs(tmp_path):
    folder, archive = tmp_path / "board", tmp_path / "board.tar.gz"
    command = ["collect", "--device", "virtual", "--minutes", 0.6, "--out", folder]
    first = run(*command, "--archive", archive, "--json")
    assert first.exit_code == 0, first.output
    rows = len(Dataset.load(folder).measurements)
    with tarfile.open(archive) as file:
        assert "board/datapackage.json" in file.getnames()
    assert archive.stat().st_size < 16 << 20
    (folder / "journal.jsonl").unlink()  # a finished campaign, of another board perhaps
    again = run(*command, "--json")
    assert again.exit_code == 0, again.output
    whole = Dataset.load(folder)
    assert len(whole.measurements) > 1.5 * rows
    fresh = [m.workload for m in whole.measurements if "repeat" not in m.flags]
    assert len(fresh) == len(set(fresh))
    assert "resumed" in again.output
    lines = told(logs(folder)[1])
    sensor = next(line for line in lines if line["what"] == "sensor")
    found = last_calibration(folder, sensor["uuid"], sensor["driver"])
    assert found.counter
    assert last_calibration(folder, "another", sensor["driver"]) is None


def test_nothing_is_added_to_a_dataset_without_logs(tmp_path):
    folder = tmp_path / "board"
    assert run("collect", "--device", "virtual", "--minutes", 0.5, "--out", folder).exit_code == 0
    (folder / "journal.jsonl").unlink()
    for log in logs(folder):
        log.unlink()
    before = {path: path.read_bytes() for path in folder.glob("*.csv")}
    refused = run("collect", "--device", "virtual", "--minutes", 0.5, "--out", folder)
    assert refused.exit_code != 0
    assert {path: path.read_bytes() for path in folder.glob("*.csv")} == before
