"""Mean power and epoch energy of a training run before it starts, from the walked network.

The answer to PRE's weakness: no look-up of configurations, but a law of nine positive constants on
what this package can compute of any run, the layers of the walked network and three figures of
the device. A step of ``b`` images takes

    host = h₀ + h₁ · layers
    busy = b · (f · FLOPs / peak + m · bytes / bandwidth) + k · layers
    time = (host⁴ + busy⁴)^¼                                    the longer of both, smoothly

and the device draws, of its power limit, the share

    u = p₀ + p₁ · busy / time + p₂ · √(FLOP rate / peak) + p₃ · √(byte rate / bandwidth)

cut off smoothly at 1. Each device may depart from the common host speed, device speed, idle share
and slope by factors that are pulled towards 1: a device that was never measured has them at 1.
What the law leaves over is learnt from the runs around (kernel ridge on the log ratio, at most a
factor of two), which fades to nothing away from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from layer_energy.errors import InvalidInput
from layer_energy.training.run import TrainingRun
from layer_energy.training.trace import Array

_COMMON = {
    "step_s": 5e-3, "layer_s": 1e-5, "flops": 2.0, "bytes": 2.0, "kernel_s": 1e-6,
    "idle": 0.3, "busy": 0.3, "flop_rate": 0.3, "byte_rate": 0.1,
}  # fmt: skip
"""The nine constants and where their fit starts: h₀, h₁, f, m, k, p₀ … p₃."""

_OWN = ("host", "speed", "idle", "slope")
_OWN_PENALTY = 1.0
"""A device's own factor of e costs as much as a prediction that is off by e."""
_START_PENALTY = 0.02
_POWER_WEIGHT = 2.0
"""Power varies less than time: its errors count double."""
_SOFT = 0.2
"""Log errors beyond this count linearly (``soft_l1``)."""
_SMOOTH_MAX, _SMOOTH_CAP = 4, 8
_LEFT_ALPHA, _LEFT_GAMMA, _LEFT_BOUND = 0.1, 0.2, np.log(2)
"""Of the kernel ridge; grouped scores hardly depend on the first two."""


class RunLaw:
    """See the module's text."""

    def fit(self, runs: Sequence[TrainingRun], power_w: Array, epoch_energy_j: Array) -> Self:
        """Fit to measured runs; repetitions of a run count as one, by their geometric mean.

        Args:
            runs: ``n`` runs.
            power_w: ``(n,)`` mean power of each.
            epoch_energy_j: ``(n,)`` mean joules of its epochs.

        Raises:
            InvalidInput: if the lengths differ, there is none, or a value is not positive.
        """
        from scipy.optimize import least_squares
        from sklearn.kernel_ridge import KernelRidge

        y = np.column_stack([power_w, epoch_energy_j]).astype(float)
        if len(runs) != len(y) or not len(runs) or not (y > 0).all() or not np.isfinite(y).all():
            raise InvalidInput(
                f"{len(runs)} runs and {y.shape} targets; expected as many rows, all positive"
            )
        distinct = list(dict.fromkeys(runs))
        place = {run: i for i, run in enumerate(distinct)}
        which = np.array([place[run] for run in runs])
        times = np.bincount(which)
        logs = np.column_stack([np.bincount(which, column) / times for column in np.log(y).T])
        power, energy = logs.T
        self._devices = sorted({run.device.name for run in runs})
        start = np.log(list(_COMMON.values()))
        drivers = _drivers(distinct)
        device = self._device(distinct)

        def residuals(theta: Array) -> Array:
            log_power, log_time = _law(drivers, *self._split(theta, device))
            return np.concatenate(
                [
                    log_time - (energy - power),
                    _POWER_WEIGHT * (log_power - power),
                    _OWN_PENALTY * theta[len(start) :],
                    _START_PENALTY * (theta[: len(start)] - start),
                ]
            )

        first = np.concatenate([start, np.zeros(len(_OWN) * len(self._devices))])
        fitted = least_squares(residuals, first, loss="soft_l1", f_scale=_SOFT, max_nfev=300)
        self._theta = fitted.x
        around = self._around(distinct)
        spread = around.std(axis=0)
        self._center, self._spread = around.mean(axis=0), np.where(spread > 1e-9, spread, 1.0)
        self._left = KernelRidge(kernel="rbf", alpha=_LEFT_ALPHA, gamma=_LEFT_GAMMA)
        self._left.fit(self._scaled(distinct), logs - self._log_law(distinct))
        return self

    def predict(self, runs: Sequence[TrainingRun]) -> Array:
        """``(n, 2)``: mean power (W) and joules of an epoch.

        Joules of the whole run are the latter × epochs. Devices that were never measured are
        taken to be as good as those that were.
        """
        if not hasattr(self, "_theta"):
            raise InvalidInput("this law is not fitted yet; call fit() with measured runs")
        left = np.clip(self._left.predict(self._scaled(runs)), -_LEFT_BOUND, _LEFT_BOUND)
        return np.asarray(np.exp(self._log_law(runs) + left))

    @property
    def constants(self) -> dict[str, float]:
        """The nine constants, by name."""
        return dict(zip(_COMMON, np.exp(self._theta[: len(_COMMON)]).tolist(), strict=True))

    def _log_law(self, runs: Sequence[TrainingRun]) -> Array:
        """``(n, 2)`` logs of mean power and epoch energy by the law alone."""
        parts = self._split(self._theta, self._device(runs))
        log_power, log_time = _law(_drivers(runs), *parts)
        return np.column_stack([log_power, log_power + log_time])

    def _around(self, runs: Sequence[TrainingRun]) -> Array:
        """``(n, 5)`` logs by which runs are near each other."""
        x = _drivers(runs)
        sizes = [(run.batch_size, run.training_images) for run in runs]
        return np.column_stack(
            [
                np.log(x["flops"].mean(axis=1) / x["peak"]),
                np.log(x["bytes"].mean(axis=1) / x["bandwidth"]),
                np.log(x["layers"].mean(axis=1)),
                np.log(sizes),
            ]
        )

    def _scaled(self, runs: Sequence[TrainingRun]) -> Array:
        """``(n, 5 + devices + 1)``: the standardised logs, and which device it is."""
        devices = np.eye(len(self._devices) + 1)[self._device(runs)]
        return np.hstack([(self._around(runs) - self._center) / self._spread, devices])

    def _device(self, runs: Sequence[TrainingRun]) -> Array:
        """``(n,)`` index of each run's device; the last for those never measured."""
        index = {name: i for i, name in enumerate(self._devices)}
        return np.array([index.get(run.device.name, len(index)) for run in runs], dtype=int)

    def _split(self, theta: Array, device: Array) -> tuple[Array, Array]:
        """The nine constants, and ``(4, n)`` factors of each run's device."""
        own = theta[len(_COMMON) :].reshape(-1, len(_OWN))
        own = np.vstack([own, np.zeros(len(_OWN))])
        return np.exp(theta[: len(_COMMON)]), np.exp(own[device].T)


