"""How many held-out networks the 90 % interval of totals really holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from layer_energy.model import conformal_interval
from layer_energy.regressors.features import Array


def held_out_coverage(ratios: Iterable[float], models: Iterable[str]) -> dict[str, float]:
    """Share of networks inside an interval that was calibrated without them.

    Args:
        ratios: measured over predicted, one a network and batch size.
        models: the architecture of each.

    Returns:
        ``"held_out"``: each network left out by itself; ``"architecture_held_out"``: with all
        others of its architecture, which is harder and, with few architectures, less certain.
        A way that leaves nothing to calibrate on is left out.
    """
    logs = np.log(np.array(list(ratios), dtype=float))
    names = np.array(list(models))
    folds = {
        "held_out": [np.arange(len(logs)) == i for i in range(len(logs))],
        "architecture_held_out": [names == name for name in np.unique(names)],
    }
    return {how: _coverage(logs, masks) for how, masks in folds.items() if len(masks) > 1}


def _coverage(logs: Array, folds: Sequence[NDArray[np.bool_]]) -> float:
    inside = []
    for out in folds:
        low, high = conformal_interval(logs[~out])
        inside += list((low <= logs[out]) & (logs[out] <= high))
    return float(np.mean(inside))
