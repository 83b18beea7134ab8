"""``layer-energy project``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from layer_energy.carbon import carbon_of, grid_intensity
from layer_energy.cli.base import CarbonIntensity, Country, Json, app, out, print_json


@app.command(epilog="Example: layer-energy project trace.csv --epochs 90 --observed 0.2")
def project(
    trace: Annotated[Path, typer.Argument(help="A CSV file with the columns t_s and power_w.")],
    epochs: Annotated[int, typer.Option(help="Epochs of the whole run.")],
    observed: Annotated[
        float, typer.Option(help="Share of the run that is known: epochs done over epochs.")
    ] = 1.0,
    form: Annotated[str, typer.Option(help="epoch (measured so far + to come) or power.")] = (
        "epoch"
    ),
    country: Country = None,
    carbon_intensity: CarbonIntensity = None,
    as_json: Json = False,
) -> None:
    """Project the joules of a recorded training run from its first part."""
    from layer_energy.training import PowerTrace, project_trace

    intensity = grid_intensity(country, carbon_intensity)
    wants_carbon = country is not None or carbon_intensity is not None
    projection = project_trace(PowerTrace.from_csv(trace), epochs, observed, form)
    carbon = carbon_of(projection.energy_j, (projection.low_j, projection.high_j), intensity)
    if as_json:
        print_json(projection.to_dict() | (carbon.to_dict() if wants_carbon else {}))
        return
    out.print(str(projection))
    start, stop = projection.window
    out.print(f"window: epochs {start:.4g} to {stop:.4g}, counted from 0; {form} form")
    if wants_carbon:
        out.print(f"whole run: {carbon}", markup=False, highlight=False)
    for note in projection.notes:
        out.print(f"· {note}", style="dim")
