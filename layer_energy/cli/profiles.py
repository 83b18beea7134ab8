"""``layer-energy fit``, ``profiles`` and ``doctor``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from layer_energy.cli.base import DatasetFolder, Json, app, err, out, parse_device, print_json
from layer_energy.errors import InvalidInput, LayerEnergyError
from layer_energy.version import __version__


@app.command(epilog="Example: layer-energy fit datasets/my-cpu --out my-cpu.json")
def fit(
    dataset: DatasetFolder,
    profile: Annotated[Path, typer.Option("--out", help="The profile to write, a .json file.")],
    regressor: Annotated[
        str | None,
        typer.Option(
            help="pooled (GPUs of the catalogue), hybrid, physical, polynomial or auto; pooled "
            "where it can be, else hybrid, if not given."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Fit a profile to a dataset."""
    from layer_energy.dataset import Dataset
    from layer_energy.evaluate import fit_profile

    if profile.suffix != ".json":
        raise InvalidInput(f"--out must name a .json file, got {profile}")
    with err.status("fitting"):
        model = fit_profile(Dataset.load(dataset), regressor)
    model.save(profile)
    facts = {
        "profile": str(profile),
        "kinds": len(model.layer_types),
        "rows": model.dataset["rows"],
        "networks": model.totals_of("inference").count,
        "steps": model.totals_of("training").count,
        "quality": model.quality,
    }
    if as_json:
        print_json(facts)
    else:
        out.print(
            f"{profile}: {facts['kinds']} layer types from {facts['rows']} rows, interval of "
            f"totals from {facts['networks']} networks and {facts['steps']} training steps, joules "
            f"{facts['quality']}"
        )


@app.command(epilog="Example: layer-energy profiles --json")
def profiles(as_json: Json = False) -> None:
    """List the profiles that ship with the package."""
    from layer_energy.model import EnergyModel, inferred_profiles
    from layer_energy.model import profiles as names

    models = {name: EnergyModel.load(name) for name in names()}
    if as_json:
        print_json(
            {
                name: {
                    "device": m.device,
                    "dataset": m.dataset,
                    "quality": m.quality,
                    "dtypes": m.dtypes,
                    "networks": m.totals_of("inference").count,
                }
                for name, m in models.items()
            }
        )
        return
    table = Table(
        Column("profile", no_wrap=True),
        "device",
        "joules",
        "dtypes",
        "layer types",
        "rows",
        "networks",
    )
    for name, m in models.items():
        table.add_row(
            name,
            m.device["name"],
            m.quality,
            ", ".join(m.dtypes),
            str(len(m.layer_types)),
            str(m.dataset["rows"]),
            str(m.totals_of("inference").count),
        )
    out.print(table)
    out.print(f"inferred from data sheets: {', '.join(inferred_profiles())}")


@app.command(epilog="Example: layer-energy doctor --device cuda")
def doctor(
    device: Annotated[
        str | None,
        typer.Option(help="cpu, cuda, cuda:N or virtual; if not given, a GPU where there is one."),
    ] = None,
    as_json: Json = False,
) -> None:
    """What this machine is, where its joules would come from, and how a GPU's sensor behaves."""
    from layer_energy.model import profiles as names

    kind, index = parse_device(device or _best_device())
    facts = {"layer_energy": __version__, **_cpu_facts(), "profiles": names()}
    if kind != "cpu":
        facts["gpu"] = _gpu_facts(kind, index)
    if as_json:
        print_json(facts)
        return
    if "gpu" in facts:
        _show_gpu(facts["gpu"])
        return
    out.print_json(json.dumps(facts))


def _best_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _cpu_facts() -> dict[str, Any]:
    from dataclasses import asdict

    from layer_energy.device import local_cpu
    from layer_energy.meters import open_meter
    from layer_energy.meters.base import meters

    sources = {}
    for name in meters():
        try:
            sources[name] = open_meter(name).quality
        except InvalidInput:  # it takes what only a program can give
            sources[name] = "to be made in Python"
        except LayerEnergyError as error:
            sources[name] = f"not available: {error}"
    chosen = open_meter()
    return {
        "device": asdict(local_cpu()),
        "meters": sources,
        "chosen_meter": chosen.name,
        "assumptions": list(chosen.assumptions),
    }


def _gpu_facts(kind: str, index: int) -> dict[str, Any]:
    from dataclasses import asdict

    from layer_energy.measure import GpuBench, open_gpu

    gpu, sensor = open_gpu(kind, index)
    with err.status("warming up and calibrating the sensor, some 15 seconds"):
        bench = GpuBench(gpu, sensor)
        bench.close()
    return {"device": asdict(gpu.device), "quality": bench.quality, **bench.facts()}


def _show_gpu(facts: dict[str, Any]) -> None:
    """How a GPU's sensor behaves, in sentences."""
    device, sensor, found = facts["device"], facts["sensor"], facts["calibrations"][-1]
    row_s = found["settle_s"] + 2 * max(found["period_s"], found["power_period_s"]) + 0.05
    lines = [
        f"{device['name']}, driver {sensor['driver']}: joules are {facts['quality']}",
        f"its sensor answers: {', '.join(sensor['answered']) or 'nothing'}",
        f"steady layers take {found['power_source']}, updated every "
        f"{1e3 * found['power_period_s']:.1f} ms",
    ]
    if found["counter"]:
        lines.append(
            f"the energy counter is updated every {1e3 * found['period_s']:.1f} ms, a read takes "
            f"{1e3 * found['read_s']:.1f} ms; it follows power after {1e3 * found['lag_s']:.0f} ms"
        )
    if found["counter_over_power"] is not None:
        lines.append(f"it counts {found['counter_over_power']:.3f} × instant power × time")
    lines += [
        f"work has settled after {1e3 * found['settle_s']:.0f} ms: a layer takes about "
        f"{row_s:.2f} s, {60 / row_s:.0f} fit into a minute",
        f"{found['idle_power_w']:.0f} W without work, {found['load_power_w']:.0f} W under load"
        + (f", limit {sensor['power_limit_w']:.0f} W" if sensor["power_limit_w"] else ""),
        *found["warnings"],
    ]
    for line in lines:
        out.print(f"· {line}", highlight=False)
