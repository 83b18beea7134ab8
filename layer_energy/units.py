"""Joules into what people think in. SI inside the package; conversion only at the edge."""

import math
import re

from layer_energy.errors import InvalidInput

JOULES_PER_WH = 3600.0
WORLD_INTENSITY_G_PER_KWH = 436.0
"""Carbon intensity of the world's electricity in 2022: Ember, Global Electricity Review 2023."""

_PREFIXES = {9: "G", 6: "M", 3: "k", 0: "", -3: "m", -6: "µ", -9: "n"}

_ENERGY_UNITS_J = {"mJ": 1e-3, "J": 1.0, "kJ": 1e3, "Wh": JOULES_PER_WH}
_ENERGY = re.compile(r"\s*(\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+)\s*([^\W\d_]*)\s*")


def parse_energy_j(text: str) -> float:
    """Joules of a text such as ``"12J"``, ``"0.5 kJ"``, ``"250mJ"`` or ``"2 Wh"``.

    Raises:
        InvalidInput: if it is no number with one of those units, or not finite and above 0.
    """
    match = _ENERGY.fullmatch(text)
    if not match or match[2] not in _ENERGY_UNITS_J:
        raise InvalidInput(
            f"{text!r} is not an energy: write a number and one of the units "
            f"{', '.join(_ENERGY_UNITS_J)}, as in 12J"
        )
    energy_j = float(match[1]) * _ENERGY_UNITS_J[match[2]]
    if not 0 < energy_j < math.inf:
        raise InvalidInput(f"{text!r} is not an energy above 0 J")
    return energy_j


def energy_wh(energy_j: float) -> float:
    """Watt-hours of ``energy_j`` joules."""
    return energy_j / JOULES_PER_WH


def carbon_g(energy_j: float, intensity_g_per_kwh: float) -> float:
    """Grams of CO2-equivalent at a grid intensity in g/kWh."""
    return energy_j / 3.6e6 * intensity_g_per_kwh


def money(energy_j: float, price_per_kwh: float) -> float:
    """Cost of the electricity, in the currency of ``price_per_kwh``."""
    return energy_j / 3.6e6 * price_per_kwh


def si(value: float, unit: str, digits: int = 3) -> str:
    """``value`` with an SI prefix and ``digits`` significant digits.

    ``si(0.0123, "J")`` → ``"12.3 mJ"``.
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f} {unit}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")  # rounded first: 999.96 → 1.00e+03
    power = max(-9, min(9, 3 * (int(exponent) // 3)))
    shift = int(exponent) - power
    decimals = max(digits - 1 - shift, 0)
    return f"{float(mantissa) * 10**shift:.{decimals}f} {_PREFIXES[power]}{unit}"
