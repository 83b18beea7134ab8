"""Carbon of electricity: by country from CodeCarbon's table, by a number, or the world's mean.

Grams of CO2-equivalent are joules × grid intensity. The joules are those of the device alone: the
rest of the machine, its cooling and its making are not in them.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from layer_energy.errors import InvalidInput, MissingPackage
from layer_energy.units import WORLD_INTENSITY_G_PER_KWH, carbon_g, si

_TABLE = "codecarbon/data/private_infra/global_energy_mix.json"


@dataclass(frozen=True, slots=True)
class Intensity:
    """Grams of CO2-equivalent per kWh of electricity.

    Attributes:
        g_per_kwh: the number.
        source: where it is from, in words.
    """

    g_per_kwh: float
    source: str


WORLD = Intensity(
    WORLD_INTENSITY_G_PER_KWH, "the world's mean of 2022: Ember, Global Electricity Review 2023"
)


@dataclass(frozen=True, slots=True)
class Carbon:
    """Carbon of predicted or measured joules.

    Attributes:
        kg: kilograms of CO2-equivalent.
        low_kg, high_kg: the 90 % interval of the joules at that intensity, taken as exact.
        intensity: of the electricity.
    """

    kg: float
    low_kg: float
    high_kg: float
    intensity: Intensity

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "carbon_kg": self.kg,
            "carbon_low_kg": self.low_kg,
            "carbon_high_kg": self.high_kg,
            "intensity_g_per_kwh": self.intensity.g_per_kwh,
            "intensity_source": self.intensity.source,
        }

    def __str__(self) -> str:
        grams = [si(1e3 * kg, "g") for kg in (self.kg, self.low_kg, self.high_kg)]
        return (
            f"{grams[0]} CO2e, 90 % interval {grams[1]} – {grams[2]}, at "
            f"{self.intensity.g_per_kwh:.4g} g/kWh ({self.intensity.source})"
        )


def carbon_of(energy_j: float, interval_j: tuple[float, float], intensity: Intensity) -> Carbon:
    """Carbon of joules and of both ends of their interval."""
    kg, low_kg, high_kg = (
        carbon_g(joules, intensity.g_per_kwh) / 1e3 for joules in (energy_j, *interval_j)
    )
    return Carbon(kg, low_kg, high_kg, intensity)


def grid_intensity(
    country: str | None = None, intensity_g_per_kwh: float | None = None
) -> Intensity:
    """Carbon intensity of electricity.

    Args:
        country: ISO 3166 code of three letters such as ``"DEU"``, or an English name; looked up in
            the table that the installed CodeCarbon carries, without a network.
        intensity_g_per_kwh: a number of one's own instead, in g CO2e per kWh; with neither given,
            the world's mean.

    Raises:
        InvalidInput: if both are given, the country is unknown or without a figure, or the number
            is negative or not finite.
        MissingPackage: for a country without CodeCarbon (the extra ``carbon``).
    """
    if country is not None and intensity_g_per_kwh is not None:
        raise InvalidInput("give a country or an intensity in g/kWh, not both")
    if country is not None:
        return _of_country(country)
    if intensity_g_per_kwh is None or intensity_g_per_kwh == WORLD.g_per_kwh:
        return WORLD
    if not 0 <= intensity_g_per_kwh < float("inf"):
        raise InvalidInput(
            f"the intensity per kWh must be a number from 0 up, got {intensity_g_per_kwh}"
        )
    return Intensity(float(intensity_g_per_kwh), "as given")


def _codecarbon_table() -> tuple[dict[str, dict[str, Any]], str]:
    """Country code → its row, and CodeCarbon's version.

    The file is read where the package lies: importing the package would look for GPUs.
    """
    try:
        package = distribution("codecarbon")
        text = Path(str(package.locate_file(_TABLE))).read_text(encoding="utf-8")
    except (PackageNotFoundError, OSError):
        raise MissingPackage(
            "a country's carbon intensity is looked up in the table of CodeCarbon 3, which is not "
            "installed: pip install codecarbon (the extra carbon), or give the intensity in g/kWh"
        ) from None
    return json.loads(text), package.version


def _of_country(country: str) -> Intensity:
    table, version = _codecarbon_table()
    wanted = country.strip().casefold()
    names = {code: entry["country_name"] for code, entry in table.items()}
    code = next((c for c, n in names.items() if wanted in (c.casefold(), n.casefold())), None)
    if code is None:
        known = {text.casefold(): c for c, name in names.items() for text in (c, name)}
        near = dict.fromkeys(known[text] for text in difflib.get_close_matches(wanted, known, 4))
        hint = ", ".join(f"{c} ({names[c]})" for c in near) or "such as DEU, FRA or USA"
        raise InvalidInput(
            f"CodeCarbon's table has no country {country!r}; codes have three letters: {hint}"
        )
    entry = table[code]
    if not entry.get("carbon_intensity"):
        raise InvalidInput(
            f"CodeCarbon's table has no carbon intensity for {names[code]}; give one in g/kWh"
        )
    source = f"{names[code]} {entry['year']}, table of CodeCarbon {version}"
    return Intensity(float(entry["carbon_intensity"]), source)
