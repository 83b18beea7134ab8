from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layer_energy.dataset import Dataset, merge
from layer_energy.errors import DatasetError, InvalidInput
from layer_energy.files import write_text_atomically
from layer_energy.layers import base
from layer_energy.workload import (
    GRADIENTS,
    Device,
    Measurement,
    NetworkMeasurement,
    Params,
    Workload,
)

DEVICE = Device("Tester 9000", "cpu", "tester-9000", 2, 2**25, {"torch": "2.0", "turbo": False})


def params(kind: str, value: int = 8) -> Params:
    return Params(dict.fromkeys(base.layer_type(kind).space, value))


def row(
    kind: str = "relu", row_id: int = 0, time_s: float = 1.5e-3, flags: tuple[str, ...] = ()
) -> Measurement:
    return Measurement(
        Workload(kind, params(kind)), time_s, 0.25, 50.0, 0.0, 5, 500, "measured", "nvml", flags,
        row_id,
    )  # fmt: skip


def network(model: str = "resnet18") -> NetworkMeasurement:
    return NetworkMeasurement(
        model, 8, "8x3x224x224", "float32", "inference", 0.1, 5.0, 50.0, 0.01, 9, "measured",
        "rapl", ("hot", "drift"), 0.09, None,
    )  # fmt: skip


def dataset(shard: str | None = None, first: int = 0) -> Dataset:
    return Dataset(
        [row("conv2d", first), row("relu", first + 1), row("relu", first + 2, 0.0, ("failed",))],
        DEVICE,
        {"shard": shard, "seed": 0},
        [network()],
    )


# six significant digits, as the files keep
short = st.floats(1e-9, 1e9).map(lambda x: float(f"{x:.6g}"))
names = st.text(
    st.characters(categories=("L", "N", "P"), exclude_characters="|"), min_size=1
).filter(str.isprintable)
measurements = st.builds(
    Measurement,
    workload=st.builds(
        Workload,
        kind=st.just("linear"),
        params=st.lists(st.integers(0, 2**40), min_size=4, max_size=4).map(
            lambda values: Params(dict(zip(base.layer_type("linear").space, values, strict=True)))
        ),
        dtype=st.sampled_from(["float32", "bfloat16"]),
        gradients=st.sampled_from(GRADIENTS),
    ),
    time_s=short,
    energy_j=short,
    power_w=short,
    spread=st.just(0.0) | short,
    repeats=st.integers(0, 10**9),
    executions=st.integers(0, 10**9),
    quality=st.sampled_from(["measured", "estimated"]),
    meter=names,
    flags=st.lists(names).map(tuple),
    row_id=st.integers(0, 10**9),
)
networks = st.builds(
    NetworkMeasurement,
    model=names,
    batch_size=st.integers(0, 512),
    input=names,
    dtype=names,
    mode=names,
    time_s=short,
    energy_j=short,
    power_w=short,
    spread=short,
    repeats=st.integers(0, 99),
    quality=st.sampled_from(["measured", "estimated"]),
    meter=names,
    flags=st.lists(names).map(tuple),
    layers_time_s=st.none() | short,
    layers_energy_j=st.none() | short,
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(measurements, max_size=4), st.lists(networks, max_size=3))
def test_csv_round_trip(
    tmp_path: Path, rows: list[Measurement], whole: list[NetworkMeasurement]
) -> None:
    before = Dataset(rows, DEVICE, {"host": "a", "list": [1, None]}, whole)
    before.save(tmp_path)
    assert Dataset.load(tmp_path) == before


def test_every_kind_round_trips(tmp_path: Path) -> None:
    before = Dataset([row(kind, i) for i, kind in enumerate(base.kinds())], DEVICE)
    before.save(tmp_path)
    after = Dataset.load(tmp_path)
    assert after == before
    assert after.kinds == base.kinds()
    first = after.measurements[0].workload
    assert list(first.params) == list(base.layer_type(first.kind).space)


