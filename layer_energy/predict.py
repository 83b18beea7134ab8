"""``predict_energy(model)``: walk, price, report."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layer_energy.errors import InvalidInput, ProfileError, UnmodelledOperation
from layer_energy.layers.base import count
from layer_energy.model import EnergyModel, default_profile, find_profile
from layer_energy.report.report import EnergyReport, LayerEstimate
from layer_energy.walk import Trace, walk
from layer_energy.workload import ITEMSIZE_BYTES, Workload

if TYPE_CHECKING:
    from torch import nn

MODES = ("inference", "training")
_FLOATS = ("float64", "float32", "float16", "bfloat16", "tf32")


def predict_energy(
    model: nn.Module | Trace,
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    device: str | Path | EnergyModel | None = None,
    dtype: str | None = None,
    mode: str = "inference",
    strict: bool = False,
    name: str | None = None,
) -> EnergyReport:
    """Predict the energy and time of one forward pass, layer by layer, without running it.

    Args:
        model: any ``nn.Module``; neither changed, copied nor run. Or what :func:`walk` made of one,
            with its inputs, to price it on several devices.
        args: positional inputs of the forward: tensors, or shapes such as ``(1, 3, 224, 224)``.
            Without any, an input is inferred and named in the report.
        kwargs: keyword inputs, as they are.
        batch_size: samples of an inferred input, 1 if not given.
        device: a profile: the name of a shipped one, a path, or an ``EnergyModel``; the default is
            the first of :func:`layer_energy.profiles`.
        dtype: price as if the model ran in this dtype (``"float32"`` ...); its own if not given.
        mode: ``"inference"``; ``"training"`` needs a profile with gradients measured.
        strict: raise instead of pricing unclaimed operations by the bytes they move.
        name: what to call the model in the report.

    Raises:
        InvalidInput: for arguments out of their range and inputs that fit no rule.
        WalkError: if the model cannot be walked.
        ProfileError: if the profile is missing, damaged or lacks what was asked.
        UnmodelledOperation: with ``strict``, naming the operations.
    """
    if mode not in MODES:
        raise InvalidInput(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    prices = profile_for(device, dtype)
    if mode == "training":
        raise ProfileError(
            f"the profile {prices.device['slug']} holds forward passes only, so a training step "
            "cannot be priced; use mode='inference'"
        )
    if not isinstance(model, Trace):
        trace = walk(model, *args, kwargs=kwargs, batch_size=batch_size)
    elif args or kwargs or batch_size is not None:
        raise InvalidInput("a trace holds its inputs; give them to walk(model, ...) instead")
    else:
        trace = model
    calls = [replace(call, workload=in_dtype(call.workload, dtype)) for call in trace.calls]
    estimates = prices.price([call.workload for call in calls])
    layers = [
        LayerEstimate(call, count(call.workload)[0], estimates[call.workload]) for call in calls
    ]
    foreign = [layer.call for layer in layers if not layer.modelled]
    if strict and foreign:
        places = sorted({f"{call.op} (in {call.path or call.module})" for call in foreign})
        raise UnmodelledOperation(
            f"no layer type of this profile prices {', '.join(places[:10])}; drop strict to price "
            "them by the bytes they move, or register and measure a layer type for them"
        )
    return EnergyReport(
        model=name or trace.model,
        device=prices.device["slug"],
        device_name=f"{prices.device['name']}, {prices.device['threads']} threads"
        if prices.device["kind"] == "cpu"
        else prices.device["name"],
        dtype=dtype or main_dtype(call.workload for call in calls),
        mode=mode,
        batch_size=trace.batch_size,
        input=trace.inputs,
        layers=layers,
        quality=prices.quality,
        relative_uncertainty=prices.relative_uncertainty,
        network_ratio=prices.network_ratio,
        networks=prices.networks,
        assumptions=[*trace.notes, *prices.assumptions],
        source=source_of(prices),
    )


def profile_for(device: str | Path | EnergyModel | None, dtype: str | None) -> EnergyModel:
    """The profile that a caller names, once it is known to hold the dtype.

    Raises:
        InvalidInput: if the dtype is no floating one.
        ProfileError: if the profile is missing or damaged, or was not measured in the dtype.
    """
    if dtype is not None and dtype not in _FLOATS:
        known = "" if str(dtype).removeprefix("torch.") in ITEMSIZE_BYTES else " (torch has none)"
        raise InvalidInput(
            f"dtype must be the name of a floating dtype, one of {', '.join(map(repr, _FLOATS))}; "
            f"got {dtype!r}{known}"
        )
    prices = device if isinstance(device, EnergyModel) else _profile(device)
    if dtype is not None and dtype not in prices.dtypes:
        raise ProfileError(
            f"the profile {prices.device['slug']} was measured in {', '.join(prices.dtypes)}, not "
            f"in {dtype}; choose one of those or another profile"
        )
    return prices


def in_dtype(workload: Workload, dtype: str | None) -> Workload:
    """The workload as it would run in another dtype; itself for ``None`` and for integers."""
    if dtype is None or workload.dtype not in _FLOATS:
        return workload
    return replace(workload, dtype=dtype)


def main_dtype(workloads: Iterable[Workload]) -> str:
    """The floating dtype that most of the workloads compute in."""
    floats = Counter(w.dtype for w in workloads if w.dtype in _FLOATS)
    return max(floats, key=lambda dtype: floats[dtype]) if floats else "float32"


def source_of(prices: EnergyModel) -> str:
    """The dataset behind a profile, in words."""
    dataset, torch = prices.dataset, prices.device["details"].get("torch")
    parts = [f"{dataset.get('rows', 0)} rows of dataset {dataset.get('name')}"]
    parts += [f"torch {torch}"] if torch else []
    parts += [dataset["finished"][:10]] if "finished" in dataset else []
    return ", ".join(parts)


def _profile(device: str | Path | None) -> EnergyModel:
    path = find_profile(default_profile() if device is None else device)
    return _load(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _load(path: Path, mtime_ns: int) -> EnergyModel:
    return EnergyModel.load(path)
