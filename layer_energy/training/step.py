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
from typing import Any

import numpy as np
from scipy.special import stdtrit

from layer_energy.errors import InvalidInput
from layer_energy.training.trace import Array
from layer_energy.units import si

FORMS = ("epoch", "power")
COVERAGE = 0.9
"""Share of runs whose energy the interval is meant to hold."""

DRIFT = {
    0.01: (0.918, 2.98),
    0.02: (0.918, 1.838),
    0.03: (0.918, 1.762),
    0.05: (0.921, 1.461),
    0.075: (0.946, 1.448),
    0.1: (0.981, 1.411),
    0.125: (0.981, 1.307),
    0.15: (0.981, 1.203),
    0.175: (0.981, 1.062),
    0.2: (0.981, 1.016),
    0.25: (0.981, 1.007),
    0.5: (0.991, 1.005),
}
"""Share of a run observed → 5 % and 95 % bounds of the joules to come over those projected.

From 60 recorded runs of the source (CC BY 4.0), whose backbones were unfrozen at up to a fifth of
the run: projections before that are too low. ``tests/benchmarks/step.py --calibrate`` prints it.
"""

SETTLED_SHARE = 0.25
"""By this share all those runs trained all their layers; see :data:`DRIFT`."""

FIRST_EPOCH_RATIO = 0.12
"""A later epoch over the first, at worst: 0.331 kJ ÷ 2.723 kJ in the unit-test case of the source,
whose first epoch carries start-up. Lower end of an interval that rests on a first epoch alone."""

_PRIOR_SPREAD, _PRIOR_EPOCHS = 0.05, 1
"""Spread of epochs assumed before any is seen, and the number of epochs it counts for. A judgement:
several times the usual spread of the stable epochs of those runs."""

_NOISE_FLOOR = 0.01
"""Changes of mean are judged against a noise of 1 % at least: smaller ones do not matter here."""

_PENALTY = 5.0
"""Price of a change point over log n: about one quiet run in fifty then shows one that is none."""


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
    low, high = 1.0, 1.0
    if left:
        low, high = _drift(blocks.done / epochs, settled)
        scatter = _scatter(energies, left / blocks.epochs_each)
        low, high = min(low, 1 - scatter), max(high, 1 + scatter)
        if timed and start == 0 and len(energies) == 1 and blocks.first == 0:
            low = min(low, FIRST_EPOCH_RATIO)
            notes.append("one epoch only: it carries start-up, hence the wide interval below")
    low_j, high_j = (blocks.so_far_j + max(ratio, 0.0) * to_come_j for ratio in (low, high))
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


def stable_start(values: Sequence[float] | Array) -> int:
    """Where the window starts: the first of the last regime is left out if it has another.

    The last regime begins at the last change point of the mean, found by optimal partitioning
    (Jackson et al. 2005, with a Gaussian cost and a penalty of 5 log n) on the running median of
    three, so that one odd epoch is no regime. Its first epoch holds the change or the warm-up.

    Args:
        values: ``(n,)`` energies or powers of epochs, one at least.
    """
    y = np.asarray(values, dtype=float)
    n = len(y)
    start = _last_change(_running_median(y), _noise(y)) if n >= 3 else 0
    return start + 1 if n - start > 1 else start


def _running_median(y: Array) -> Array:
    middle = np.median(np.stack([y[:-2], y[1:-1], y[2:]]), axis=0)
    return np.concatenate([y[:1], middle, middle[-1:]])


def _noise(y: Array) -> float:
    """Standard deviation between neighbours, by the median of their differences."""
    robust = 1.4826 / math.sqrt(2) * float(np.median(np.abs(np.diff(y))))
    return max(robust, _NOISE_FLOOR * abs(float(y.mean())), 1e-300)


def _last_change(y: Array, noise: float) -> int:
    """Index at which the last piece of the best partition of ``y`` begins."""
    n = len(y)
    total = np.concatenate([[0.0], np.cumsum(y / noise)])
    squares = np.concatenate([[0.0], np.cumsum((y / noise) ** 2)])
    penalty = _PENALTY * math.log(n)
    best = np.zeros(n + 1)
    best[0] = -penalty
    begins = np.zeros(n + 1, dtype=int)
    for end in range(1, n + 1):
        begin = np.arange(max(1, end - 1))  # pieces of two at least
        length = end - begin
        cost = squares[end] - squares[begin] - (total[end] - total[begin]) ** 2 / length
        score = best[begin] + cost + penalty
        begins[end] = int(np.argmin(score))
        best[end] = score[begins[end]]
    return int(begins[n])


def _drift(share: float, settled: bool) -> tuple[float, float]:
    """Bounds of the joules to come over those projected, from recorded runs at this share."""
    shares = list(DRIFT)
    at = math.log(max(share, SETTLED_SHARE if settled else shares[0]))
    low, high = (
        float(np.interp(at, np.log(shares), [bounds[i] for bounds in DRIFT.values()]))
        for i in (0, 1)
    )
    return low, high


def _scatter(energies: Array, left: float) -> float:
    """Relative half-width for the mean of ``left`` further blocks, by the spread of these."""
    n, mean = len(energies), float(energies.mean())
    if mean <= 0:
        return 1.0
    squares = float(((energies / mean - 1) ** 2).sum()) + _PRIOR_EPOCHS * _PRIOR_SPREAD**2
    freedom = n - 1 + _PRIOR_EPOCHS
    quantile = float(stdtrit(freedom, (1 + COVERAGE) / 2))
    return quantile * math.sqrt(squares / freedom * (1 / n + 1 / left))
