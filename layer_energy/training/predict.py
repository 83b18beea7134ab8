"""``predict_training(model)``: a training run before it starts, from its layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layer_energy.errors import InvalidInput
from layer_energy.model import PASSES, EnergyModel, load_profile
from layer_energy.predict import predict_energy
from layer_energy.training.baselines import flops_proportional_j, green_algorithms_j, tdp_time_j
from layer_energy.training.forecast import TrainingForecast
from layer_energy.units import WORLD_INTENSITY_G_PER_KWH
from layer_energy.walk.inputs import batched

if TYPE_CHECKING:
    import torch
    from torch import nn

    from layer_energy.optimization import Loss, MakeOptimizer
    from layer_energy.report import EnergyReport

RAM_GB = 16.0
"""Memory of the machine that Green Algorithms is told of where none is given."""


def predict_training(
    model: nn.Module,
    *,
    images: int,
    epochs: int,
    batch_size: int,
    validation_images: int = 0,
    input: Sequence[int] | str | torch.Tensor | None = None,  # noqa: A002  # the word for it
    kwargs: Mapping[str, Any] | None = None,
    device: str | Path | EnergyModel | None = None,
    dtype: str | None = None,
    optimizer: str | MakeOptimizer | None = None,
    loss: Loss | None = None,
    accumulation: int = 1,
    checkpointing: bool | Sequence[str] = False,
    launch: str | None = None,
    host_speed: float = 1.0,
    loading_images_per_s: float = math.inf,
    idle_power_w: float | None = None,
    max_power_w: float | None = None,
    ram_gb: float = RAM_GB,
    intensity_g_per_kwh: float = WORLD_INTENSITY_G_PER_KWH,
    price_per_kwh: float = 0.25,
    currency: str = "EUR",
    name: str | None = None,
) -> TrainingForecast:
    """Predict the joules of a whole training run, without a step of it.

    Beside the prediction come what is usually written down instead: power limit × time (MLCO2),
    Green Algorithms, and joules in proportion to floating-point operations, scaled on a ResNet-18
    that the same profile prices.

    Args:
        model: any ``nn.Module``; what is frozen is priced as such.
        images: training images of an epoch, or sentences, or whatever a sample is.
        epochs: how many.
        batch_size: images of a micro-batch.
        validation_images: images of a forward pass after each epoch.
        input: one image as a shape, such as ``(3, 224, 224)``, one sequence of tokens such as
            ``"128:int64"``, or a tensor of one sample; inferred if not given.
        kwargs: keyword inputs of one sample, likewise; what is no shape is given as it is.
        device: as of :func:`layer_energy.predict_energy`.
        dtype: likewise.
        optimizer: likewise.
        loss: likewise.
        accumulation: likewise.
        checkpointing: likewise.
        launch: likewise.
        host_speed: likewise.
        loading_images_per_s: what the data loader delivers; if that is less than the device could
            take, it waits, and draws its idle power.
        idle_power_w: that; the profile's if it knows it.
        max_power_w: power limit, for the baselines; the profile's if it knows it.
        ram_gb: memory of the machine, for Green Algorithms.
        intensity_g_per_kwh: of the electricity.
        price_per_kwh: of the electricity.
        currency: of that price.
        name: what to call the model.

    Raises:
        InvalidInput: for numbers out of their range, inputs that are no shapes, and waiting without
            an idle power.
        ProfileError: if the profile prices no training.
        WalkError: if the model cannot be walked.
    """
    images, epochs = _whole("images", images), _whole("epochs", epochs)
    batch_size = _whole("batch_size", batch_size)
    validation_images = _whole("validation_images", validation_images, least=0)
    _check_positive(loading_images_per_s=loading_images_per_s, ram_gb=ram_gb)
    for power, value in (("idle_power_w", idle_power_w), ("max_power_w", max_power_w)):
        if value is not None:
            _check_positive(**{power: value})
    if not (0 <= intensity_g_per_kwh < math.inf and 0 <= price_per_kwh < math.inf):
        raise InvalidInput(
            "intensity_g_per_kwh and price_per_kwh must be finite and not negative, got "
            f"{intensity_g_per_kwh} and {price_per_kwh}"
        )
    prices = device if isinstance(device, EnergyModel) else load_profile(device)
    prices = prices.on_host(host_speed)
    args = () if input is None else (batched(input, batch_size),)
    keywords = {key: batched(value, batch_size) for key, value in (kwargs or {}).items()}
    common: dict[str, Any] = {
        "kwargs": keywords,
        "batch_size": None if args or keywords else batch_size,
        "device": prices,
        "dtype": dtype,
        "launch": launch,
        "name": name,
    }
    step = predict_energy(
        model, *args, **common, mode="training", optimizer=optimizer, loss=loss,
        accumulation=accumulation, checkpointing=checkpointing,
    )  # fmt: skip
    validation = predict_energy(model, *args, **common) if validation_images else None
    notes = [*step.assumptions]
    if idle_power_w is None:
        idle_power_w = prices.idle_power_w
        if idle_power_w is not None and loading_images_per_s < math.inf:
            notes.append(f"idle power {idle_power_w:.3g} W, as the profile has it")
    forecast = TrainingForecast(
        step=step,
        validation=validation,
        epochs=epochs,
        images=images,
        validation_images=validation_images,
        loading_images_per_s=loading_images_per_s,
        idle_power_w=idle_power_w,
        intensity_g_per_kwh=intensity_g_per_kwh,
        price_per_kwh=price_per_kwh,
        currency=currency,
        notes=tuple(notes),
    )
    if forecast.waiting_time_s and idle_power_w is None:
        raise InvalidInput(
            f"the profile {step.device} does not say what the device draws while it waits for "
            "images; give idle_power_w"
        )
    forecast.baselines_j.update(_baselines(forecast, prices, dtype, launch, max_power_w, ram_gb))
    return forecast


def _baselines(
    forecast: TrainingForecast,
    prices: EnergyModel,
    dtype: str | None,
    launch: str | None,
    max_power_w: float | None,
    ram_gb: float,
) -> dict[str, float]:
    """What the usual formulas make of the run, as far as their inputs are known."""
    from layer_energy.models import build_model

    baselines = {}
    limit_w = max_power_w or prices.max_power_w
    if limit_w is not None:
        time_s = forecast.time_s
        busy = forecast.busy_time_s / forecast.epoch_time_s
        baselines["power limit × time (MLCO2)"] = tdp_time_j(limit_w, time_s)
        baselines["Green Algorithms"] = green_algorithms_j(limit_w, busy, ram_gb, time_s)
    reference = predict_energy(
        build_model("resnet18"), (8, 3, 224, 224), device=prices, dtype=dtype, mode="training",
        optimizer="sgd", launch=launch,
    )  # fmt: skip
    flops = forecast.epochs * forecast.per_epoch(_flops)
    if flops and _flops(reference):
        baselines["in proportion to FLOPs"] = flops_proportional_j(
            flops, _flops(reference), reference.energy_j
        )
    return baselines


def _flops(report: EnergyReport) -> float:
    return sum(
        2.0 * layer.cost.macs * PASSES[layer.call.workload.gradients] for layer in report.layers
    )


def _whole(name: str, value: int, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise InvalidInput(f"{name} must be a whole number of at least {least}, got {value!r}")
    return int(value)


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise InvalidInput(f"{name} must be above 0, got {value!r}")
