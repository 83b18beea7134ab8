"""A non-negative additive law: constant + Σ coefficient × driver, fitted on the log ratio.

Each driver (padded multiply-accumulates, bytes in, out and of weights ...) costs a fixed number of
joules and seconds. Being non-negative and additive, the law extrapolates as the hardware does, and
the log ratio as its loss lets a layer of a microjoule count as much as one of a joule.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from layer_energy.errors import ProfileError
from layer_energy.profile_format import finite
from layer_energy.regressors.base import TARGETS, register
from layer_energy.regressors.features import Array, Features

_MIN_ROWS_PER_DRIVER = 8
"""Drivers non-zero in fewer rows are not fitted: one odd row would decide their price."""

_SOFT = 0.1
"""Log ratios beyond this count linearly, not quadratically (``soft_l1``)."""


@register
class Physical:
    """See the module's text."""

    name = "physical"

    def fit(self, x: Features, y: Array) -> Physical:
        self._names = x.driver_names
        self._coefficients = np.column_stack([_fit_one(x.drivers, y[:, i]) for i in (0, 1)])
        return self

    def predict(self, x: Features) -> Array:
        if x.driver_names != self._names:
            raise ProfileError(
                f"the profile was fitted on the drivers {self._names}, this version computes "
                f"{x.driver_names}; rebuild the profile with `layer-energy fit`"
            )
        constant, prices = self._coefficients[0], self._coefficients[1:]
        return np.asarray(np.maximum(constant + x.drivers @ prices, 1e-300))

    @property
    def coefficients(self) -> dict[str, dict[str, float]]:
        """Target → driver (or ``"constant"``) → joules or seconds per unit."""
        names = ("constant", *self._names)
        return {
            target: dict(zip(names, self._coefficients[:, i].tolist(), strict=True))
            for i, target in enumerate(TARGETS)
        }

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "drivers": list(self._names),
            "coefficients": self._coefficients.tolist(),
        }

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Physical:
        made = cls()
        made._names = tuple(state["drivers"])
        made._coefficients = finite(state["coefficients"], len(made._names) + 1, 2)
        return made


def _fit_one(drivers: Array, y: Array) -> Array:
    """Coefficients ``(1 + d,)`` of one target."""
    from scipy.optimize import least_squares, nnls

    n, d = drivers.shape
    fitted = [j for j in range(d) if np.count_nonzero(drivers[:, j]) >= _MIN_ROWS_PER_DRIVER]
    scale = drivers[:, fitted].max(axis=0)
    distinct, member, twins = np.unique(
        drivers[:, fitted] / scale, axis=1, return_inverse=True, return_counts=True
    )
    design = np.column_stack([np.ones(n), distinct])
    relative = design / y[:, None]
    start, _ = nnls(relative, np.ones(n))
    # exp keeps prices positive; a price that starts at zero gets a small one it can leave
    typical = np.median(y) / np.maximum(np.median(design, axis=0), 1e-12)
    log_prices = np.log(np.maximum(start, 1e-6 * typical))
    log_y = np.log(y)

    def residuals(theta: Array) -> Array:
        return np.asarray(np.log(design @ np.exp(theta)) - log_y)

    solution = least_squares(residuals, log_prices, loss="soft_l1", f_scale=_SOFT, max_nfev=400)
    constant, prices = math.exp(solution.x[0]), np.exp(solution.x[1:])
    coefficients = np.zeros(1 + d)
    coefficients[0] = constant
    # drivers that these rows cannot tell apart share the price, as in the least-norm solution
    coefficients[[1 + j for j in fitted]] = (prices / twins)[member.ravel()] / scale
    return coefficients
