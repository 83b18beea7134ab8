"""How many held-out networks the 90 % interval of totals really holds."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from layer_energy.model import conformal_interval
from layer_energy.regressors.features import Array


def held_out_coverage(
    ratios: Iterable[float], models: Iterable[str], inputs: Iterable[str]
) -> dict[str, float]:
    """Share of networks inside an interval that was calibrated without them.

    Args:
        ratios: measured over predicted, one a network, input and, of training steps, mode.
        models: the architecture of each.
        inputs: the shapes it was measured with, in words: ``"8x3x224x224"``.

    Returns:
        ``"held_out"``: each network and input left out by itself, in all the modes and dtypes it
        was measured in, whose errors are alike; ``"architecture_held_out"``: with all others of
        its architecture, which is harder and, with few architectures, less certain. A way that
        leaves nothing to calibrate on is left out.
    """
    logs = np.log(np.array(list(ratios), dtype=float))
    names = list(models)
    folds = {
        "held_out": _folds(list(zip(names, inputs, strict=True))),
        "architecture_held_out": _folds(names),
    }
    return {how: _coverage(logs, masks) for how, masks in folds.items() if len(masks) > 1}


def _folds(labels: Sequence[Hashable]) -> list[NDArray[np.bool_]]:
    """For each distinct label, which rows have it."""
    return [np.array([other == label for other in labels]) for label in dict.fromkeys(labels)]


def _coverage(logs: Array, folds: Sequence[NDArray[np.bool_]]) -> float:
    inside = []
    for out in folds:
        low, high = conformal_interval(logs[~out])
        inside += list((low <= logs[out]) & (logs[out] <= high))
    return float(np.mean(inside))
