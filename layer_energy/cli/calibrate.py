"""``layer-energy calibrate``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from layer_energy.cli.base import Json, app, err, out, print_json
from layer_energy.errors import InvalidInput


@app.command(
    epilog="Example: layer-energy calibrate --totals mine.csv --profile nvidia-a100 --out mine.json"
)
def calibrate(
    totals: Annotated[
        Path,
        typer.Option(
            help="CSV: model, energy_j, time_s; optional input, batch_size, dtype, quality."
        ),
    ],
    profile: Annotated[
        str, typer.Option(help="The profile of the most similar device: says what totals do not.")
    ],
    out_file: Annotated[Path, typer.Option("--out", help="The profile to write, a .json file.")],
    name: Annotated[
        str | None, typer.Option(help="Of the device; the name of the file if not given.")
    ] = None,
    uncertainty: Annotated[
        float, typer.Option(min=0, max=1, help="Systematic relative error of those joules.")
    ] = 0.05,
    as_json: Json = False,
) -> None:
    """Fit a profile to whole networks that any tool measured on another device."""
    from layer_energy.calibrate import calibrate as fit
    from layer_energy.model import EnergyModel
    from layer_energy.totals import read_totals

    if out_file.suffix != ".json":
        raise InvalidInput(f"--out must name a .json file, got {out_file}")
    base = EnergyModel.load(profile)
    with err.status("walking the networks"):
        measured = read_totals(totals)
    with err.status("fitting"):
        model = fit(measured, base, name or out_file.stem, totals.name, uncertainty)
    model.save(out_file)
    width = model.law.half_width if model.law else (0.0, 0.0)
    facts = {
        "profile": str(out_file),
        "totals": model.dataset["rows"],
        "left_out": len(measured) - model.dataset["rows"],
        "dtypes": model.dtypes,
        "quality": model.quality,
        "energy_half_width_log": width[0],
        "time_half_width_log": width[1],
    }
    if as_json:
        print_json(facts)
    else:
        out.print(
            f"{out_file}: fitted on {facts['totals']} totals ({facts['left_out']} implausible ones "
            f"left out), joules {model.quality}; nine in ten, their network left out of the fit, "
            f"were predicted within a factor of {math.exp(width[0]):.2f} in joules and "
            f"{math.exp(width[1]):.2f} in seconds"
        )
