"""``layer-energy predict``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layer_energy.carbon import carbon_of, grid_intensity
from layer_energy.cli.base import (
    CarbonIntensity,
    Country,
    Json,
    app,
    err,
    out,
    parse_inputs,
    print_json,
)
from layer_energy.errors import InvalidInput
from layer_energy.files import write_text_atomically
from layer_energy.units import parse_energy_j, si

if TYPE_CHECKING:
    from layer_energy.report import EnergyReport


ModelName = Annotated[
    str,
    typer.Argument(
        help="A torchvision name, timm:NAME, hf:PATH-OR-CONFIG, or package.module:factory."
    ),
]
Input = Annotated[
    list[str] | None,
    typer.Option(
        "--input", help="Shape of an input, 1,3,224,224 or 1,128:int64; NAME=SHAPE for a keyword."
    ),
]
Profile = Annotated[
    str | None, typer.Option("--device", help="A profile: a shipped name or a .json file.")
]
LaunchOption = Annotated[
    str | None,
    typer.Option("--launch", help="Of a GPU: eager (if not given) or graph, as CUDA graphs run."),
]
HostSpeed = Annotated[
    float,
    typer.Option(
        "--host-speed",
        help="Of a GPU: your host launches this much faster than that of the profile.",
    ),
]
Dtype = Annotated[str | None, typer.Option(help="Price as if run in this dtype.")]
Mode = Annotated[str, typer.Option(help="inference or training.")]


@app.command(epilog="Example: layer-energy predict resnet50 --batch-size 8")
def predict(
    model: ModelName,
    input: Input = None,  # noqa: A002  # the option's name
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Samples of an inferred input.")
    ] = None,
    device: Profile = None,
    dtype: Dtype = None,
    mode: Mode = "inference",
    launch: LaunchOption = None,
    host_speed: HostSpeed = 1.0,
    optimizer: Annotated[
        str | None, typer.Option(help="Of a training step: sgd, adam or adamw (if not given).")
    ] = None,
    accumulation: Annotated[int, typer.Option(min=1, help="Micro-batches of a training step.")] = 1,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Activations are computed twice, not kept.")
    ] = False,
    frozen_backbone: Annotated[
        bool, typer.Option("--frozen-backbone", help="Only the last layer is trained.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail on operations without a model of their own.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write the report as one HTML file, too.")
    ] = None,
    country: Country = None,
    carbon_intensity: CarbonIntensity = None,
    price: Annotated[
        float, typer.Option(help="For --html: price of a kWh, assumed if not given.")
    ] = 0.25,
    currency: Annotated[str, typer.Option(help="For --html: currency of the price.")] = "EUR",
    folded: Annotated[
        Path | None,
        typer.Option("--folded", help="Write folded stacks (nanojoules) for flame-graph tools."),
    ] = None,
    fail_above: Annotated[
        str | None,
        typer.Option(
            "--fail-above",
            help="Exit with code 1 if the predicted joules exceed this: 12J, 500mJ, 1kJ, 2Wh.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Predict the joules of one forward pass, or of one training step.

    Exit codes: 0; 1 if --fail-above is exceeded; 2 for mistakes.
    """
    from layer_energy.report.text import render

    limit_j = None if fail_above is None else parse_energy_j(fail_above)
    intensity = grid_intensity(country, carbon_intensity)
    wants_carbon = country is not None or carbon_intensity is not None
    report = predicted(
        model,
        input,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        mode=mode,
        launch=launch,
        host_speed=host_speed,
        optimizer=optimizer,
        accumulation=accumulation,
        checkpointing=checkpointing,
        frozen_backbone=frozen_backbone,
        strict=strict,
    )
    carbon = carbon_of(report.energy_j, report.interval_j, intensity)
    if as_json:
        print_json(report.to_dict() | (carbon.to_dict() if wants_carbon else {}))
    else:
        out.print(render(report))
        if wants_carbon:
            out.print(f"· {carbon}", style="dim", markup=False, highlight=False)
    if html:
        report.to_html(
            html,
            country=country,
            intensity_g_per_kwh=carbon_intensity,
            price_per_kwh=price,
            currency=currency,
        )
        err.print(f"written: {html}", markup=False, highlight=False)
    if folded:
        write_text_atomically(folded, report.to_folded())
        err.print(f"written: {folded}", markup=False, highlight=False)
    if limit_j is not None:
        _check(report, limit_j)


def _check(report: EnergyReport, limit_j: float) -> None:
    low_j, high_j = (si(value, "J", 4) for value in report.interval_j)
    above = report.energy_j > limit_j
    err.print(
        f"{report.model} on {report.device}: {si(report.energy_j, 'J', 4)} predicted (90 % "
        f"interval {low_j} to {high_j}), {'ABOVE' if above else 'within'} the limit of "
        f"{si(limit_j, 'J', 4)}",
        markup=False,
        highlight=False,
    )
    if above:
        raise typer.Exit(1)


def predicted(
    model: str,
    inputs: list[str] | None,
    batch_size: int | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
    mode: str = "inference",
    launch: str | None = None,
    host_speed: float = 1.0,
    frozen_backbone: bool = False,
    strict: bool = False,
    **step: Any,
) -> EnergyReport:
    """The report of a model by name; a model that cannot be walked without values gets some."""
    from layer_energy.models import walk_model
    from layer_energy.predict import predict_energy, training_step
    from layer_energy.walk import AMP

    if frozen_backbone and mode == "inference":
        raise InvalidInput("--frozen-backbone belongs to --mode training")
    args, kwargs = parse_inputs(inputs or [])
    trace = walk_model(
        model,
        *args,
        kwargs=kwargs,
        batch_size=batch_size,
        step=training_step(device, mode, **step),
        autocast=AMP.get(dtype or ""),
        frozen_backbone=frozen_backbone,
    )
    return predict_energy(
        trace, name=model, device=device, dtype=dtype, mode=mode, launch=launch,
        host_speed=host_speed, strict=strict,
    )  # fmt: skip


def inputs_of(model: str, texts: list[str] | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs as written, else those of the model's weights."""
    from layer_energy.models import default_input

    if not texts and (size := default_input(model)):
        return ((1, *size),), {}
    return parse_inputs(texts or [])
