"""Joules into what people think in. SI inside the package; conversion only at the edge."""

import math

JOULES_PER_WH = 3600.0

_PREFIXES = {9: "G", 6: "M", 3: "k", 0: "", -3: "m", -6: "µ", -9: "n"}


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
