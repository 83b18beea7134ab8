"""The run table: one row a training run, as this package writes it and as others wrote theirs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layer_energy.datapackage import PACKAGE, Column, Table, read_package, read_table, write_package
from layer_energy.errors import DatasetError, InvalidInput
from layer_energy.meters.base import QUALITIES
from layer_energy.study.spec import Configuration

if TYPE_CHECKING:
    import pandas as pd

TABLE = "runs"

COLUMNS = (
    Column("run_id", "integer", "position in the order of the study, from 0"),
    Column("repetition", "integer", "which repetition of its configuration, from 1"),
    Column("network", "string", "name of the network"),
    Column("batch_size", "integer", "images per training step"),
    Column("image_size", "integer", "height and width of the images"),
    Column("device", "string", "what it was trained on"),
    Column("epochs", "integer", "passes over the training images"),
    Column("frozen_epochs", "integer", "of them, the first ones, in which only the head trained"),
    Column("images", "integer", "images seen, in training and in validation"),
    Column("time_s", "number", "seconds of all epochs"),
    Column("energy_j", "number", "joules of all epochs, validation included"),
    Column("power_w", "number", "energy_j / time_s"),
    Column("energy_per_image_j", "number", "energy_j / images"),
    Column("utilisation", "number", "share of the device that was busy, 0 to 1", optional=True),
    Column("accuracy", "number", "on the validation images after the last epoch, 0 to 1"),
    Column("f1", "number", "likewise, unweighted mean of the F1 of all classes, 0 to 1"),
    Column("quality", "string", "what the joules are: measured, estimated or simulated"),
    Column("relative_uncertainty", "number", "of the joules, systematic, as the meter states it"),
    Column("meter", "string", "name of the source of the joules"),
    Column("started", "string", "when, UTC"),
)

FACTORS = ("network", "batch_size", "image_size", "device")
NUMBERS = tuple(c.name for c in COLUMNS if c.type != "string" and c.name not in FACTORS)


@dataclass(frozen=True, slots=True)
class Run:
    """One finished run; the attributes are the columns of the same names."""

    run_id: int
    repetition: int
    configuration: Configuration
    epochs: int
    frozen_epochs: int
    images: int
    time_s: float
    energy_j: float
    utilisation: float | None
    accuracy: float
    f1: float
    quality: str
    relative_uncertainty: float
    meter: str
    started: str

    def to_dict(self) -> dict[str, Any]:
        """Column → value, in the order of ``COLUMNS``."""
        facts = asdict(self)
        facts |= facts.pop("configuration")
        facts["power_w"] = self.energy_j / self.time_s
        facts["energy_per_image_j"] = self.energy_j / self.images
        return {column.name: facts[column.name] for column in COLUMNS}


def run_from_dict(row: Any) -> Run:
    """Undo :meth:`Run.to_dict`.

    Raises:
        DatasetError: if a column is missing, or holds something else.
    """
    try:
        configuration = Configuration(*(row[factor] for factor in FACTORS))
        derived = {"power_w", "energy_per_image_j", *FACTORS}
        facts = {c.name: row[c.name] for c in COLUMNS if c.name not in derived}
    except (TypeError, KeyError) as error:
        raise DatasetError(f"no run of a study: {type(error).__name__} {error}") from error
    run = Run(configuration=configuration, **facts)
    if not (_positive(run.time_s) and _positive(run.energy_j) and _positive(run.images)):
        raise DatasetError(
            f"run {run.run_id}: time_s, energy_j and images must be above 0, got {run.time_s!r}, "
            f"{run.energy_j!r} and {run.images!r}"
        )
    if run.quality not in QUALITIES:
        raise DatasetError(f"run {run.run_id}: the quality {run.quality!r} is not known")
    return run


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and 0 < value < math.inf


def write_runs(folder: Path, runs: Iterable[Run], facts: Mapping[str, Any]) -> None:
    """Write ``runs.csv``, in the order of the study, and ``datapackage.json`` with the facts."""
    rows = [run.to_dict() for run in sorted(runs, key=lambda run: run.run_id)]
    title = "Training runs of a study, one row a run"
    write_package(folder, folder.resolve().name, title, facts, {TABLE: Table(COLUMNS, rows)})


def read_runs(path: str | Path, columns: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Read a run table.

    Args:
        path: a CSV file. One that :func:`write_runs` wrote is held to its ``datapackage.json``.
        columns: for other people's tables: name in ``COLUMNS`` → name there, or name and factor,
            as in ``"GPU usage (%) * 0.01"``. Columns that are not named keep their name.

    Returns:
        One row a run, with at least ``network`` and ``energy_per_image_j`` (taken as
        ``energy_j / images`` where only these are there). ``attrs["notes"]`` says what is known
        of the joules, and what was left out.

    Raises:
        DatasetError: if the file or a column is missing, damaged, or holds something else.
        InvalidInput: if ``columns`` names what is no column of a run table.
    """
    import pandas as pd

    path = Path(path)
    if columns is None and path.name == f"{TABLE}.csv" and (path.parent / PACKAGE).is_file():
        package = read_package(path.parent)
        rows = [
            run_from_dict(values).to_dict()
            for _, values in read_table(path, package.hashes.get(TABLE, ""), COLUMNS)
        ]
        table = pd.DataFrame(rows).astype({"utilisation": float})  # None, where it is not known
        return _checked(table, path, list(package.facts.get("assumptions", ())))
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise DatasetError(f"{path} cannot be read as a CSV file: {error}") from error
    return _checked(_renamed(table, columns or {}, path), path, [])


