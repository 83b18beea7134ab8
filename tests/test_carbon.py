"""Carbon: CodeCarbon's own arithmetic is the oracle, and every number says where it is from."""

import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from layer_energy import carbon, predict_energy
from layer_energy.carbon import grid_intensity
from layer_energy.errors import InvalidInput, MissingPackage
from layer_energy.units import WORLD_INTENSITY_G_PER_KWH
from tests.test_cli import run  # noqa: F401  # a fixture


@pytest.fixture(scope="module")
def report():
    return predict_energy(nn.Linear(64, 64), (8, 64), device="nvidia-a10")


@pytest.fixture
def table(monkeypatch):
    """A stand-in for CodeCarbon's table, where that package need not be installed."""
    rows = {
        "AAA": {"country_name": "Atlantis", "carbon_intensity": 250.5, "year": 2023},
        "BBB": {"country_name": "Brigadoon", "carbon_intensity": 0.0, "year": 2023},
    }
    monkeypatch.setattr(carbon, "_codecarbon_table", lambda: (rows, "3.1"))


@pytest.mark.parametrize("code", ["DEU", "FRA", "USA", "NOR"])
def test_countries_are_as_codecarbon_reckons_them(code):
    pytest.importorskip("codecarbon")
    from codecarbon.core.emissions import Emissions
    from codecarbon.core.units import Energy
    from codecarbon.external.geography import GeoMetadata
    from codecarbon.input import DataSource

    ours = grid_intensity(code)
    name = ours.source.split(" 20")[0]
    place = GeoMetadata(country_iso_code=code, country_name=name)
    kg = Emissions(DataSource()).get_country_emissions(Energy.from_energy(kWh=1), place)
    assert ours.g_per_kwh == pytest.approx(1e3 * kg)
    assert "CodeCarbon 3" in ours.source


def test_a_country_is_found_by_code_or_name_and_named(table):
    for text in ("AAA", "aaa", " Atlantis ", "ATLANTIS"):
        assert grid_intensity(text).g_per_kwh == 250.5
    assert grid_intensity("AAA").source == "Atlantis 2023, table of CodeCarbon 3.1"


@pytest.mark.parametrize(
    ("country", "message"),
    [
        ("Atlantos", r"no country 'Atlantos'; codes have three letters: AAA \(Atlantis\)"),
        ("qqqqqq", "such as DEU, FRA or USA"),
        ("", "no country ''"),
        ("BBB", "no carbon intensity for Brigadoon; give one in g/kWh"),
    ],
)
def test_countries_without_a_figure(table, country, message):
    with pytest.raises(InvalidInput, match=message):
        grid_intensity(country)


def test_a_country_without_codecarbon(monkeypatch, tmp_path):
    def missing(name):
        raise PackageNotFoundError(name)

    class Moved:
        version = "9"

        def locate_file(self, path):
            return tmp_path / path

    for stand_in in (missing, lambda name: Moved()):
        monkeypatch.setattr(carbon, "distribution", stand_in)
        with pytest.raises(
            MissingPackage, match=r"pip install codecarbon .*, or give the intensit"
        ):
            grid_intensity("DEU")
    assert grid_intensity(intensity_g_per_kwh=30).g_per_kwh == 30


@pytest.mark.parametrize("number", [-1, float("nan"), float("inf")])
def test_numbers_that_are_no_intensity(number):
    with pytest.raises(InvalidInput, match="a number from 0 up"):
        grid_intensity(intensity_g_per_kwh=number)


def test_one_of_the_two(table):
    with pytest.raises(InvalidInput, match="not both"):
        grid_intensity("AAA", 30)


@given(st.floats(0, 2000))
def test_carbon_of_a_report_is_its_joules_times_the_intensity(report, number):
    found = report.carbon(intensity_g_per_kwh=number)
    assert found.kg == pytest.approx(report.energy_j / 3.6e6 * number / 1e3)
    assert found.low_kg == pytest.approx(report.interval_j[0] / 3.6e9 * number)
    assert found.high_kg == pytest.approx(report.interval_j[1] / 3.6e9 * number)
    assert report.carbon_kg(intensity_g_per_kwh=number) == found.kg


def test_without_a_number_it_is_the_worlds_mean_and_says_so(report, table):
    assert report.carbon().intensity.g_per_kwh == WORLD_INTENSITY_G_PER_KWH
    assert "Ember" in str(report.carbon())
    assert "at 30 g/kWh (as given)" in str(report.carbon(intensity_g_per_kwh=30))
    assert "at 250.5 g/kWh (Atlantis 2023, table" in str(report.carbon(country="AAA"))


def test_the_page_says_where_its_intensity_is_from(report, table, tmp_path):
    pytest.importorskip("plotly")
    page = report.to_html(tmp_path / "r.html", country="AAA").read_text(encoding="utf-8")
    assert "Intensity (Atlantis 2023, table of CodeCarbon 3.1)" in page
    assert '"intensity_g_per_kwh":250.5' in page


def test_on_the_command_line(run, table, tmp_path):  # noqa: F811
    code, out, _ = run("predict", "alexnet", "--country", "AAA")
    assert code == 0
    assert "CO2e, 90 % interval" in out
    assert "at 250.5 g/kWh (Atlantis 2023" in " ".join(out.split())
    assert "CO2e" not in run("predict", "alexnet")[1]
    answer = json.loads(run("predict", "alexnet", "--carbon-intensity", 100, "--json")[1])
    assert answer["carbon_kg"] == pytest.approx(answer["energy_j"] / 3.6e7)
    options = ("--device", "nvidia-a10", "--country", "AAA")
    assert "(Atlantis 2023, table of CodeCarbon 3.1)" in " ".join(
        run("compare", "alexnet", *options)[1].split()
    )
    answer = json.loads(run("compare", "alexnet", *options, "--json")[1])
    (row,) = answer["rows"]
    assert row["carbon_per_sample_kg"] == pytest.approx(row["energy_per_sample_j"] * 250.5 / 3.6e9)
    assert answer["intensity"]["g_per_kwh"] == 250.5
    code, _, err = run("predict", "alexnet", "--country", "Atlantos")
    assert code == 2
    assert "AAA (Atlantis)" in " ".join(err.split())
    trace = Path(tmp_path, "trace.csv")
    trace.write_text("t_s,power_w\n" + "".join(f"{t},100\n" for t in range(101)))
    answer = json.loads(run("project", trace, "--epochs", 10, "--country", "AAA", "--json")[1])
    assert answer["carbon_kg"] == pytest.approx(answer["energy_j"] * 250.5 / 3.6e9)
    assert "Atlantis" in run("project", trace, "--epochs", 10, "--country", "AAA")[1]
