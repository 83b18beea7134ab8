"""Raw logs of a GPU campaign → rows: the committed ones of an H200, and small damaged ones."""

from __future__ import annotations

import gzip
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from layer_energy import gpu_log
from layer_energy.cli import app
from layer_energy.dataset import Dataset
from layer_energy.errors import DatasetError
from layer_energy.gpu_log import RAW, dataset_from_logs, lines
from layer_energy.layers.base import count
from layer_energy.networks import layers_of
from layer_energy.plan import NetworkJob

H200 = Path(__file__).parents[1] / "datasets" / "nvidia-h200"
B1, B2 = "first-contact.B1.jsonl.gz", "first-contact.B2.jsonl.gz"


@pytest.fixture(scope="module")
def h200():
    return dataset_from_logs(H200)


def parse(name):
    return lines(H200 / RAW / name)[0]


def small(folder, change=lambda line: None, rows=5):
    """A folder with the first lines of a real log, each changed in place."""
    kept, seen = [], 0
    for line in parse(B2):
        if line["what"] not in ("device", "sensor", "bench", "row", "network"):
            continue
        seen += line["what"] == "row"
        change(line)
        kept.append(json.dumps(line))
        if seen == rows:
            break
    path = folder / RAW / "small.B2.jsonl.gz"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(("\n".join(kept) + "\n").encode()))
    return path


class TestH200:
    def test_the_committed_dataset_is_what_the_command_makes(self, tmp_path):
        shutil.copytree(H200 / RAW, tmp_path / RAW)
        result = CliRunner().invoke(app, ["rebuild", str(tmp_path), "--json"])
        assert result.exit_code == 0, result.output
        made = json.loads(result.stdout)
        assert (made["rows"], made["networks"]) == (1572, 93)
        tables = sorted(path.name for path in tmp_path.glob("*.csv"))
        assert tables == sorted(path.name for path in H200.glob("*.csv"))
        for name in [*tables, "datapackage.json"]:
            assert (tmp_path / name).read_bytes() == (H200 / name).read_bytes(), name

    def test_joules_repeat_to_one_per_cent(self, h200):
        dataset, _ = h200
        assert dataset.test_retest_cv() < 0.0131  # of the power that the campaign noted itself

    def test_joules_are_power_times_time_and_between_idle_and_the_limit(self, h200):
        dataset, _ = h200
        for row in [*dataset.measurements, *dataset.networks]:
            assert row.energy_j == pytest.approx(row.power_w * row.time_s)
            assert 100 < row.power_w < 1.2 * dataset.provenance["max_power_w"]

    def test_the_counter_counts_at_the_limit_and_for_networks(self, h200):
        dataset, _ = h200
        capped = [m for m in dataset.measurements if "power_capped" in m.flags]
        assert len(capped) == 213
        for row in [*capped, *dataset.networks]:
            assert row.conditions.energy_source == "counter"
            assert row.power_w == row.conditions.counter_power_w
        steady = [m for m in dataset.measurements if "power_capped" not in m.flags]
        assert all(m.power_w == m.conditions.instant_power_w for m in steady)

    def test_powers_that_differ_are_flagged(self, h200):
        dataset, _ = h200
        apart = 0
        for row in dataset.measurements:
            if "host_paused" in row.flags:
                continue
            ratio = row.conditions.counter_power_w / row.conditions.instant_power_w
            assert ("meters_disagree" in row.flags) == (abs(ratio - 1) > 0.05)
            apart += "meters_disagree" in row.flags
        assert 0 < apart < 0.01 * len(dataset.measurements)

    def test_networks_say_how_they_were_launched(self, h200):
        dataset, _ = h200
        launches = [n.launch for n in dataset.networks]
        assert launches.count("eager") == 52
        assert launches.count("graph") == 41
        assert not any({"eager", "graph"} & set(n.flags) for n in dataset.networks)

    def test_boards_are_kept_apart(self, h200):
        dataset, runs = h200
        for run in runs:
            mine = [m for m in dataset.measurements if m.conditions.board == run.name]
            assert len(mine) == len(run.rows) > 0

    def test_rows_given_up_agree_with_those_measured_again(self):
        """The campaign measured some of them later: time and power must be the same."""
        plan = gpu_log._plan(H200 / RAW / B1)
        later = {
            line["row"]["row_id"]: line["row"]
            for name in (B1, B2)
            for line in parse(name)
            if line["what"] == "row"
        }
        found = [gpu_log._dropped(x, plan, 123.0, "b") for x in parse(B1) if x["what"] == "dropped"]
        pairs = [(m, later[m.row_id]) for m in found if m is not None and m.row_id in later]
        assert len(pairs) >= 20
        time = np.abs([m.time_s / row["time_s"] - 1 for m, row in pairs])
        power = np.abs([m.power_w / row["power_w"] - 1 for m, row in pairs])
        assert np.median(time) < 0.01
        assert np.quantile(time, 0.9) < 0.07
        assert np.median(power) < 0.01
        assert power.max() < 0.05

    def test_rows_given_up_were_rows(self, h200):
        """A network that was given up has a number, too: it is no row of that number."""
        paused = [m for m in h200[0].measurements if "host_paused" in m.flags]
        assert len(paused) == 42
        known = {}
        for m in h200[0].measurements:
            known.setdefault((m.workload.kind, m.workload.dtype), []).append(m)
        gelu = max(m.time_s for m in known["gelu", "tf32"]) if ("gelu", "tf32") in known else 0
        assert gelu < 1e-3

    def test_idle_power_is_that_of_a_gpu_with_a_context(self, h200):
        assert h200[0].provenance["idle_power_w"] == pytest.approx(122, abs=3)

    @pytest.mark.parametrize("part", ["prefill", "decode1", "decode16"])
    def test_the_decoder_is_of_llama_3_2_1b(self, h200, part):
        """Closed form: every weight of the blocks once a token, the head once a request."""
        name = f"layer_energy.reference_networks:decoder_{part}"
        measured = next(n for n in h200[0].networks if n.model == name)
        batch, tokens = map(int, measured.input.removesuffix(":int64").split("x"))
        found = layers_of(NetworkJob(name, f"{tokens}:int64", batch, dtype="bfloat16"))
        macs = sum(count(work)[0].macs * times for work, times in found.items())
        block = 2048 * 2048 * 2 + 2048 * 512 * 2 + 3 * 2048 * 8192
        context = tokens if part == "prefill" else 2048
        attention = 2 * batch * 32 * tokens * context * 64
        assert macs == 16 * (batch * tokens * block + attention) + batch * 2048 * 128_256
        assert {w.dtype for w in found if w.kind in ("linear", "attention")} == {"bfloat16"}

    def test_it_survives_the_disk(self, h200, tmp_path):
        dataset, _ = h200
        dataset.save(tmp_path)
        read = Dataset.load(tmp_path)
        assert len(read.measurements) == len(dataset.measurements)
        short = {n.model: n.launch for n in dataset.networks}
        assert {n.model: n.launch for n in read.networks} == short


