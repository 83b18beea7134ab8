"""The tests of the source (del Rey et al. 2025, arXiv 2307.05520) as tidy tables, one row a result.

What a library has is the library's: scipy, pingouin, scikit-posthocs (extra ``study``).
"""

from __future__ import annotations

from importlib import import_module
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from layer_energy.errors import MissingPackage

if TYPE_CHECKING:
    import pandas as pd

CONFIDENCE = 0.95
MIN_RUNS = 3
"""Runs a group needs to be tested, the least that Shapiro–Wilk takes."""

MAGNITUDES = ((0.147, "negligible"), (0.33, "small"), (0.474, "medium"))
"""Upper bounds of ``|δ|``; above is large (Romano et al. 2006, *Exploring methods for evaluating
group differences on the NSSE*)."""


def cliffs_delta(x: ArrayLike, y: ArrayLike) -> float:
    """Cliff's δ: how much more often a value of ``x`` is above one of ``y`` than below, −1 to 1.

    ``(#(x > y) − #(x < y)) / (n·m)``; Cliff 1993, *Dominance statistics*, Psychological Bulletin
    114(3), eq. 1.

    Args:
        x: ``(n,)``.
        y: ``(m,)``.
    """
    return float(np.sign(np.subtract.outer(np.asarray(x), np.asarray(y))).mean())


def magnitude(delta: float) -> str:
    """Cliff's δ in a word: negligible, small, medium or large."""
    return next((word for bound, word in MAGNITUDES if abs(delta) < bound), "large")


def describe(values: ArrayLike) -> dict[str, float]:
    """Number, median, mean with its 95 % interval (Student's t) and standard deviation.

    With a single value there is no interval: ``NaN``.
    """
    x = np.asarray(values, dtype=float)
    mean, sd = float(x.mean()), float(x.std(ddof=1)) if len(x) > 1 else float("nan")
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, len(x) - 1) if len(x) > 1 else float("nan")
    half = float(quantile) * sd / len(x) ** 0.5
    return {
        "runs": len(x),
        "median": float(np.median(x)),
        "mean": mean,
        "mean_low": mean - half,
        "mean_high": mean + half,
        "sd": sd,
    }


def normality(values: ArrayLike) -> dict[str, float]:
    """Shapiro–Wilk: ``w`` and ``p`` that a normal distribution gives it; ``NaN`` for equal values.

    Args:
        values: ``(n,)``, three or more.
    """
    x = np.asarray(values, dtype=float)
    if np.ptp(x) == 0:
        return {"w": float("nan"), "p": float("nan")}
    w, p = stats.shapiro(x)
    return {"w": float(w), "p": float(p)}


def omnibus(groups: dict[str, Any]) -> list[dict[str, Any]]:
    """Whether the groups differ: spread by Levene, means by Welch, ranks by Kruskal–Wallis.

    Levene's test is about the medians, as Brown and Forsythe have it. A test that these values do
    not allow, as where none of a group differ, has ``NaN``.

    Args:
        groups: name → ``(n,)`` values, three or more each.

    Returns:
        A row a test with ``test``, ``question``, ``statistic`` and ``p``.
    """
    values = list(groups.values())
    varies = all(np.ptp(x) > 0 for x in values)
    nothing = (float("nan"), float("nan"))
    differ = np.ptp(np.concatenate(values)) > 0
    found = [
        ("Levene", "spreads differ", stats.levene(*values) if varies else nothing),
        ("Welch ANOVA", "means differ", _welch(groups) if varies else nothing),
        ("Kruskal-Wallis", "ranks differ", stats.kruskal(*values) if differ else nothing),
    ]
    return [
        {"test": test, "question": question, "statistic": float(statistic), "p": float(p)}
        for test, question, (statistic, p) in found
    ]


