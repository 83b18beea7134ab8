"""``layer-energy study run`` and ``layer-energy study analyze``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from layer_energy.cli.base import (
    Json,
    app,
    check_writable,
    err,
    out,
    print_json,
    progress,
    stopping,
)
from layer_energy.cli.collect import STOPPED
from layer_energy.errors import InvalidInput

if TYPE_CHECKING:
    import pandas as pd

    from layer_energy.study import Analysis, Study, StudySummary

study_app = typer.Typer(
    help="Train networks again and again, measure, and compare them.", no_args_is_help=True
)
app.add_typer(study_app, name="study")


@study_app.command(epilog="Example: layer-energy study run study.toml --out results")
def run(
    study: Annotated[Path, typer.Argument(help="The study file, TOML.")],
    folder: Annotated[Path, typer.Option("--out", help="Where to; resumed if begun.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the order and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Do the runs of a study. Ctrl-C gives up the run in flight; the same command goes on."""
    from layer_energy.study import load_study, run_study

    spec = load_study(study)
    if dry_run:
        _show_order(spec, as_json)
        return
    check_writable(folder)
    with (
        stopping("stopping; the run in flight will be repeated") as stopped,
        progress(as_json) as bar,
    ):
        summary = run_study(
            spec,
            folder,
            on_start=bar.start,
            on_run=lambda planned, run: bar.advance(),
            should_stop=lambda: bool(stopped),
        )
    _show_summary(summary, as_json)
    if not summary.complete:
        raise typer.Exit(STOPPED)


def _show_order(study: Study, as_json: bool) -> None:
    order = study.order()
    if as_json:
        print_json([{"run_id": p.run_id, "repetition": p.repetition, **_levels(p)} for p in order])
        return
    for planned in order:
        out.print(
            f"{planned.run_id:>4}  repetition {planned.repetition}: "
            f"{escape(str(planned.configuration))}",
            highlight=False,
        )
    waiting_s = study.protocol.warm_up_s + len(order) * study.protocol.pause_s
    out.print(f"{len(order)} runs; warm-up and pauses alone take {waiting_s / 60:.1f} minutes")


