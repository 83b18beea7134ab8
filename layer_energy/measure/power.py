"""The power that a sensor shows: a value stands until the next one comes."""

from __future__ import annotations

from layer_energy.meters.nvml import AVERAGE_POWER, Sample


class ShownPower:
    """The values that power took, and when each was first seen.

    Args:
        source: ``"average power"``, or any other for instant or assumed power.

    Attributes:
        values: moments by the host's clock, and watts.
    """

    def __init__(self, source: str) -> None:
        self._average = source == AVERAGE_POWER
        self.values: list[tuple[float, float]] = []

    def look(self, sample: Sample) -> None:
        """Keep what a sample shows, if that is new."""
        power_w = sample.average_power_w if self._average else sample.power_w
        if power_w is not None and (not self.values or self.values[-1][1] != power_w):
            self.values.append((sample.end_s, power_w))

    def between(self, start_s: float, end_s: float) -> list[float]:
        """The values first seen between two moments."""
        return [power_w for time_s, power_w in self.values if start_s <= time_s < end_s]
