"""Our statistics on the run table of del Rey et al. (arXiv 2307.05520) beside those they print.

Run:  python tests/benchmarks/study_paper.py --data FOLDER

FOLDER holds pre_training_runs.csv: the training rows of the published regressors, 857 runs. It is a
part of all runs (some 20 of 30 repetitions a configuration) and knows no F1, so printed figures are
met to the digits printed or nearly so, and what rests on F1 cannot be had; the last table says it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from layer_energy.study import Analysis, analyze, read_runs

COLUMNS = {
    "network": "architecture",
    "device": "gpu",
    "batch_size": "batch size",
    "image_size": "image height",
    "energy_per_image_j": "energy per image (J)",
    "energy_j": "total energy (kJ) * 1000",
    "utilisation": "gpu usage (%) * 0.01",
    "power_w": "average gpu power (W)",
}

NETWORKS = ("mobilenet_v2", "nasnet_mobile", "resnet50", "xception", "vgg16")
"""The networks of the study itself, all trained on one set of images."""

PRINTED_J = {
    "RTX 3070": (0.08, 0.18, 0.21, 0.27, 0.42),
    "RTX 3090": (0.14, 0.34, 0.28, 0.34, 0.39),
    "GTX 750 Ti": (0.10, 0.41, None, None, None),
}
"""Median J per image, of the networks in this order."""

PRINTED_UTILISATION = {
    "RTX 3070": (0.56, 0.77, 0.90, 0.93, 0.96),
    "RTX 3090": (0.23, 0.42, 0.78, 0.60, 0.90),
}
PRINTED_SAVING = 0.807
"""By network and GPU together, for a loss of F1 below 2 %."""

console = Console(width=120)


def load(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The runs of the study whose energy is known, and all rows as they are."""
    path = folder / "pre_training_runs.csv"
    table = read_runs(path, COLUMNS)
    return table[table["network"].isin(NETWORKS)], pd.read_csv(path)


def medians(analysis: Analysis, response: str) -> pd.Series[float]:
    summary = analysis.tables["summary"]
    found = summary[summary["response"] == response].set_index(["device", "network"])
    return found["median"]


def beside(title: str, analysis: Analysis, response: str, printed: dict, unit: str) -> None:
    ours = medians(analysis, response)
    shown = Table(title=title)
    for name in ("GPU", "network", "printed", "ours", "rounded the same"):
        shown.add_column(name, justify="left" if name in ("GPU", "network") else "right")
    same = known = 0
    for gpu, figures in printed.items():
        for network, figure in zip(NETWORKS, figures, strict=True):
            if figure is None:
                continue
            value = ours.get((gpu, network))
            if value is None:
                shown.add_row(gpu, network, f"{figure:{unit}}", "not in the table", "-")
                continue
            known += 1
            agrees = f"{value:{unit}}" == f"{figure:{unit}}"
            same += agrees
            shown.add_row(
                gpu, network, f"{figure:{unit}}", f"{value:{unit}}", "yes" if agrees else "no"
            )
    console.print(shown)
    console.print(f"{same} of {known} the same when rounded as printed\n")


def gtx_750_ti(rows: pd.DataFrame) -> None:
    """J per image of the GPU without that column, out of its mean epoch energy."""
    images = rows["training size"] + rows["validation size"]
    derived = 1000 * rows["average epoch energy (kJ)"] / images
    ratio = (derived / rows["energy per image (J)"]).dropna()
    shown = Table(title="GTX 750 Ti: mean epoch energy / images of an epoch, J")
    for name in ("network", "printed", "ours"):
        shown.add_column(name)
    for network, figure in zip(NETWORKS, PRINTED_J["GTX 750 Ti"], strict=True):
        mine = derived[(rows["gpu"] == "GTX 750 Ti") & (rows["architecture"] == network)]
        if figure is not None and len(mine):
            shown.add_row(network, f"{figure:.2f}", f"{mine.median():.3f} ({len(mine)} runs)")
    console.print(shown)
    console.print(
        f"Where both are known this quotient is {ratio.median():.3f} × the energy per image "
        f"({ratio.quantile(0.05):.3f} to {ratio.quantile(0.95):.3f} in 90 % of {len(ratio)} runs)\n"
    )


def saving(analysis: Analysis) -> None:
    ours = medians(analysis, "energy_per_image_j")
    costliest, cheapest = ours.idxmax(), ours.idxmin()
    console.print(
        f"Best saving by network and GPU: printed {PRINTED_SAVING:.1%}, with a loss of F1 below "
        f"2 %; ours {1 - ours[cheapest] / ours[costliest]:.2%}, from {', '.join(costliest[::-1])} "
        f"to {', '.join(cheapest[::-1])} (medians; F1 not known)\n"
    )


def tests(analysis: Analysis) -> None:
    for name in ("omnibus", "pairwise", "two_way"):
        table = analysis.tables[name]
        shown = Table(title=name)
        for column in table.columns:
            shown.add_column(column)
        for row in table.itertuples(index=False):
            shown.add_row(*(f"{x:.3g}" if isinstance(x, float) else str(x) for x in row))
        console.print(shown)
    normal = analysis.tables["normality"].query("response == 'energy_per_image_j'")
    console.print(
        f"Shapiro-Wilk: energy per image not normal at 5 % in {(normal['p'] < 0.05).sum()} of "
        f"{len(normal)} configurations"
    )
    found = (
        analysis.tables["spearman"].set_index(["a", "b"]).loc[("energy_per_image_j", "utilisation")]
    )
    console.print(
        f"Spearman, energy per image and utilisation: ρ = {found['rho']:.3f}, "
        f"p = {found['p']:.2g}, {found['runs']:.0f} runs"
    )
    for note in analysis.notes:
        console.print(f"· {note}")


CANNOT = (
    ("F1, its statistics and the Pareto front", "the table has no F1 and no accuracy"),
    ("utilisation on the GTX 750 Ti", "its 44 rows lack it, as they lack joules and epochs"),
    ("their p-values and W, H, F, δ", "a part of their runs; which were in it is not recorded"),
    ("repetition by repetition figures", "the rows carry no time stamp and no number"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    study, rows = load(parser.parse_args().data)
    analysis = analyze(study)
    beside("Median J per image", analysis, "energy_per_image_j", PRINTED_J, ".2f")
    beside("Median utilisation", analysis, "utilisation", PRINTED_UTILISATION, ".0%")
    gtx_750_ti(rows)
    saving(analysis)
    tests(analysis)
    shown = Table(title="What cannot be reproduced from this table")
    shown.add_column("what")
    shown.add_column("why")
    for what, why in CANNOT:
        shown.add_row(what, why)
    console.print(shown)


if __name__ == "__main__":
    main()
