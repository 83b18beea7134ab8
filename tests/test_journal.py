from __future__ import annotations

import json
import os
import string
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layer_energy import journal as journal_module
from layer_energy.errors import DatasetError
from layer_energy.journal import Journal, measurement_from_dict, measurement_to_dict
from layer_energy.lines import encode
from layer_energy.workload import GRADIENTS, Measurement, Params, Workload

PLAN = {"seed": 0, "shard": "1/3", "kinds": ("conv2d", "relu")}

positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
names = st.text(st.characters(categories=("L", "N"), include_characters=" _-."), min_size=1).filter(
    str.isprintable
)
measurements = st.builds(
    Measurement,
    workload=st.builds(
        Workload,
        kind=st.sampled_from(["relu", "linear"]),
        params=st.dictionaries(
            st.text(string.ascii_lowercase), st.integers(0, 2**40), max_size=4
        ).map(Params),
        dtype=st.sampled_from(["float32", "bfloat16"]),
        gradients=st.sampled_from(GRADIENTS),
    ),
    time_s=positive,
    energy_j=positive,
    power_w=positive,
    spread=st.floats(0, allow_infinity=False),
    repeats=st.integers(0, 10**9),
    executions=st.integers(0, 10**9),
    quality=st.sampled_from(["measured", "estimated"]),
    meter=names,
    flags=st.lists(names).map(tuple),
    row_id=st.integers(0, 10**9),
)


def row(row_id: int = 0, time_s: float = 1e-3, flags: tuple[str, ...] = ()) -> Measurement:
    relu = Workload("relu", Params({"elements": 64, "in_place": 0}))
    return Measurement(
        relu, time_s, 0.1 + row_id, 50.0, 0.01, 5, 500, "measured", "nvml", flags, row_id
    )


def written(path: Path, count: int) -> list[Measurement]:
    rows = [row(i) for i in range(count)]
    with Journal(path, PLAN) as journal:
        for each in rows:
            journal.append(each)
    return rows


@given(measurements)
def test_dict_round_trip_is_lossless_through_json(measurement: Measurement) -> None:
    assert measurement_from_dict(json.loads(json.dumps(measurement_to_dict(measurement)))) == (
        measurement
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(st.lists(measurements, max_size=5, unique_by=lambda m: m.row_id))
def test_journal_round_trip(tmp_path: Path, rows: list[Measurement]) -> None:
    path = tmp_path / "journal.jsonl"
    path.unlink(missing_ok=True)
    with Journal(path, PLAN) as journal:
        for each in rows:
            journal.append(each)
    with Journal(path, PLAN) as again:
        assert again.rows == journal.rows == {m.row_id: m for m in rows}
        assert (again.dropped, again.duplicates) == (0, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row_id": -1}, "row_id must be a non-negative integer, got -1"),
        ({"row_id": True}, "row_id must be a non-negative integer, got True"),
        ({"repeats": 1.5}, "repeats must be a non-negative integer, got 1.5"),
        ({"executions": None}, "executions must be a non-negative integer, got None"),
        ({"time_s": 0}, "time_s must be a finite positive number, got 0"),
        ({"time_s": float("nan")}, "time_s must be a finite positive number, got nan"),
        ({"energy_j": float("inf")}, "energy_j must be a finite positive number, got inf"),
        ({"energy_j": -1.0}, "energy_j must be a finite positive number, got -1.0"),
        ({"power_w": "5"}, "power_w must be a finite positive number, got '5'"),
        ({"power_w": True}, "power_w must be a finite positive number, got True"),
        ({"power_w": 10**400}, "power_w must be a finite positive number, got 1000"),
        ({"spread": -0.1}, "spread must be a finite non-negative number, got -0.1"),
        (
            {"quality": "good"},
            "quality must be one of measured, estimated, simulated, replayed, got 'good'",
        ),
        ({"gradients": "all"}, "gradients must be one of none, input, weight, both, got 'all'"),
        ({"meter": ""}, "meter must be non-empty printable text, got ''"),
        ({"meter": "a\nb"}, "meter must be non-empty printable text, got"),
        ({"dtype": 1}, "dtype must be non-empty printable text, got 1"),
        ({"kind": None}, "kind must be non-empty printable text, got None"),
        ({"flags": "hot"}, "flags must be a list of non-empty names without '|', got 'hot'"),
        ({"flags": ["a|b"]}, "flags must be a list of non-empty names without '|'"),
        ({"flags": [""]}, "flags must be a list of non-empty names without '|'"),
        ({"params": []}, "params must be an object"),
        ({"params": {"elements": 1.0}}, "elements must be a non-negative integer, got 1.0"),
        ({"color": "red"}, r"lacks the fields \[\] and has the unknown ones \['color'\]"),
    ],
)
def test_a_bad_field_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        measurement_from_dict({**measurement_to_dict(row()), **change})


def test_a_missing_field_is_named() -> None:
    content = measurement_to_dict(row())
    del content["meter"]
    with pytest.raises(DatasetError, match=r"lacks the fields \['meter'\]"):
        measurement_from_dict(content)
    with pytest.raises(DatasetError, match="must be an object, got list"):
        measurement_from_dict([])


