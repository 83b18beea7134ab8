"""The statistics of a study against closed forms, scipy, and hand-computed cases."""

import json
import math
import sys
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from typer.testing import CliRunner

from layer_energy.cli import app
from layer_energy.errors import InvalidInput, MissingPackage
from layer_energy.study import analyze, statistics
from layer_energy.study.statistics import cliffs_delta, magnitude, omnibus, pairwise, two_way

values = st.lists(st.integers(-5, 5), min_size=1, max_size=8)


class TestCliffsDelta:
    def test_by_hand(self):
        # of 9 pairs, 1 above (3 > 2), 6 below, 2 equal
        assert cliffs_delta([1, 2, 3], [2, 3, 4]) == pytest.approx(-5 / 9)

    def test_groups_apart_and_groups_alike(self):
        assert cliffs_delta([5, 6], [1, 2, 3]) == 1
        assert cliffs_delta([1, 2, 3], [5, 6]) == -1
        assert cliffs_delta([1, 2], [1, 2]) == 0

    @given(values, values)
    def test_it_is_the_mann_whitney_statistic_rescaled(self, x, y):
        u = stats.mannwhitneyu(x, y, method="asymptotic").statistic if len({*x, *y}) > 1 else None
        expected = 0 if u is None else 2 * u / (len(x) * len(y)) - 1
        assert cliffs_delta(x, y) == pytest.approx(expected)
        assert cliffs_delta(y, x) == pytest.approx(-expected)

    @pytest.mark.parametrize(
        ("delta", "word"),
        [(0, "negligible"), (-0.146, "negligible"), (0.147, "small"), (-0.33, "medium"),
         (0.473, "medium"), (0.474, "large"), (-1, "large")],
    )  # fmt: skip
    def test_in_a_word(self, delta, word):
        assert magnitude(delta) == word


@pytest.fixture
def groups():
    rng = np.random.default_rng(7)
    return {
        "a": rng.normal(1.0, 0.1, 12),
        "b": rng.normal(1.1, 0.3, 9),
        "c": rng.normal(1.6, 0.2, 15),
    }


class TestGroups:
    def test_omnibus(self, groups):
        found = {row["test"]: (row["statistic"], row["p"]) for row in omnibus(groups)}
        arrays = list(groups.values())
        welch = stats.f_oneway(*arrays, equal_var=False)
        centred = [abs(x - np.median(x)) for x in arrays]  # Levene is ANOVA on these
        assert found["Levene"] == pytest.approx(tuple(stats.f_oneway(*centred)))
        assert found["Welch ANOVA"] == pytest.approx((welch.statistic, welch.pvalue))
        assert found["Kruskal-Wallis"] == pytest.approx(tuple(stats.kruskal(*arrays)))

    def test_games_howell(self, groups):
        expected = stats.tukey_hsd(*groups.values(), equal_var=False).pvalue
        found = [row["p_games_howell"] for row in pairwise(groups)]
        assert found == pytest.approx([expected[0, 1], expected[0, 2], expected[1, 2]], rel=1e-3)

    def test_dunn_with_holm(self, groups):
        """Dunn 1964: mean ranks, their difference normal; Holm 1979: times the tests left."""
        arrays = list(groups.values())
        ranks = np.split(
            stats.rankdata(np.concatenate(arrays)), np.cumsum([len(x) for x in arrays])[:-1]
        )
        n = sum(len(x) for x in arrays)
        raw = []
        for i, j in combinations(range(3), 2):
            variance = n * (n + 1) / 12 * (1 / len(ranks[i]) + 1 / len(ranks[j]))
            z = (ranks[i].mean() - ranks[j].mean()) / math.sqrt(variance)
            raw.append(2 * stats.norm.sf(abs(z)))
        held, expected = 0.0, [0.0] * 3
        for place, i in enumerate(np.argsort(raw)):
            held = max(held, min(1, raw[i] * (3 - place)))
            expected[i] = held
        assert [row["p_dunn_holm"] for row in pairwise(groups)] == pytest.approx(expected)

    def test_ratios_and_effects(self, groups):
        rows = pairwise(groups)
        assert [(row["a"], row["b"]) for row in rows] == [("a", "b"), ("a", "c"), ("b", "c")]
        assert rows[1]["median_ratio"] == np.median(groups["a"]) / np.median(groups["c"])
        assert rows[1]["cliffs_delta"] == cliffs_delta(groups["a"], groups["c"]) < -0.9
        assert rows[1]["magnitude"] == "large"

    def test_values_that_do_not_vary_give_no_p(self):
        groups = {"a": np.ones(4), "b": np.full(4, 2.0)}
        found = {row["test"]: row["p"] for row in omnibus(groups)}
        assert math.isnan(found["Levene"])
        assert math.isnan(found["Welch ANOVA"])
        assert found["Kruskal-Wallis"] < 0.05
        (row,) = pairwise(groups)
        assert math.isnan(row["p_games_howell"])
        assert row["p_dunn_holm"] < 0.05
        alike = {"a": np.ones(4), "b": np.ones(4)}
        assert all(math.isnan(row["p"]) for row in omnibus(alike))


