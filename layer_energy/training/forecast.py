"""A training run before it starts: steps, validation and waiting, added up from the layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layer_energy.errors import InvalidInput
from layer_energy.model import PASSES, EnergyModel, load_profile
from layer_energy.predict import predict_energy
from layer_energy.training.baselines import flops_proportional_j, green_algorithms_j, tdp_time_j
from layer_energy.units import WORLD_INTENSITY_G_PER_KWH, carbon_g, energy_wh, money, si

if TYPE_CHECKING:
    from torch import nn

    from layer_energy.optimization import Loss, MakeOptimizer
    from layer_energy.report import EnergyReport

RAM_GB = 16.0
"""Memory of the machine that Green Algorithms is told of where none is given."""


@dataclass(frozen=True)
class TrainingForecast:
    """The joules and seconds of a training run that has not begun.

    Attributes:
        step: of one step of the optimizer, its micro-batches included.
        validation: of one forward pass of validation; ``None`` without validation images.
        epochs: passes over the training images.
        images, validation_images: of an epoch.
        steps, validation_passes: of an epoch; the last, smaller batch counts as a part of one.
        loading_images_per_s: what the data loader delivers; ``inf`` if it never makes one wait.
        idle_power_w: what the device draws meanwhile; ``None`` if not known and not needed.
        intensity_g_per_kwh, price_per_kwh, currency: of the electricity.
        baselines_j: what the usual formulas say, by name.
        notes: what was assumed.
    """

    step: EnergyReport
    validation: EnergyReport | None
    epochs: int
    images: int
    validation_images: int
    steps: float
    validation_passes: float
    loading_images_per_s: float = math.inf
    idle_power_w: float | None = None
    intensity_g_per_kwh: float = WORLD_INTENSITY_G_PER_KWH
    price_per_kwh: float = 0.25
    currency: str = "EUR"
    baselines_j: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def busy_time_s(self) -> float:
        """Seconds of an epoch in which the device computes."""
        return self.per_epoch(lambda report: report.time_s)

    @property
    def waiting_time_s(self) -> float:
        """Seconds of an epoch in which it waits for images; loading goes on while it computes."""
        return self.per_epoch(
            lambda report: max(0.0, report.batch_size / self.loading_images_per_s - report.time_s)
        )

    @property
    def waiting_energy_j(self) -> float:
        """Joules of those seconds."""
        return self.waiting_time_s * (self.idle_power_w or 0.0)

    @property
    def epoch_energy_j(self) -> float:
        """Joules of an epoch."""
        return self.per_epoch(lambda report: report.energy_j) + self.waiting_energy_j

    @property
    def epoch_time_s(self) -> float:
        """Seconds of an epoch."""
        return self.busy_time_s + self.waiting_time_s

    @property
    def energy_j(self) -> float:
        """Joules of the run."""
        return self.epochs * self.epoch_energy_j

    @property
    def interval_j(self) -> tuple[float, float]:
        """90 % interval of ``energy_j``: every step errs as the first."""
        low = self.per_epoch(lambda report: report.interval_j[0]) + self.waiting_energy_j
        high = self.per_epoch(lambda report: report.interval_j[1]) + self.waiting_energy_j
        return self.epochs * low, self.epochs * high

    @property
    def time_s(self) -> float:
        """Seconds of the run."""
        return self.epochs * self.epoch_time_s

    @property
    def image_energy_j(self) -> float:
        """Joules per image seen, in training and validation, as del Rey et al. 2025 give them."""
        return self.epoch_energy_j / (self.images + self.validation_images)

    @property
    def carbon_g(self) -> float:
        """Grams of CO2-equivalent of the run's electricity."""
        return carbon_g(self.energy_j, self.intensity_g_per_kwh)

    @property
    def cost(self) -> float:
        """Price of it, in ``currency``."""
        return money(self.energy_j, self.price_per_kwh)

    def per_epoch(self, of: Callable[[EnergyReport], float]) -> float:
        """Something of a step and of a forward pass, summed over an epoch's."""
        validation = self.validation_passes * of(self.validation) if self.validation else 0.0
        return self.steps * of(self.step) + validation

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        low, high = self.interval_j
        return {
            "model": self.step.model,
            "device": self.step.device,
            "dtype": self.step.dtype,
            "quality": self.step.quality,
            "source": self.step.source,
            "epochs": self.epochs,
            "batch_size": self.step.batch_size,
            "input": self.step.input,
            "steps_per_epoch": self.steps,
            "energy_j": self.energy_j,
            "energy_low_j": low,
            "energy_high_j": high,
            "time_s": self.time_s,
            "epoch_energy_j": self.epoch_energy_j,
            "epoch_time_s": self.epoch_time_s,
            "image_energy_j": self.image_energy_j,
            "step_energy_j": self.step.energy_j,
            "step_time_s": self.step.time_s,
            "validation_pass_energy_j": self.validation.energy_j if self.validation else None,
            "waiting_time_s": self.epochs * self.waiting_time_s,
            "waiting_energy_j": self.epochs * self.waiting_energy_j,
            "carbon_g": self.carbon_g,
            "intensity_g_per_kwh": self.intensity_g_per_kwh,
            "cost": self.cost,
            "currency": self.currency,
            "price_per_kwh": self.price_per_kwh,
            "coverage": self.step.coverage,
            "in_domain": self.step.in_domain,
            "baselines_j": self.baselines_j,
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        low, high = self.interval_j
        lines = [
            f"{self.step.model} on {self.step.device_name} (profile {self.step.device}): "
            f"{self.epochs} epochs of {self.images} images",
            f"predicted: {si(self.energy_j, 'J')} (90 %: {si(low, 'J')} – {si(high, 'J')}) in "
            f"{si(self.time_s, 's')}; {si(energy_wh(self.energy_j), 'Wh')}, "
            f"{si(self.carbon_g, 'g')} CO2e at {self.intensity_g_per_kwh:g} g/kWh, "
            f"{self.cost:.2f} {self.currency} at {self.price_per_kwh:g} a kWh",
            f"{si(self.image_energy_j, 'J')} per image, {si(self.epoch_energy_j, 'J')} and "
            f"{si(self.epoch_time_s, 's')} per epoch",
            f"a step of {self.step.batch_size}: {si(self.step.energy_j, 'J')}, "
            f"{si(self.step.time_s, 's')}",
        ]
        if self.waiting_time_s:
            share = self.waiting_time_s / self.epoch_time_s
            lines.append(f"{share:.0%} of the time the device waits for images")
        lines += [f"{name}: {si(value, 'J')}" for name, value in self.baselines_j.items()]
        return "\n".join([*lines, *(f"· {note}" for note in self.notes)])


def predict_training(
    model: nn.Module,
    *,
    images: int,
    epochs: int,
    batch_size: int,
    validation_images: int = 0,
    input: Sequence[int] | None = None,  # noqa: A002  # the word for it
    device: str | Path | EnergyModel | None = None,
    dtype: str | None = None,
    optimizer: str | MakeOptimizer | None = None,
    loss: Loss | None = None,
    accumulation: int = 1,
    checkpointing: bool | Sequence[str] = False,
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
        images: training images of an epoch.
        epochs: how many.
        batch_size: images of a micro-batch.
        validation_images: images of a forward pass after each epoch.
        input: shape of one image, such as ``(3, 224, 224)``; inferred if not given.
        device: as of :func:`layer_energy.predict_energy`.
        dtype: likewise.
        optimizer: likewise.
        loss: likewise.
        accumulation: likewise.
        checkpointing: likewise.
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
        InvalidInput: for numbers out of their range, and waiting without an idle power.
        ProfileError: if the profile prices no training.
        WalkError: if the model cannot be walked.
    """
    _check(images=images, epochs=epochs, batch_size=batch_size)
    _check(validation_images=validation_images, least=0)
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
    args = () if input is None else ((batch_size, *input),)
    inferred = batch_size if input is None else None
    common: dict[str, Any] = {"batch_size": inferred, "device": prices, "dtype": dtype}
    step = predict_energy(
        model, *args, **common, mode="training", optimizer=optimizer, loss=loss,
        accumulation=accumulation, checkpointing=checkpointing, name=name,
    )  # fmt: skip
    validation = predict_energy(model, *args, **common, name=name) if validation_images else None
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
        steps=images / step.batch_size,
        validation_passes=validation_images / batch_size,
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
    forecast.baselines_j.update(_baselines(forecast, prices, max_power_w, ram_gb))
    return forecast


def _baselines(
    forecast: TrainingForecast, prices: EnergyModel, max_power_w: float | None, ram_gb: float
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
        build_model("resnet18"), (8, 3, 224, 224), device=prices, mode="training", optimizer="sgd"
    )
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


def _check(least: int = 1, **counts: int) -> None:
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InvalidInput(f"{name} must be a whole number of at least {least}, got {value!r}")


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise InvalidInput(f"{name} must be above 0, got {value!r}")
