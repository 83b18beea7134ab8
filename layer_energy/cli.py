"""The command line: each command parses, makes one public call, and prints."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from layer_energy.errors import InvalidInput, LayerEnergyError, WalkError
from layer_energy.version import __version__

if TYPE_CHECKING:
    from layer_energy.dataset import Dataset, NetworkMeasurement
    from layer_energy.evaluate import Score
    from layer_energy.model import EnergyModel

app = typer.Typer(
    help="How many joules a neural network will use, layer by layer, before it runs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
evaluate_app = typer.Typer(help="Predictions beside measurements.", no_args_is_help=True)
app.add_typer(evaluate_app, name="evaluate")
out, err = Console(), Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
DatasetFolder = Annotated[Path, typer.Argument(help="A dataset folder, such as datasets/NAME.")]


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def _version(wanted: bool) -> None:
    if wanted:
        out.print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


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
    from layer_energy.models import build_model, default_input
    from layer_energy.predict import predict_energy
    from layer_energy.report.text import render

    args, kwargs = _inputs(input or [])
    built = build_model(model)
    if not args and not kwargs and (size := default_input(model)):
        args, batch_size = ((batch_size or 1, *size),), None
        assumed = f"input {'x'.join(map(str, args[0]))} from the transforms of {model}'s weights"
    else:
        assumed = ""
    options: dict[str, Any] = {
        "kwargs": kwargs,
        "batch_size": batch_size,
        "device": device,
        "dtype": dtype,
        "mode": mode,
        "strict": strict,
        "name": model,
    }
    try:
        report = predict_energy(built, *args, **options)
    except WalkError:
        if not any(parameter.is_meta for parameter in built.parameters()):
            raise
        report = predict_energy(build_model(model, real=True), *args, **options)
    if assumed:
        report.assumptions.insert(0, assumed)
    if as_json:
        _print_json(report.to_dict())
    else:
        out.print(render(report))


def _inputs(texts: list[str]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    from layer_energy.walk import parse_shape

    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for text in texts:
        name, equals, shape = text.partition("=")
        if equals:
            kwargs[name] = parse_shape(shape)
        else:
            args.append(parse_shape(text))
    return tuple(args), kwargs


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
    _check_writable(folder)
    if threads:
        import torch

        torch.set_num_threads(threads)
    options = {} if max_power_w is None else {"max_power_w": max_power_w}
    with _stopping() as stopped, _progress(quiet=as_json) as progress:
        summary = run(
            folder,
            local_cpu(),
            open_meter(meter, **options),
            wanted,
            seed=seed,
            budget_s=None if minutes is None else 60 * minutes,
            on_start=progress.start,
            on_row=lambda row: progress.advance(),
            should_stop=lambda: bool(stopped),
        )
    if as_json:
        _print_json({**vars(summary), "rows_per_minute": summary.rows_per_minute})
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


def _check_writable(folder: Path) -> None:
    parent = folder
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InvalidInput(f"cannot write to {folder}: {parent} is not a writable folder")


def _show_plan(rows: dict[str, int], as_json: bool) -> None:
    from layer_energy.plan import CPU_SECONDS_PER_ROW

    seconds = CPU_SECONDS_PER_ROW * sum(rows.values())
    if as_json:
        _print_json({"rows": rows, "estimated_s": seconds})
        return
    table = Table("layer type", "rows")
    for kind, n in sorted(rows.items(), key=lambda item: -item[1]):
        table.add_row(kind, str(n))
    out.print(table)
    out.print(f"{sum(rows.values())} rows, about {seconds / 60:.0f} minutes on a small CPU")


@contextmanager
def _stopping() -> Iterator[list[int]]:
    """A list that the first Ctrl-C fills; the second one ends the program at once."""
    signals: list[int] = []

    def stop(number: int, frame: Any) -> None:
        if signals:
            raise KeyboardInterrupt
        signals.append(number)
        err.print("stopping after this row; press Ctrl-C again to stop at once")

    previous = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class _Bar:
    """A progress bar whose length is known only once the work begins."""

    def __init__(self, progress: Any) -> None:
        self._progress = progress
        self._task = progress.add_task("rows", total=None)

    def start(self, total: int) -> None:
        self._progress.update(self._task, total=total)

    def advance(self) -> None:
        self._progress.advance(self._task)


@contextmanager
def _progress(quiet: bool) -> Iterator[_Bar]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("measuring", BarColumn(), MofNCompleteColumn(), "ETA", TimeRemainingColumn())
    with Progress(*columns, console=err, disable=quiet) as progress:
        yield _Bar(progress)


@app.command(epilog="Example: layer-energy fit datasets/my-cpu --out my-cpu.json")
def fit(
    dataset: DatasetFolder,
    profile: Annotated[Path, typer.Option("--out", help="The profile to write, a .json file.")],
    regressor: Annotated[str, typer.Option(help="hybrid, physical or polynomial.")] = "hybrid",
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
        "kinds": len(model.kinds),
        "rows": model.dataset["rows"],
        "networks": model.networks,
        "quality": model.quality,
    }
    if as_json:
        _print_json(facts)
    else:
        out.print(
            f"{profile}: {facts['kinds']} layer types from {facts['rows']} rows, interval of "
            f"totals from {facts['networks']} networks, joules {facts['quality']}"
        )


@evaluate_app.command(
    "networks", epilog="Example: layer-energy evaluate networks --dataset datasets/amd-epyc-2t"
)
def evaluate_networks(
    dataset: Annotated[
        Path | None, typer.Option(help="Use (and, with --measure, add) the networks of a dataset.")
    ] = None,
    profile: Annotated[str | None, typer.Option("--device", help="Profile to judge.")] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure networks on this machine now.")
    ] = False,
    models: Annotated[
        str | None, typer.Option(help="Names to measure, joined by commas; a built-in list if not.")
    ] = None,
    batch_sizes: Annotated[str, typer.Option(help="Batch sizes to measure.")] = "1,8",
    exact: Annotated[
        bool, typer.Option("--exact", help="Also measure each layer: the additivity floor.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Whole networks: predicted beside measured, beside the baselines."""
    from layer_energy.dataset import Dataset
    from layer_energy.evaluate import evaluate_networks as evaluate
    from layer_energy.evaluate import network_scores
    from layer_energy.model import EnergyModel, default_profile

    loaded = Dataset.load(dataset) if dataset else None
    if measure:
        networks = _measure_networks(models, batch_sizes, exact, dataset, loaded, quiet=as_json)
    elif loaded and loaded.networks:
        networks = loaded.networks
    else:
        raise InvalidInput("no measured networks: add --measure, or --dataset with networks in it")
    model = EnergyModel.load(profile or default_profile())
    with err.status("predicting"):
        table = evaluate(networks, model, loaded)
    scores = network_scores(table)
    if as_json:
        _print_json(
            {
                "profile": model.device["slug"],
                "quality": model.quality,
                "scores": {name: vars(s) for name, s in scores.items()},
                "networks": json.loads(table.to_json(orient="records")),
            }
        )
        return
    _show_networks(table, networks[0].quality)
    _show_scores("method", scores)
    _show_origin(model)


