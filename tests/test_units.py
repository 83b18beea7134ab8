"""Units: prefixes round before they choose, conversions are the textbook ones."""

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layer_energy.errors import InvalidInput
from layer_energy.units import carbon_g, energy_wh, money, parse_energy_j, si


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


@given(st.floats(1e-6, 1e12), st.sampled_from([("mJ", 1e-3), ("J", 1), ("kJ", 1e3), ("Wh", 3600)]))
def test_energies_are_read_as_written(value, unit):
    name, scale = unit
    for text in (f"{value!r}{name}", f" {value!r} {name} "):
        assert parse_energy_j(text) == pytest.approx(value * scale)


@pytest.mark.parametrize(
    "text", ["", "J", "12", "12W", "12 MJ", "12mj", "-3J", "0J", "1e999J", "nanJ", "1,5J", "1 2J"]
)
def test_what_is_no_energy_is_refused(text):
    with pytest.raises(InvalidInput, match="is not an energy"):
        parse_energy_j(text)


@given(st.text())
def test_any_text_is_an_energy_or_a_clear_error(text):
    with contextlib.suppress(InvalidInput):
        assert 0 < parse_energy_j(text) < math.inf
