"""``analyze``: a run table → its statistics, as tables."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layer_energy.errors import InvalidInput
from layer_energy.files import write_text_atomically
from layer_energy.study import statistics
from layer_energy.study.statistics import MIN_RUNS
from layer_energy.study.table import FACTORS

if TYPE_CHECKING:
    import pandas as pd

ENERGY = "energy_per_image_j"
RESPONSES = (ENERGY, "time_per_image_s", "power_w", "utilisation", "accuracy", "f1")
GAINS = ("f1", "accuracy")
TOLERATED_LOSS = 0.02
"""Of the gain, as in the paper: the best saving for a loss of F1 below 2 %."""


@dataclass(frozen=True)
class Analysis:
    """The statistics of a run table.

    Attributes:
        table: the runs.
        factors: what varies in them.
        tables: name → tidy table: ``summary`` (each response of each configuration),
            ``normality`` (Shapiro–Wilk of each), ``omnibus`` and ``pairwise`` (each factor, the
            others held), ``two_way``, ``spearman``, ``pareto``. Empty where the runs do not allow
            it; ``notes`` say why.
        notes: what is known of the joules, what was left out and why.
    """

    table: pd.DataFrame
    factors: tuple[str, ...]
    tables: dict[str, pd.DataFrame]
    notes: tuple[str, ...]

    def best_saving(self) -> dict[str, Any] | None:
        """The cheapest configuration that loses less than 2 % of the best one's gain.

        Returns:
            Its row of ``pareto``, or ``None`` where no gain is known.
        """
        front = self.tables["pareto"]
        near = front[front["loss"] < TOLERATED_LOSS] if len(front) else front
        if near.empty:
            return None
        return _records(near.sort_values(ENERGY).head(1))[0]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; what is not a number is ``None``."""
        return {
            "runs": len(self.table),
            "factors": list(self.factors),
            "notes": list(self.notes),
            "best_saving": self.best_saving(),
            **{name: _records(table) for name, table in self.tables.items()},
        }

    def save(self, folder: str | Path) -> list[Path]:
        """Write each table that is not empty as CSV and the figures as PNG; returns the files.

        Raises:
            MissingPackage: without matplotlib; the tables are then written.
        """
        from layer_energy.study.figures import figures

        folder = Path(folder)
        written = []
        for name, table in self.tables.items():
            if len(table):
                written.append(folder / f"{name}.csv")
                write_text_atomically(written[-1], table.to_csv(index=False, lineterminator="\n"))
        for name, figure in figures(self).items():
            written.append(folder / f"{name}.png")
            figure.savefig(written[-1], dpi=150)
        return written


def analyze(table: pd.DataFrame) -> Analysis:
    """Apply the paper's statistics to a run table.

    Normality of each configuration by Shapiro–Wilk; the effect of each factor with all others held
    by Levene, Welch's ANOVA, Kruskal–Wallis, Games–Howell, Dunn (Holm) and Cliff's δ; of each pair
    of factors by two-way ANOVA; Spearman's correlation of the responses; the Pareto front of the
    median joules per image against the median F1, or accuracy where there is no F1.

    Args:
        table: as :func:`layer_energy.study.read_runs` gives it.

    Raises:
        InvalidInput: if there is nothing to compare, or no configuration has three runs.
        MissingPackage: without the packages of the extra ``study``.
    """
    import pandas as pd

    for name in ("pingouin", "scikit_posthocs"):
        statistics.library(name)
    table = table.copy()
    if {"time_s", "images"} <= set(table):
        table["time_per_image_s"] = table["time_s"] / table["images"]
    notes = [*table.attrs.get("notes", ())]
    complete = table.dropna(subset=_varied(table))
    if len(complete) < len(table):
        lost = len(table) - len(complete)
        names = [f for f in _varied(table) if table[f].isna().any()]
        notes.append(f"{lost} of {len(table)} runs have no {' or '.join(names)}: left out")
    table = complete.reset_index(drop=True)
    factors = tuple(_varied(table))
    if not factors:
        raise InvalidInput(
            f"nothing varies in this table: a study compares two or more of {', '.join(FACTORS)}"
        )
    sizes = table.groupby(list(factors)).size()
    if sizes.max() < MIN_RUNS:
        raise InvalidInput(
            f"no configuration has {MIN_RUNS} runs or more, which the statistics need; "
            "raise repetitions, or finish the study"
        )
    if sizes.min() < MIN_RUNS:
        few = int((sizes < MIN_RUNS).sum())
        notes.append(f"{few} of {len(sizes)} configurations have under {MIN_RUNS} runs: not tested")
    responses = [r for r in RESPONSES if r in table and table[r].notna().any()]
    summary, normal = _by_configuration(table, factors, responses)
    omnibus, pairs = _by_factor(table, factors)
    tables = {
        "summary": summary,
        "normality": normal,
        "omnibus": omnibus,
        "pairwise": pairs,
        "two_way": _by_pair(table, factors, notes),
        "spearman": pd.DataFrame(statistics.spearman(table, responses)),
        "pareto": _pareto(table, factors, notes),
    }
    return Analysis(table, factors, tables, tuple(notes))


