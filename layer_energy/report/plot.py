"""The report as matplotlib axes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layer_energy.errors import InvalidInput, MissingPackage
from layer_energy.report.text import RUNS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from layer_energy.report.report import EnergyReport

BARS = 15


def new_axes() -> Axes:
    """Axes of a new figure.

    Raises:
        MissingPackage: without matplotlib.
    """
    try:
        from matplotlib import pyplot
    except ImportError:
        raise MissingPackage("plots need matplotlib: pip install matplotlib") from None
    return pyplot.subplots(layout="constrained")[1]


def plot(report: EnergyReport, by: str, depth: int, ax: Axes | None) -> Axes:
    """Draw the bars; see :meth:`EnergyReport.plot`."""
    if by not in ("kind", "module"):
        raise InvalidInput(f"by must be kind or module, got {by!r}")
    shares = report.by_kind() if by == "kind" else report.by_module(depth)
    shares = sorted(shares, key=lambda share: -share.energy_j)[:BARS]
    ax = new_axes() if ax is None else ax
    energies = [share.energy_j for share in shares]
    errors = [
        [share.energy_j - share.energy_low_j for share in shares],
        [share.energy_high_j - share.energy_j for share in shares],
    ]
    ax.barh(range(len(shares)), energies, xerr=errors, ecolor="0.5", capsize=2)
    ax.set_yticks(range(len(shares)), [share.name.replace("$", r"\$") for share in shares])
    ax.invert_yaxis()
    ax.set_xlabel(f"predicted J per {RUNS[report.mode]}, 90 % interval")
    ax.set_title(
        f"{report.model.replace('$', chr(92) + '$')}, predicted for {report.device} "
        f"({report.quality} joules)"
    )
    return ax
