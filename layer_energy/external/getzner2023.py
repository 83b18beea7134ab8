"""The measurements of Getzner, Charpentier and Günnemann 2023 (arXiv 2304.00897).

Joules of the CPU packages of a Xeon Gold 5120 (RAPL through CodeCarbon), float32, forward pass.
Two layouts are read: a clone of the authors' repository dl-energy-estimator, whose raw files lie
under ``data/``, and a folder of tidy copies, one row a configuration (``random_conv2d.csv``,
``arch_layers_standalone.csv``, ``whole_networks.csv`` ...).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from statistics import fmean

from layer_energy.errors import DatasetError
from layer_energy.external.codecarbon import read_codecarbon
from layer_energy.external.mapping import (
    ColumnMapping,
    Source,
    cell,
    number,
    read_rows,
    to_measurement,
    to_measurements,
)
from layer_energy.models import build_model
from layer_energy.walk import walk
from layer_energy.workload import Measurement, NetworkMeasurement, Workload

Row = tuple[str, Mapping[str, str]]
METER = "codecarbon"

IMAGE = (3, 224, 224)
"""Channels and size of the input of every network."""


def _square(name: str, source: Source) -> dict[str, Source]:
    return {f"{name}_h": source, f"{name}_w": source}


_CONV: dict[str, Source] = {
    "batch": "batch_size", "in_channels": "in_channels", "out_channels": "out_channels",
    "groups": 1, **_square("in", "image_size"), **_square("kernel", "kernel_size"),
    **_square("stride", "stride"), **_square("padding", "padding"), **_square("dilation", 1),
    "bias": 1, "channels_last": 0,
}  # fmt: skip
_POOL: dict[str, Source] = {
    "batch": "batch_size", "channels": "in_channels", **_square("in", "image_size"),
    **_square("kernel", "kernel_size"), **_square("stride", "stride"),
    **_square("padding", "padding"), "ceil_mode": 0,
}  # fmt: skip
_LINEAR: dict[str, Source] = {
    "tokens": "batch_size", "in_features": "input_size", "out_features": "output_size", "bias": 1,
}  # fmt: skip
_ELEMENTS: dict[str, Source] = {"elements": ("batch_size", "input_size"), "in_place": 0}
_SOFTMAX: dict[str, Source] = {"outer": "batch_size", "dim": "input_size", "inner": 1}

MAPPINGS = {
    name: ColumnMapping(kind, params, meter=METER)
    for name, kind, params in (
        ("conv2d", "conv2d", _CONV),
        ("maxpool2d", "max_pool2d", _POOL),
        ("linear", "linear", _LINEAR),
        ("relu", "relu", _ELEMENTS),
        ("sigmoid", "sigmoid", _ELEMENTS),
        ("tanh", "tanh", _ELEMENTS),
        ("softmax", "softmax", _SOFTMAX),
    )
}
"""The authors' name of a layer type → where its parameters are, in either layout."""

_MODULES = {"conv2d": "Conv2d", "maxpool2d": "MaxPool2d", "linear": "Linear", "relu": "ReLU"}

_RAW_RANDOM: dict[str, tuple[tuple[str, ...], ...]] = {
    "conv2d": (("conv2d/00_conv2d",), ("conv2d/02_conv2d",)),
    "maxpool2d": (("maxpool2d/00_maxpool2d",), ("maxpool2d/02_maxpool2d",)),
    "linear": (("linear/00_linear",), ("linear/02_linear",)),
    "relu": (
        ("activations/01_relu", "_raw.csv"),
        ("activations/00_relu", "-raw.csv", "activations/00_activations"),
    ),
    **{
        name: ((f"activations/00_{name}", "-raw.csv", "activations/00_activations"),)
        for name in ("sigmoid", "tanh", "softmax")
    },
}
"""File name without its ending, its ending, and the name of its log where that differs."""

_RAW_NETWORKS = (
    "architectures/00_architectures-layerwise",
    "architectures/01_architectures-layerwise",
)


@dataclass(frozen=True)
class PaperData:
    """The paper's measurements, by the authors' names of the layer types.

    Attributes:
        random: layers of random configurations, in the authors' order.
        real: layers of AlexNet, VGG-11, -13 and -16. A clone has them as measured inside the
            layer-wise collections, in-place ReLUs included; the tidy copies have convolutions,
            poolings and linear layers measured alone.
        networks: those networks as a whole, at many batch sizes; what was measured twice is
            averaged. ``layers_energy_j`` is the sum of the layers of the same collection, where
            the layout has it.
    """

    random: dict[str, list[Measurement]]
    real: dict[str, list[Measurement]]
    networks: list[NetworkMeasurement]


