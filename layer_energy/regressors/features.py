"""Workloads of one layer type → the numbers a regressor sees, the same at fit and at predict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from layer_energy.layers.base import count
from layer_energy.workload import Workload

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Features:
    """Features of ``n`` workloads of one layer type.

    Attributes:
        drivers: ``(n, d)`` non-negative quantities that the physical law weighs.
        driver_names: their ``d`` names.
        logs: ``(n, p)`` natural logarithms of 1 + each parameter, driver and total.
        log_names: their ``p`` names.
        macs: ``(n,)`` multiply-accumulates, or elements written where there are none.
        params: ``(n, q)`` the parameters as they are.
        param_names: their ``q`` names.
    """

    drivers: Array
    driver_names: tuple[str, ...]
    logs: Array
    log_names: tuple[str, ...]
    macs: Array
    params: Array
    param_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.macs)

    def __getitem__(self, rows: object) -> Features:
        """The rows selected by an index array, mask or slice."""
        return Features(
            self.drivers[rows],  # type: ignore[call-overload]  # any numpy row selection
            self.driver_names,
            self.logs[rows],  # type: ignore[call-overload]
            self.log_names,
            self.macs[rows],  # type: ignore[call-overload]
            self.params[rows],  # type: ignore[call-overload]
            self.param_names,
        )


def features(workloads: Sequence[Workload]) -> Features:
    """Compute the features of workloads that are all of one layer type."""
    counted = [count(w) for w in workloads]
    param_names = tuple(workloads[0].params)
    driver_names = tuple(counted[0][1])
    params = np.array([list(w.params.values()) for w in workloads], dtype=float)
    drivers = np.array([list(d.values()) for _, d in counted], dtype=float)
    macs = np.array([c.macs or c.elements for c, _ in counted], dtype=float)
    total = np.array([[c.bytes, c.elements] for c, _ in counted], dtype=float)
    intensity = np.log1p(macs / np.maximum(total[:, 0], 1))
    logs = np.column_stack([np.log1p(params), np.log1p(drivers), np.log1p(total), intensity])
    names = (*param_names, *driver_names, "bytes", "elements", "macs per byte")
    return Features(drivers, driver_names, logs, names, macs, params, param_names)