class TestTwoWay:
    def test_a_balanced_case_by_the_textbook(self):
        """Sums of squares of cell, row and column means (Montgomery, Design of Experiments)."""
        y = np.array([[[4.0, 5, 6], [7, 9, 8]], [[1, 2, 3], [9, 12, 15]]])  # a × b × run
        grand = y.mean()
        a, b, cells = y.mean((1, 2)), y.mean((0, 2)), y.mean(2)
        ss = {
            "a": 6 * ((a - grand) ** 2).sum(),
            "b": 6 * ((b - grand) ** 2).sum(),
            "a * b": 3 * ((cells - a[:, None] - b + grand) ** 2).sum(),
            "Residual": ((y - cells[:, :, None]) ** 2).sum(),
        }
        table = pd.DataFrame(
            [{"a": i, "b": j, "y": y[i, j, k]} for i, j, k in product((0, 1), (0, 1), (0, 1, 2))]
        )
        rows = {row["source"]: row for row in two_way(table, "y", "a", "b")}
        assert {name: row["sum_of_squares"] for name, row in rows.items()} == pytest.approx(ss)
        assert [row["df"] for row in rows.values()] == [1, 1, 1, 8]
        f = ss["b"] / (ss["Residual"] / 8)
        assert rows["b"]["f"] == pytest.approx(f)
        assert rows["b"]["p"] == pytest.approx(stats.f.sf(f, 1, 8))
        eta = ss["b"] / (ss["b"] + ss["Residual"])
        assert rows["b"]["partial_eta_squared"] == pytest.approx(eta)

    def test_an_unbalanced_case_by_least_squares(self):
        """Type II: what a factor adds to the other one, without the interaction."""
        rng = np.random.default_rng(3)
        a, b = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 0]), np.array([0, 0, 0, 1, 1, 1, 1, 0, 0, 1])
        y = rng.normal(a + 2 * b, 1)

        def residual(*columns):
            x = np.column_stack([np.ones(len(y)), *columns])
            return np.sum((y - x @ np.linalg.lstsq(x, y)[0]) ** 2)

        rows = two_way(pd.DataFrame({"a": a, "b": b, "y": y}), "y", "a", "b")
        assert [row["sum_of_squares"] for row in rows] == pytest.approx([
            residual(b) - residual(a, b), residual(a) - residual(a, b),
            residual(a, b) - residual(a, b, a * b), residual(a, b, a * b),
        ])  # fmt: skip


class TestDescription:
    def test_the_interval_is_students(self):
        x = [1.0, 2.0, 4.0, 8.0]
        found = statistics.describe(x)
        interval = stats.ttest_1samp(x, 0).confidence_interval(0.95)
        assert (found["mean_low"], found["mean_high"]) == pytest.approx(tuple(interval))
        assert (found["runs"], found["median"]) == (4, 3.0)

    def test_one_run_has_no_interval(self):
        found = statistics.describe([3.0])
        assert found["mean"] == found["median"] == 3
        assert math.isnan(found["mean_low"])

    def test_normality(self):
        x = [1.0, 2.0, 4.0, 8.0]
        assert tuple(statistics.normality(x).values()) == pytest.approx(tuple(stats.shapiro(x)))
        assert math.isnan(statistics.normality([1, 1, 1])["p"])

    def test_spearman_sees_order_only(self):
        table = pd.DataFrame({"x": [1, 2, 3, 4], "y": [1, 8, 27, math.nan], "z": [5, 5, 5, 5]})
        (row,) = statistics.spearman(table, ["x", "y", "z"])
        assert (row["a"], row["b"], row["runs"], row["rho"]) == ("x", "y", 3, pytest.approx(1))


def runs(energy, f1=None, repetitions=6, **columns):
    """Runs of configurations of known median energy, spread by 1 %."""
    rng = np.random.default_rng(0)
    rows = []
    for (network, device), energy_j in energy.items():
        for repetition in range(repetitions):
            row = {"network": network, "device": device, "repetition": repetition, **columns}
            row["energy_per_image_j"] = energy_j * rng.lognormal(0, 0.01)
            if f1:
                row["f1"] = f1[network]
            rows.append(row)
    return pd.DataFrame(rows)


