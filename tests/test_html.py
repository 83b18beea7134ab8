"""The HTML report: one file, no network, and it works in a browser."""

import json
import re

import pytest
from torch import nn

from layer_energy import predict_energy
from layer_energy.errors import InvalidInput, MissingPackage
from layer_energy.report.tree import CHILDREN_SHOWN, NODES_SHOWN, costliest_parts, module_tree
from layer_energy.units import carbon_g, money, si
from tests.browser import chromium, eventually

pytest.importorskip("plotly", reason="plotly is not installed")

EVIL = '</script><img src=x onerror="boom()"><b>&amp;{{data}}'


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        return (self.norm(self.conv(x)) + x).relu()


def small():
    return nn.Sequential(nn.Conv2d(3, 8, 3), Block(), Block(), nn.Flatten(), nn.Linear(8 * 900, 5))


@pytest.fixture(scope="module")
def report():
    return predict_energy(small(), (2, 3, 32, 32), device="amd-epyc-2t", name="small")


@pytest.fixture(scope="module")
def path(report, tmp_path_factory):
    path = tmp_path_factory.mktemp("html") / "r.html"
    assert report.to_html(path) == path
    return path


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def open_page(browser):
    """Open a file; whatever the console says or the network is asked for fails the test."""
    pages, said = [], []

    def opened(path, **options):
        page = browser.new_page(**options)
        pages.append(page)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda r: r.url == path.as_uri() or said.append(f"asked for {r.url}"))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-drawn]")
        return page

    yield opened
    for page in pages:
        page.close()
    assert said == []


def payload(path):
    text = path.read_text(encoding="utf-8")
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', text)[1]
    )


def leaves(parts):
    inner = {parent for parent, _ in parts}
    return [node for i, (_, node) in enumerate(parts) if i not in inner]


def test_the_page_says_it_is_a_prediction_and_of_what(path, report):
    head = re.search(r"<header>.*?</header>", path.read_text(encoding="utf-8"), re.DOTALL)[0]
    low, high = report.interval_j
    for expected in ("Predicted, not measured", "ESTIMATED", "±50%", "AMD EPYC", "amd-epyc-2t",
                     si(report.energy_j, "J"), "90 % interval", si(low, "J"), si(high, "J"),
                     "input 2x3x32x32"):  # fmt: skip
        assert expected in head


def test_the_page_carries_the_reports_numbers(path, report):
    data = payload(path)
    assert data["energy_j"] == report.energy_j
    assert [data["energy_low_j"], data["energy_high_j"]] == list(report.interval_j)
    assert len(data["layers"]) == len(report.layers)
    total = sum(layer["energy_j"] for layer in data["layers"])
    assert total == pytest.approx(report.energy_j, rel=1e-4)


def test_the_tree_loses_no_joules(report):
    parts = costliest_parts(module_tree(report))
    assert sum(leaf.energy_j for leaf in leaves(parts)) == pytest.approx(report.energy_j)
    assert sum(leaf.calls for leaf in leaves(parts)) == len(report.layers)
    names = [node.name for parent, node in parts if parent == 0]
    assert names == ["0 · conv2d", "1", "2", "4 · linear"]  # a flatten costs nothing
    assert all(parent < i for i, (parent, _) in enumerate(parts))


def test_large_trees_are_cut_but_lose_no_joules():
    wide = nn.Sequential(*[nn.Linear(4, 4) for _ in range(300)])
    deep = nn.Sequential(
        *[nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(9)])
          for _ in range(90)]
    )  # fmt: skip
    for report in (predict_energy(wide, (1, 4)), predict_energy(deep, (1, 4))):
        parts = costliest_parts(module_tree(report))
        assert len(parts) <= NODES_SHOWN
        assert max(sum(parent == i for parent, _ in parts) for i in range(3)) <= CHILDREN_SHOWN
        assert sum(leaf.energy_j for leaf in leaves(parts)) == pytest.approx(report.energy_j)


@pytest.mark.parametrize("rates", [{"price_per_kwh": -1}, {"intensity_g_per_kwh": float("nan")}])
def test_wrong_rates_write_nothing(report, tmp_path, rates):
    with pytest.raises(InvalidInput, match="from 0 up"):
        report.to_html(tmp_path / "r.html", **rates)
    assert list(tmp_path.iterdir()) == []


def test_without_plotly_the_error_says_what_to_install(report, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    with pytest.raises(MissingPackage, match="needs plotly: pip install plotly"):
        report.to_html(tmp_path / "r.html")


def test_it_fits_any_width_in_light_and_dark(open_page, path):
    page = open_page(path, viewport={"width": 1920, "height": 900}, color_scheme="light")
    for scheme, width in (("light", 1920), ("light", 360), ("dark", 360), ("dark", 1920)):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 900})
        check_fits(page, width, dark=scheme == "dark")