class TestBadLogs:
    def test_a_file_cut_in_the_middle_keeps_what_came_before(self, tmp_path):
        path = small(tmp_path)
        whole = len(dataset_from_logs(tmp_path)[0].measurements)
        content = gzip.decompress(path.read_bytes())
        path.write_bytes(gzip.compress(content[:-100]))
        dataset, (run,) = dataset_from_logs(tmp_path)
        assert run.cut
        assert len(dataset.measurements) == whole - 1
        result = CliRunner().invoke(app, ["rebuild", str(tmp_path)])
        assert result.exit_code == 0
        assert "ends in the middle of a line" in result.output

    def test_a_cut_archive_keeps_what_can_be_read(self, tmp_path):
        (tmp_path / RAW).mkdir()
        content = (H200 / RAW / B2).read_bytes()
        (tmp_path / RAW / B2).write_bytes(content[: len(content) // 2])
        dataset, (run,) = dataset_from_logs(tmp_path)
        assert run.cut
        assert 300 < len(dataset.measurements) < 600

    def test_a_damaged_line_in_the_middle_is_named(self, tmp_path):
        path = small(tmp_path)
        content = gzip.decompress(path.read_bytes()).replace(b'{"what": "sensor"', b"{what", 1)
        path.write_bytes(gzip.compress(content))
        with pytest.raises(DatasetError, match=r"line 2 is no JSON object"):
            dataset_from_logs(tmp_path)

    @pytest.mark.parametrize(
        ("key", "value"), [("counter_w", -3.0), ("instant_w", 0), ("instant_w", "many")]
    )
    def test_powers_that_cannot_be_are_named(self, tmp_path, key, value):
        def negative(line):
            if line["what"] == "row":
                line["raw"][key] = value

        small(tmp_path, negative)
        with pytest.raises(DatasetError, match=rf"line \d+ \(row\): {key} must be a finite"):
            dataset_from_logs(tmp_path)

    def test_a_failed_rebuild_leaves_the_dataset(self, tmp_path):
        path = small(tmp_path)
        dataset_from_logs(tmp_path)[0].save(tmp_path)
        before = {p.name: p.read_bytes() for p in tmp_path.glob("*.*")}
        path.write_bytes(b"no gzip")
        result = CliRunner().invoke(app, ["rebuild", str(tmp_path)])
        assert isinstance(result.exception, DatasetError)
        assert {p.name: p.read_bytes() for p in tmp_path.glob("*.*")} == before

    def test_a_row_without_its_raw_part_is_named(self, tmp_path):
        small(tmp_path, lambda line: line.pop("raw", None))
        with pytest.raises(DatasetError, match="KeyError: 'raw'"):
            dataset_from_logs(tmp_path)

    def test_two_devices_are_refused(self, tmp_path):
        path = small(tmp_path)
        shutil.copy(path, path.with_name("other.B1.jsonl.gz"))
        content = gzip.decompress(path.read_bytes()).replace(b"NVIDIA H200", b"NVIDIA L4")
        path.write_bytes(gzip.compress(content))
        with pytest.raises(DatasetError, match="NVIDIA H200, NVIDIA L4"):
            dataset_from_logs(tmp_path)

    def test_without_logs_it_says_where_to_put_them(self, tmp_path):
        with pytest.raises(DatasetError, match="put the raw logs"):
            dataset_from_logs(tmp_path)

    def test_without_its_plan_what_was_given_up_stays_so(self, tmp_path):
        (tmp_path / RAW).mkdir()
        shutil.copy(H200 / RAW / B1, tmp_path / RAW)
        assert len(dataset_from_logs(tmp_path)[0].measurements) == 100

    def test_a_plan_that_is_none_is_named(self, tmp_path):
        small(tmp_path)
        (tmp_path / RAW / "small.plan.json.gz").write_bytes(b"[]")
        with pytest.raises(DatasetError, match="no plan of a campaign"):
            dataset_from_logs(tmp_path)

    def test_what_another_log_of_the_plan_measured_stays_given_up(self, tmp_path):
        """B1 gave up rows; a log with one of them measured takes it out of the salvaged ones."""
        (tmp_path / RAW).mkdir()
        for name in (B1, "first-contact.plan.json.gz"):
            shutil.copy(H200 / RAW / name, tmp_path / RAW)
        dataset, (run,) = dataset_from_logs(tmp_path)
        row_id = next(m.row_id for m in dataset.measurements if "host_paused" in m.flags)
        measured = next(line for line in parse(B1) if line["what"] == "row")
        measured["row"]["row_id"] = row_id
        log = [line for line in parse(B1) if line["what"] in ("device", "sensor")] + [measured]
        text = "\n".join(map(json.dumps, log)) + "\n"
        (tmp_path / RAW / "first-contact.B9.jsonl.gz").write_bytes(gzip.compress(text.encode()))
        again, runs = dataset_from_logs(tmp_path)
        assert [r.salvaged for r in runs] == [run.salvaged - 1, 0]
        (row,) = (m for m in again.measurements if m.row_id == row_id)
        assert "host_paused" not in row.flags

    @pytest.mark.parametrize(
        ("what", "change", "message"),
        [
            ("dropped", {"executions": 0}, "ZeroDivisionError"),
            ("dropped", {"after": {"power_w": 1.0, "power_cap_s": "never"}}, "power_cap_s"),
            ("sensor", {"limit": "abc"}, "limit must be a finite"),
        ],
    )
    def test_numbers_that_cannot_be_are_refused(self, tmp_path, what, change, message):
        (tmp_path / RAW).mkdir()
        shutil.copy(H200 / RAW / "first-contact.plan.json.gz", tmp_path / RAW)
        log = parse(B1)
        for line in log:
            if line["what"] == what:
                (line["raw"] if what == "dropped" else line).update(change)
        text = "\n".join(map(json.dumps, log)) + "\n"
        (tmp_path / RAW / B1).write_bytes(gzip.compress(text.encode()))
        with pytest.raises(DatasetError, match=message):
            dataset_from_logs(tmp_path)

    def test_a_name_of_a_folder_is_never_taken_from_a_log(self, tmp_path):
        small(tmp_path, lambda line: line.update({"slug": "../x"} if "slug" in line else {}))
        assert dataset_from_logs(tmp_path)[0].device.slug == "nvidia-h200"

    def test_a_line_nested_too_deep_is_named(self, tmp_path):
        path = tmp_path / "deep.jsonl.gz"
        path.write_bytes(gzip.compress(b'{"a": ' + b"[" * 99999 + b"\n{}\n"))
        with pytest.raises(DatasetError, match="line 1 is no JSON object"):
            lines(path)

    def test_a_launch_that_does_not_exist_is_refused(self, h200, tmp_path):
        dataset, _ = h200
        wrong = replace(dataset.networks[0], launch="sideways")
        with pytest.raises(DatasetError, match="launch must be one of eager, graph"):
            Dataset([], dataset.device, {}, [wrong]).save(tmp_path)
