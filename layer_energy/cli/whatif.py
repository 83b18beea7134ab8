"""``layer-energy diff`` and ``layer-energy sweep``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from layer_energy.cli.base import Json, app, out, print_json
from layer_energy.cli.predict import (
    Dtype,
    HostSpeed,
    Input,
    LaunchOption,
    Mode,
    ModelName,
    Profile,
    inputs_of,
    predicted,
)
from layer_energy.errors import InvalidInput
from layer_energy.files import write_text_atomically
from layer_energy.units import parse_energy_j, si


@app.command(epilog="Example: layer-energy diff resnet50 resnext50_32x4d --depth 1")
def diff(
    model_a: ModelName,
    model_b: ModelName,
    input: Input = None,  # noqa: A002  # the option's name
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples of the input.")] = None,
    device: Profile = None,
    dtype: Dtype = None,
    launch: LaunchOption = None,
    host_speed: HostSpeed = 1.0,
    depth: Annotated[
        int | None, typer.Option(min=1, help="Dots of the module paths to keep; all if not given.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Where the predicted joules of two models differ, module by module."""
    from layer_energy.report.difference import diff as compared

    options: dict[str, Any] = {
        "batch_size": batch_size, "device": device, "dtype": dtype, "launch": launch,
        "host_speed": host_speed,
    }  # fmt: skip
    difference = compared(
        predicted(model_a, input, **options), predicted(model_b, input, **options), depth
    )
    if as_json:
        print_json(difference.to_dict())
    else:
        out.print(difference)


@app.command(epilog="Example: layer-energy sweep resnet50 --batch-size 1,8,64 --plot sweep.png")
def sweep(
    model: ModelName,
    input: Input = None,  # noqa: A002  # the option's name
    batch_size: Annotated[str | None, typer.Option(help="Such as 1,8,64.")] = None,
    image_size: Annotated[str | None, typer.Option(help="Such as 224,320.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Such as float32,bfloat16.")] = None,
    device: Annotated[str | None, typer.Option(help="Profiles: names or .json files.")] = None,
    mode: Mode = "inference",
    launch: LaunchOption = None,
    host_speed: HostSpeed = 1.0,
    joule_budget: Annotated[
        str | None,
        typer.Option(
            "--joule-budget",
            help="Find the largest batch or image predicted within this: 12J, 500mJ, 1kJ, 2Wh.",
        ),
    ] = None,
    largest: Annotated[
        str, typer.Option(help="What --joule-budget enlarges: batch_size or image_size.")
    ] = "batch_size",
    csv: Annotated[Path | None, typer.Option(help="Write the table to a CSV file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write the plot to an image file.")] = None,
    as_json: Json = False,
) -> None:
    """Predict every combination of batch size, image size, dtype and device."""
    from layer_energy.models import build_model
    from layer_energy.whatif import largest_within, plot_sweep
    from layer_energy.whatif import sweep as swept

    budget_j = None if joule_budget is None else parse_energy_j(joule_budget)
    axes: dict[str, Any] = {
        "batch_size": _listed("--batch-size", batch_size, int),
        "image_size": _listed("--image-size", image_size, int),
        "dtype": _listed("--dtype", dtype, str),
        "device": _listed("--device", device, str),
    }
    args, kwargs = inputs_of(model, input)
    if budget_j is not None:
        held = {name: _only(name, values) for name, values in axes.items() if values}
        found = largest_within(
            build_model(model), budget_j, *args, varied=largest, kwargs=kwargs, mode=mode,
            launch=launch, host_speed=host_speed, name=model, **held,
        )  # fmt: skip
        low_j, high_j = found.report.interval_j
        result = {
            largest: found.value, "budget_j": budget_j, "energy_j": found.report.energy_j,
            "energy_low_j": low_j, "energy_high_j": high_j, "next": found.next_value,
            "next_energy_j": found.next_energy_j, "device": found.report.device,
            "quality": found.report.quality, "input": found.report.input,
        }  # fmt: skip
        if as_json:
            print_json(result)
            return
        out.print(
            f"{model} on {found.report.device} ({found.report.quality} joules): {largest} "
            f"{found.value} is the largest within {si(budget_j, 'J', 4)}: "
            f"{si(found.report.energy_j, 'J', 4)} predicted, 90 % interval {si(low_j, 'J')} to "
            f"{si(high_j, 'J')}; {found.next_value} would take {si(found.next_energy_j, 'J', 4)}",
            markup=False,
        )
        return
    frame = swept(
        build_model(model),
        *args,
        kwargs=kwargs,
        mode=mode,
        launch=launch,
        host_speed=host_speed,
        name=model,
        **axes,
    )
    if csv:
        write_text_atomically(csv, frame.to_csv(index=False))
    if plot:
        figure: Any = plot_sweep(frame).figure  # of new axes: a Figure, never a SubFigure
        figure.savefig(plot)
    if as_json:
        print_json(json.loads(frame.to_json(orient="records")))
    else:
        out.print(_table(model, frame.to_dict(orient="records")))


def _listed(option: str, text: str | None, of: Callable[[str], Any]) -> list[Any] | None:
    try:
        return None if text is None else [of(part.strip()) for part in text.split(",")]
    except ValueError:
        raise InvalidInput(f"{option} takes values separated by commas, got {text!r}") from None


def _only(name: str, values: list[Any]) -> Any:
    if len(values) > 1:
        raise InvalidInput(f"with --joule-budget give one {name} or none, got {len(values)}")
    return values[0]


def _table(model: str, rows: list[dict[Any, Any]]) -> RenderableType:
    from layer_energy.report.text import interval

    table = Table(title=f"{model}: predicted, not measured", title_justify="left")
    table.box, table.pad_edge = box.SIMPLE, False
    for name in ("profile", "dtype", "input"):
        table.add_column(name, overflow="fold")
    for name in ("batch", "energy", "90 % interval", "per sample", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        if not row["error"]:
            table.add_row(
                row["device"],
                row["dtype"],
                row["input"],
                str(row["batch_size"]),
                si(row["energy_j"], "J"),
                interval(row["energy_low_j"], row["energy_high_j"]),
                si(row["energy_per_sample_j"], "J"),
                si(row["time_s"], "s"),
            )
    sources = {f"joules of {r['device']}: {r['quality']}" for r in rows if not r["error"]}
    lost = {f"without a number: {row['error']}" for row in rows if row["error"]}
    return Group(table, *(Text(f"· {line}") for line in [*sorted(sources), *sorted(lost)]))
