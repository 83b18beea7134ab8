"""``Projection``: the joules of a run of which a part is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from layer_energy.training.interval import COVERAGE
from layer_energy.units import si


@dataclass(frozen=True, slots=True)
class Projection:
    """The joules of a run of which a part is done.

    Attributes:
        energy_j: of the whole run, all epochs.
        low_j, high_j: 90 % interval of it, the meter's systematic error not included.
        energy_so_far_j: of the part that is done; measured, not projected.
        time_s: projected duration of the whole run.
        elapsed_s: duration of the part that is done.
        epochs: of the whole run.
        epochs_done: of the part that is done; fractional where a share of a trace was observed.
        window: first epoch of the stable window and the first after it, counted from 0.
        form: ``"epoch"`` (so far + mean epoch energy × epochs left) or ``"power"`` (mean power ×
            duration).
        quality: of the joules so far, as the meter says.
        relative_uncertainty: of those joules, systematic.
        soonest_j: of the run, if early stopping ends it as soon as it may; else ``None``.
        notes: everything unusual, and what was assumed.
    """

    energy_j: float
    low_j: float
    high_j: float
    energy_so_far_j: float
    time_s: float
    elapsed_s: float
    epochs: float
    epochs_done: float
    window: tuple[float, float]
    form: str
    quality: str = "measured"
    relative_uncertainty: float = 0.0
    soonest_j: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def energy_to_come_j(self) -> float:
        """Joules of the part that is not done yet."""
        return self.energy_j - self.energy_so_far_j

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        start, stop = self.window
        return {
            "energy_j": self.energy_j,
            "low_j": self.low_j,
            "high_j": self.high_j,
            "coverage": COVERAGE,
            "energy_so_far_j": self.energy_so_far_j,
            "energy_to_come_j": self.energy_to_come_j,
            "time_s": self.time_s,
            "elapsed_s": self.elapsed_s,
            "epochs": self.epochs,
            "epochs_done": self.epochs_done,
            "window": {"start_epoch": start, "stop_epoch": stop},
            "form": self.form,
            "quality": self.quality,
            "relative_uncertainty": self.relative_uncertainty,
            "soonest_j": self.soonest_j,
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        done = f"epoch {self.epochs_done:.4g}/{self.epochs:.4g}: {si(self.energy_so_far_j, 'J')}"
        if self.epochs_done >= self.epochs:
            return f"{done} in all ({self.quality})"
        soonest = "" if self.soonest_j is None else f"; {si(self.soonest_j, 'J')} if stopped early"
        return (
            f"{done} so far ({self.quality}), {si(self.energy_to_come_j, 'J')} to come (projected);"
            f" {si(self.energy_j, 'J')} in all, 90 %: {si(self.low_j, 'J')} – "
            f"{si(self.high_j, 'J')}{soonest}"
        )
