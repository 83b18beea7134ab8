"""The files of a dataset: CSV tables and the Frictionless ``datapackage.json`` beside them.

Nothing here knows what a layer is; :mod:`layer_energy.dataset` says which columns there are.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from layer_energy.errors import DatasetError
from layer_energy.files import write_texts_atomically
from layer_energy.records import integer

SCHEMA_VERSION = 1
PACKAGE = "datapackage.json"

_PARSERS = {"integer": int, "number": float, "string": str}


class Column(NamedTuple):
    """A column of a CSV file, in Frictionless terms; an optional one may be empty, or missing."""

    name: str
    type: str
    description: str
    optional: bool = False


class Table(NamedTuple):
    """One CSV file of a package."""

    columns: Sequence[Column]
    rows: Iterable[Mapping[str, Any]]


class Package(NamedTuple):
    """What ``datapackage.json`` holds: the caller's own facts and name → hash of each table."""

    facts: Mapping[str, Any]
    hashes: Mapping[str, str]


def write_package(
    folder: Path, name: str, title: str, facts: Mapping[str, Any], tables: Mapping[str, Table]
) -> None:
    """Write ``<table>.csv`` for each table and then ``datapackage.json``, each atomically."""
    tables = {name: _without_empty_columns(table) for name, table in tables.items()}
    texts = {table: _csv(*tables[table]) for table in tables}
    package = {
        "profile": "tabular-data-package",
        "name": name,
        "title": title,
        "licenses": [
            {
                "name": "CC-BY-4.0",
                "title": "Creative Commons Attribution 4.0",
                "path": "https://creativecommons.org/licenses/by/4.0/",
            }
        ],
        "layer_energy": {"schema_version": SCHEMA_VERSION, **facts},
        "resources": [_resource(table, tables[table].columns, texts[table]) for table in tables],
    }
    try:
        described = json.dumps(package, indent=1, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise DatasetError(
            f"provenance and device details must be plain JSON values: {error}"
        ) from error
    files = {folder / f"{table}.csv": content for table, content in texts.items()}
    write_texts_atomically({**files, folder / PACKAGE: described})


def read_package(folder: Path) -> Package:
    """Read ``datapackage.json``.

    Raises:
        DatasetError: if it is missing, damaged or of a newer schema.
    """
    path = folder / PACKAGE
    if not path.is_file():
        what = "holds no" if folder.is_dir() else "is not a folder with a"
        raise DatasetError(
            f"{folder} {what} {PACKAGE}: a dataset folder contains it and one <layer type>.csv "
            "per layer type; `layer-energy collect --out DIR` makes one"
        )
    try:
        package = json.loads(path.read_bytes())
        ours = package["layer_energy"]
        version = integer(ours, "schema_version")
        if version > SCHEMA_VERSION:
            raise DatasetError(
                f"it has the schema version {version} and this layer_energy reads up to "
                f"{SCHEMA_VERSION}; upgrade layer_energy"
            )
        return Package(ours, {each["name"]: each["hash"] for each in package["resources"]})
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DatasetError(
            f"{path} is not one that layer_energy wrote ({type(error).__name__}: {error}); restore "
            "it, or make a dataset with `layer-energy collect --out DIR`"
        ) from error


def read_table(
    path: Path, expected_hash: str, columns: Sequence[Column]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and parsed values of each row of a CSV file whose hash is the expected one."""
    reader = csv.reader(io.StringIO(_verified(path, expected_hash), newline=""), strict=True)
    try:
        found = next(reader, [])
        present = [c for c in columns if c.name in found or not c.optional]
        names = [column.name for column in present]
        if found != names:
            raise DatasetError(
                f"{path} has the columns {found}, expected {names}; it was written for another "
                "version of this layer type: use the layer_energy that wrote it, or collect again"
            )
        empty = {column.name: None for column in columns}
        for cells in reader:
            where = f"{path}, line {reader.line_num}"
            if len(cells) != len(names):
                raise DatasetError(f"{where}: {len(cells)} values for {len(names)} columns")
            pairs = zip(present, cells, strict=True)
            values = {c.name: _parsed(where, c, cell) for c, cell in pairs}
            yield reader.line_num, {**empty, **values}
    except csv.Error as error:
        raise DatasetError(f"{path}, line {reader.line_num} is not CSV: {error}") from error


def _parsed(where: str, column: Column, cell: str) -> Any:
    if column.optional and not cell:
        return None
    try:
        return _PARSERS[column.type](cell)
    except ValueError:
        raise DatasetError(
            f"{where}: {column.name} must be of type {column.type}, got {cell!r}"
        ) from None


def _verified(path: Path, expected_hash: str) -> str:
    """The text of a file, if it is the one that ``datapackage.json`` was written for."""
    if not path.is_file():
        raise DatasetError(f"{path} is named in {PACKAGE} and missing; restore it or collect again")
    content = path.read_bytes()
    if _hash(content) != expected_hash:
        raise DatasetError(
            f"{path} was changed after it was written (its SHA-256 is not the one in {PACKAGE}); "
            "restore it (`git checkout`, with core.autocrlf off) or collect again, or, if the "
            f"change is meant, write {_hash(content)} as its hash there"
        )
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not UTF-8: {error}") from error


def _without_empty_columns(table: Table) -> Table:
    """Leave out optional columns that no row fills."""
    rows = list(table.rows)
    columns = [
        c for c in table.columns if not c.optional or any(r[c.name] is not None for r in rows)
    ]
    return Table(columns, rows)


def _csv(columns: Sequence[Column], rows: Iterable[Mapping[str, Any]]) -> str:
    """Render CSV with LF line ends and floats of six significant digits."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([column.name for column in columns])
    for row in rows:
        cells = (row[column.name] for column in columns)
        writer.writerow([float(f"{x:.6g}") if isinstance(x, float) else x for x in cells])
    return buffer.getvalue()


def _resource(name: str, columns: Sequence[Column], content: str) -> dict[str, Any]:
    encoded = content.encode()
    return {
        "profile": "tabular-data-resource",
        "name": name,
        "path": f"{name}.csv",
        "format": "csv",
        "mediatype": "text/csv",
        "encoding": "utf-8",
        "bytes": len(encoded),
        "hash": _hash(encoded),
        "schema": {
            "fields": [
                {"name": c.name, "type": c.type, "description": c.description} for c in columns
            ]
        },
    }


def _hash(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
