"""The figures of a study: boxes of the joules, Q-Q plots, Pareto front."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scipy import stats

from layer_energy.study.statistics import MIN_RUNS, library

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from layer_energy.study.analysis import Analysis

ENERGY = "energy_per_image_j"
_WIDTH = 4
"""Q-Q plots a row."""


def figures(analysis: Analysis) -> dict[str, Figure]:
    """Name → figure: ``boxes``, ``qq`` and, where a gain is known, ``pareto``.

    Raises:
        MissingPackage: without matplotlib.
    """
    drawn = {"boxes": boxes(analysis), "qq": quantiles(analysis)}
    if len(analysis.tables["pareto"]):
        drawn["pareto"] = pareto(analysis)
    return drawn


def boxes(analysis: Analysis) -> Figure:
    """Joules per image of each configuration, a box each; the dots are the runs."""
    groups = _by_label(analysis)
    figure = _figure(7, 1 + 0.4 * len(groups))
    axes = figure.subplots()
    names = list(groups)[::-1]
    axes.boxplot([groups[name] for name in names], orientation="horizontal", showfliers=False)
    for place, name in enumerate(names, 1):
        axes.plot(groups[name], [place] * len(groups[name]), ".", color="0.5", markersize=4)
    axes.set_yticks(range(1, len(names) + 1), names)
    _joules(axes)
    axes.set_xlabel(f"energy per image ({_quality(analysis)})")
    return figure


def quantiles(analysis: Analysis) -> Figure:
    """Q-Q plots of the joules per image against a normal distribution."""
    groups = {n: values for n, values in _by_label(analysis).items() if len(values) >= MIN_RUNS}
    across = min(_WIDTH, len(groups))
    down = -(-len(groups) // across)
    figure = _figure(3 * across, 2.6 * down)
    axes = figure.subplots(down, across, squeeze=False).flat
    for ax in axes[len(groups) :]:
        ax.set_axis_off()
    for ax, (name, values) in zip(axes, groups.items(), strict=False):
        (theory, ordered), (slope, intercept, _) = stats.probplot(values)
        ax.plot(theory, ordered, ".")
        ax.plot(theory, slope * theory + intercept, linewidth=1)
        ax.set_title(name, fontsize="small")
    figure.supxlabel("normal quantile")
    figure.supylabel(f"J per image ({_quality(analysis)})")
    return figure


def pareto(analysis: Analysis) -> Figure:
    """Median gain against median joules per image; the line is the front."""
    table = analysis.tables["pareto"]
    gain = "f1" if "f1" in table else "accuracy"
    figure = _figure(6, 4)
    axes = figure.subplots()
    axes.plot(table[ENERGY], table[gain], "o", color="0.6")
    front = table[table["pareto"]].sort_values(ENERGY)
    axes.plot(front[ENERGY], front[gain], "o-", label="front")
    for row in table.to_dict("records"):
        label = ", ".join(str(row[factor]) for factor in analysis.factors)
        axes.annotate(label, (row[ENERGY], row[gain]), (4, 4), textcoords="offset points",
                      fontsize="small", rotation=20)  # fmt: skip
    axes.margins(x=0.2)
    _joules(axes)
    axes.set_xlabel(f"median energy per image ({_quality(analysis)})")
    axes.set_ylabel(f"median {gain}")
    axes.legend()
    return figure


def _figure(width: float, height: float) -> Figure:
    figure: Figure = library("matplotlib.figure").Figure((width, height), layout="constrained")
    return figure


def _joules(axes: Axes) -> None:
    """A logarithmic axis of joules, its marks at 1, 2 and 5."""
    ticker = library("matplotlib.ticker")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ticker.EngFormatter("J"))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())


def _by_label(analysis: Analysis) -> dict[str, list[float]]:
    return {
        ", ".join(map(str, levels)): values.tolist()
        for levels, values in analysis.table.groupby(list(analysis.factors))[ENERGY]
    }


def _quality(analysis: Analysis) -> str:
    if "quality" not in analysis.table:
        return "as the table has them"
    return ", ".join(sorted(set(analysis.table["quality"])))
