"""``predict_energy(model)``: walk, price, report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layer_energy.errors import InvalidInput, ProfileError, UnmodelledOperation
from layer_energy.model import MODE_NAMES, EnergyModel, load_profile
from layer_energy.optimization import FOREACH_DEVICES, TrainingStep
from layer_energy.report.report import EnergyReport, LayerEstimate
from layer_energy.walk import AMP, Trace, walk
from layer_energy.walk.training import OPTIMIZER
from layer_energy.workload import ITEMSIZE_BYTES, Workload

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn
    from torch.export import ExportedProgram

    from layer_energy.optimization import Loss, MakeOptimizer

_PLAIN_STEP = (None, None, 1, False)
_FLOATS = ("float64", "float32", "float16", "bfloat16", "tf32")
_QUANTISED = ("qint8", "quint8")


def predict_energy(
    model: nn.Module | ExportedProgram | Trace,
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    device: str | Path | EnergyModel | None = None,
    dtype: str | None = None,
    mode: str = "inference",
    optimizer: str | MakeOptimizer | None = None,
    loss: Loss | None = None,
    accumulation: int = 1,
    checkpointing: bool | Sequence[str] = False,
    launch: str | None = None,
    host_speed: float = 1.0,
    strict: bool = False,
    name: str | None = None,
) -> EnergyReport:
    """Predict the energy and time of a forward pass or training step, layer by layer.

    Nothing is run, except as a last resort the forward of a model that cannot be walked otherwise,
    once, on the CPU; the report's ``assumptions`` then say so.

    Args:
        model: any ``nn.Module``, wrapped or not, or a ``torch.export.ExportedProgram``; never
            changed. Or what :func:`walk` made of one, with its inputs, to price it on several
            devices. What is frozen (``requires_grad``) is priced without the gradients that a
            training step then saves.
        args: positional inputs of the forward: tensors, or shapes such as ``(1, 3, 224, 224)``.
            Without any, an input is inferred and named in the report.
        kwargs: keyword inputs, as they are.
        batch_size: samples of an inferred input, 1 if not given.
        device: a profile: the name of a shipped one or of a GPU in the catalogue, a path, or an
            ``EnergyModel``; the default is the GPU that torch sees, where it is known, else the
            H200.
        dtype: price as if the model ran in this dtype (``"float32"`` ...); its own if not given.
            ``"bf16-amp"`` and ``"fp16-amp"`` are mixed precision, as ``torch.autocast`` on a GPU.
        mode: ``"inference"``, or ``"training"`` for a training step: forward and backward of
            network and loss, and the optimizer. That needs a profile with gradients measured.
        optimizer: of a training step: ``"sgd"`` (with momentum), ``"adam"``, ``"adamw"`` (if not
            given), or a callable that makes one of parameters.
        loss: of a training step: what the model returns to one number; cross entropy if not given.
        accumulation: micro-batches of ``batch_size`` samples per training step.
        checkpointing: of a training step: whether all activations are computed a second time to
            save memory, or the paths of the modules of which they are.
        launch: of a GPU whose launches were measured: ``"eager"`` (if not given), one call of the
            host after the other; or ``"graph"``, as CUDA graphs and
            ``torch.compile(mode="reduce-overhead")`` run, without waiting for the host.
        host_speed: how much faster your host launches kernels than the one of the profile's
            dataset: 2 halves the host's time of every call.
        strict: raise instead of pricing unclaimed operations by the bytes they move.
        name: what to call the model in the report.

    Raises:
        InvalidInput: for arguments out of their range and inputs that fit no rule.
        WalkError: if the model cannot be walked.
        ProfileError: if the profile is missing, damaged or lacks what was asked.
        UnmodelledOperation: with ``strict``, naming the operations.
    """
    prices = profile_for(device, dtype).on_host(host_speed)
    idle_power_w = prices.waits_at_w(launch)
    step = training_step(
        prices,
        mode,
        optimizer=optimizer,
        loss=loss,
        accumulation=accumulation,
        checkpointing=checkpointing,
    )
    autocast = AMP.get(dtype or "")
    if not isinstance(model, Trace):
        trace = walk(
            model, *args, kwargs=kwargs, batch_size=batch_size, step=step, autocast=autocast
        )
    elif (
        args
        or kwargs
        or batch_size is not None
        or (optimizer, loss, accumulation, checkpointing) != _PLAIN_STEP
    ):
        raise InvalidInput(
            "a trace holds its inputs, and how it is trained; give them to walk(model, ..., "
            "step=TrainingStep(...)) instead"
        )
    elif model.mode != mode:
        raise InvalidInput(
            f"the trace is of mode {model.mode!r}, not {mode!r}; make one of a training step with "
            "walk(model, ..., step=TrainingStep())"
        )
    elif model.autocast != autocast:
        raise InvalidInput(
            f"the trace was walked with autocast={model.autocast!r}, which dtype={dtype!r} is not; "
            f"make one with walk(model, ..., autocast={autocast!r})"
        )
    else:
        trace = model
    if autocast is None:
        calls = [replace(call, workload=in_dtype(call.workload, dtype)) for call in trace.calls]
        trace = replace(trace, calls=calls)
    (estimates,) = prices.price_networks([trace.workloads()])
    layers = [
        LayerEstimate(call, call.cost, estimates[call.workload] * call.times)
        for call in trace.calls
    ]
    foreign = [layer.call for layer in layers if not layer.modelled]
    if strict and foreign:
        places = sorted({f"{call.op} (in {call.path or call.module})" for call in foreign})
        raise UnmodelledOperation(
            f"no layer type of this profile prices {', '.join(places[:10])}; drop strict to price "
            "them by the bytes they move, or register and measure a layer type for them"
        )
    assumptions = [
        *unmeasured((call.workload.dtype for call in trace.calls), prices),
        *trace.notes,
        *_as_on_another_device(trace, prices),
        *prices.assumptions,
    ]
    return EnergyReport(
        model=name or trace.model,
        device=prices.device["slug"],
        device_name=f"{prices.device['name']}, {prices.device['threads']} threads"
        if prices.device["kind"] == "cpu"
        else prices.device["name"],
        dtype=dtype or main_dtype(call.workload for call in trace.calls),
        mode=mode,
        batch_size=trace.batch_size,
        input=trace.inputs,
        layers=layers,
        quality=prices.quality,
        relative_uncertainty=prices.relative_uncertainty,
        network_ratio=prices.totals_of(mode).ratio,
        networks=prices.totals_of(mode).count,
        assumptions=assumptions,
        source=source_of(prices),
        launch=(launch or "eager") if prices.knows_launches else "",
        idle_power_w=idle_power_w,
    )


def training_step(
    device: str | Path | EnergyModel | None,
    mode: str,
    *,
    optimizer: str | MakeOptimizer | None = None,
    loss: Loss | None = None,
    accumulation: int = 1,
    checkpointing: bool | Sequence[str] = False,
) -> TrainingStep | None:
    """The step that :func:`predict_energy` walks on a device, ``None`` for inference.

    Raises:
        InvalidInput: for arguments out of their range.
        ProfileError: if the profile prices no training.
    """
    if mode not in MODE_NAMES:
        raise InvalidInput(f"mode must be one of {', '.join(MODE_NAMES)}, got {mode!r}")
    prices = device if isinstance(device, EnergyModel) else load_profile(device)
    if mode == "inference":
        if (optimizer, loss, accumulation, checkpointing) != _PLAIN_STEP:
            raise InvalidInput(
                "optimizer, loss, accumulation and checkpointing belong to a training step; say "
                "mode='training'"
            )
        return None
    if not prices.trains:
        raise ProfileError(
            f"the profile {prices.device['slug']} holds forward passes only, so a training step "
            "cannot be priced; use mode='inference' or another profile, or collect backward passes "
            "with `layer-energy collect --mode training`"
        )
    foreach = prices.device["kind"] in FOREACH_DEVICES
    return TrainingStep(optimizer or "adamw", loss, accumulation, checkpointing, foreach)


def _as_on_another_device(trace: Trace, prices: EnergyModel) -> list[str]:
    """A note where the optimizer was walked as it seldom runs on the kind of device priced."""
    steps = [call.op for call in trace.calls if call.path == OPTIMIZER]
    lists = any(op.startswith(("_foreach", "_fused")) for op in steps)
    kind = prices.device["kind"]
    if not steps or lists == (kind in FOREACH_DEVICES):
        return []
    ways = ["tensor by tensor", "on lists of tensors"]
    return [
        f"the optimizer is priced as it was walked, {ways[lists]}; on a device of kind {kind} "
        f"torch's own work {ways[not lists]}: TrainingStep(..., foreach={not lists})"
    ]


def profile_for(device: str | Path | EnergyModel | None, dtype: str | None) -> EnergyModel:
    """The profile that a caller names, once it is known to hold the dtype, or both of a mixture.

    Raises:
        InvalidInput: if the dtype is no floating one.
        ProfileError: if the profile is missing or damaged, or was not measured in the dtype.
    """
    if dtype is not None and dtype not in _FLOATS and dtype not in AMP:
        known = "" if str(dtype).removeprefix("torch.") in ITEMSIZE_BYTES else " (torch has none)"
        names = ", ".join(map(repr, (*_FLOATS, *AMP)))
        raise InvalidInput(
            f"dtype must be the name of a floating dtype, one of {names}; got {dtype!r}{known}"
        )
    prices = device if isinstance(device, EnergyModel) else load_profile(device)
    if dtype is None:
        return prices
    needed = {AMP[dtype], "float32"} if dtype in AMP else {dtype}
    if missing := sorted(needed - set(prices.dtypes)):
        why = f", which {dtype} runs in too" if dtype in AMP else ""
        raise ProfileError(
            f"the profile {prices.device['slug']} was measured in {', '.join(prices.dtypes)}, not "
            f"in {', '.join(missing)}{why}; choose one of those or another profile"
        )
    return prices


def in_dtype(workload: Workload, dtype: str | None) -> Workload:
    """The workload as it would run in another dtype; itself for ``None`` and for integers."""
    if dtype is None or workload.dtype not in _FLOATS:
        return workload
    return replace(workload, dtype=dtype)


def main_dtype(workloads: Iterable[Workload]) -> str:
    """The dtype that most of the workloads compute in, integers that are no numbers left out."""
    calls = Counter(w.dtype for w in workloads)
    computed = [dtype for dtype in calls if dtype in (*_FLOATS, *_QUANTISED)]
    return max(computed, key=calls.__getitem__, default="float32")


def unmeasured(dtypes: Iterable[str], prices: EnergyModel) -> list[str]:
    """What to say about dtypes that a profile was not measured in, and prices all the same."""
    quantised = set(_QUANTISED).intersection(dtypes)
    if not quantised or quantised <= set(prices.dtypes):
        return []
    return ["quantised operations were not measured: priced as in float32"]


def source_of(prices: EnergyModel) -> str:
    """The dataset behind a profile, in words."""
    dataset, torch = prices.dataset, prices.device["details"].get("torch")
    parts = [f"{dataset.get('rows', 0)} rows of dataset {dataset.get('name')}"]
    parts += [f"torch {torch}"] if torch else []
    parts += [dataset["finished"][:10]] if "finished" in dataset else []
    return ", ".join(parts)
