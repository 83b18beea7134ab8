"""Measured datasets: a folder of tidy CSV files and a ``datapackage.json`` ⇄ measurements.

The folder is a Frictionless tabular data package: one ``<kind>.csv`` per layer type, one
``networks.csv``, and a ``datapackage.json`` that describes every column, carries the SHA-256 of
every file and, under ``layer_energy``, the device and the provenance. Floats keep six digits.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layer_energy.datapackage import (
    PACKAGE,
    Column,
    Table,
    read_package,
    read_table,
    write_package,
)
from layer_energy.errors import DatasetError, InvalidInput
from layer_energy.layers.base import kinds, layer_type
from layer_energy.records import (
    integer,
    measurement_from_dict,
    measurement_to_dict,
    network_from_dict,
    network_to_dict,
    text,
)
from layer_energy.workload import Device, Measurement, NetworkMeasurement

if TYPE_CHECKING:
    import pandas as pd

NETWORKS = "networks"


_DTYPE = Column("dtype", "string", "torch's name of the compute dtype")
_RESULTS = (
    Column("time_s", "number", "median time per execution [s]"),
    Column("energy_j", "number", "energy per execution [J]"),
    Column("power_w", "number", "mean power over the dwell [W]"),
    Column("spread", "number", "relative half-width of the middle half of the repeats' times [1]"),
    Column("repeats", "integer", "timed repeats [1]"),
)
_ORIGIN = (
    Column("quality", "string", "measured (a counter) or estimated (time x an assumed power)"),
    Column("meter", "string", "name of the energy source"),
    Column("flags", "string", "everything unusual about the row, joined by |", optional=True),
)
_CONDITIONS = tuple(
    Column(
        name,
        "string" if name in ("energy_source", "board") else "number",
        description,
        optional=True,
    )
    for name, description in (
        ("energy_source", "counter, instant power, average power or assumed power"),
        ("burst_time_s", "time per execution in the first milliseconds [s]"),
        ("host_time_s", "time of the host per eager execution [s]"),
        ("idle_power_w", "power of the device, ready and without work [W]"),
        ("temperature_c", "temperature of the GPU [deg C]"),
        ("sm_clock_mhz", "clock of the multiprocessors [MHz]"),
        ("memory_clock_mhz", "clock of the memory [MHz]"),
        ("power_cap_s", "time of the dwell in which the power limit lowered the clocks [s]"),
        ("counter_power_w", "power that the energy counter gave for the row [W]"),
        ("instant_power_w", "power that instant power gave for the row [W]"),
        ("burst_power_w", "power before the power limit acted, empty if it did not [W]"),
        ("board", "name of the board, of several of one model"),
    )
)
_NETWORK_COLUMNS = (
    Column("model", "string", "name of the network"),
    Column("batch_size", "integer", "samples in the input [1]"),
    Column("input", "string", "shape of the input, joined by x"),
    _DTYPE,
    Column("mode", "string", "what ran, such as inference"),
    *_RESULTS,
    *_ORIGIN,
    Column("layers_time_s", "number", "sum of its layers measured exactly [s]", optional=True),
    Column("layers_energy_j", "number", "sum of its layers measured exactly [J]", optional=True),
    *_CONDITIONS,
    Column("launch", "string", "eager or graph: how the GPU got its kernels", optional=True),
)


def _columns(kind: str) -> tuple[Column, ...]:
    return (
        Column("row_id", "integer", "position in the plan that asked for the row"),
        _DTYPE,
        Column("gradients", "string", "gradients computed: none, input, weight or both"),
        *(Column(name, "integer", f"parameter of {kind}") for name in layer_type(kind).space),
        *_RESULTS,
        Column("executions", "integer", "executions inside the timed repeats [1]"),
        *_ORIGIN,
        *_CONDITIONS,
    )


@dataclass
class Dataset:
    """Everything measured on one device.

    Attributes:
        measurements: rows of all layer types.
        device: where they were measured.
        provenance: JSON-able facts on how.
        networks: whole networks measured beside them.
    """

    measurements: list[Measurement]
    device: Device
    provenance: dict[str, Any] = field(default_factory=dict)
    networks: list[NetworkMeasurement] = field(default_factory=list)

    @property
    def kinds(self) -> list[str]:
        """The layer types that have rows, sorted."""
        return sorted({m.workload.kind for m in self.measurements})

    def of(self, kind: str, usable: bool = True) -> list[Measurement]:
        """Rows of one layer type; only those a regressor may be fitted on, unless told."""
        return [
            m for m in self.measurements if m.workload.kind == kind and (m.usable or not usable)
        ]

    def test_retest_cv(self) -> float | None:
        """Coefficient of variation of the joules of rows measured twice; ``None`` without any.

        The root mean square over all pairs (blind repeats and their originals) of the standard
        deviation of a pair over its mean.
        """
        first: dict[Any, Measurement] = {}
        squares = []
        for row in sorted(self.measurements, key=lambda row: "repeat" in row.flags):
            if row.energy_j <= 0:
                continue
            key = row.workload, "hot" in row.flags, "autotuned" in row.flags
            if "repeat" not in row.flags:
                first.setdefault(key, row)
            elif key in first:
                a, b = row.energy_j, first[key].energy_j
                squares.append(2 * ((a - b) / (a + b)) ** 2)
        return math.sqrt(sum(squares) / len(squares)) if squares else None

    def to_frame(self, kind: str | None = None) -> pd.DataFrame:
        """Return a table of one layer type with the columns of its CSV file.

        Without ``kind`` all layer types, with a column ``kind`` and the parameters of them all;
        integers are ``Int64`` then, missing where a layer type has no such parameter.
        """
        import pandas as pd

        if kind is not None:
            names = [column.name for column in _columns(kind)]
            return pd.DataFrame([_cells(m) for m in self.of(kind, usable=False)], columns=names)
        per_kind = [_columns(each) for each in self.kinds]
        names = list(dict.fromkeys(column.name for columns in per_kind for column in columns))
        rows = [{"kind": m.workload.kind, **_cells(m)} for m in self.measurements]
        integers = {c.name: "Int64" for columns in per_kind for c in columns if c.type == "integer"}
        return pd.DataFrame(rows, columns=["kind", *names]).astype(integers)

    def save(self, folder: str | Path) -> None:
        """Write the dataset; each file is replaced as a whole, ``datapackage.json`` last."""
        tables = {
            kind: Table(_columns(kind), [_cells(m) for m in self.of(kind, usable=False)])
            for kind in self.kinds
        }
        tables[NETWORKS] = Table(_NETWORK_COLUMNS, [_network_cells(n) for n in self.networks])
        write_package(
            Path(folder),
            name=f"layer-energy-{self.device.slug.lower()}",
            title=f"Energy and time of neural-network layers on {self.device.name}",
            facts={"device": _device_facts(self.device), "provenance": self.provenance},
            tables=tables,
        )

    @classmethod
    def load(cls, folder: str | Path) -> Dataset:
        """Read and check a dataset folder.

        Raises:
            DatasetError: if it is missing, damaged, changed by hand, or of an unknown schema.
        """
        folder = Path(folder)
        package = read_package(folder)
        device, provenance = _facts(folder, package.facts)
        dataset = cls([], device, provenance)
        for name, expected_hash in package.hashes.items():
            if name != NETWORKS and name not in kinds():
                raise DatasetError(
                    f"{folder} holds rows of {name!r}, which is no registered layer type; install "
                    "or import what registers it, or upgrade layer_energy"
                )
            columns = _NETWORK_COLUMNS if name == NETWORKS else _columns(name)
            path = folder / f"{name}.csv"
            for line, row in read_table(path, expected_hash, columns):
                try:
                    if name == NETWORKS:
                        dataset.networks.append(network_from_dict(_nested(row)))
                    else:
                        dataset.measurements.append(_measurement(name, _nested(row)))
                except DatasetError as error:
                    raise DatasetError(f"{path}, line {line}: {error}") from error
        return dataset


def merge(datasets: Iterable[Dataset]) -> Dataset:
    """Join shards measured on one device into one dataset.

    A shard is named by ``provenance["shard"]``; the provenances end up, in order, in
    ``provenance["shards"]``. The device's details are the first one's.

    Raises:
        InvalidInput: if there is nothing to join.
        DatasetError: if the devices differ, or a row of a shard comes twice.
    """
    datasets = list(datasets)
    if not datasets:
        raise InvalidInput("merge needs at least one dataset")
    slugs = sorted({each.device.slug for each in datasets})
    if len(slugs) > 1:
        raise DatasetError(
            f"datasets of different devices cannot be merged: {', '.join(slugs)}; keep one folder "
            "per device"
        )
    seen: set[tuple[Any, ...]] = set()
    shards: list[dict[str, Any]] = []
    for dataset in datasets:
        own = dataset.provenance.get("shards", [dataset.provenance])
        names = {tuple(str(shard.get(key)) for key in ("shard", "mode", "seed")) for shard in own}
        rows = {(*name, m.row_id) for name in names for m in dataset.measurements}
        twice = sorted(seen & rows)
        if twice:
            name, *_, row_id = twice[0]
            raise DatasetError(
                f"{len(twice)} rows of shard {name} come twice, such as row_id {row_id}; leave out "
                "the folder that is given twice"
            )
        seen |= rows
        shards += own
    common = {
        key: shards[0][key]
        for key in ("meter", "allocator", "layer_energy")
        if all(key in shard and shard[key] == shards[0][key] for shard in shards)
    }
    for key in ("idle_power_w", "max_power_w"):
        known = [shard[key] for shard in shards if key in shard]
        if known:
            common[key] = statistics.median(known)
    finished = [shard["finished"] for shard in shards if "finished" in shard]
    return Dataset(
        [m for each in datasets for m in each.measurements],
        datasets[0].device,
        {
            **common,
            **({"finished": max(finished)} if finished else {}),
            "meter_relative_uncertainty": max(
                shard.get("meter_relative_uncertainty", 0.0) for shard in shards
            ),
            "assumptions": list(
                dict.fromkeys(line for shard in shards for line in shard.get("assumptions", ()))
            ),
            "shards": shards,
        },
        [network for each in datasets for network in each.networks],
    )


def _cells(measurement: Measurement) -> dict[str, Any]:
    row = measurement_to_dict(measurement)
    kind, params = row.pop("kind"), row.pop("params")
    expected = list(layer_type(kind).space)
    if params.keys() != set(expected):
        raise DatasetError(
            f"row {row['row_id']}: {kind} takes the parameters {expected}, got {list(params)}"
        )
    return {**_flat(row), **params}


def _measurement(kind: str, row: dict[str, Any]) -> Measurement:
    params = {name: row.pop(name) for name in layer_type(kind).space}
    return measurement_from_dict({"kind": kind, "params": params, **row})


def _network_cells(network: NetworkMeasurement) -> dict[str, Any]:
    return _flat(network_to_dict(network))


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """One cell a column: flags joined, conditions spread out."""
    conditions = row.pop("conditions") or dict.fromkeys(c.name for c in _CONDITIONS)
    return {**row, **conditions, "flags": "|".join(row["flags"])}


def _nested(row: dict[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`_flat`."""
    conditions = {column.name: row.pop(column.name) for column in _CONDITIONS}
    row["flags"] = row["flags"].split("|") if row["flags"] else []
    row["conditions"] = None if conditions["energy_source"] is None else conditions
    return row


def _device_facts(device: Device) -> dict[str, Any]:
    return {
        "name": device.name,
        "kind": device.kind,
        "slug": device.slug,
        "threads": device.threads,
        "cache_bytes": device.cache_bytes,
        "details": dict(device.details),
    }


def _facts(folder: Path, facts: Mapping[str, Any]) -> tuple[Device, dict[str, Any]]:
    """Device and provenance out of ``datapackage.json``, checked."""
    device, provenance = facts.get("device"), facts.get("provenance")
    try:
        if not isinstance(device, dict) or not isinstance(device.get("details"), dict):
            raise DatasetError("device and its details must be objects")
        if not isinstance(provenance, dict):
            raise DatasetError("provenance must be an object")
        checked = Device(
            name=text(device, "name"),
            kind=text(device, "kind"),
            slug=text(device, "slug"),
            threads=integer(device, "threads"),
            cache_bytes=integer(device, "cache_bytes"),
            details=device["details"],
        )
    except DatasetError as error:
        raise DatasetError(f"{folder / PACKAGE}: {error}") from error
    return checked, provenance
