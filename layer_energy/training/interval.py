"""How far the joules to come may be from those projected.

Two things widen the interval: what recorded runs did after the same share of theirs, and the
spread of the stable epochs. The wider of both counts, so the interval narrows as more of the run
is done, as its epochs agree, and as fewer of them are left.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import stdtrit

from layer_energy.training.trace import Array

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


def bounds(
    share: float, energies_j: Array, left: float, settled: bool, start_up: bool
) -> tuple[float, float]:
    """Lower and upper bound of the joules to come, over those projected; around 1.

    Args:
        share: of the run that is done, above 0 and below 1.
        energies_j: ``(n,)`` of the blocks in the window.
        left: blocks to come.
        settled: nothing is frozen that could be unfrozen later.
        start_up: the window holds nothing but the start of the run.
    """
    low, high = _drift(share, settled)
    scatter = _scatter(energies_j, left)
    low, high = min(low, 1 - scatter), max(high, 1 + scatter)
    if start_up:
        low = min(low, FIRST_EPOCH_RATIO)
    return max(low, 0.0), high


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
