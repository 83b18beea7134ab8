"""What is said of a training run before it starts: steps, validation and waiting, added up."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from layer_energy.report.text import fitted_on, origin
from layer_energy.units import WORLD_INTENSITY_G_PER_KWH, carbon_g, energy_wh, money, si
from layer_energy.walk.training import ACCUMULATION, OPTIMIZER

if TYPE_CHECKING:
    from layer_energy.report import EnergyReport
    from layer_energy.report.report import LayerEstimate


@dataclass(frozen=True)
class TrainingForecast:
    """The joules and seconds of a training run that has not begun.

    The loader keeps the last, smaller batch of an epoch (no ``drop_last``), and what is left of the
    micro-batches makes a step of its own. Passes cost in proportion to images; the optimizer's
    step, and the additions of gradients between micro-batches, cost the same in a smaller step.

    Attributes:
        step: of one step of the optimizer, its micro-batches included.
        validation: of one forward pass of validation; ``None`` without validation images.
        epochs: how often the training images are seen.
        images, validation_images: of an epoch.
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
    loading_images_per_s: float = math.inf
    idle_power_w: float | None = None
    intensity_g_per_kwh: float = WORLD_INTENSITY_G_PER_KWH
    price_per_kwh: float = 0.25
    currency: str = "EUR"
    baselines_j: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        """Steps of the optimizer in an epoch."""
        return math.ceil(self.images / self.step.batch_size)

    @property
    def busy_time_s(self) -> float:
        """Seconds of an epoch in which the device computes."""
        return self.per_epoch(_time_s)

    @property
    def waiting_time_s(self) -> float:
        """Seconds of an epoch in which it waits for images; loading goes on while it computes."""
        loads = (
            (self.images, self._in_training(_time_s)),
            (self.validation_images, self._in_validation(_time_s)),
        )
        rate = self.loading_images_per_s
        return sum(max(0.0, images / rate - busy_s) for images, busy_s in loads)

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
        """Something that layers and waiting add up to, over an epoch's steps and validation."""
        return self._in_training(of) + self._in_validation(of)

    def _in_training(self, of: Callable[[EnergyReport], float]) -> float:
        passes, update = self._parts_of_step
        waiting = of(self.step) - of(passes) - of(update)
        full_steps = self.images / self.step.batch_size
        return full_steps * (of(passes) + waiting) + self.steps * of(update)

    def _in_validation(self, of: Callable[[EnergyReport], float]) -> float:
        if self.validation is None:
            return 0.0
        return self.validation_images / self.validation.batch_size * of(self.validation)

    @cached_property
    def _parts_of_step(self) -> tuple[EnergyReport, EnergyReport]:
        """What a step does for its images, and once for all of them; both without waiting."""
        passes: list[LayerEstimate] = []
        update: list[LayerEstimate] = []
        for layer in self.step.layers:
            once = layer.call.path in (OPTIMIZER, ACCUMULATION)
            (update if once else passes).append(layer)
        alone = replace(self.step, idle_power_w=None)
        return replace(alone, layers=passes), replace(alone, layers=update)

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
            "launch": self.step.launch,
            "step_waiting_for_host_s": self.step.waiting_s,
            "step_waiting_for_host_j": self.step.waiting_j,
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
        said = [origin(self.step), fitted_on(self.step), *self.notes]
        return "\n".join([*lines, *(f"· {note}" for note in said)])


def _time_s(report: EnergyReport) -> float:
    return report.time_s
