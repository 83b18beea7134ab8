"""``layer-energy compare``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from layer_energy.carbon import grid_intensity
from layer_energy.cli.base import CarbonIntensity, Country, Json, app, err, out, print_json
from layer_energy.cli.predict import HostSpeed, LaunchOption
from layer_energy.errors import InvalidInput

if TYPE_CHECKING:
    import pandas as pd


@app.command(
    epilog="Example: layer-energy compare vgg16 resnet50 mobilenet_v2 --device nvidia-a100 "
    "--device nvidia-a10"
)
def compare(
    models: Annotated[
        list[str] | None, typer.Argument(help="Names, as `layer-energy predict` takes them.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="All classifiers of torchvision; takes a minute.")
    ] = False,
    devices: Annotated[
        list[str] | None,
        typer.Option("--device", help="A profile, again for each; all shipped ones if not given."),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Samples a pass.")] = 1,
    dtype: Annotated[str | None, typer.Option(help="Price as if run in this dtype.")] = None,
    launch: LaunchOption = None,
    host_speed: HostSpeed = 1.0,
    front: Annotated[
        bool, typer.Option("--front", help="Print only what no other choice on its device beats.")
    ] = False,
    country: Country = None,
    carbon_intensity: CarbonIntensity = None,
    as_json: Json = False,
) -> None:
    """Which network on which device: joules, time, accuracy, and the Pareto front."""
    from layer_energy.comparison import compare as run
    from layer_energy.models import classifiers

    wants_carbon = country is not None or carbon_intensity is not None
    intensity = grid_intensity(country, carbon_intensity) if wants_carbon else None
    names = dict.fromkeys([*(models or []), *(classifiers() if every else [])])
    if not names:
        raise InvalidInput("name at least one model, such as resnet50, or give --all")
    with err.status("walking") as status:
        table = run(
            names,
            devices,
            batch_size=batch_size,
            dtype=dtype,
            launch=launch,
            host_speed=host_speed,
            intensity=intensity,
            on_model=lambda name: status.update(f"walking {escape(name)}"),
        )
    shown = table[table["pareto_on_device"]] if front else table
    if as_json:
        grid = {"intensity": asdict(intensity)} if intensity else {}
        rows = json.loads(shown.to_json(orient="records", double_precision=15))
        print_json({"rows": rows, **table.attrs, **grid})
    else:
        _show(shown, table.attrs["profiles"])
        if intensity:
            grams = f"{intensity.g_per_kwh:.4g} g/kWh ({intensity.source})"
            _notes([f"carbon: of one sample's joules, CO2e at {grams}"])


def _show(table: pd.DataFrame, profiles: dict[str, dict[str, Any]]) -> None:
    for device, origin in profiles.items():
        quality = "ESTIMATED" if origin["quality"] == "estimated" else origin["quality"]
        uncertainty = f"±{origin['relative_uncertainty']:.0%}"
        out.print(
            f"[bold]{escape(device)}[/]: predicted for {escape(origin['name'])}; joules of its "
            f"profile: {quality}, {uncertainty}",
            highlight=False,
        )
        out.print(_rows(table[table["device"] == device].sort_values("energy_per_sample_j")))
        _notes(origin["assumptions"])
        out.print()
    batch, dtypes = table["batch_size"].iloc[0], ", ".join(sorted(set(table["dtype"])))
    _notes(
        [
            f"inference, {dtypes}, batch {batch}; joules of one sample, seconds of the batch",
            "in range: share of the joules priced inside the fitted range",
            "accuracy: top-1 on ImageNet-1K that torchvision publishes for its best weights, at "
            "their input size",
            "front: no other choice, of all or of this device, is as accurate for as few joules a "
            "sample; where intervals overlap, the order is not certain",
        ]
    )


def _rows(table: pd.DataFrame) -> Table:
    from layer_energy.units import si

    shown = Table(box=box.SIMPLE, pad_edge=False, show_edge=False)
    shown.add_column("model", no_wrap=True)
    carbon = "carbon_per_sample_kg" in table
    columns = ("accuracy", "energy", "90 % interval", "time", "in range", "front")
    for name in (*columns, "carbon") if carbon else columns:
        shown.add_column(name, justify="right", no_wrap=True)
    for row in table.to_dict("records"):
        low_j, high_j = row["energy_per_sample_low_j"], row["energy_per_sample_high_j"]
        shown.add_row(
            escape(row["model"]),
            f"{row['accuracy']:.1%}" if row["accuracy"] == row["accuracy"] else "-",
            si(row["energy_per_sample_j"], "J"),
            f"{si(low_j, 'J')} – {si(high_j, 'J')}",
            si(row["time_s"], "s"),
            f"{row['in_domain']:.0%}",
            "of all" if row["pareto"] else "of device" if row["pareto_on_device"] else "",
            *([si(1e3 * row["carbon_per_sample_kg"], "g")] if carbon else []),
        )
    return shown


def _notes(sentences: list[str]) -> None:
    for sentence in sentences:
        out.print(f"· {escape(sentence)}", style="dim", highlight=False)
