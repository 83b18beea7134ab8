"""The physical law times a bounded correction learnt from the rows around a layer.

The correction is a Gaussian process (Matérn 5/2, one length per feature) on the logarithm of
measured over physical; far from every row it returns to the law by itself. It is cut off at a
factor of ``BOUND``, and fades to nothing over a factor of ``FADE`` outside the fitted range of any
feature, so that extrapolation is the physical law's alone.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np

from layer_energy.profile_format import finite
from layer_energy.regressors.base import register
from layer_energy.regressors.features import Array, Features
from layer_energy.regressors.physical import Physical

BOUND = 4.0
FADE = 4.0
_NOISE = 0.1
"""Least share of the variance that the law leaves which is noise: trusting the rows more predicts
their neighbours better, and everything else worse."""

BLOCK = 1024
"""Layers that are corrected at once: the kernel of all of them may not fit into memory."""

_HYPER_ROWS = 400
"""Rows on which lengths and noise are learnt; the correction itself uses them all."""


@register
class Hybrid:
    """See the module's text."""

    name = "hybrid"

    def fit(self, x: Features, y: Array) -> Hybrid:
        self.physical = Physical().fit(x, y)
        ratio = np.log(y) - np.log(self.physical.predict(x))
        self._keep = np.flatnonzero(np.ptp(x.logs, axis=0) > 1e-9)
        z = x.logs[:, self._keep]
        self._low, self._high = z.min(axis=0), z.max(axis=0)
        self._center, self._scale = z.mean(axis=0), z.std(axis=0)
        z = self._rounded((z - self._center) / self._scale)
        self._mean = np.median(ratio, axis=0)
        self._lengths, self._noise = _learn(z, ratio - self._mean)
        self._rows = z
        kernel = _matern(z / self._lengths, z / self._lengths)
        kernel[np.diag_indices_from(kernel)] += self._noise
        inverse = np.linalg.inv(kernel)
        self._weights = inverse @ (ratio - self._mean)
        self.left_out = self._weights / np.diag(inverse)[:, None]
        """``(n, 2)`` log of measured over predicted, each row predicted without itself."""
        return self

    @staticmethod
    def _rounded(z: Array) -> Array:
        """Four decimals: what is stored is exactly what was fitted."""
        return np.round(z, 4)

    def correction(self, x: Features) -> Array:
        """``(n, 2)`` log of the factor on the physical law."""
        logs = x.logs[:, self._keep]
        outside = np.maximum(np.maximum(self._low - logs, logs - self._high), 0).max(axis=1)
        z = (np.clip(logs, self._low, self._high) - self._center) / self._scale
        scaled, rows = z / self._lengths, self._rows / self._lengths
        blocks = [scaled[i : i + BLOCK] for i in range(0, len(z), BLOCK)]
        learnt = np.concatenate([_matern(block, rows) @ self._weights for block in blocks])
        log_factor = np.clip(self._mean + learnt, -math.log(BOUND), math.log(BOUND))
        fade = np.maximum(0.0, 1 - outside / math.log(FADE))
        return np.asarray(log_factor * fade[:, None])

    def predict(self, x: Features) -> Array:
        return np.asarray(self.physical.predict(x) * np.exp(self.correction(x)))

    def to_dict(self) -> dict[str, Any]:
        arrays = {"low": self._low, "high": self._high, "center": self._center,
                  "scale": self._scale, "mean": self._mean, "lengths": self._lengths,
                  "weights": self._weights.round(6), "rows": self._rows}  # fmt: skip
        return {
            "name": self.name,
            "physical": self.physical.to_dict(),
            "keep": self._keep.tolist(),
            **{name: array.tolist() for name, array in arrays.items()},
        }

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Hybrid:
        made = cls()
        made.physical = Physical.from_dict(state["physical"])
        made._keep = finite(state["keep"], None).astype(int)
        n = len(made._keep)
        for name in ("low", "high", "center", "scale", "lengths"):
            setattr(made, f"_{name}", finite(state[name], n))
        if min(made._scale.min(initial=1), made._lengths.min(initial=1)) <= 0:
            raise ValueError("a scale or a length is not positive")
        made._mean = finite(state["mean"], 2)
        made._weights = finite(state["weights"], None, 2)
        made._rows = finite(state["rows"], len(made._weights), n)
        return made


def _matern(a: Array, b: Array) -> Array:
    """Matérn kernel with ν = 5/2 of two sets of scaled rows (Rasmussen & Williams 2006, 4.17)."""
    squared = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T
    distance = np.sqrt(5 * np.maximum(squared, 0))
    return np.asarray((1 + distance + distance**2 / 3) * np.exp(-distance))


def _learn(z: Array, ratio: Array) -> tuple[Array, float]:
    """Length of each feature, and noise relative to the signal, by marginal likelihood."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    rng = np.random.default_rng(0)
    some = rng.permutation(len(z))[:_HYPER_ROWS]
    signal = max(float(ratio[:, 1].var()), 1e-4)
    least = _NOISE * signal
    kernel = ConstantKernel(signal, (1e-5, max(10, 10 * signal))) * Matern(
        np.full(z.shape[1], 3.0), (0.3, 100), nu=2.5
    ) + WhiteKernel(1.5 * least, (least, max(1, 10 * signal)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = GaussianProcessRegressor(kernel, random_state=0).fit(z[some], ratio[some, 1])
    product, white = fitted.kernel_.k1, fitted.kernel_.k2
    noise = float(white.noise_level / product.k1.constant_value)
    return np.round(np.atleast_1d(product.k2.length_scale), 3), max(round(noise, 5), 1e-4)