def read_getzner2023(folder: str | Path) -> PaperData:
    """Read a clone of dl-energy-estimator, or a folder of tidy copies.

    Raises:
        DatasetError: if the folder has neither layout, or a file is damaged.
    """
    folder = Path(folder)
    if (folder / "random_conv2d.csv").is_file():
        return _read_tidy(folder)
    if (folder / "data" / "conv2d").is_dir():
        return _read_clone(folder / "data")
    raise DatasetError(
        f"{folder} holds neither random_conv2d.csv (tidy copies) nor data/conv2d/ (a clone of "
        "https://github.com/JohannesGetzner/dl-energy-estimator); give the path of one of them"
    )


def _read_tidy(folder: Path) -> PaperData:
    real = list(read_rows(folder / "arch_layers_standalone.csv"))
    return PaperData(
        random={
            name: to_measurements(read_rows(folder / f"random_{name}.csv"), mapping)
            for name, mapping in MAPPINGS.items()
        },
        real={
            name: rows
            for name, module in _MODULES.items()
            if (
                rows := to_measurements(real, replace(MAPPINGS[name], where={"layer_type": module}))
            )
        },
        networks=_merged(_network(row) for row in read_rows(folder / "whole_networks.csv")),
    )


def _read_clone(data: Path) -> PaperData:
    random = {
        name: [m for file in files for m in to_measurements(_raw(data, *file), MAPPINGS[name])]
        for name, files in _RAW_RANDOM.items()
    }
    real: dict[str, list[Measurement]] = {}
    networks: list[NetworkMeasurement] = []
    names = {MAPPINGS[name].kind: name for name in _MODULES}
    for file in _RAW_NETWORKS:
        layers_j: dict[tuple[str, int], float] = {}
        whole: list[NetworkMeasurement] = []
        for place, row in _raw(data, file):
            position = int(number(row, "layer_idx", place))
            if position == 0:
                whole.append(_network((place, row)))
                continue
            model, batch = cell(row, "architecture", place), int(number(row, "batch_size", place))
            layers_j[model, batch] = layers_j.get((model, batch), 0) + number(
                row, "energy_j", place
            )
            workload = _layers(model, batch).get(position)
            if workload and workload.kind in names:
                rows = real.setdefault(names[workload.kind], [])
                rows.append(to_measurement(row, place, workload, len(rows), meter=METER))
        networks += [
            replace(n, layers_energy_j=layers_j.get((n.model, n.batch_size))) for n in whole
        ]
    return PaperData(random, real, _merged(networks))


def _raw(data: Path, name: str, ending: str = "-raw.csv", log: str = "") -> list[Row]:
    return list(read_codecarbon(data / f"{name}{ending}", data / f"{log or name}-slurm-log.out"))


@lru_cache
def _layers(model: str, batch: int) -> dict[int, Workload]:
    """Position in the authors' count (1 is the first module without children) → its workload."""
    network = build_model(model)
    leaves = [path for path, module in network.named_modules() if not [*module.children()]]
    calls = {call.path: call.workload for call in walk(network, (batch, *IMAGE)).calls}
    return {i: calls[path] for i, path in enumerate(leaves, start=1) if path in calls}


def _network(place_and_row: Row) -> NetworkMeasurement:
    place, row = place_and_row
    energy_j, time_s = number(row, "energy_j", place), number(row, "duration_s", place)
    batch = int(number(row, "batch_size", place))
    return NetworkMeasurement(
        model=cell(row, "architecture", place),
        batch_size=batch,
        input="x".join(map(str, (batch, *IMAGE))),
        dtype="float32",
        mode="inference",
        time_s=time_s,
        energy_j=energy_j,
        power_w=energy_j / time_s,
        spread=0.0,
        repeats=int(number(row, "repeats" if "repeats" in row else "n_used", place)),
        quality="measured",
        meter=METER,
    )


def _merged(networks: Iterable[NetworkMeasurement]) -> list[NetworkMeasurement]:
    """One row a network and batch size: the mean, where there were several."""
    groups: dict[tuple[str, int], list[NetworkMeasurement]] = {}
    for network in networks:
        groups.setdefault((network.model, network.batch_size), []).append(network)
    merged = []
    for same in groups.values():
        layers_j = [n.layers_energy_j for n in same if n.layers_energy_j]
        merged.append(
            replace(
                same[0],
                energy_j=fmean(n.energy_j for n in same),
                time_s=fmean(n.time_s for n in same),
                repeats=sum(n.repeats for n in same),
                layers_energy_j=fmean(layers_j) if layers_j else None,
            )
        )
    return merged
