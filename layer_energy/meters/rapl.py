"""Joules of Intel and AMD processors: Running Average Power Limit, through Linux powercap."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from layer_energy.errors import MeterError
from layer_energy.meters.base import Reading, register


@dataclass(slots=True)
class _Zone:
    """One counter of microjoules that wraps at ``range_uj``."""

    name: str
    path: Path
    range_uj: int
    last_uj: int
    total_uj: int = 0

    def update(self) -> None:
        """Add what was counted since the last update, one wrap at most."""
        now_uj = _integer(self.path)
        step_uj = now_uj - self.last_uj
        self.total_uj += step_uj if step_uj >= 0 else step_uj + self.range_uj
        self.last_uj = now_uj


@register("rapl", rank=50)
class RaplMeter:
    """The sum of all package and DRAM counters (AMD's bear the same ``intel-rapl`` names).

    Core and uncore are parts of the package, and the package is part of psys: none of them is
    added. Nor is ``intel-rapl-mmio``, which shows the same package a second time.

    A counter wraps after some 262 kJ (DRAM on servers 65 kJ), and two wraps between reads would
    pass unseen: read at least every few minutes.

    Uncertainty: a judgement, no specification. Since Haswell, package counters follow external
    meters within a few per cent; DRAM counters of desktops are models, off by a constant power
    (Desrochers et al., MEMSYS 2016), and so are the packages of Sandy Bridge and AMD's first Zens.

    Raises:
        MeterError: if there is no package counter or it may not be read; the message says why.
    """

    name = "rapl"
    quality = "measured"
    relative_uncertainty = 0.05
    period_s = 0.001

    def __init__(
        self,
        root: str | Path = "/sys/class/powercap",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._clock = clock
        self._zones, skipped = _zones(Path(root))
        names = sorted(zone.name for zone in self._zones)
        if not any(name.startswith("package") for name in names):
            raise MeterError(
                f"no usable RAPL package counter under {root}"
                + (f" (unusable: {', '.join(skipped)})" if skipped else "")
                + "; virtual machines and other processors have none: use the estimated meter"
            )
        self.assumptions: tuple[str, ...] = (
            f"RAPL ({', '.join(names)}) counts the whole processor, other processes included.",
        )
        if "dram" not in names:
            self.assumptions += ("This processor does not count its memory's energy.",)
        if skipped:
            self.assumptions += (f"Counters left out, unreadable: {', '.join(skipped)}.",)

    def read(self) -> Reading:
        """Joules since this meter was made."""
        now_s = self._clock()
        try:
            for zone in self._zones:
                zone.update()
        except (OSError, ValueError) as error:
            raise MeterError(f"a RAPL counter can no longer be read: {error}") from error
        return Reading(now_s, sum(zone.total_uj for zone in self._zones) / 1e6)


def _zones(root: Path) -> tuple[list[_Zone], list[str]]:
    """The package and DRAM zones, and a description of those that cannot be used."""
    usable, skipped = [], []
    # the class directory links to sub-zones (intel-rapl:0:2) beside their parents
    for folder in sorted(root.glob("intel-rapl:*")):
        try:
            name = (folder / "name").read_text().strip()
            if not (name.startswith("package") or name == "dram"):
                continue
            label = f"{name} ({folder.name})"
            last_uj = _integer(folder / "energy_uj")
        except PermissionError as error:
            raise MeterError(
                f"{error.filename} may be read by root only; run as root, or until the next boot "
                f"`sudo chmod a+r {root}/intel-rapl:*/energy_uj`, or for good `sudo setcap "
                "cap_dac_read_search+ep` on the Python executable"
            ) from error
        except (OSError, ValueError):
            skipped.append(folder.name)
            continue
        try:
            range_uj = _integer(folder / "max_energy_range_uj")
        except (OSError, ValueError):
            range_uj = 0
        if range_uj > 0:
            usable.append(_Zone(name, folder / "energy_uj", range_uj, last_uj))
        else:
            skipped.append(label)
    return usable, skipped


def _integer(path: Path) -> int:
    return int(path.read_text())
