"""Recorded traces: joules, what a share of them says, and the command line."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layer_energy.errors import InvalidInput
from layer_energy.training import PowerTrace, project_trace
from tests.test_cli import run  # noqa: F401  # a fixture


def trace_of(*pieces, period_s=1.0):
    """A trace of (seconds, watts) pieces."""
    power_w = np.concatenate([np.full(round(s / period_s), float(w)) for s, w in pieces])
    return PowerTrace.of(np.arange(len(power_w)) * period_s, power_w)


class TestReplay:
    def test_a_complete_trace_is_its_trapezoid(self):
        trace = PowerTrace.of([3, 4, 6, 7], [10, 20, 20, 0])
        p = project_trace(trace, 10)
        assert p.energy_j == p.low_j == p.high_j == 15 + 40 + 10
        assert p.energy_to_come_j == 0

    def test_a_step_in_power_is_followed(self):
        trace = trace_of((100, 100), (900, 200))
        p = project_trace(trace, 50, 0.2)
        assert p.energy_j == pytest.approx(trace.energy_j, rel=1e-3)
        assert p.window[0] >= 5
        assert p.low_j <= trace.energy_j <= p.high_j

    @given(
        st.floats(0.05, 0.95),
        st.lists(st.floats(0, 500), min_size=60, max_size=60),
        st.integers(1, 90),
    )
    @settings(max_examples=50)
    def test_what_was_not_observed_has_no_influence(self, share, powers, epochs):
        t = np.arange(60.0)
        known = t <= share * 59
        other = np.where(known, powers, 777.0)
        one = project_trace(PowerTrace.of(t, powers), epochs, share)
        assert one == project_trace(PowerTrace.of(t, other), epochs, share)
        assert one.low_j <= one.energy_j <= one.high_j
        assert one.energy_j >= one.energy_so_far_j
        assert one.energy_so_far_j == pytest.approx(
            np.trapezoid(np.array(powers)[known], t[known]), abs=600
        )

    def test_irregular_samples_gaps_and_doubles(self):
        t = [0, 1, 2, 2, 3, 4, 5, 6, 7, 8, 60, 61, 62, 63]
        p = project_trace(PowerTrace.of(t, [100.0] * len(t)), 7)
        assert p.energy_j == pytest.approx(6300)
        assert any("52 s lie in gaps" in note for note in p.notes)

    def test_degraded_answers_say_so(self):
        trace = trace_of((100, 100))
        assert "epochs observed, less" in project_trace(trace, 1, 0.2).notes[0]
        short = project_trace(trace, 1000, 0.5)
        assert "not resolved" in short.notes[0]
        assert short.energy_j == pytest.approx(trace.energy_j)

    @pytest.mark.parametrize(
        ("t", "p", "message"),
        [
            ([], [], "two moments"),
            ([1], [5], "two moments"),
            ([1, 1], [5, 6], "two moments"),
            ([0, 1, 2], [5, math.nan, 5], "sample 2 is 1.0 s, nan W"),
            ([0, 1, 2], [5, -1, 5], "sample 2"),
            ([0, 2, 1], [5, 5, 5], "backwards from sample 2"),
            ([0, math.inf], [5, 5], "finite"),
            ([0, 1], [5], "do not match"),
        ],
    )
    def test_bad_traces(self, t, p, message):
        with pytest.raises(InvalidInput, match=message):
            PowerTrace.of(t, p)


class TestCommand:
    def write(self, tmp_path, text):
        path = tmp_path / "trace.csv"
        path.write_text(text)
        return path

    def steady(self, tmp_path, until=200):
        rows = [f"{t},{100 if t <= 40 else until}" for t in range(201)]
        return self.write(tmp_path, "t_s,power_w\n" + "\n".join(rows) + "\n")

    def test_json(self, run, tmp_path):  # noqa: F811
        args = ("--epochs", 20, "--observed", 0.2, "--json")
        code, out, _ = run("project", self.steady(tmp_path), *args)
        answer = json.loads(out)
        assert code == 0
        assert {"energy_j", "low_j", "high_j", "window"} <= set(answer)
        assert answer["energy_j"] == pytest.approx(20_000)
        assert answer["low_j"] <= answer["energy_j"] <= answer["high_j"]
        _, out, _ = run("project", self.steady(tmp_path, until=5), *args)
        assert json.loads(out) == answer

    def test_text(self, run, tmp_path):  # noqa: F811
        code, out, _ = run("project", self.steady(tmp_path), "--epochs", 20, "--observed", 0.2)
        assert code == 0
        assert "4.00 kJ so far (replayed), 16.0 kJ to come (projected)" in out
        assert "window: epochs 1 to 4" in out

    @pytest.mark.parametrize(
        ("text", "args", "message"),
        [
            ("t_s,power_w\n0,1\n1,1\n", ("--epochs", 0), "epochs must be a positive"),
            ("t_s,power_w\n0,1\n1,1\n", ("--epochs", -2), "epochs must be a positive"),
            ("t_s,power_w\n0,1\n1,1\n", ("--epochs", 2, "--observed", 0), "share observed"),
            ("t_s,power_w\n0,1\n1,1\n", ("--epochs", 2, "--observed", 1.2), "share observed"),
            ("t_s,power_w\n0,1\n1,1\n", ("--epochs", 2, "--observed", 0.1), "observe more"),
            ("t_s,power_w\n0,1\n1,1\n", ("--epochs", 2, "--form", "x"), "form must be"),
            ("t_s,power_w\n", ("--epochs", 2), "is empty"),
            ("", ("--epochs", 2), "no header"),
            ("time,power\n0,1\n", ("--epochs", 2), "lacks the column t_s and power_w"),
            ("t_s,power_w\n0,1\n1,nan\n", ("--epochs", 2), "line 3: power_w is nan"),
            ("t_s,power_w\n0,1\n1\n", ("--epochs", 2), "line 3: power_w is None"),
            ("t_s,power_w\n0,1\nx,2\n", ("--epochs", 2), "line 3: t_s is 'x'"),
            ("t_s,power_w\n5,1\n4,1\n", ("--epochs", 2), "clock goes backwards"),
        ],
    )
    def test_mistakes(self, run, tmp_path, text, args, message):  # noqa: F811
        code, out, err = run("project", self.write(tmp_path, text), *args)
        assert code == 2
        assert message in err.replace("\n", " ")
        assert "Traceback" not in err
        assert out == ""

    def test_a_missing_file(self, run, tmp_path):  # noqa: F811
        code, _, err = run("project", tmp_path / "none.csv", "--epochs", 2)
        assert code == 2
        assert "cannot be read" in err