def _renamed(table: pd.DataFrame, columns: Mapping[str, str], path: Path) -> pd.DataFrame:
    import pandas as pd

    known = [column.name for column in COLUMNS]
    renamed = table.copy()
    for name, source in columns.items():
        if name not in known:
            raise InvalidInput(
                f"{name!r} is no column of a run table; those are {', '.join(known)}"
            )
        column, factor = _source(source)
        if column not in table:
            raise DatasetError(
                f"{path} has no column {column!r}; there are {', '.join(map(str, table.columns))}"
            )
        if factor is None:
            renamed[name] = table[column]
            continue
        numbers = pd.to_numeric(table[column], errors="coerce")
        if len(text := table[column][numbers.isna()].dropna()):
            raise DatasetError(
                f"{path}: the column {column!r} holds {text.iloc[0]!r}, which cannot be multiplied "
                f"by {factor:g}; write it as a plain number, or leave it empty"
            )
        renamed[name] = numbers * factor
    return renamed


def _source(text: str) -> tuple[str, float | None]:
    """``"GPU usage (%) * 0.01"`` → the column and the factor."""
    column, star, factor = text.rpartition("*")
    try:
        return (column.strip(), float(factor)) if star else (text, None)
    except ValueError:
        return text, None


def _checked(table: pd.DataFrame, path: Path, notes: list[str]) -> pd.DataFrame:
    import pandas as pd

    for name in NUMBERS:
        if name in table and not pd.api.types.is_numeric_dtype(table[name]):
            raise DatasetError(f"{path}: the column {name} holds something else than numbers")
    if "energy_per_image_j" not in table and {"energy_j", "images"} <= set(table):
        table["energy_per_image_j"] = table["energy_j"] / table["images"]
    for name in ("network", "energy_per_image_j"):
        if name not in table:
            raise DatasetError(
                f"{path} has no column {name!r}; there are {', '.join(map(str, table.columns))}. "
                f"Say which one it is: --column {name}=COLUMN"
            )
    if (table["energy_per_image_j"] <= 0).any():
        raise DatasetError(f"{path}: energy_per_image_j must be above 0 in every row")
    known = table[table["energy_per_image_j"].notna() & table["network"].notna()]
    if known.empty:
        raise DatasetError(f"{path} holds no run with a network and its energy")
    if len(known) < len(table):
        notes.append(f"{len(table) - len(known)} of {len(table)} runs have no energy: left out")
    table = known.reset_index(drop=True)
    table.attrs["notes"] = [_origin(table), *notes]
    return table


def _origin(table: pd.DataFrame) -> str:
    if "quality" not in table:
        return "joules: as the table has them; it does not say whether they were measured"
    qualities = ", ".join(sorted(set(table["quality"].astype(str))))
    if "relative_uncertainty" not in table:
        return f"joules: {qualities}"
    return (
        f"joules: {qualities}, ±{table['relative_uncertainty'].max():.0%} on top of what is shown"
    )