def test_the_files_are_tidy(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "tester"
    rows = [row("relu", 3, 0.00123456789, ("hot", "drift"))]
    Dataset(rows, DEVICE).save(folder)
    assert sorted(p.name for p in folder.iterdir()) == [
        "datapackage.json",
        "networks.csv",
        "relu.csv",
    ]
    assert (folder / "relu.csv").read_bytes() == (
        b"row_id,dtype,gradients,elements,in_place,time_s,energy_j,power_w,spread,repeats,"
        b"executions,quality,meter,flags\n"
        b"3,float32,none,8,8,0.00123457,0.25,50.0,0.0,5,500,measured,nvml,hot|drift\n"
    )


def test_saving_what_was_loaded_changes_no_byte(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    Dataset([row(time_s=1 / 3)], DEVICE, {}, [network()]).save(first)
    Dataset.load(first).save(second)
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


def test_the_package_describes_each_file(tmp_path: Path) -> None:
    dataset().save(tmp_path)
    package = json.loads((tmp_path / "datapackage.json").read_text())
    assert package["profile"] == "tabular-data-package"
    assert package["name"] == "layer-energy-tester-9000"
    assert package["licenses"][0]["name"] == "CC-BY-4.0"
    assert package["layer_energy"]["schema_version"] == 1
    assert package["layer_energy"]["provenance"] == {"shard": None, "seed": 0}
    assert [r["name"] for r in package["resources"]] == ["conv2d", "relu", "networks"]
    for resource in package["resources"]:
        content = (tmp_path / resource["path"]).read_bytes()
        assert resource["bytes"] == len(content)
        assert resource["hash"] == "sha256:" + hashlib.sha256(content).hexdigest()
        described = resource["schema"]["fields"]
        assert ",".join(f["name"] for f in described) == content.decode().splitlines()[0]
        assert all(f["description"] for f in described)
        units = {f["name"]: f["description"][-3:] for f in described}
        assert (units["time_s"], units["energy_j"], units["power_w"]) == ("[s]", "[J]", "[W]")


def test_of_gives_usable_rows_unless_told() -> None:
    assert [m.row_id for m in dataset().of("relu")] == [1]
    assert [m.row_id for m in dataset().of("relu", usable=False)] == [1, 2]
    assert dataset().of("linear") == []


def test_frames() -> None:
    one = dataset().to_frame("relu")
    assert list(one.columns[:5]) == ["row_id", "dtype", "gradients", "elements", "in_place"]
    assert list(one["row_id"]) == [1, 2]
    assert list(one["flags"]) == ["", "failed"]
    everything = dataset().to_frame()
    assert list(everything["kind"]) == ["conv2d", "relu", "relu"]
    assert str(everything["elements"].dtype) == "Int64"
    assert everything["elements"].isna().tolist() == [True, False, False]
    assert everything["kernel_h"].isna().tolist() == [False, True, True]
    assert list(Dataset([], DEVICE).to_frame().columns) == ["kind"]
    assert len(Dataset([], DEVICE).to_frame("relu")) == 0


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_that_is_no_dataset(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path if exists else tmp_path / "nowhere"
    with pytest.raises(DatasetError) as error:
        Dataset.load(folder)
    message = str(error.value)
    assert str(folder) in message
    assert ("holds no" if exists else "is not a folder with a") in message
    assert "contains it and one <layer type>.csv per layer type" in message
    assert "`layer-energy collect --out DIR` makes one" in message


def edit_package(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "datapackage.json"
    package = json.loads(path.read_text())
    change(package)
    path.write_text(json.dumps(package))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda p: p["layer_energy"].update(schema_version=2),
            "schema version 2 and this layer_energy reads up to 1; upgrade layer_energy",
        ),
        (
            lambda p: p["layer_energy"].update(schema_version="1"),
            "schema_version must be a non-negative integer, got '1'",
        ),
        (lambda p: p.pop("layer_energy"), "not one that layer_energy wrote .*'layer_energy'"),
        (lambda p: p.update(layer_energy=5), "not one that layer_energy wrote .*restore it, or"),
        (lambda p: p.pop("resources"), "not one that layer_energy wrote .*'resources'"),
        (lambda p: p["resources"][0].pop("hash"), "not one that layer_energy wrote .*'hash'"),
        (lambda p: p["layer_energy"].pop("device"), "device and its details must be objects"),
        (
            lambda p: p["layer_energy"]["device"].update(details=[]),
            "device and its details must be objects",
        ),
        (lambda p: p["layer_energy"].update(provenance=1), "provenance must be an object"),
        (
            lambda p: p["layer_energy"]["device"].update(threads=None),
            "datapackage.json: threads must be a non-negative integer, got None",
        ),
        (
            lambda p: p["resources"][0].update(name="hologram"),
            "holds rows of 'hologram', which is no registered layer type; install or import",
        ),
        (
            lambda p: p["resources"][0].update(name="../conv2d"),
            "holds rows of '../conv2d', which is no registered layer type",
        ),
    ],
)
def test_a_damaged_package(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    dataset().save(tmp_path)
    edit_package(tmp_path, change)
    with pytest.raises(DatasetError, match=message) as error:
        Dataset.load(tmp_path)
    assert str(error.value).startswith(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"[" * 100_000, b"null"])
def test_a_package_that_is_no_json_object(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "datapackage.json").write_bytes(content)
    with pytest.raises(DatasetError, match=r"datapackage\.json is not one that layer_energy"):
        Dataset.load(tmp_path)


def test_a_changed_file_is_named(tmp_path: Path) -> None:
    dataset().save(tmp_path)
    path = tmp_path / "relu.csv"
    path.write_bytes(path.read_bytes().replace(b"0.25", b"0.26", 1))
    with pytest.raises(DatasetError, match=r"relu\.csv was changed after it was written") as error:
        Dataset.load(tmp_path)
    new_hash = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    assert "restore it (`git checkout`, with core.autocrlf off) or collect again" in str(
        error.value
    )
    assert f"if the change is meant, write {new_hash} as its hash there" in str(error.value)
    edit_package(tmp_path, lambda p: p["resources"][1].update(hash=new_hash))
    assert Dataset.load(tmp_path).of("relu")[0].energy_j == 0.26


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    dataset().save(tmp_path)
    (tmp_path / "relu.csv").unlink()
    with pytest.raises(DatasetError, match=r"relu\.csv is named in datapackage.json and missing"):
        Dataset.load(tmp_path)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("relu", b"elements", b"numel", r"has the columns .*numel.* expected .*elements.*again"),
        ("relu", b"0.0015", b"fast", "line 2: time_s must be of type number, got 'fast'"),
        ("relu", b"0.0015", b"", "line 2: time_s must be of type number, got ''"),
        ("relu", b"0.0015", b"0.0", "line 2: time_s must be a finite positive number, got 0.0"),
        ("relu", b"0.0015", b"nan", "line 2: time_s must be a finite positive number, got nan"),
        ("relu", b"0.0015", b"1e999", "line 2: time_s must be a finite positive number, got inf"),
        ("relu", b"\n1,", b"\n1.5,", "line 2: row_id must be of type integer, got '1.5'"),
        ("relu", b",500,", b",500,5,", "line 2: 15 values for 14 columns"),
        ("relu", b"nvml", b'"nv"ml', "line 2 is not CSV"),
        ("relu", b"nvml", b"\xff", "is not UTF-8"),
        ("relu", b"none", b"all", "line 2: gradients must be one of none, input"),
        ("networks", b"5.0", b"-5.0", "line 2: energy_j must be a finite positive number"),
        ("networks", b"0.09", b"0", "line 2: layers_time_s must be a finite positive number"),
        ("networks", b"measured", b"guessed", "line 2: quality must be one of measured, estim"),
    ],
)
def test_a_bad_value_is_located(
    tmp_path: Path, file: str, old: bytes, new: bytes, message: str
) -> None:
    dataset().save(tmp_path)
    path = tmp_path / f"{file}.csv"
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))
    new_hash = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()

    def accept(package: dict[str, Any]) -> None:
        for resource in package["resources"]:
            if resource["name"] == file:
                resource["hash"] = new_hash

    edit_package(tmp_path, accept)
    with pytest.raises(DatasetError, match=message) as error:
        Dataset.load(tmp_path)
    assert f"{file}.csv" in str(error.value)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Dataset([row(time_s=float("nan"))], DEVICE), "time_s must be a finite positive"),
        (Dataset([], DEVICE, {"when": {1}}), "must be plain JSON values: .*set"),
        (Dataset([], DEVICE, {"tdp": float("inf")}), "must be plain JSON values"),
        (
            Dataset([], DEVICE, networks=[replace(network(), time_s=0.0)]),
            "time_s must be a finite positive",
        ),
        (
            Dataset([replace(row(), workload=Workload("relu", Params({"n": 1})))], DEVICE),
            r"row 0: relu takes the parameters \['elements', 'in_place'\], got \['n'\]",
        ),
    ],
)
def test_saving_what_could_not_be_loaded_writes_nothing(
    tmp_path: Path, bad: Dataset, message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        bad.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_package_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order, replace_ = [], Path.replace

    def rename(path: Path, target: Path) -> Path:
        order.append(target.name)
        return replace_(path, target)

    monkeypatch.setattr(Path, "replace", rename)
    dataset().save(tmp_path)
    assert order == ["conv2d.csv", "relu.csv", "networks.csv", "datapackage.json"]


@pytest.mark.parametrize("when", [1, 3])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_an_interrupt_leaves_the_old_dataset_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: int, step: str
) -> None:
    """Interrupted while files are written it is the old one, while they get their names the new."""
    dataset().save(tmp_path)
    new = dataset()
    new.measurements.pop()
    where: Any = Path if step == "replace" else os
    original, calls = getattr(where, step), []

    def interrupted(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == when:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(where, step, interrupted)
    with pytest.raises(KeyboardInterrupt):
        new.save(tmp_path)
    monkeypatch.undo()
    expected = new if step == "replace" else dataset()
    assert len(Dataset.load(tmp_path).measurements) == len(expected.measurements)
    assert not list(tmp_path.glob(".*"))


def test_merge_joins_shards(tmp_path: Path) -> None:
    merged = merge([dataset("1/3", 0), dataset("2/3", 100)])
    assert [m.row_id for m in merged.measurements] == [0, 1, 2, 100, 101, 102]
    assert len(merged.networks) == 2
    assert merged.device == DEVICE
    again = merge([merged, dataset("3/3", 0)])
    assert [shard["shard"] for shard in again.provenance["shards"]] == ["1/3", "2/3", "3/3"]
    again.save(tmp_path)
    assert sorted(m.row_id for m in Dataset.load(tmp_path).measurements) == sorted(
        m.row_id for m in again.measurements
    )


def test_merge_keeps_what_the_shards_agree_on() -> None:
    first, second = dataset("1/2", 0), dataset("2/2", 100)
    first.provenance.update(meter="nvml", finished="2026-01-02", idle_power_w=90.0, allocator="a")
    second.provenance.update(meter="nvml", finished="2026-01-01", idle_power_w=94.0, allocator="b")
    merged = merge([first, second]).provenance
    assert (merged["meter"], merged["finished"], merged["idle_power_w"]) == (
        "nvml", "2026-01-02", 92.0,
    )  # fmt: skip
    assert "allocator" not in merged


def test_merge_refuses_a_shard_given_twice() -> None:
    with pytest.raises(DatasetError, match=r"2 rows of shard 1/3 come twice, such as row_id 1;"):
        merge([dataset("1/3", 0), dataset("2/3", 0), dataset("1/3", 1)])
    merged = merge([dataset("1/3", 0), dataset("2/3", 100)])
    with pytest.raises(DatasetError, match="rows of shard 2/3 come twice, such as row_id 100"):
        merge([merged, dataset("2/3", 100)])
    with pytest.raises(DatasetError, match="shard None come twice"):
        merge([dataset(), dataset()])


def test_merge_refuses_other_devices_and_nothing() -> None:
    other = replace(dataset("2/3"), device=replace(DEVICE, slug="other"))
    with pytest.raises(DatasetError, match="different devices cannot be merged: other, tester"):
        merge([dataset("1/3"), other])
    with pytest.raises(InvalidInput, match="at least one dataset"):
        merge([])


def test_atomic_write_replaces_and_makes_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.txt"
    for content in ("one\n", "zwölf\r\n"):
        write_text_atomically(path, content)
        assert path.read_bytes() == content.encode()
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["os.fsync", "pathlib.Path.replace"])
def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail(*_: object) -> None:
        assert len(list(tmp_path.iterdir())) == 2  # the target and the file beside it
        raise error

    monkeypatch.setattr(step, fail)
    with pytest.raises(type(error)):
        write_text_atomically(path, "new")
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "old"


def test_text_that_cannot_be_encoded_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_text_atomically(path, "\ud800")
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "old"