ENERGY = {("s", "x"): 1.0, ("s", "y"): 2.0, ("m", "x"): 4.0, ("m", "y"): 3.0}


class TestAnalyze:
    def test_each_factor_is_tested_with_the_other_held(self):
        analysis = analyze(runs(ENERGY))
        assert analysis.factors == ("network", "device")
        pairs = analysis.tables["pairwise"].set_index(["factor", "network", "device"])
        ratio = pairs["median_ratio"].to_dict()
        assert ratio == pytest.approx({
            ("network", "", "x"): 4, ("network", "", "y"): 1.5,
            ("device", "m", ""): 4 / 3, ("device", "s", ""): 0.5,
        }, rel=0.02)  # fmt: skip
        assert len(analysis.tables["omnibus"]) == 3 * 4
        assert (analysis.tables["omnibus"].query("test != 'Levene'")["p"] < 0.01).all()
        interaction = analysis.tables["two_way"].set_index("source").loc["network * device"]
        assert interaction["p"] < 1e-6  # s is cheaper on x, m on y

    def test_the_best_saving_loses_less_than_two_percent(self):
        analysis = analyze(runs(ENERGY, {"s": 0.79, "m": 0.80}))
        best = analysis.best_saving()
        assert (best["network"], best["device"]) == ("s", "x")
        assert best["saving"] == pytest.approx(1 - 1 / 3, abs=0.02)  # of m on y, the best F1
        assert best["loss"] == pytest.approx(0.0125)
        front = analysis.tables["pareto"].query("pareto")
        assert set(zip(front["network"], front["device"], strict=True)) == {("s", "x"), ("m", "y")}
        worse = analyze(runs(ENERGY, {"s": 0.78, "m": 0.80})).best_saving()
        assert (worse["network"], worse["device"], worse["saving"]) == ("m", "y", 0)

    def test_without_a_gain_there_is_no_front_and_it_says_so(self):
        analysis = analyze(runs(ENERGY))
        assert analysis.best_saving() is None
        assert analysis.tables["pareto"].empty
        assert any("neither f1 nor accuracy" in note for note in analysis.notes)

    def test_missing_combinations_are_left_out_of_the_two_way_anova_and_named(self):
        table = runs({**ENERGY, ("l", "x"): 9.0})
        analysis = analyze(table)
        assert "two-way ANOVA of network and device is over 24 of 30 runs, fully crossed" in (
            analysis.notes
        )
        lonely = analyze(runs({("s", "x"): 1.0, ("m", "y"): 2.0}))
        assert lonely.tables["two_way"].empty
        assert any("is left out: too few combinations" in note for note in lonely.notes)

    def test_configurations_with_few_runs_are_described_and_not_tested(self):
        table = runs({("s", "x"): 1.0, ("m", "x"): 2.0, ("l", "x"): 3.0})
        analysis = analyze(table[~((table["network"] == "l") & (table["repetition"] > 1))])
        assert set(analysis.tables["summary"]["network"]) == {"s", "m", "l"}
        assert set(analysis.tables["normality"]["network"]) == {"s", "m"}
        assert len(analysis.tables["pairwise"]) == 1
        assert "1 of 3 configurations have under 3 runs: not tested" in analysis.notes

    @pytest.mark.parametrize(
        ("table", "message"),
        [
            (runs({("s", "x"): 1.0}), "nothing varies in this table"),
            (runs(ENERGY, repetitions=2), "no configuration has 3 runs"),
        ],
    )
    def test_too_little_to_compare(self, table, message):
        with pytest.raises(InvalidInput, match=message):
            analyze(table)

    @pytest.mark.parametrize("column", ["device", "network"])
    def test_runs_that_name_no_level_of_a_factor_are_left_out_and_counted(self, column):
        table, whole = runs(ENERGY, {"s": 0.79, "m": 0.80}), runs(ENERGY, {"s": 0.79, "m": 0.80})
        table.loc[table["repetition"] == 5, column] = None
        found = analyze(table)
        assert f"4 of 24 runs have no {column}: left out" in found.notes
        expected = analyze(whole[whole["repetition"] < 5])
        assert found.to_dict() == {**expected.to_dict(), "notes": list(found.notes)}

    def test_json_keeps_every_digit_and_has_null_for_what_is_no_number(self):
        analysis = analyze(runs(ENERGY, {"s": 0.79, "m": 0.80}))
        found = json.loads(json.dumps(analysis.to_dict(), allow_nan=False))
        for name, table in analysis.tables.items():
            for row, (_, expected) in zip(found[name], table.iterrows(), strict=True):
                for column, value in expected.items():
                    told = row[column]
                    assert told == value or (told is None and math.isnan(value)), (name, column)
        ps = [row["p"] for row in found["two_way"] if row["p"] is not None]
        assert 0 < min(ps) < 1e-10
        assert found["best_saving"] == analysis.best_saving()
        assert found["two_way"][-1]["p"] is None  # of the residual

    def test_a_missing_package_is_named_with_what_to_install(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "scikit_posthocs", None)
        with pytest.raises(
            MissingPackage, match="needs scikit_posthocs: pip install matplotlib pin"
        ):
            analyze(runs(ENERGY))

    def test_files(self, tmp_path):
        analysis = analyze(runs(ENERGY, {"s": 0.79, "m": 0.80}, quality="estimated"))
        files = analysis.save(tmp_path)
        assert {path.name for path in files} == {
            "summary.csv", "normality.csv", "omnibus.csv", "pairwise.csv", "two_way.csv",
            "pareto.csv", "spearman.csv", "boxes.png", "qq.png", "pareto.png",
        }  # fmt: skip
        again = pd.read_csv(tmp_path / "pareto.csv")
        assert again["saving"].tolist() == pytest.approx(
            analysis.tables["pareto"]["saving"].tolist()
        )
        from layer_energy.study.figures import boxes, pareto

        assert "(estimated)" in boxes(analysis).axes[0].get_xlabel()
        axes = pareto(analysis).axes[0]
        assert len(axes.texts) == 4
        assert len(axes.lines[1].get_xdata()) == 2  # the front


