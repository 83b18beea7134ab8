"""The regressors of Getzner et al. 2023 (arXiv 2304.00897): the baseline of every table.

Ordinary least squares on the multiply-accumulates; for pooling, on all products of two distinct
ones among the parameters, their logarithms and the multiply-accumulates. Fitted on joules, not on
their logarithm, so a few giant layers decide the fit, and predictions may even be negative: they
are cut off at a positive floor.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from layer_energy.profile_format import finite
from layer_energy.regressors.base import register
from layer_energy.regressors.features import Array, Features

_FLOOR = 1e-3
"""Predictions are at least this share of the smallest training target."""


@register
class Polynomial:
    """Linear in the MACs; for pooling of degree two, interactions only, in everything."""

    name = "polynomial"

    def __init__(self, degree: int = 1) -> None:
        self.degree = degree

    def fit(self, x: Features, y: Array) -> Polynomial:
        from sklearn.linear_model import LinearRegression

        if "kernel_h" in x.param_names and "out_channels" not in x.param_names:
            self.degree = 2
        design = self._design(x)
        self._scale = np.maximum(np.abs(design).max(axis=0), 1e-300)
        line = LinearRegression().fit(design / self._scale, y)
        self._coefficients = line.coef_ / self._scale
        self._intercept = np.atleast_1d(line.intercept_)
        self._floor = y.min(axis=0) * _FLOOR
        return self

    def _design(self, x: Features) -> Array:
        columns = x.macs[:, None]
        if self.degree == 1:
            return columns
        columns = np.column_stack([x.params, np.log1p(x.params), x.macs])
        first, second = np.triu_indices(columns.shape[1], k=1)
        return np.column_stack([columns, columns[:, first] * columns[:, second]])

    def predict(self, x: Features) -> Array:
        return np.asarray(np.maximum(self.polynomial(x), self._floor))

    def polynomial(self, x: Features) -> Array:
        """``(n, 2)`` predictions as the paper has them, negative ones included."""
        return np.asarray(self._design(x) @ self._coefficients.T + self._intercept)

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "degree": self.degree,
            "coefficients": self._coefficients.tolist(),
            "intercept": self._intercept.tolist(),
            "floor": self._floor.tolist(),
        }

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Polynomial:
        made = cls(int(state["degree"]))
        made._coefficients = finite(state["coefficients"], 2, None)
        made._intercept = finite(state["intercept"], 2)
        made._floor = finite(state["floor"], 2)
        return made