def _measure_networks(
    models: str | None,
    batch_sizes: str,
    exact: bool,
    folder: Path | None,
    dataset: Dataset | None,
    quiet: bool,
) -> list[NetworkMeasurement]:
    """Measure; each network is at once added to the dataset, where one is given."""
    from layer_energy.device import local_cpu
    from layer_energy.meters import open_meter
    from layer_energy.networks import NETWORKS, measure_networks

    device = local_cpu()
    if dataset and dataset.device.slug != device.slug:
        raise InvalidInput(
            f"the dataset is of {dataset.device.slug}, this machine is {device.slug}; networks "
            "measured here do not belong in it"
        )

    names = models.split(",") if models else list(NETWORKS)
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", batch_sizes):
        raise InvalidInput(
            f"--batch-sizes must be positive numbers joined by commas: {batch_sizes}"
        )
    batches = [int(n) for n in batch_sizes.split(",")]
    meter = open_meter(dataset.provenance.get("meter", "auto") if dataset else "auto")

    with _progress(quiet) as progress:

        def keep(network: NetworkMeasurement) -> None:
            progress.advance()
            if dataset and folder:
                key = (network.model, network.batch_size, network.input)
                dataset.networks = [
                    n for n in dataset.networks if (n.model, n.batch_size, n.input) != key
                ] + [network]
                dataset.save(folder)

        progress.start(len(names) * len(batches))
        return measure_networks(names, batches, device, meter, exact, keep)


def _show_origin(model: EnergyModel) -> None:
    """Device, source of the joules and intervals behind a table of predictions."""
    low, high = model.network_ratio.get("energy_j", (float("nan"),) * 2)
    out.print(
        f"{model.device['name']}, profile {model.device['slug']}: seconds measured, joules "
        f"{model.quality}, ±{model.relative_uncertainty:.0%}; 90 % interval of a predicted total "
        f"{low:.2f} to {high:.2f} ×, from {model.networks} networks"
    )