def check_fits(page, width, dark):
    eventually(lambda: chart_width(page) <= width, "the charts follow the width")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert (lightness(page, "document.body", "backgroundColor") < 0.3) == dark
    title = "document.querySelector('#kinds .xtitle')"
    eventually(lambda: (lightness(page, title, "fill") > 0.5) == dark, "axes are redrawn")
    marks = {"icicle": "path.surface", "kinds": ".point path", "scatter": ".point"}
    for chart, mark in marks.items():
        assert page.locator(f"#{chart} {mark}").count() > 3


def chart_width(page):
    return page.evaluate(
        "Math.max(...[...document.querySelectorAll('svg.main-svg')].map(s => s.clientWidth))"
    )


def lightness(page, element, colour):
    """0 to 1, the mean of red, green and blue."""
    text = page.evaluate(f"getComputedStyle({element}).{colour}")
    return sum(map(int, re.findall(r"\d+", text)[:3])) / 765


def test_clicking_zooms_and_the_path_leads_back(open_page, path):
    page = open_page(path)
    assert outermost(page) == "small"
    page.locator("#icicle g.slice", has=page.locator('[data-unformatted^="1<br>"]')).click()
    eventually(lambda: outermost(page) == "1", "the clicked block is the outermost")
    assert page.locator("#icicle g.slice:not(.pathbar)").count() == 5  # block, 4 operations
    page.locator("#icicle g.pathbar", has_text="small").click()
    eventually(lambda: outermost(page) == "small", "the path led back")


def outermost(page):
    text = page.locator("#icicle g.slice:not(.pathbar) text").first
    return text.get_attribute("data-unformatted").partition("<br>")[0]


def column(page, name):
    names = [text.lower() for text in page.locator("#layers th").all_inner_texts()]
    return page.locator(f"#layers tbody td:nth-child({names.index(name) + 1})").all_inner_texts()


def test_sorting_sorts_and_finding_finds(open_page, path, report):
    page = open_page(path)
    energy = page.locator("#layers th button", has_text="energy")
    falling = [report.layers[int(i) - 1].estimate.energy_j for i in column(page, "#")]
    assert falling == sorted(falling, reverse=True)
    energy.click()
    rising = [report.layers[int(i) - 1].estimate.energy_j for i in column(page, "#")]
    assert rising == sorted(rising)
    assert page.locator("#layers th[aria-sort=ascending]").inner_text().startswith("energy")
    page.locator("#layers th button", has_text="#").click()
    assert column(page, "module") == [
        layer.call.path or "(model itself)" for layer in report.layers
    ]
    page.fill("#find", "Conv")
    assert set(column(page, "operation")) == {"conv2d"}


def test_carbon_and_cost_follow_the_stated_rates(open_page, report, tmp_path):
    path = report.to_html(tmp_path / "r.html", intensity_g_per_kwh=100, price_per_kwh=0.3,
                          currency="CHF")  # fmt: skip
    page = open_page(path)
    assert "Ember" not in page.inner_text("main")
    text = page.inner_text("#footprint")
    assert si(carbon_g(report.energy_j * 1e6, 100), "g") in text
    assert float(re.search(r"([\d.]+) CHF", text)[1]) == pytest.approx(
        money(report.energy_j * 1e6, 0.3), rel=0.01
    )
    page.fill("[name=intensity]", "200")
    assert si(carbon_g(report.energy_j * 1e6, 200), "g") in page.inner_text("#footprint")


def test_names_of_a_model_are_shown_not_run(open_page, tmp_path):
    model = nn.Sequential()
    model.add_module(EVIL, nn.Linear(4, 4))
    model.add_module("second", nn.ReLU())
    report = predict_energy(model, (1, 4), name=EVIL)
    report.assumptions.append(EVIL)
    page = open_page(report.to_html(tmp_path / "r.html"))
    assert page.title() == f"{EVIL}: predicted energy"
    assert page.inner_text("h1") == EVIL
    assert EVIL in page.inner_text("#assumptions")
    assert EVIL in column(page, "module")
    assert page.locator("img").count() == 0
    assert EVIL in "".join(page.locator("#icicle g.slice text").evaluate_all(
        "texts => texts.map(t => t.dataset.unformatted ?? t.textContent)"
    )).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")  # fmt: skip


def test_ten_thousand_layers_draw_little_and_open(open_page, tmp_path, report):
    """What keeps the page fast; ``tests/benchmarks/html_report.py`` prints the seconds."""
    model = nn.Sequential(*[
        nn.Sequential(*[nn.Sequential(*[nn.Linear(4, 4) for _ in range(10)]) for _ in range(10)])
        for _ in range(100)
    ])  # fmt: skip
    path = predict_energy(model, (1, 4)).to_html(tmp_path / "big.html")
    page = open_page(path)
    assert "of 10000 operations" in page.inner_text("#found")
    assert page.locator("#layers tbody tr").count() == 100
    assert page.evaluate("document.getElementsByTagName('*').length") < 15_000
    page.click("#more")
    assert page.locator("#layers tbody tr").count() == 400
