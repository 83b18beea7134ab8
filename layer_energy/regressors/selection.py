"""Choosing a regressor by cross-validation that extrapolates, before any real layer is seen.

Random folds reward whatever interpolates: the layers left out lie among the layers fitted. Here
what is left out lies elsewhere: a block of feature space, a decade of sizes, or a rare stratum. The
score is the mean absolute log ratio of predicted over measured joules, so that a microjoule counts
as much as a kilojoule.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from layer_energy.regressors.base import make
from layer_energy.regressors.features import Array, Features

AUTO = "auto"
"""In the place of a regressor's name: choose one for each layer type."""

CANDIDATES = ("hybrid", "physical")
"""What is chosen from: regressors that stay within a factor of five of the physical law."""

_BLOCKS = 5
_FEW_VALUES = 12
_RARE = 0.1
_MIN_SHARE = 0.02
_MAX_SHARE = 0.5


def extrapolating_folds(x: Features) -> list[tuple[str, NDArray[np.bool_]]]:
    """Name and ``(n,)`` mask of the rows left out, for each fold; a row may be in several.

    ``block``: a cluster of the standardised log features (k-means). ``decade``: all rows whose
    bytes lie in one power of ten. ``rare``: rows with a value that few rows have, of a parameter
    that takes few values. Folds of under 2 % or over half of the rows are dropped.
    """
    folds = [*_blocks(x), *_decades(x), *_rare(x)]
    return [(name, out) for name, out in folds if _MIN_SHARE <= out.mean() <= _MAX_SHARE]


def _blocks(x: Features) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    from sklearn.cluster import KMeans

    spread = x.logs.std(axis=0)
    z = (x.logs - x.logs.mean(axis=0))[:, spread > 0] / spread[spread > 0]
    label = KMeans(min(_BLOCKS, len(x)), n_init=5, random_state=0).fit_predict(z)
    for k in range(_BLOCKS):
        yield "block", label == k


def _decades(x: Features) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    decade = np.floor(x.logs[:, x.log_names.index("bytes")] / np.log(10))
    for each in np.unique(decade):
        yield "decade", decade == each


def _rare(x: Features) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    rare = np.zeros(len(x), dtype=bool)
    for column in x.params.T:
        _, member, rows = np.unique(column, return_inverse=True, return_counts=True)
        if 1 < len(rows) <= _FEW_VALUES:
            rare |= (rows < _RARE * len(x))[member.ravel()]
    yield "rare", rare


def extrapolation_error(x: Features, y: Array, name: str) -> float:
    """Mean absolute log ratio of the joules of rows left out, over all folds.

    Args:
        x: ``n`` rows of one layer type.
        y: ``(n, 2)`` joules and seconds.
        name: of the regressor.
    """
    errors = []
    for _, out in extrapolating_folds(x):
        predicted = make(name).fit(x[~out], y[~out]).predict(x[out])
        errors.append(np.abs(np.log(predicted[:, 0] / y[out, 0])))
    return float(np.concatenate(errors).mean())


def choose(x: Features, y: Array, candidates: Sequence[str] = CANDIDATES) -> str:
    """Name of the candidate that extrapolates best."""
    return min(candidates, key=lambda name: extrapolation_error(x, y, name))