def _drivers(runs: Sequence[TrainingRun]) -> dict[str, Array]:
    """Per run: FLOPs, bytes and layers of a training (column 0) and of a validation step (1)."""

    def column(of: Any) -> Array:
        return np.array([of(run) for run in runs], dtype=float)

    batch = column(lambda r: r.batch_size)[:, None]
    images = column(lambda r: (r.training_images, r.validation_images))
    return {
        "steps": images / batch,
        "flops": 2 * batch * column(lambda r: (r.network.training_macs, r.network.macs)),
        "bytes": batch * column(lambda r: (r.network.training_bytes, r.network.bytes)),
        "layers": column(lambda r: (r.network.training_layers, r.network.layers)),
        "peak": column(lambda r: r.device.peak_flops),
        "bandwidth": column(lambda r: r.device.bandwidth_bytes),
        "limit": column(lambda r: r.device.max_power_w),
    }


def _law(x: dict[str, Array], constants: Array, own: Array) -> tuple[Array, Array]:
    """``(n,)`` log of mean power and ``(n,)`` log of the seconds of an epoch."""
    step_s, layer_s, flops, bytes_, kernel_s, idle, busy_share, flop_rate, byte_rate = constants
    host_factor, speed_factor, idle_factor, slope = own
    peak, bandwidth = x["peak"][:, None], x["bandwidth"][:, None]
    host = (step_s + layer_s * x["layers"]) * host_factor[:, None]
    busy = flops * x["flops"] / peak + bytes_ * x["bytes"] / bandwidth + kernel_s * x["layers"]
    busy = busy * speed_factor[:, None]
    step = (host**_SMOOTH_MAX + busy**_SMOOTH_MAX) ** (1 / _SMOOTH_MAX)
    epoch_s = (x["steps"] * step).sum(axis=1)

    def rate(per_step: Array) -> Array:
        return np.asarray((x["steps"] * per_step).sum(axis=1) / epoch_s)

    share = idle * idle_factor + slope * (
        busy_share * rate(busy)
        + flop_rate * np.sqrt(rate(x["flops"]) / x["peak"])
        + byte_rate * np.sqrt(rate(x["bytes"]) / x["bandwidth"])
    )
    capped = share / (1 + share**_SMOOTH_CAP) ** (1 / _SMOOTH_CAP)
    return np.log(x["limit"] * capped), np.log(epoch_s)
