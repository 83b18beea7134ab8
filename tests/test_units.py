"""Units: prefixes round before they choose, conversions are the textbook ones."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layer_energy.units import carbon_g, energy_wh, money, si


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0123, "12.3 mJ"),
        (1.0, "1.00 J"),
        (999.96, "1.00 kJ"),
        (0, "0 J"),
        (-2.5e-6, "-2.50 µJ"),
        (3.4e12, "3400 GJ"),
        (math.inf, "inf J"),
    ],
)
def test_prefixes(value, text):
    assert si(value, "J") == text


@given(st.floats(1e-9, 9.99e11))
def test_three_digits_are_kept(value):
    number, unit = si(value, "J").split()
    scale = {"n": 1e-9, "µ": 1e-6, "m": 1e-3, "": 1, "k": 1e3, "M": 1e6, "G": 1e9}[unit[:-1]]
    assert float(number) * scale == pytest.approx(value, rel=6e-3)
    assert 1 <= float(number) < 1000


def test_conversions():
    assert energy_wh(3600) == 1
    assert carbon_g(3.6e6, 400) == 400
    assert money(7.2e6, 0.3) == pytest.approx(0.6)