def pairwise(groups: dict[str, Any]) -> list[dict[str, Any]]:
    """Which groups differ: Games–Howell, Dunn with Holm's correction, Cliff's δ.

    Args:
        groups: name → ``(n,)`` values, three or more each.

    Returns:
        A row a pair with ``a``, ``b``, ``median_ratio`` (of a to b), ``p_games_howell``,
        ``p_dunn_holm``, ``cliffs_delta`` and ``magnitude``; ``NaN`` as in :func:`omnibus`.
    """
    varies = all(np.ptp(x) > 0 for x in groups.values())
    differ = np.ptp(np.concatenate(list(groups.values()))) > 0
    games_howell = _games_howell(groups) if varies else {}
    dunn = _dunn(groups) if differ else {}
    rows = []
    for a, b in combinations(groups, 2):
        delta = cliffs_delta(groups[a], groups[b])
        rows.append(
            {
                "a": a,
                "b": b,
                "median_ratio": float(np.median(groups[a]) / np.median(groups[b])),
                "p_games_howell": games_howell.get(frozenset((a, b)), float("nan")),
                "p_dunn_holm": dunn.get(frozenset((a, b)), float("nan")),
                "cliffs_delta": delta,
                "magnitude": magnitude(delta),
            }
        )
    return rows


def two_way(table: pd.DataFrame, response: str, first: str, second: str) -> list[dict[str, Any]]:
    """Two-way ANOVA with interaction, sums of squares of type II.

    Args:
        table: two or more rows for every pair of levels.
        response: the column to explain.
        first, second: the columns that explain it.

    Returns:
        A row a source with ``source``, ``sum_of_squares``, ``df``, ``f``, ``p`` and
        ``partial_eta_squared``.
    """
    plain = table[[response, first, second]].astype({first: str, second: str})
    anova = library("pingouin").anova(
        plain, dv=response, between=[first, second], ss_type=2, effsize="np2"
    )
    return [
        {
            "source": row["Source"],
            "sum_of_squares": row["SS"],
            "df": row["DF"],
            "f": row["F"],
            "p": row["p_unc"],
            "partial_eta_squared": row["np2"],
        }
        for row in anova.to_dict("records")
    ]


def spearman(table: pd.DataFrame, columns: list[str]) -> list[dict[str, Any]]:
    """Spearman's rank correlation of all pairs of columns, over the rows that have both.

    Returns:
        A row a pair with ``a``, ``b``, ``runs``, ``rho`` and ``p``; pairs of which one does not
        vary, or with fewer than three rows, are left out.
    """
    rows = []
    for a, b in combinations(columns, 2):
        both = table[[a, b]].dropna()
        if len(both) < MIN_RUNS or both.nunique().min() < 2:
            continue
        rho, p = stats.spearmanr(both[a], both[b])
        rows.append({"a": a, "b": b, "runs": len(both), "rho": float(rho), "p": float(p)})
    return rows


def library(name: str) -> Any:
    """A module of the extra ``study``.

    Raises:
        MissingPackage: if it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingPackage(
            f"the analysis of a study needs {name}: pip install matplotlib pingouin "
            "scikit-posthocs (the extra study)"
        ) from error


def _long(groups: dict[str, Any]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(
        {
            "group": np.repeat(list(groups), [len(x) for x in groups.values()]),
            "value": np.concatenate(list(groups.values())),
        }
    )


def _welch(groups: dict[str, Any]) -> tuple[float, float]:
    found = library("pingouin").welch_anova(_long(groups), dv="value", between="group")
    return found["F"].iloc[0], found["p_unc"].iloc[0]


def _games_howell(groups: dict[str, Any]) -> dict[frozenset[str], float]:
    found = library("pingouin").pairwise_gameshowell(_long(groups), dv="value", between="group")
    return {frozenset((a, b)): float(p) for a, b, p in found[["A", "B", "pval"]].to_numpy()}


def _dunn(groups: dict[str, Any]) -> dict[frozenset[str], float]:
    found = library("scikit_posthocs").posthoc_dunn(
        _long(groups), val_col="value", group_col="group", p_adjust="holm"
    )
    return {frozenset((a, b)): float(found.loc[a, b]) for a, b in combinations(groups, 2)}
