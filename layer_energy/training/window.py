"""Which epochs of a run are stable: after warm-up and after the last change."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from layer_energy.training.trace import Array

_NOISE_FLOOR = 0.01
"""Changes of mean are judged against a noise of 1 % at least: smaller ones do not matter here."""

_PENALTY = 5.0
"""Price of a change point over log n: about one quiet run in fifty then shows one that is none."""


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
