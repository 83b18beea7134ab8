"""The usual ways to put joules on a training run, as functions: what projections are held to."""

from __future__ import annotations

from layer_energy.errors import InvalidInput

RAM_W_PER_GB = 0.3725
"""Power of memory, Green Algorithms (Lannelongue et al. 2021, arXiv 2007.07610)."""


def tdp_time_j(max_power_w: float, time_s: float) -> float:
    """Board power limit × duration, as the ML CO2 Impact calculator does (arXiv 1910.09700)."""
    return _positive(max_power_w, "max_power_w") * _positive(time_s, "time_s")


def green_algorithms_j(
    max_power_w: float, utilisation: float, ram_gb: float, time_s: float
) -> float:
    """``(TDP · u + 0.3725 W/GB · RAM) · T``, without the data centre's overhead.

    Source: Lannelongue, Grealey, Inouye 2021 (arXiv 2007.07610).

    Args:
        max_power_w: the board's power limit.
        utilisation: mean share of time in which the GPU was busy, 0 to 1.
        ram_gb: memory of the machine.
        time_s: duration of the run.
    """
    if not 0 <= utilisation <= 1:
        raise InvalidInput(f"utilisation must be from 0 to 1, got {utilisation}")
    power_w = _positive(max_power_w, "max_power_w") * utilisation
    return (power_w + RAM_W_PER_GB * _positive(ram_gb, "ram_gb")) * _positive(time_s, "time_s")


def flops_proportional_j(flops: float, reference_flops: float, reference_energy_j: float) -> float:
    """The joules of a measured reference run, scaled by floating-point operations."""
    per_flop = _positive(reference_energy_j, "reference_energy_j") / _positive(
        reference_flops, "reference_flops"
    )
    return _positive(flops, "flops") * per_flop


def first_epoch_j(epoch_energy_j: float, epochs: float) -> float:
    """The first epoch × epochs, as carbontracker predicts by default (arXiv 2007.03051)."""
    return _positive(epoch_energy_j, "epoch_energy_j") * _positive(epochs, "epochs")


def _positive(value: float, name: str) -> float:
    if not 0 < value < float("inf"):
        raise InvalidInput(f"{name} must be positive and finite, got {value}")
    return value