def command(*args):
    result = CliRunner().invoke(app, ["study", *map(str, args)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


class TestCommand:
    @pytest.fixture
    def path(self, tmp_path):
        path = tmp_path / "runs.csv"
        table = runs(ENERGY, {"s": 0.79, "m": 0.80}).rename(columns={"network": "net"})
        table.to_csv(path, index=False)
        return path

    def test_analyze_prints_what_is_worth_its_joules(self, path, tmp_path):
        text = command("analyze", path, "--column", "network=net", "--out", tmp_path).stdout
        assert "s, x saves 66" in text
        assert "by network, device x: Levene p" in text
        assert "does not say whether they were measured" in text.replace("\n", " ")
        assert (tmp_path / "pareto.png").exists()

    def test_json(self, path):
        found = json.loads(command("analyze", path, "--column", "network=net", "--json").stdout)
        assert found["best_saving"]["network"] == "s"
        assert found["runs"] == 24
        assert {row["test"] for row in found["omnibus"]} == {
            "Levene", "Welch ANOVA", "Kruskal-Wallis",
        }  # fmt: skip

    def test_a_mapping_that_is_none(self, path):
        with pytest.raises(InvalidInput, match="--column takes NAME=COLUMN, got 'net'"):
            command("analyze", path, "--column", "net")

    def test_run_prints_the_order_and_runs(self, tmp_path):
        study = tmp_path / "study.toml"
        study.write_text(
            'networks = ["tests.test_study:small"]\nbatch_sizes = [4, 8]\nimage_sizes = [8]\n'
            'repetitions = 2\n[data]\nsource = "generated"\nimages = 20\nclasses = 2\n'
            "[training]\nepochs = 1\n[protocol]\nwarm_up_s = 0\npause_s = 0\n"
        )
        out = tmp_path / "out"
        order = json.loads(command("run", study, "--out", out, "--dry-run", "--json").stdout)
        assert [row["run_id"] for row in order] == [0, 1, 2, 3]
        assert not out.exists()
        assert "4 runs; warm-up" in command("run", study, "--out", out, "--dry-run").stdout
        result = command("run", study, "--out", out, "--json")
        summary = json.loads(result.stdout)
        assert (result.exit_code, summary["done"], summary["complete"]) == (0, 4, True)
        table = pd.read_csv(out / "runs.csv")
        assert table["batch_size"].tolist() == [row["batch_size"] for row in order]


RECORDED = Path(__file__).parents[2] / "shared" / "external" / "delrey2024"


@pytest.mark.skipif(not RECORDED.is_dir(), reason="the recorded runs are not beside this checkout")
def test_the_papers_own_table_gives_the_medians_the_paper_prints():
    """J per image of five networks on two GPUs (arXiv 2307.05520), to the digits printed."""
    from tests.benchmarks.study_paper import NETWORKS, PRINTED_J, load, medians

    study, _ = load(RECORDED)
    ours = medians(analyze(study), "energy_per_image_j")
    for gpu in ("RTX 3070", "RTX 3090"):
        assert [round(ours[gpu, network], 2) for network in NETWORKS] == list(PRINTED_J[gpu])
    assert 1 - ours.min() / ours.max() == pytest.approx(0.807, abs=0.001)  # printed as 80.7 %
