"""``layer-energy predict``."""

from __future__ import annotations

from typing import Annotated

import typer

from layer_energy.cli.base import Json, app, out, parse_inputs, print_json


@app.command(epilog="Example: layer-energy predict resnet50 --batch-size 8")
def predict(
    model: Annotated[
        str,
        typer.Argument(
            help="A torchvision name, timm:NAME, hf:PATH-OR-CONFIG, or package.module:factory."
        ),
    ],
    input: Annotated[  # noqa: A002  # the option's name
        list[str] | None,
        typer.Option(
            "--input",
            help="Shape of an input, 1,3,224,224 or 1,128:int64; NAME=SHAPE for a keyword.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Samples of an inferred input.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="A profile: a shipped name or a .json file.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Price as if run in this dtype.")] = None,
    mode: Annotated[str, typer.Option(help="inference or training.")] = "inference",
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail on operations without a model of their own.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Predict the joules of one forward pass."""
    from layer_energy.models import walk_model
    from layer_energy.predict import predict_energy
    from layer_energy.report.text import render

    args, kwargs = parse_inputs(input or [])
    trace = walk_model(model, *args, kwargs=kwargs, batch_size=batch_size)
    report = predict_energy(trace, device=device, dtype=dtype, mode=mode, strict=strict, name=model)
    if as_json:
        print_json(report.to_dict())
    else:
        out.print(render(report))