def _levels(planned: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(planned.configuration)


def _show_summary(summary: StudySummary, as_json: bool) -> None:
    facts = {
        "planned": summary.planned,
        "done": summary.done,
        "resumed": summary.resumed,
        "failed": summary.failed,
        "dropped": summary.dropped,
        "complete": summary.complete,
        "table": None if summary.table is None else str(summary.table),
    }
    if as_json:
        print_json(facts)
        return
    state = "complete" if summary.complete else "not complete; the same command goes on"
    out.print(
        f"{summary.done} of {summary.planned} runs done ({summary.resumed} of them before): {state}"
    )
    if summary.table is not None:
        out.print(f"table: {escape(str(summary.table))}", highlight=False)
    if summary.dropped:
        err.print(f"  {summary.dropped} damaged lines of the log were skipped")
    for what, reason in summary.failed.items():
        err.print(f"  failed: {escape(f'{what}: {reason}')}", highlight=False)


@study_app.command(epilog="Example: layer-energy study analyze results/runs.csv --out results")
def analyze(
    runs: Annotated[Path, typer.Argument(help="A run table, CSV.")],
    folder: Annotated[
        Path | None, typer.Option("--out", help="Write tables (CSV) and figures (PNG) here.")
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--column",
            help="For other people's tables: NAME=COLUMN or 'NAME=COLUMN * FACTOR', again for "
            "each. Names: network, device, energy_per_image_j, f1 ...",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Statistics of a run table: what differs, by how much, and what is worth its joules."""
    from layer_energy.study import analyze as apply
    from layer_energy.study import read_runs

    if folder is not None:
        check_writable(folder)
    analysis = apply(read_runs(runs, _mapping(columns or [])))
    written = [] if folder is None else analysis.save(folder)
    if as_json:
        print_json({**analysis.to_dict(), "files": [str(path) for path in written]})
        return
    _show_analysis(analysis)
    for path in written:
        out.print(f"wrote {escape(str(path))}", highlight=False)


def _mapping(texts: list[str]) -> dict[str, str] | None:
    pairs = [text.partition("=") for text in texts]
    for text, (name, equals, column) in zip(texts, pairs, strict=True):
        if not (name and equals and column):
            raise InvalidInput(f"--column takes NAME=COLUMN, got {text!r}")
    return {name.strip(): column.strip() for name, _, column in pairs} or None


def _show_analysis(analysis: Analysis) -> None:
    from layer_energy.units import si

    factors = list(analysis.factors)
    varied = ", ".join(factors)
    out.print(f"[bold]{len(analysis.table)} runs[/], varied: {varied}", highlight=False)
    summary = analysis.tables["summary"]
    shown = _table([*factors, "runs", "median J/image", "mean", "95 % interval"], len(factors))
    for row in summary[summary["response"] == "energy_per_image_j"].to_dict("records"):
        shown.add_row(
            *(escape(str(row[factor])) for factor in factors),
            str(row["runs"]),
            si(row["median"], "J"),
            si(row["mean"], "J"),
            f"{si(row['mean_low'], 'J')} – {si(row['mean_high'], 'J')}",
        )
    out.print(shown)
    normal = analysis.tables["normality"]
    normal = normal[normal["response"] == "energy_per_image_j"]
    refused = int((normal["p"] < 0.05).sum())
    out.print(
        f"Shapiro-Wilk: not normal at 5 % in {refused} of {len(normal)} configurations",
        highlight=False,
    )
    _show_tests(analysis, factors)
    _show_choice(analysis, factors)
    for note in analysis.notes:
        out.print(f"· {escape(note)}", style="dim", highlight=False)


_PAIRS = {
    "a": "a",
    "b": "b",
    "median_ratio": "a / b",
    "p_games_howell": "p Games-Howell",
    "p_dunn_holm": "p Dunn",
    "cliffs_delta": "δ",
}
_SOURCES = {"source": "source", "df": "df", "f": "F", "p": "p", "partial_eta_squared": "ηp²"}


def _show_tests(analysis: Analysis, factors: list[str]) -> None:
    omnibus, pairs = analysis.tables["omnibus"], analysis.tables["pairwise"]
    where = ["factor", *factors]
    for levels, tests in omnibus.groupby(where, sort=False) if len(omnibus) else ():
        factor, *held = levels
        fixed = [f"{f} {level}" for f, level in zip(factors, held, strict=True) if level != ""]
        values = " · ".join(
            f"{t} p = {_cell(p)}" for t, p in zip(tests["test"], tests["p"], strict=True)
        )
        out.print(f"[bold]{', '.join([f'by {factor}', *map(escape, fixed)])}[/]: {values}")
        same = (pairs[where] == list(levels)).all(axis=1)
        _print(pairs[same], _PAIRS, words=2)
    if len(ways := analysis.tables["two_way"]):
        out.print("[bold]two-way ANOVA[/]")
        _print(ways, _SOURCES, words=1)


def _print(rows: pd.DataFrame, columns: dict[str, str], words: int) -> None:
    shown = _table(list(columns.values()), words)
    for row in rows.to_dict("records"):
        shown.add_row(*(_cell(row[column]) for column in columns))
    out.print(shown)


def _show_choice(analysis: Analysis, factors: list[str]) -> None:
    best = analysis.best_saving()
    if best is None:
        return
    gain = "f1" if "f1" in best else "accuracy"
    top = analysis.tables["pareto"].iloc[0]
    cheapest = ", ".join(str(best[factor]) for factor in factors)
    reference = ", ".join(str(top[factor]) for factor in factors)
    front = int(analysis.tables["pareto"]["pareto"].sum())
    if cheapest == reference:
        text = f"no configuration within 2 % of the best {gain} ({reference}) is cheaper than it"
    else:
        text = (
            f"{cheapest} saves {best['saving']:.1%} of the joules an image of {reference}, which "
            f"has the best {gain}, and loses {best['loss']:.1%} of it"
        )
    out.print(f"{escape(text)}; {front} configurations are on the Pareto front", highlight=False)


def _table(columns: list[str], words: int) -> Table:
    shown = Table(box=box.SIMPLE, pad_edge=False, show_edge=False)
    for i, name in enumerate(columns):
        shown.add_column(name, justify="left" if i < words else "right", no_wrap=True)
    return shown


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "-" if value != value else f"{value:.3g}"
    return escape(str(value))