def _show_networks(table: Any, quality: str) -> None:
    from layer_energy.units import si

    shown = Table(
        "network", "batch", f"run ({quality})", "predicted", "error", "floor", "time error"
    )
    for row in table.to_dict("records"):
        measured = row["measured_energy_j"]
        floor = row["floor_energy_j"]
        predicted = row["layer_energy_energy_j"]
        shown.add_row(
            row["model"],
            str(row["batch_size"]),
            si(measured, "J"),
            si(predicted, "J"),
            f"{predicted / measured - 1:+.1%}",
            f"{floor / measured - 1:+.1%}" if floor and floor == floor else "-",
            f"{row['layer_energy_time_s'] / row['measured_time_s'] - 1:+.1%}",
        )
    out.print(shown)


def _show_scores(label: str, scores: dict[str, Score]) -> None:
    shown = Table(label, "n", "median error", "mean error", "within 25 %", "bias", "R²")
    for name, s in scores.items():
        shown.add_row(
            name,
            str(s.n),
            f"{s.median_error:.1%}",
            f"{s.mean_error:.1%}",
            f"{s.within_25:.0%}",
            f"{s.bias:+.1%}",
            f"{s.r2:.3f}",
        )
    out.print(shown)


@evaluate_app.command("layers", epilog="Example: layer-energy evaluate layers datasets/amd-epyc-2t")
def evaluate_layers(
    dataset: DatasetFolder,
    kinds: Annotated[str | None, typer.Option(help="Layer types, joined by commas.")] = None,
    regressors: Annotated[str, typer.Option(help="Regressors to compare.")] = (
        "hybrid,physical,polynomial"
    ),
    as_json: Json = False,
) -> None:
    """Layers: each predicted by a fit without it (5-fold cross-validation)."""
    from layer_energy.dataset import Dataset
    from layer_energy.evaluate import Score
    from layer_energy.evaluate import evaluate_layers as evaluate

    loaded = Dataset.load(dataset)
    with err.status("cross-validating"):
        table = evaluate(loaded, regressors.split(","), kinds.split(",") if kinds else None)
    if as_json:
        _print_json(json.loads(table.to_json(orient="records")))
        return
    _show_scores(
        "layer type, regressor",
        {
            f"{row.pop('kind')}, {row.pop('regressor')}": Score(
                **{str(name): value for name, value in row.items()}
            )
            for row in table.to_dict("records")
        },
    )
    qualities = sorted({m.quality for m in loaded.measurements})
    out.print(f"{loaded.device.name}: seconds measured, joules {', '.join(qualities)}")


@app.command(epilog="Example: layer-energy profiles --json")
def profiles(as_json: Json = False) -> None:
    """List the profiles that ship with the package."""
    from layer_energy.model import EnergyModel
    from layer_energy.model import profiles as names

    models = {name: EnergyModel.load(name) for name in names()}
    if as_json:
        _print_json(
            {
                name: {
                    "device": m.device,
                    "dataset": m.dataset,
                    "quality": m.quality,
                    "dtypes": m.dtypes,
                    "networks": m.networks,
                }
                for name, m in models.items()
            }
        )
        return
    table = Table("profile", "device", "joules", "dtypes", "layer types", "rows", "networks")
    for name, m in models.items():
        kinds = {key.split("/")[0] for key in m.kinds}
        table.add_row(
            name,
            m.device["name"],
            m.quality,
            ", ".join(m.dtypes),
            str(len(kinds)),
            str(m.dataset["rows"]),
            str(m.networks),
        )
    out.print(table)


@app.command(epilog="Example: layer-energy doctor")
def doctor(as_json: Json = False) -> None:
    """What this machine is, and where its joules would come from."""
    from dataclasses import asdict

    from layer_energy.device import local_cpu
    from layer_energy.meters import open_meter
    from layer_energy.meters.base import meters
    from layer_energy.model import profiles as names

    sources = {}
    for name in meters():
        try:
            sources[name] = open_meter(name).quality
        except LayerEnergyError as error:
            sources[name] = f"not available: {error}"
        except TypeError:
            sources[name] = "for tests: made in Python"
    chosen = open_meter()
    facts = {
        "layer_energy": __version__,
        "device": asdict(local_cpu()),
        "meters": sources,
        "chosen_meter": chosen.name,
        "assumptions": list(chosen.assumptions),
        "profiles": names(),
    }
    if as_json:
        _print_json(facts)
        return
    out.print_json(json.dumps(facts))


def main() -> None:
    """Entry point: errors of this package become one line and exit code 2."""
    try:
        app()
    except LayerEnergyError as error:
        err.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
        sys.exit(2)
    except KeyboardInterrupt:
        err.print("interrupted")
        sys.exit(130)
