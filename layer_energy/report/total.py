"""What the layers of a network sum to, and how sure that is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from layer_energy.model import Estimate
from layer_energy.pooled_law import waiting_s


class Totals(NamedTuple):
    """One forward pass of a network, or one training step.

    Attributes:
        energy_j, time_s: predictions.
        energy_low_j, energy_high_j: 90 % interval, the systematic error of the device's joules
            included.
        coverage: share of the joules from operations with a model of their own.
        in_domain: share of the joules priced inside the fitted range of every feature.
        waiting_s, waiting_j: of these, what a GPU waits for its host.
        waiting_low_j, waiting_high_j: 90 % interval of those joules.
    """

    energy_j: float
    time_s: float
    energy_low_j: float
    energy_high_j: float
    coverage: float
    in_domain: float
    waiting_s: float
    waiting_j: float
    waiting_low_j: float
    waiting_high_j: float


_HOST_FACTOR = 1.3
"""Hosts took up to so much more or less than the sum of their calls, in networks on an H200."""


def total(
    parts: Iterable[tuple[Estimate, bool, int]],
    network_ratio: Mapping[str, tuple[float, float]],
    relative_uncertainty: float,
    *,
    idle_power_w: float | None = None,
) -> Totals:
    """Sum the layers of a network.

    The interval is calibrated on whole measured networks where the profile has them, as far as
    layers lie in the fitted range; the intervals of all others are summed, as if they erred
    together.

    Args:
        parts: of each layer: its price, whether a model of its own made it, and how often it runs.
        network_ratio: quantiles of measured over predicted whole networks; empty if none.
        relative_uncertainty: systematic half-width of the device's joules.
        idle_power_w: power while a GPU waits for its host; ``None`` if it need not.
    """
    ratio_low, ratio_high = network_ratio.get("energy_j", (0.0, 0.0))
    ratio_low, calibrated, ratio_high = min(ratio_low, 1.0), ratio_high > 0, max(ratio_high, 1.0)
    energy_j = time_s = low = high = modelled_j = inside_j = host_s = 0.0
    for estimate, modelled, calls in parts:
        joules = calls * estimate.energy_j
        energy_j += joules
        time_s += calls * estimate.time_s
        host_s += calls * estimate.host_s
        if modelled:
            modelled_j += joules
        if estimate.in_domain:
            inside_j += joules
        if calibrated and estimate.in_domain:
            low += ratio_low * joules
            high += ratio_high * joules
        else:
            low += calls * estimate.energy_low_j
            high += calls * estimate.energy_high_j
    gap_s = 0.0 if idle_power_w is None else waiting_s(time_s, host_s)
    gap_j = gap_s * (idle_power_w or 0.0)
    gap_low_j = gap_j * (ratio_low if calibrated else 1 / _HOST_FACTOR)
    gap_high_j = gap_j * (ratio_high if calibrated else _HOST_FACTOR)
    low, high = widened(low + gap_low_j, high + gap_high_j, relative_uncertainty)
    return Totals(
        energy_j + gap_j,
        time_s + gap_s,
        low,
        high,
        modelled_j / energy_j if energy_j else 1.0,
        inside_j / energy_j if energy_j else 1.0,
        gap_s,
        gap_j,
        *widened(gap_low_j, gap_high_j, relative_uncertainty),
    )


def widened(low: float, high: float, relative_uncertainty: float) -> tuple[float, float]:
    """An interval of joules with a systematic error of the joules added."""
    return low * (1 - relative_uncertainty), high * (1 + relative_uncertainty)
