"""``layer-energy collect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
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
from layer_energy.errors import InvalidInput


@app.command(
    epilog="Example: layer-energy collect --out datasets/my-cpu --rows conv2d=300,relu=100"
)
def collect(
    folder: Annotated[Path, typer.Option("--out", help="The dataset's folder; resumed if begun.")],
    rows: Annotated[
        str, typer.Option(help="'default', a number for every layer type, or KIND=N,KIND=N.")
    ] = "default",
    seed: Annotated[int, typer.Option(help="Of the random layers.")] = 0,
    meter: Annotated[str, typer.Option(help="auto, rapl or estimated.")] = "auto",
    max_power_w: Annotated[
        float | None, typer.Option(help="Full-load power (TDP) for the estimate, in watts.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Compute threads of torch.")] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Stop cleanly after this; run again to go on.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Measure random layers on this machine and write a dataset. Ctrl-C stops after the row."""
    from layer_energy.collect import collect as run
    from layer_energy.device import local_cpu
    from layer_energy.meters import open_meter

    wanted = _rows(rows)
    if dry_run:
        _show_plan(wanted, as_json)
        return
    check_writable(folder)
    if threads:
        import torch

        torch.set_num_threads(threads)
    options = {} if max_power_w is None else {"max_power_w": max_power_w}
    with stopping() as stopped, progress(quiet=as_json) as bar:
        summary = run(
            folder,
            local_cpu(),
            open_meter(meter, **options),
            wanted,
            seed=seed,
            budget_s=None if minutes is None else 60 * minutes,
            on_start=bar.start,
            on_row=lambda row: bar.advance(),
            should_stop=lambda: bool(stopped),
        )
    if as_json:
        print_json({**vars(summary), "rows_per_minute": summary.rows_per_minute})
    else:
        state = "complete" if summary.complete else "stopped; run the same command to go on"
        out.print(
            f"{folder}: {state}. {summary.measured} rows measured in {summary.seconds:.0f} s "
            f"({summary.rows_per_minute:.0f} a minute), {summary.resumed} resumed, "
            f"{len(summary.failed)} failed, {summary.suspect_blocks} blocks measured again"
        )
        for reason in sorted(set(summary.failed))[:5]:
            err.print(f"  failed: {reason}")
    if not summary.complete:
        raise typer.Exit(3)


def _rows(text: str) -> dict[str, int]:
    from layer_energy.layers import layer_type
    from layer_energy.plan import default_rows

    if text == "default":
        return default_rows()
    try:
        if "=" not in text:
            return dict.fromkeys(default_rows(), int(text))
        pairs = [part.partition("=") for part in text.split(",")]
        wanted = {kind.strip(): int(n) for kind, _, n in pairs}
    except ValueError:
        raise InvalidInput(
            f"--rows {text!r} is neither 'default', a number for every layer type, nor "
            "KIND=N,KIND=N"
        ) from None
    return {layer_type(kind).kind: n for kind, n in wanted.items()}


def _show_plan(rows: dict[str, int], as_json: bool) -> None:
    from layer_energy.plan import CPU_SECONDS_PER_ROW

    seconds = CPU_SECONDS_PER_ROW * sum(rows.values())
    if as_json:
        print_json({"rows": rows, "estimated_s": seconds})
        return
    table = Table("layer type", "rows")
    for kind, n in sorted(rows.items(), key=lambda item: -item[1]):
        table.add_row(kind, str(n))
    out.print(table)
    out.print(f"{sum(rows.values())} rows, about {seconds / 60:.0f} minutes on a small CPU")
