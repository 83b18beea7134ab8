"""``EnergyProjector``: STEP on a live run, fed by any meter at the ends of epochs."""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from layer_energy.errors import InvalidInput, MeterError
from layer_energy.meters.base import Meter, Reading
from layer_energy.training.projection import Projection
from layer_energy.training.replay import MIN_SAMPLES, block_epochs
from layer_energy.training.step import FORMS, Blocks, project

if TYPE_CHECKING:
    from torch import nn

_READING = threading.Lock()
"""Meters are read by one thread at a time."""


class EnergyProjector:
    """Projects the joules of a training run from the epochs done so far.

    Call :meth:`start` before the first epoch, :meth:`end_epoch` after each, and :meth:`finish`
    when training ends, early or not. :func:`layer_energy.training.progress.track` does so for a
    plain loop; the callbacks do for Lightning and for Hugging Face's ``Trainer``. These also read
    the meter within long epochs, as some counters wrap; without them, call :meth:`so_far_j` now and
    then where an epoch lasts longer than a few minutes.

    Args:
        meter: any :class:`~layer_energy.meters.Meter`.
        epochs: of the whole run; may be set again while it goes.
        model: give it to have changes of what is trained (``requires_grad``) detected: epochs
            before the last one say nothing about those to come.
        form: ``"epoch"`` or ``"power"``; see :class:`Projection`.

    Raises:
        InvalidInput: if ``epochs`` is not positive or ``form`` is unknown.
    """

    def __init__(
        self, meter: Meter, epochs: float, model: nn.Module | None = None, form: str = "epoch"
    ) -> None:
        if form not in FORMS:
            raise InvalidInput(f"form must be one of {', '.join(FORMS)}, got {form!r}")
        self.meter = meter
        self.epochs = epochs
        self.model = model
        self.form = form
        self.projection: Projection | None = None
        """The last one made; ``None`` before the first epoch's end."""
        self._marks: list[Reading] = []
        self._last: Reading | None = None
        self._trainable: frozenset[str] = frozenset()
        self._changed_at = 0

    @property
    def epochs(self) -> float:
        """Epochs of the whole run."""
        return self._epochs

    @epochs.setter
    def epochs(self, epochs: float) -> None:
        if not 0 < epochs < math.inf:
            raise InvalidInput(f"epochs must be a positive number, got {epochs}")
        self._epochs = epochs

    @property
    def epochs_done(self) -> int:
        """Epochs that have ended."""
        return max(len(self._marks) - 1, 0)

    def start(self) -> None:
        """Begin to count, at the start of the first epoch; called again, begin anew."""
        self._last = None
        self.projection = None
        self._marks = [self._read()]
        self._trainable = self._trained()
        self._changed_at = 0

    def so_far_j(self) -> float:
        """Joules since :meth:`start`, now."""
        self._require_start()
        return self._read().energy_j - self._marks[0].energy_j

    def end_epoch(self, may_stop_in: int | None = None) -> Projection:
        """Count the epoch that ends now, and project.

        Args:
            may_stop_in: epochs after which early stopping may end the run at the soonest, its
                patience less the epochs without improvement; ``None`` without early stopping.

        Raises:
            InvalidInput: before :meth:`start`, or after more epochs than the run has.
            MeterError: if the meter fails, stands still, or goes backwards.
        """
        self._require_start()
        done = self.epochs_done
        if done >= self.epochs:
            raise InvalidInput(
                f"epoch {done + 1} ends, but the run was to have {self.epochs:g}; set "
                "projector.epochs when the plan changes"
            )
        now = self._read()
        if now.time_s <= self._marks[-1].time_s:
            raise MeterError(
                f"the clock of the {self.meter.name} meter stood still during epoch {done + 1}, "
                f"at {now.time_s} s"
            )
        self._marks.append(now)
        trained = self._trained()
        if trained != self._trainable:
            # seen only now, it may have happened at the epoch's start or in the midst of it: like
            # the first epoch of all it opens a regime, and is left out once there is another
            self._trainable, self._changed_at = trained, done
        self.projection = self._project(may_stop_in)
        return self.projection

    def finish(self) -> Projection:
        """The run has ended, after all its epochs or earlier: its joules, nothing projected."""
        self._require_start()
        now = self._read()
        first = self._marks[0]
        energy_j, time_s = now.energy_j - first.energy_j, now.time_s - first.time_s
        done = self.epochs_done
        last = self.projection
        planned = f"ended after {done} of {self.epochs:g} epochs"
        self.projection = Projection(
            energy_j, energy_j, energy_j, energy_j, time_s, time_s, done, done,
            last.window if last else (0, done), self.form, self.meter.quality,
            self.meter.relative_uncertainty,
            notes=(*((planned,) if done < self.epochs else ()), *self.meter.assumptions),
        )  # fmt: skip
        return self.projection

    def _project(self, may_stop_in: int | None) -> Projection:
        energies = np.diff([mark.energy_j for mark in self._marks])
        times = np.diff([mark.time_s for mark in self._marks])
        done = len(energies)
        epoch_s = float(np.median(times))
        each = min(block_epochs(done, epoch_s, self.meter.period_s), done)
        first = done % each
        notes = list(self._frozen_notes())
        if epoch_s < MIN_SAMPLES * self.meter.period_s:
            notes.append(
                f"epochs of {epoch_s:.3g} s are not resolved by a meter that updates every "
                f"{self.meter.period_s:.3g} s: {each} epochs are taken as one"
            )
        blocks = Blocks(
            energy_j=energies[first:].reshape(-1, each).sum(axis=1),
            time_s=times[first:].reshape(-1, each).sum(axis=1),
            epochs_each=each,
            first=first,
            elapsed_s=float(times.sum()),
            so_far_j=float(energies.sum()),
            done=done,
        )
        settled = self.model is not None and not self._frozen()
        made = project(blocks, self.epochs, self.form, self._changed_at, settled, notes=notes)
        soonest_j = None
        if may_stop_in is not None:
            share = min(max(may_stop_in, 0) / max(self.epochs - done, 1e-9), 1.0)
            soonest_j = made.energy_so_far_j + share * made.energy_to_come_j
        return replace(
            made,
            quality=self.meter.quality,
            relative_uncertainty=self.meter.relative_uncertainty,
            soonest_j=soonest_j,
            notes=(*made.notes, *self.meter.assumptions),
        )

    def _read(self) -> Reading:
        with _READING:
            return self._checked(self.meter.read())

    def _checked(self, reading: Reading) -> Reading:
        last = self._last
        if not (math.isfinite(reading.time_s) and math.isfinite(reading.energy_j)):
            raise MeterError(f"the {self.meter.name} meter read {reading}; expected finite numbers")
        if last and (reading.time_s < last.time_s or reading.energy_j < last.energy_j):
            raise MeterError(
                f"the {self.meter.name} meter goes backwards, from {last} to {reading}; check it "
                "with layer_energy.meters.check_meter"
            )
        self._last = reading
        return reading

    def _require_start(self) -> None:
        if not self._marks:
            raise InvalidInput("call start() before the first epoch, so that it is counted whole")

    def _trained(self) -> frozenset[str]:
        """Names of the parameters that are trained now."""
        if self.model is None:
            return frozenset()
        return frozenset(n for n, p in self.model.named_parameters() if p.requires_grad)

    def _frozen(self) -> int:
        """How many parameters the model has that are not trained now."""
        if self.model is None:
            return 0
        return sum(not p.requires_grad for p in self.model.parameters())

    def _frozen_notes(self) -> tuple[str, ...]:
        notes = []
        if self._changed_at:
            notes.append(f"what is trained changed in epoch {self._changed_at}; projected from it")
        if frozen := self._frozen():
            notes.append(f"{frozen} parameters are frozen; more energy is needed if that changes")
        return tuple(notes)
