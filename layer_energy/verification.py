"""``verify(model)``: predict, measure on this machine, and show the gap per layer and in total."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from layer_energy.device import local_cpu
from layer_energy.errors import InvalidInput, MeasureError
from layer_energy.measure import CpuBench
from layer_energy.meters import open_meter
from layer_energy.meters.base import Meter
from layer_energy.model import EnergyModel, default_profile, profiles
from layer_energy.models import build_model, default_input
from layer_energy.networks import LAYER_PROTOCOL
from layer_energy.predict import predict_energy
from layer_energy.report import EnergyReport
from layer_energy.units import si
from layer_energy.walk.clone import restored
from layer_energy.walk.inputs import Inputs, given, infer, materialised
from layer_energy.workload import Measurement, NetworkMeasurement, Workload

if TYPE_CHECKING:
    import pandas as pd

WIDTH = 96
LAYERS_SHOWN = 15


@dataclass(frozen=True)
class Verification:
    """A prediction beside what this machine measured.

    A gap is predicted / measured − 1: +0.1 where the prediction is 10 % too high.

    Attributes:
        report: the prediction.
        network: the whole forward pass, measured.
        layers: each distinct layer, measured by itself; those that cannot be are not in it.
        notes: what is to be known about the measurement.
    """

    report: EnergyReport
    network: NetworkMeasurement
    layers: dict[Workload, Measurement]
    notes: tuple[str, ...]

    @property
    def energy_gap(self) -> float:
        """Of the joules of the whole forward pass."""
        return self.report.energy_j / self.network.energy_j - 1

    @property
    def time_gap(self) -> float:
        """Of the seconds of the whole forward pass."""
        return self.report.time_s / self.network.time_s - 1

    @property
    def within_interval(self) -> bool:
        """Whether the measured joules lie in the report's 90 % interval."""
        low_j, high_j = self.report.interval_j
        return low_j <= self.network.energy_j <= high_j

    def to_frame(self) -> pd.DataFrame:
        """One row a layer call; measured columns and gaps are ``NaN`` where it was not measured."""
        import pandas as pd

        return pd.DataFrame(self._rows())

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain JSON values."""
        low_j, high_j = self.report.interval_j
        network = self.network
        return {
            "model": self.report.model,
            "profile": self.report.device,
            "input": self.report.input,
            "batch_size": self.report.batch_size,
            "predicted_energy_j": self.report.energy_j,
            "predicted_energy_low_j": low_j,
            "predicted_energy_high_j": high_j,
            "predicted_time_s": self.report.time_s,
            "measured_energy_j": network.energy_j,
            "measured_time_s": network.time_s,
            "measured_spread": network.spread,
            "quality": network.quality,
            "meter": network.meter,
            "flags": list(network.flags),
            "energy_gap": self.energy_gap,
            "time_gap": self.time_gap,
            "within_interval": self.within_interval,
            "notes": list(self.notes),
            "layers": self._rows(),
        }

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=WIDTH, color_system=None)
        console.print(self.render())
        text = console.file.getvalue()  # type: ignore[attr-defined]  # the StringIO from above
        return "\n".join(line.rstrip() for line in text.splitlines())

    def _rows(self) -> list[dict[str, Any]]:
        rows = []
        for layer in self.report.layers:
            call, estimate = layer.call, layer.estimate
            measured = self.layers.get(call.workload)
            rows.append(
                {
                    "path": call.path,
                    "kind": call.workload.kind,
                    "op": call.op,
                    "predicted_energy_j": estimate.energy_j,
                    "measured_energy_j": measured and measured.energy_j,
                    "energy_gap": measured and estimate.energy_j / measured.energy_j - 1,
                    "predicted_time_s": estimate.time_s,
                    "measured_time_s": measured and measured.time_s,
                    "time_gap": measured and estimate.time_s / measured.time_s - 1,
                    "in_domain": estimate.in_domain,
                }
            )
        return rows

    def render(self) -> RenderableType:
        """Layers, those that are alike summed, the slowest first; and the totals; for a console."""
        report, network = self.report, self.network
        quality = "ESTIMATED" if network.quality == "estimated" else network.quality
        table = Table(box=box.SIMPLE, pad_edge=False, show_edge=False)
        table.add_column("layers")
        for name in ("predicted", "measured", "gap", "predicted", quality, "gap"):
            table.add_column(name, justify="right", no_wrap=True)
        alike: dict[Workload, list[dict[str, Any]]] = {}
        rows = self._rows()
        for layer, row in zip(report.layers, rows, strict=True):
            alike.setdefault(layer.call.workload, []).append(row)
        groups = sorted(alike.values(), key=lambda g: -sum(row["predicted_time_s"] for row in g))
        for group in groups[:LAYERS_SHOWN]:
            _add(table, f"{len(group)} × {group[0]['kind']}, {group[0]['path']}", _sum(group))
        rest = [row for group in groups[LAYERS_SHOWN:] for row in group]
        if rest:
            _add(table, f"{len(rest)} × others", _sum(rest))
        table.add_section()
        _add(table, "sum of the layers", _sum(rows))
        whole = {
            "predicted_energy_j": report.energy_j,
            "measured_energy_j": network.energy_j,
            "predicted_time_s": report.time_s,
            "measured_time_s": network.time_s,
        }
        _add(table, "whole model", whole, style="bold")
        low_j, high_j = (si(value, "J") for value in report.interval_j)
        verdict = "inside" if self.within_interval else "OUTSIDE"
        lines = [
            f"predicted: profile {report.device}, 90 % interval {low_j} – {high_j}; "
            f"the joules of this machine lie {verdict} it",
            f"measured: seconds on this machine, ±{network.spread:.1%}"
            + "".join(f", {flag}" for flag in network.flags),
            *self.notes,
            f"the first {LAYERS_SHOWN} kinds of layers, named by their first; gap: predicted over "
            "measured, less one",
        ]
        head = Text(f"{report.model}  inference, {report.dtype}, input {report.input}", "bold")
        notes = [Text("· " + line, style="dim") for line in lines]
        return Group(head, Text(), table, Text(), *notes)


def verify(
    model: str | nn.Module,
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    device: str | Path | EnergyModel | None = None,
    meter: Meter | None = None,
    on_step: Callable[[str], None] = lambda step: None,
) -> Verification:
    """Predict one forward pass, and measure it and each of its layers on this machine's CPU.

    The model is run, and left as it was. Layers are measured with random numbers and their weights
    rotating through memory, so their sum is not the whole: the table shows both.

    Args:
        model: a module with weights in float32 on the CPU, or a name
            (see :func:`layer_energy.models.build_model`), which gets random weights.
        args: positional inputs, as in :func:`layer_energy.predict_energy`.
        kwargs: keyword inputs.
        batch_size: samples of an inferred input.
        device: the profile of a CPU; that of this one if it ships, else the default one.
        meter: the source of joules; the best that this machine can read if not given.
        on_step: called with what is done next.

    Raises:
        InvalidInput: for a model that is not in float32 on the CPU, a profile of a GPU, and wrong
            arguments.
        WalkError: if the model cannot be walked.
        MeasureError: if the model cannot be run.
        MeterError: if no energy source can be read.
    """
    here = local_cpu()
    if device is None:
        device = here.slug if here.slug in profiles() else default_profile("cpu")
    prices = device if isinstance(device, EnergyModel) else EnergyModel.load(device)
    if prices.device["kind"] != "cpu":
        raise InvalidInput(
            f"the profile {prices.device['slug']} is not of a CPU, and verify measures on this "
            f"machine's CPU, {here.name}; give a CPU's profile, such as one made by "
            "`layer-energy collect` and `layer-energy fit`"
        )
    on_step("predicting")
    name = model if isinstance(model, str) else type(model).__name__
    if isinstance(model, str):
        if not args and not kwargs and (size := default_input(model)):
            args, batch_size = ((1 if batch_size is None else batch_size, *size),), None
        model = build_model(model, real=True)
    report = predict_energy(
        model, *args, kwargs=kwargs, batch_size=batch_size, device=prices, name=name
    )
    _check_measurable(model, report)
    meter = open_meter() if meter is None else meter
    bench = CpuBench(here, meter, LAYER_PROTOCOL)
    inputs = given(args, kwargs) if args or kwargs else infer(model, batch_size or 1)
    on_step("measuring the whole model")
    with restored(model):
        network = bench.measure_model(name, lambda: _flat(model, inputs), "float32", "inference")
    layers = {}
    for workload in dict.fromkeys(layer.call.workload for layer in report.layers):
        on_step(f"measuring {workload.kind}")
        try:
            layers[workload] = bench.measure(workload)
        except (MeasureError, NotImplementedError):
            continue  # too large, or an operation that no layer type builds
    notes = list(meter.assumptions)
    missing = sum(layer.call.workload not in layers for layer in report.layers)
    if missing:
        notes.insert(
            0, f"{missing} of {len(report.layers)} layers cannot be measured by themselves"
        )
    if here.slug != prices.device["slug"]:
        notes.insert(0, f"the profile is of {prices.device['slug']}, this machine is {here.slug}")
    return Verification(report, network, layers, tuple(notes))


def _check_measurable(model: nn.Module, report: EnergyReport) -> None:
    for path, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, torch.Tensor) and tensor.device.type != "cpu":
            how = (
                "give it weights with model.to_empty(device='cpu')"
                if tensor.is_meta
                else "move it with model.cpu()"
            )
            raise InvalidInput(
                f"{path!r} of {report.model} is on {tensor.device}, and verify measures on this "
                f"machine's CPU; {how}"
            )
    floats = {str(p.dtype) for p in model.parameters() if p.is_floating_point()}
    others = sorted({*floats, f"torch.{report.dtype}"} - {"torch.float32"})
    if others:
        raise InvalidInput(
            f"{report.model} computes in {', '.join(others)}, and a CPU is measured in float32; "
            "convert it with model.float(), and its inputs with .float()"
        )


class _Flat(nn.Module):
    """A model whose tensors, wherever in its arguments, are given one after the other."""

    def __init__(self, model: nn.Module, leaves: list[Any], spec: Any) -> None:
        super().__init__()
        self.model, self._leaves, self._spec = model, leaves, spec

    def forward(self, *tensors: torch.Tensor) -> Any:
        rest = iter(tensors)
        leaves = [next(rest) if isinstance(v, torch.Tensor) else v for v in self._leaves]
        args, kwargs = tree_unflatten(leaves, self._spec)
        return self.model(*args, **kwargs)


def _flat(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    leaves, spec = tree_flatten((inputs.args, inputs.kwargs))
    tensors = tuple(materialised(v) for v in leaves if isinstance(v, torch.Tensor))
    return _Flat(model, leaves, spec), tensors


def _sum(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums over the rows that were measured; over all, with nothing measured, if none was."""
    known = [row for row in rows if row["measured_time_s"] is not None] or rows
    columns = ("predicted_energy_j", "measured_energy_j", "predicted_time_s", "measured_time_s")
    return {name: sum(row[name] or 0.0 for row in known) for name in columns}


def _add(table: Table, name: str, row: Mapping[str, Any], style: str = "") -> None:
    cells = []
    for quantity, unit in (("time_s", "s"), ("energy_j", "J")):
        predicted, measured = row[f"predicted_{quantity}"], row[f"measured_{quantity}"]
        gap = f"{predicted / measured - 1:+.0%}" if measured else "-"
        cells += [si(predicted, unit), si(measured, unit) if measured else "-", gap]
    table.add_row(Text(name, no_wrap=True, overflow="ellipsis"), *cells, style=style)
