"""``layer-energy verify``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from layer_energy.cli.base import Json, app, err, out, parse_inputs, print_json


@app.command(epilog="Example: layer-energy verify resnet18 --batch-size 8")
def verify(
    model: Annotated[str, typer.Argument(help="A name, as `layer-energy predict` takes it.")],
    input: Annotated[  # noqa: A002  # the option's name
        list[str] | None,
        typer.Option("--input", help="Shape of an input, as in `layer-energy predict`."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Samples of an inferred input.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="The profile of a CPU: a name or a .json file.")
    ] = None,
    meter: Annotated[str, typer.Option(help="auto, rapl or estimated.")] = "auto",
    as_json: Json = False,
) -> None:
    """Predict, measure on this machine, and show the gap per layer and in total."""
    from layer_energy.meters import open_meter
    from layer_energy.verification import verify as run

    args, kwargs = parse_inputs(input or [])
    with err.status("starting") as status:
        verified = run(
            model,
            *args,
            kwargs=kwargs,
            batch_size=batch_size,
            device=device,
            meter=open_meter(meter),
            on_step=lambda step: status.update(escape(step)),
        )
    if as_json:
        print_json(verified.to_dict())
    else:
        out.print(verified.render())
