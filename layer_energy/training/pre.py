"""PRE: mean power or epoch energy of a training run before it starts, as published.

Pre-training Regression-based Estimation of del Rey et al. 2025 (arXiv 2307.05520, the "offline"
methods of its replication package): ten facts about a run, standardised, and one of four
regressors. Joules of the run are mean power × duration, or mean epoch energy × epochs.

It looks up what it has seen: where a configuration, a network or a GPU is left out, it is worse
than the mean (``tests/benchmarks/pre.py``). :mod:`layer_energy.training.run_law` is not.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVR
from sklearn.utils.validation import check_is_fitted, validate_data

from layer_energy.errors import InvalidInput
from layer_energy.training.trace import Array

INPUTS = (
    "batch_size", "ram_gb", "training_images", "validation_images", "gflops", "image_height",
    "image_width", "cuda_cores", "gpu_memory_gb", "max_power_w",
)  # fmt: skip
"""Columns of ``X``, in order. ``gflops`` are 2 × MACs of the forward pass of one image."""

REGRESSORS: dict[str, Any] = {
    "kernel_ridge": lambda: KernelRidge(kernel="rbf", alpha=6.645e-4, gamma=0.04419),
    "linear": LinearRegression,
    "ridge": lambda: Ridge(alpha=0.4491),
    "svr": lambda: SVR(C=683.8, epsilon=1.043, gamma=0.02273),
}
"""Name → maker, with what the published search finds: the winner, kernel ridge, on every target;
ridge and support vectors on mean power."""


class PreTrainingRegressor(RegressorMixin, BaseEstimator):  # type: ignore[misc]  # untyped bases
    """The published regression, a scikit-learn estimator.

    Args:
        regressor: a name in ``REGRESSORS``; the paper's winner by default.
    """

    def __init__(self, regressor: str = "kernel_ridge") -> None:
        self.regressor = regressor

    def fit(self, X: Array, y: Array) -> Self:  # noqa: N803  # scikit-learn's name
        """Standardise and fit; the scaler sees these rows only.

        Args:
            X: ``(n, 10)``, columns as in ``INPUTS``.
            y: ``(n,)``: mean power (W), or mean epoch energy (kJ).

        Raises:
            InvalidInput: for another number of columns, or an unknown regressor.
        """
        if self.regressor not in REGRESSORS:
            raise InvalidInput(
                f"regressor must be one of {', '.join(REGRESSORS)}, got {self.regressor!r}"
            )
        X, y = validate_data(self, X, y, y_numeric=True)  # noqa: N806
        if X.shape[1] != len(INPUTS):
            raise InvalidInput(f"X has {X.shape[1]} columns; expected {', '.join(INPUTS)}")
        self.pipeline_: Pipeline = make_pipeline(StandardScaler(), REGRESSORS[self.regressor]())
        self.pipeline_.fit(X, y)
        return self

    def predict(self, X: Array) -> Array:  # noqa: N803
        """``(n,)`` predictions of what ``y`` was."""
        check_is_fitted(self)
        return np.asarray(self.pipeline_.predict(validate_data(self, X, reset=False)))
