"""The report in a notebook, as matplotlib axes and as folded stacks."""

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from layer_energy import predict_energy
from layer_energy.errors import InvalidInput
from layer_energy.units import si

EVIL = '<script>alert(1)</script>"&'


@pytest.fixture(scope="module")
def report():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Sequential(nn.Conv2d(8, 8, 3)))
    return predict_energy(model, (2, 3, 32, 32), device="amd-epyc-2t", name="net")


class Elements(HTMLParser):
    """Checks that tags nest; keeps their names and the text."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def parsed(html):
    elements = Elements()
    elements.feed(html)
    elements.close()
    assert elements.open == []
    return elements


def test_a_notebook_shows_what_the_terminal_says(report):
    elements = parsed(report._repr_html_())
    low, high = report.interval_j
    for expected in (si(report.energy_j, "J"), "predicted, not measured", "ESTIMATED", "±50%",
                     f"{si(low, 'J')} – {si(high, 'J')}", "AMD EPYC", "amd-epyc-2t", "conv2d",
                     "input 2x3x32x32", *report.assumptions):  # fmt: skip
        assert expected in elements.text
    rows = len(report.by_kind()) + len(report.by_module()) + 2
    assert elements.seen.count("tr") == rows


def test_a_notebook_runs_nothing_a_model_says():
    model = nn.Sequential()
    model.add_module(EVIL, nn.Linear(4, 4))
    report = predict_energy(model, (1, 4), name=EVIL)
    report.assumptions.append(EVIL)
    elements = parsed(report._repr_html_())
    assert "script" not in elements.seen
    assert elements.text.count(EVIL) >= 3  # title, module, assumption


@pytest.mark.parametrize("by", ["kind", "module"])
def test_the_plot_is_the_table(report, by):
    pytest.importorskip("matplotlib").use("Agg")
    axes = report.plot(by, depth=2)
    shares = report.by_kind() if by == "kind" else report.by_module(2)
    shares = sorted(shares, key=lambda share: -share.energy_j)
    assert [bar.get_width() for bar in axes.patches] == [share.energy_j for share in shares]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [s.name for s in shares]
    (_, _, (intervals,)) = axes.containers[0]
    for share, segment in zip(shares, intervals.get_segments(), strict=True):
        assert segment[:, 0] == pytest.approx([share.energy_low_j, share.energy_high_j])
    assert "predicted for amd-epyc-2t (estimated joules)" in axes.get_title()
    assert report.plot(ax=axes) is axes


def test_a_plot_of_something_else_is_refused(report):
    with pytest.raises(InvalidInput, match="kind or module"):
        report.plot("layer")


def test_folded_stacks_add_up(report):
    lines = report.to_folded().splitlines()
    assert lines[0].startswith("net;0;conv2d ")
    assert lines[2].startswith("net;2;0;conv2d ")
    nanojoules = sum(int(line.rsplit(" ", 1)[1]) for line in lines)
    assert nanojoules * 1e-9 == pytest.approx(report.energy_j, abs=len(lines) * 1e-9)


@settings(max_examples=25, deadline=None)
@given(st.text(min_size=1, max_size=8).filter(lambda name: "." not in name))
def test_any_module_name_makes_one_well_formed_line(name):
    model = nn.Sequential()
    try:
        model.add_module(name, nn.Linear(4, 4))
    except KeyError:  # a name that nn.Module itself has
        return
    report = predict_energy(model, (1, 4), name="net", device="amd-epyc-2t")
    (line,) = report.to_folded().split("\n")[:-1]
    assert re.fullmatch(r"net;[^;\n]*;linear \d+", line)


def test_calls_of_a_shared_module_are_one_stack(shared_model):
    report = predict_energy(shared_model, (1, 8), device="amd-epyc-2t")
    (line,) = report.to_folded().splitlines()
    assert int(line.split()[-1]) == pytest.approx(report.energy_j * 1e9, abs=1)