def _varied(table: pd.DataFrame) -> list[str]:
    return [f for f in FACTORS if f in table and table[f].nunique() > 1]


def _by_configuration(
    table: pd.DataFrame, factors: tuple[str, ...], responses: list[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    import pandas as pd

    summary, normal = [], []
    for levels, part in _groups(table, factors):
        for response in responses:
            values = part[response].dropna()
            if values.empty:
                continue
            head = {**levels, "response": response}
            summary.append({**head, **statistics.describe(values)})
            if len(values) >= MIN_RUNS:
                normal.append({**head, "runs": len(values), **statistics.normality(values)})
    return pd.DataFrame(summary), pd.DataFrame(normal)


def _by_factor(table: pd.DataFrame, factors: tuple[str, ...]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The energy by each factor, at each combination of the others."""
    import pandas as pd

    omnibus, pairs = [], []
    for factor in factors:
        others = tuple(f for f in factors if f != factor)
        for held, part in _groups(table, others):
            groups = {
                str(level): values.to_numpy(dtype=float)
                for level, values in part.groupby(factor)[ENERGY]
                if len(values) >= MIN_RUNS
            }
            if len(groups) < 2:
                continue
            head = {"factor": factor, **dict.fromkeys(factors, ""), **held}
            omnibus += [{**head, **row} for row in statistics.omnibus(groups)]
            pairs += [{**head, **row} for row in statistics.pairwise(groups)]
    return pd.DataFrame(omnibus), pd.DataFrame(pairs)


def _by_pair(table: pd.DataFrame, factors: tuple[str, ...], notes: list[str]) -> pd.DataFrame:
    """Two-way ANOVA of the energy, over the levels that are fully crossed."""
    import pandas as pd

    rows = []
    for first, second in combinations(factors, 2):
        others = tuple(f for f in factors if f not in (first, second))
        for held, part in _groups(table, others):
            crossed = _crossed(part, first, second)
            where = ", ".join(f"{name} {level}" for name, level in held.items())
            what = f"two-way ANOVA of {first} and {second}" + (f" at {where}" if where else "")
            if crossed.empty:
                notes.append(f"{what} is left out: too few combinations have two runs")
                continue
            if len(crossed) < len(part):
                notes.append(f"{what} is over {len(crossed)} of {len(part)} runs, fully crossed")
            head = {**dict.fromkeys(factors, ""), **held}
            rows += [{**head, **row} for row in statistics.two_way(crossed, ENERGY, first, second)]
    return pd.DataFrame(rows)


def _crossed(table: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """The rows of a full crossing: levels that miss most partners are dropped one by one."""
    while True:
        counts = table.groupby([first, second]).size().unstack(fill_value=0)
        if min(counts.shape, default=0) < 2:
            return table.iloc[:0]
        full = counts >= 2
        if full.to_numpy().all():
            return table
        by_row, by_column = full.mean(axis=1), full.mean(axis=0)
        if by_row.min() <= by_column.min():
            table = table[table[first] != by_row.idxmin()]
        else:
            table = table[table[second] != by_column.idxmin()]


def _pareto(table: pd.DataFrame, factors: tuple[str, ...], notes: list[str]) -> pd.DataFrame:
    """Medians, saving and loss of each configuration against the one of the highest gain."""
    import pandas as pd

    from layer_energy.comparison import pareto_front  # which imports torch

    gain = next((g for g in GAINS if g in table and table[g].notna().any()), None)
    if gain is None:
        notes.append("no Pareto front: the table has neither f1 nor accuracy")
        return pd.DataFrame()
    found = table.groupby(list(factors))[[ENERGY, gain]].median().reset_index()
    found = found.dropna(subset=[gain]).sort_values([gain, ENERGY], ascending=[False, True])
    best = found.iloc[0]
    found["saving"] = 1 - found[ENERGY] / best[ENERGY]
    found["loss"] = 1 - found[gain] / best[gain]
    found["pareto"] = pareto_front(found[gain].to_numpy(), found[ENERGY].to_numpy())
    return found.reset_index(drop=True)


def _groups(
    table: pd.DataFrame, factors: tuple[str, ...]
) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Each combination of levels, with its rows; all rows if there is no factor."""
    if not factors:
        yield {}, table
        return
    for levels, part in table.groupby(list(factors)):
        yield dict(zip(factors, levels, strict=True)), part


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A dict a row, of JSON values; what is no finite number is ``None``."""
    return [
        {
            str(name): None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()
        }
        for row in table.to_dict("records")
    ]
