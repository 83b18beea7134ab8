"""``diff``: what changed, where, by how many joules, and how surely."""

import json

import pytest
from torch import nn

from layer_energy import diff, predict_energy
from layer_energy.report.difference import WIDTH


def net(width=16, act=nn.ReLU, extra=False):
    layers = {"stem": nn.Conv2d(3, 8, 3), "act": act(), "body": nn.Conv2d(8, width, 3)}
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    if extra:
        model.add_module("norm", nn.BatchNorm2d(width))
    return model


def report(device="amd-epyc-2t", launch=None, **options):
    return predict_energy(net(**options), (1, 3, 64, 64), device=device, launch=launch)


@pytest.fixture(scope="module")
def base():
    return report()


def test_a_model_does_not_differ_from_itself(base):
    difference = diff(base, report())
    assert difference.changes == []
    assert difference.unchanged == 3
    assert difference.energy_j == 0
    assert difference.interval_j == (0, 0)
    assert difference.to_frame().empty


def test_changes_name_the_module_and_the_parameter(base):
    wide = report(width=32, act=nn.GELU, extra=True)
    difference = diff(base, wide)
    changes = {change.path: change for change in difference.changes}
    assert set(changes) == {"act", "body", "norm"}
    assert changes["body"].what == "conv2d out_channels 16 → 32"
    assert changes["act"].what == "- relu; + gelu"
    assert changes["norm"].what == "new: 1 batch_norm"
    assert changes["norm"].energy_a_j == 0
    body = [r.by_module()[2].energy_j for r in (base, wide)]
    assert changes["body"].energy_j == pytest.approx(body[1] - body[0])
    assert sum(c.energy_j for c in difference.changes) == pytest.approx(difference.energy_j)
    assert difference.energy_j == pytest.approx(wide.energy_j - base.energy_j)
    sizes = [abs(c.energy_j) for c in difference.changes]
    assert sizes == sorted(sizes, reverse=True)


def test_the_other_way_round_is_the_negative(base):
    wide = report(width=32, extra=True)
    forth, back = diff(base, wide), diff(wide, base)
    assert back.energy_j == pytest.approx(-forth.energy_j)
    assert back.interval_j == pytest.approx(tuple(-x for x in reversed(forth.interval_j)))
    assert {c.what for c in back.changes} >= {"removed: 1 batch_norm"}


def test_what_is_only_added_is_surely_more(base):
    """The meter's gain is common to both and does not make an addition a saving."""
    low, high = diff(base, report(extra=True)).interval_j
    (added,) = [s for s in report(extra=True).by_module() if s.name == "norm"]
    assert 0 < low < added.energy_j < high
    assert (low, high) == pytest.approx((added.energy_low_j, added.energy_high_j))


def test_on_two_devices_nothing_cancels(base):
    other = report(device="nvidia-a100")
    difference = diff(base, other)
    assert difference.unchanged == 0
    assert {c.what for c in difference.changes} == {"priced differently"}
    low = sum(s.energy_low_j for s in other.by_module())
    low -= sum(s.energy_high_j for s in base.by_module())
    assert difference.interval_j[0] == pytest.approx(low)


def test_depth_groups_modules():
    a, b = (
        predict_energy(
            nn.Sequential(net(width=3), net(width=width)), (1, 3, 64, 64), device="amd-epyc-2t"
        )
        for width in (16, 32)
    )
    assert [c.path for c in diff(a, b).changes] == ["1.body"]
    assert [c.path for c in diff(a, b, depth=1).changes] == ["1"]
    assert diff(a, b, depth=1).interval_j == pytest.approx(diff(a, b).interval_j)  # stems cancel


def test_waiting_for_the_host_is_a_change():
    """The changes sum to the difference of the totals, which lies in its interval."""
    wide = report("nvidia-h200", width=32, extra=True)
    for other in (report("nvidia-h200"), report("nvidia-h200", launch="graph")):
        difference = diff(other, wide)
        waiting = next(c for c in difference.changes if c.path == "waiting for the host")
        assert waiting.energy_j == pytest.approx(wide.waiting_j - other.waiting_j)
        assert sum(c.energy_j for c in difference.changes) == pytest.approx(difference.energy_j)
        low_j, high_j = difference.interval_j
        assert low_j < difference.energy_j < high_j
    (low_a, high_a), (low_b, high_b) = (r.waiting_interval_j for r in (report("nvidia-h200"), wide))
    change = next(c for c in diff(report("nvidia-h200"), wide).changes if c.path == waiting.path)
    ends = sorted([low_b - low_a, high_b - high_a])  # one host errs alike in both
    assert [change.energy_low_j, change.energy_high_j] == pytest.approx(ends)
    assert "launch graph → eager" in str(difference)
    assert ", launched as eager" in " ".join(str(difference).split())
    alike = diff(wide, report("nvidia-h200", width=32, extra=True))
    assert (alike.changes, alike.interval_j) == ([], (0, 0))


def test_texts_say_what_the_numbers_are(base):
    difference = diff(base, report(width=32))
    text = str(difference)
    for expected in ("predicted for", "amd-epyc-2t", "ESTIMATED", "±50%", "body", "total",
                     "90 % interval", "2 modules cost the same"):  # fmt: skip
        assert expected in " ".join(text.split())
    assert all(len(line) <= WIDTH for line in text.splitlines())
    state = json.loads(json.dumps(difference.to_dict()))
    assert state["changes"][0]["path"] == "body"
    assert state["a"]["quality"] == "estimated"


def test_names_are_no_markup():
    model = nn.Sequential()
    model.add_module("[bold]x[/]", nn.Linear(4, 4))
    other = nn.Sequential()
    other.add_module("[bold]x[/]", nn.Linear(4, 8))
    text = str(diff(predict_energy(model, (1, 4)), predict_energy(other, (1, 4))))
    assert "[bold]x[/]" in text