@pytest.mark.parametrize("flag", ["failed", "too_slow"])
def test_rows_that_did_not_run_may_lack_time(flag: str) -> None:
    nothing = replace(row(), time_s=0.0, energy_j=0.0, power_w=0.0, flags=("oom", flag))
    assert measurement_from_dict(measurement_to_dict(nothing)) == nothing


def test_what_reading_refuses_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path, PLAN) as journal:
        with pytest.raises(DatasetError, match="time_s must be"):
            journal.append(row(time_s=float("nan")))
        assert not journal.rows
    assert len(path.read_bytes().splitlines()) == 1


def test_cut_anywhere_in_the_last_line_loses_only_that_line(tmp_path: Path) -> None:
    path = tmp_path / "new" / "j"
    rows = written(path, 3)
    whole = path.read_bytes()
    start = whole[:-1].rindex(b"\n") + 1
    for end in range(start, len(whole)):
        path.write_bytes(whole[:end])
        complete = end == len(whole) - 1  # only the line end is missing
        with Journal(path, PLAN) as journal:
            assert list(journal.rows.values()) == rows[: 2 + complete]
            assert journal.dropped == (end != start and not complete)
            journal.append(row(7))
        with Journal(path, PLAN) as again:
            assert list(again.rows) == [0, 1, 2, 7] if complete else [0, 1, 7]
            assert again.dropped == 0


def test_cut_anywhere_in_the_header_starts_afresh(tmp_path: Path) -> None:
    path = tmp_path / "j"
    written(path, 0)
    header = path.read_bytes()
    for end in range(len(header)):
        path.write_bytes(header[:end])
        Journal(path, PLAN).close()
        assert path.read_bytes() == header


@pytest.mark.parametrize(
    "garbage",
    [b"", b"\xff\xfe\x00", b"[" * 100_000, b"5", b"[1]", b'{"crc":"0","row":{}}', b'{"row":NaN}'],
)
def test_corrupt_lines_are_dropped_and_counted(tmp_path: Path, garbage: bytes) -> None:
    path = tmp_path / "j"
    rows = written(path, 3)
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], lines[1], garbage, *lines[2:]]) + b"\n")
    with Journal(path, PLAN) as journal:
        assert list(journal.rows.values()) == rows
        assert journal.dropped == 1


def test_one_flipped_digit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "j"
    written(path, 2)
    path.write_bytes(path.read_bytes().replace(b'"energy_j":1.1', b'"energy_j":1.2'))
    with Journal(path, PLAN) as journal:
        assert list(journal.rows) == [0]
        assert journal.dropped == 1


def test_an_intact_line_with_an_impossible_row_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "j"
    written(path, 1)
    with path.open("ab") as file:
        file.write(encode("row", {**measurement_to_dict(row(1)), "time_s": -1}))
    with Journal(path, PLAN) as journal:
        assert list(journal.rows) == [0]
        assert journal.dropped == 1


def test_the_last_of_duplicates_counts(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path, PLAN) as journal:
        for time_s in (1.0, 2.0, 3.0):
            journal.append(row(4, time_s))
        assert journal.duplicates == 2
    with Journal(path, PLAN) as journal:
        assert journal.duplicates == 2
        assert journal.rows == {4: row(4, 3.0)}


def test_another_plan_is_refused_and_the_file_kept(tmp_path: Path) -> None:
    path = tmp_path / "j"
    written(path, 1)
    before = path.read_bytes()
    with pytest.raises(DatasetError) as error:
        Journal(path, {**PLAN, "seed": 1, "device": "cpu"})
    message = str(error.value)
    assert "device was None and is now 'cpu'; seed was 0 and is now 1" in message
    assert "shard" not in message
    assert "choose another folder, or delete the file" in message
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"notes\n", b"notes", b"\n", b'{"crc":"0","header":{}}\n{}\n'])
def test_what_is_no_journal_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "j"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="does not begin with a journal's header; choose"):
        Journal(path, PLAN)
    assert path.read_bytes() == content


def test_another_schema_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "j"
    with monkeypatch.context() as patch:
        patch.setattr(journal_module, "SCHEMA_VERSION", 3)
        written(path, 1)
    with pytest.raises(DatasetError, match=r"has the journal schema 3 and .* reads 2; use the"):
        Journal(path, PLAN)


def test_each_row_is_flushed_and_synced_every_two_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    synced: list[int] = []
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    monkeypatch.setattr(os, "fsync", synced.append)
    path = tmp_path / "j"
    with Journal(path, PLAN) as journal:
        for i, (elapsed_s, syncs) in enumerate([(0, 1), (1.9, 1), (2, 2), (3, 2), (4, 3)]):
            now_s = 100.0 + elapsed_s
            journal.append(row(i))
            assert path.read_bytes().count(b"\n") == i + 2
            assert len(synced) == syncs
    assert len(synced) == 4
    journal.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_raises_and_keeps_the_row_in_memory(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", PLAN)
    journal._file.close()
    journal._file = Path("/dev/full").open("ab")  # noqa: SIM115  # the journal closes it
    with pytest.raises(OSError, match="No space left"):
        journal.append(row(3))
    assert journal.rows == {3: row(3)}
    with pytest.raises(OSError, match="No space left"):
        journal.close()
    assert journal._file.closed
