"""``layer-energy evaluate``: predictions beside measurements."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from layer_energy.cli.base import (
    DatasetFolder,
    Json,
    err,
    evaluate_app,
    out,
    print_json,
    progress,
)
from layer_energy.cli.predict import Mode
from layer_energy.errors import InvalidInput, MeasureError

if TYPE_CHECKING:
    from layer_energy.dataset import Dataset
    from layer_energy.evaluate import PaperTable, Score
    from layer_energy.model import EnergyModel
    from layer_energy.plan import NetworkJob
    from layer_energy.workload import NetworkMeasurement


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
    mode: Mode = "inference",
    as_json: Json = False,
) -> None:
    """Whole networks: predicted beside measured, beside the baselines."""
    from layer_energy.dataset import Dataset
    from layer_energy.evaluate import evaluate_networks as evaluate
    from layer_energy.evaluate import held_out_coverage, network_scores
    from layer_energy.model import MODE_NAMES, EnergyModel, default_profile, profiles

    if mode not in MODE_NAMES:
        raise InvalidInput(f"--mode must be one of {', '.join(MODE_NAMES)}, got {mode!r}")
    training = mode == "training"
    loaded = Dataset.load(dataset) if dataset else None
    failures: list[str] = []
    if measure:
        networks = _measure_networks(
            models, batch_sizes, exact, training, dataset, loaded, failures, quiet=as_json
        )
    else:
        held = loaded.networks if loaded else []
        networks = [n for n in held if (n.mode != "inference") == training]
    if failures and not networks:
        raise MeasureError("none of the networks could be measured, for the reasons above")
    if not networks:
        raise InvalidInput(
            f"no networks measured in {mode}: add --measure, or --dataset with such in it"
        )
    if profile is None:
        own = loaded.device.slug if loaded else None
        profile = own if own in profiles() else default_profile("cpu" if measure else None)
    model = EnergyModel.load(profile)
    if training and not model.trains:
        if measure and dataset:
            err.print(
                f"{len(networks)} networks measured into {dataset}; the profile "
                f"{model.device['slug']} holds forward passes only, fit one to compare them with"
            )
            if as_json:
                print_json({"mode": mode, "networks": [], "not_measured": failures})
            return
        raise InvalidInput(
            f"the profile {model.device['slug']} holds forward passes only; give another --device"
        )
    with err.status("predicting"):
        table = evaluate(networks, model, loaded, training=training)
    scores = network_scores(table)
    ratios = table["measured_energy_j"] / table["layer_energy_energy_j"]
    coverage = held_out_coverage(ratios, table["model"], table["input"])
    if as_json:
        print_json(
            {
                "profile": model.device["slug"],
                "quality": model.quality,
                "scores": {name: vars(s) for name, s in scores.items()},
                "coverage": coverage,
                "networks": json.loads(table.to_json(orient="records")),
                "not_measured": failures,
            }
        )
        return
    _show_networks(table, networks[0].quality)
    show_scores("method", scores)
    _show_origin(model, mode)
    for how, share in coverage.items():
        out.print(f"a 90 % interval holds {share:.0%} of these networks ({how.replace('_', ' ')})")


def _measure_networks(
    models: str | None,
    batch_sizes: str,
    exact: bool,
    training: bool,
    folder: Path | None,
    dataset: Dataset | None,
    failures: list[str],
    quiet: bool,
) -> list[NetworkMeasurement]:
    """Measure; each network is at once added to the dataset, where one is given.

    Those that cannot be measured are told at once and added to ``failures``.
    """
    from layer_energy.device import local_cpu
    from layer_energy.journal import JOURNAL_NAME
    from layer_energy.meters import open_meter
    from layer_energy.networks import NETWORKS, measure_networks
    from layer_energy.optimization import MODES

    if folder and (folder / JOURNAL_NAME).exists():
        raise InvalidInput(
            f"{folder} is not complete, and going on would lose networks added now; end its "
            "`layer-energy collect` first (its --networks measures networks, too)"
        )
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

    with progress(quiet) as bar:

        def keep(network: NetworkMeasurement) -> None:
            bar.advance()
            if dataset and folder:
                key = (network.model, network.mode, network.input)
                dataset.networks = [
                    n for n in dataset.networks if (n.model, n.mode, n.input) != key
                ] + [network]
                dataset.save(folder)

        def tell(job: NetworkJob, error: MeasureError) -> None:
            bar.advance()
            failures.append(f"{job.mode}, batch {job.batch_size}: {error}")
            err.print(f"not measured: {failures[-1]}", markup=False, highlight=False)

        modes = [mode for mode in MODES if (mode != "inference") == training]
        bar.start(len(names) * len(batches) * len(modes))
        return measure_networks(names, batches, device, meter, tell, exact, keep, modes)


def _show_origin(model: EnergyModel, mode: str) -> None:
    """Device, source of the joules and intervals behind a table of predictions."""
    totals = model.totals_of(mode)
    low, high = totals.ratio.get("energy_j", (float("nan"),) * 2)
    out.print(
        f"{model.device['name']}, profile {model.device['slug']}: seconds measured, joules "
        f"{model.quality}, ±{model.relative_uncertainty:.0%}; 90 % interval of a predicted total "
        f"{low:.2f} to {high:.2f} ×, from {totals.count} networks"
    )


def _show_networks(table: Any, quality: str) -> None:
    from layer_energy.units import si

    shown = Table(
        "network", "mode", "batch", f"run ({quality})", "predicted", "error", "floor", "time error"
    )
    for row in table.to_dict("records"):
        measured = row["measured_energy_j"]
        floor = row["floor_energy_j"]
        predicted = row["layer_energy_energy_j"]
        shown.add_row(
            row["model"],
            row["mode"],
            str(row["batch_size"]),
            si(measured, "J"),
            si(predicted, "J"),
            f"{predicted / measured - 1:+.1%}",
            f"{floor / measured - 1:+.1%}" if floor and floor == floor else "-",
            f"{row['layer_energy_time_s'] / row['measured_time_s'] - 1:+.1%}",
        )
    out.print(shown)


def show_scores(label: str, scores: dict[str, Score]) -> None:
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
    gradients: Annotated[
        str, typer.Option(help="none (forward passes), or input, weight, both (with backward).")
    ] = "none",
    dtype: Annotated[str, typer.Option(help="Of the rows.")] = "float32",
    as_json: Json = False,
) -> None:
    """Layers: each predicted by a fit without it (5-fold cross-validation)."""
    from layer_energy.dataset import Dataset
    from layer_energy.evaluate import Score
    from layer_energy.evaluate import evaluate_layers as evaluate
    from layer_energy.workload import GRADIENTS

    if gradients not in GRADIENTS:
        raise InvalidInput(f"--gradients must be one of {', '.join(GRADIENTS)}, got {gradients!r}")
    loaded = Dataset.load(dataset)
    with err.status("cross-validating"):
        table = evaluate(
            loaded,
            regressors.split(","),
            kinds.split(",") if kinds else None,
            dtype=dtype,
            gradients=gradients,
        )
    if as_json:
        print_json(json.loads(table.to_json(orient="records")))
        return
    show_scores(
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


@evaluate_app.command(
    "paper", epilog="Example: layer-energy evaluate paper --data path/to/dl-energy-estimator"
)
def evaluate_paper(
    data: Annotated[
        Path,
        typer.Option(help="A clone of JohannesGetzner/dl-energy-estimator, or its tidy copies."),
    ],
    regressor: Annotated[
        str, typer.Option(help="Ours; auto chooses by cross-validation, which takes minutes.")
    ] = "auto",
    as_json: Json = False,
) -> None:
    """The table of the paper this project starts from, theirs and ours, on its own data."""
    from layer_energy.evaluate import evaluate_paper as evaluate

    with err.status("reading") as status:
        table = evaluate(data, regressor, lambda step: status.update(f"fitting {step}"))
    if as_json:
        print_json(table.to_dict())
        return
    _show_paper(table)


def _show_paper(table: PaperTable) -> None:
    shown: dict[str, Score] = {}
    for name, regressor in table.regressors.items():
        for on in table.paper[name]:
            shown[f"{name}, {on}, the paper's"] = table.paper[name][on]
            shown[f"{name}, {on}, {regressor}"] = table.ours[name][on]
    shown["whole networks, the paper's"] = table.networks["paper"]
    shown["whole networks, ours"] = table.networks["ours"]
    if table.few_real:
        shown["relu, real, with 5 real rows"] = table.few_real
    show_scores("fitted on random configurations, tested on", shown)
    for line in table.notes():
        out.print(line, highlight=False)
