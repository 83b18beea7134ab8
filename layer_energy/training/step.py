"""STEP: the joules of a whole training run, projected from a few stable epochs of it.

Stable Training Epoch Projection of del Rey et al. 2025 (arXiv 2307.05520, the "online" methods of
its replication package). There the stable window is five epochs from the tenth on, because in
those runs the backbone was unfrozen after epoch ten. Here it is found: after warm-up, after the
last known change of what is trained, and after the last change point of the epochs' energy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from layer_energy.errors import InvalidInput
from layer_energy.training.interval import bounds
from layer_energy.training.projection import Projection
from layer_energy.training.trace import Array
from layer_energy.training.window import stable_start

FORMS = ("epoch", "power")


def step_power_j(window_power_w: float, time_s: float) -> float:
    """Mean power over the window × duration of the whole run: the paper's power form."""
    return window_power_w * time_s


def step_epoch_j(
    energies_j: Sequence[float] | Array, epochs: int, start: int = 10, window: int = 5
) -> float:
    """``E(0 … s−1) + mean window epoch energy × (N − s)``: the paper's epoch form.

    Args:
        energies_j: of the epochs until the window's end at least.
        epochs: N, of the whole run.
        start: s, first epoch of the window, counted from 0.
        window: epochs in it.

    Raises:
        InvalidInput: if the window does not lie inside the epochs.
    """
    energies = np.asarray(energies_j, dtype=float)
    if not (0 <= start < start + window <= min(len(energies), epochs)):
        raise InvalidInput(
            f"a window of {window} epochs from epoch {start} does not fit into {len(energies)} "
            f"measured of {epochs} epochs"
        )
    mean_j = energies[start : start + window].mean()
    return float(energies[:start].sum() + mean_j * (epochs - start))


@dataclass(frozen=True)
class Blocks:
    """What is known of a run: consecutive blocks of equally many epochs, and a rest.

    Attributes:
        energy_j: ``(n,)`` joules of each block.
        time_s: ``(n,)`` seconds of each block.
        epochs_each: epochs in a block; below 1 if less than an epoch is all there is.
        first: epochs before the first block.
        elapsed_s, so_far_j: of everything done, before and after the blocks too.
        done: epochs done.
    """

    energy_j: Array
    time_s: Array
    epochs_each: float
    first: float
    elapsed_s: float
    so_far_j: float
    done: float


def project(
    blocks: Blocks,
    epochs: float,
    form: str = "epoch",
    not_before: float = 0.0,
    settled: bool = False,
    timed: bool = True,
    notes: Sequence[str] = (),
) -> Projection:
    """Project the run that ``blocks`` are the beginning of.

    Args:
        blocks: one at least.
        epochs: of the whole run.
        form: one of ``FORMS``.
        not_before: no epoch before this one enters the window unless there is no other: the last
            known change of what is trained.
        settled: nothing is frozen that could be unfrozen later.
        timed: the blocks end where epochs end, so that the first one carries start-up; in a
            recording cut into equal times it cannot.
        notes: to hand on.
    """
    if form not in FORMS:
        raise InvalidInput(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    values = blocks.energy_j if form == "epoch" else blocks.energy_j / blocks.time_s
    known = math.ceil((not_before - blocks.first) / blocks.epochs_each)
    known = min(max(known, 0), len(values) - 1)
    start = known + stable_start(values[known:])
    energies, times = blocks.energy_j[start:], blocks.time_s[start:]
    epoch_j = float(energies.mean()) / blocks.epochs_each
    epoch_s = float(times.mean()) / blocks.epochs_each
    left = max(epochs - blocks.done, 0.0)
    to_come_j = left * epoch_j
    energy_j = blocks.so_far_j + to_come_j
    time_s = blocks.elapsed_s + left * epoch_s

    notes = list(notes)
    low = high = 1.0
    if left:
        start_up = timed and start == 0 and len(energies) == 1 and blocks.first == 0
        low, high = bounds(
            blocks.done / epochs, energies, left / blocks.epochs_each, settled, start_up
        )
        if start_up:
            notes.append(
                f"{blocks.done:g} of {epochs:g} epochs, start-up among them, are all that is "
                "known: hence the wide interval below"
            )
    low_j, high_j = (blocks.so_far_j + ratio * to_come_j for ratio in (low, high))
    if form == "power" and left:
        mean_w = float(energies.sum() / times.sum())
        energy_j = max(step_power_j(mean_w, time_s), blocks.so_far_j)
        low_j, high_j = min(low_j, energy_j), max(high_j, energy_j)
    first = blocks.first + start * blocks.epochs_each
    return Projection(
        energy_j=energy_j,
        low_j=low_j,
        high_j=high_j,
        energy_so_far_j=blocks.so_far_j,
        time_s=time_s,
        elapsed_s=blocks.elapsed_s,
        epochs=epochs,
        epochs_done=blocks.done,
        window=(first, first + len(energies) * blocks.epochs_each),
        form=form,
        notes=tuple(notes),
    )
