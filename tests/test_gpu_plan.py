"""The plan that is shipped for GPUs, and how its file is read."""

import gzip
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest

from layer_energy import gpu_plan as module
from layer_energy.coverage import without_tf32
from layer_energy.errors import DatasetError, InvalidInput
from layer_energy.gpu_plan import Drawn, encode, gpu_plan, joules_covered, mode_of, read_plan
from layer_energy.layers import count, kinds, workload
from layer_energy.layers.optimizer import OPTIMIZER_STEPS
from layer_energy.networks import layers_of
from layer_energy.optimization import MODES
from layer_energy.plan import GPU_LIMITS, Job, NetworkJob

PREFIX = 400


@pytest.fixture(scope="module")
def plan():
    return gpu_plan()


def works(jobs):
    return [job.workload for job in jobs]


def flagged(jobs, flag):
    return [job for job in jobs if flag in job.flags]


class TestRows:
    def test_are_about_5000_and_fill_a_budget(self, plan):
        assert 4500 <= len(plan.jobs) <= 5500
        assert plan.fills_budget
        assert gpu_plan().identity == plan.identity

    def test_every_part_holds_both_passes_all_dtypes_and_random_rows(self, plan):
        for start in range(0, 3 * PREFIX, PREFIX):
            part = plan.jobs[start : start + PREFIX]
            passes = Counter(mode_of(work) for work in works(part))
            dtypes = Counter(work.dtype for work in works(part))
            assert min(passes.values()) > PREFIX / 10
            assert set(passes) == {"inference", "training"}
            assert min(dtypes[dtype] for dtype in ("float32", "tf32", "bfloat16")) > PREFIX / 10
            assert flagged(part, "test")

    def test_reach_every_layer_type_soon(self, plan):
        assert {work.kind for work in works(plan.jobs[:700])} == set(kinds()) - {"generic"}
        steps = [w for w in works(plan.jobs) if w.kind in OPTIMIZER_STEPS]
        assert {mode_of(work) for work in steps} == {"training"}

    def test_are_not_sorted_by_size(self, plan):
        """Neighbours in the order are no more alike than rows of a block that are far apart."""
        ranks = [count(work)[0].bytes for work in works(plan.jobs[300:450])]
        order = sorted(range(len(ranks)), key=ranks.__getitem__)
        place = {i: rank for rank, i in enumerate(order)}
        steps = [abs(place[i] - place[i + 1]) for i in range(len(ranks) - 1)]
        assert sum(steps) / len(steps) > len(ranks) / 4  # a third if random

    def test_can_be_measured(self, plan):
        for job in plan.jobs:
            work = job.workload
            allowed = ("relu", "relu6", "leaky_relu", "add", "compare")
            assert "validation" in job.flags or (
                work.kind != "generic"
                and GPU_LIMITS.allow(count(work)[0])
                and not (work.params.get("in_place") and work.kind not in allowed)
            )

    def test_come_once_but_for_blind_repeats_of_earlier_rows(self, plan):
        seen = {}
        repeats = 0
        for place, job in enumerate(plan.jobs):
            if "repeat" in job.flags:
                repeats += 1
                earlier = seen[job.workload]
                assert plan.jobs[earlier].flags == tuple(f for f in job.flags if f != "repeat")
            else:
                assert job.workload not in seen
                seen[job.workload] = place
        assert repeats == pytest.approx(0.03 * len(plan.jobs), rel=0.05)

    def test_tf32_is_asked_for_only_where_it_differs(self, plan):
        fitted = [job for job in plan.jobs if "validation" not in job.flags]
        assert all(without_tf32(work) == work for work in works(fitted) if work.kind != "attention")

    def test_half_precision_convolutions_come_in_both_layouts(self, plan):
        layouts = Counter(
            work.params["channels_last"]
            for work in works(plan.jobs[:1000])
            if work.kind == "conv2d" and work.dtype == "bfloat16"
        )
        assert min(layouts[0], layouts[1]) > 10

    def test_that_judge_come_early_and_are_not_fitted_on(self, plan):
        judges = [i for i, job in enumerate(plan.jobs) if "validation" in job.flags]
        assert judges
        assert max(judges) < 300
        judged = {plan.jobs[i].workload for i in judges}
        judged |= {without_tf32(work) for work in judged}
        fitted = {job.workload for job in plan.jobs if "validation" not in job.flags}
        assert not judged & fitted


class TestNetworks:
    def test_are_of_all_modes_and_some_batches(self, plan):
        assert len(plan.networks) >= 30
        assert len(set(plan.networks)) == len(plan.networks)
        assert {job.mode for job in plan.networks} == set(MODES)
        assert {1, 8, 32, 128} <= {job.batch_size for job in plan.networks}
        first = plan.networks[:10]
        assert {job.dtype for job in first} == {"float32", "tf32", "bfloat16"}
        assert len({job.mode for job in first}) >= 3

    def test_that_are_exact_have_every_layer_among_the_first_rows(self, plan):
        exact = [job for job in plan.networks if job.exact]
        assert {(job.model, job.dtype) for job in exact} == {
            ("resnet50", "bfloat16"),
            ("vit_b_16", "tf32"),
        }
        judges = set(works(flagged(plan.jobs, "validation")))
        assert judges == {work for job in exact for work in layers_of(job)}

    def test_can_all_be_walked(self, plan):
        pytest.importorskip("timm")
        pytest.importorskip("transformers")
        for job in plan.networks:
            assert layers_of(job), job


class TestParts:
    def test_are_disjoint_and_complete(self, plan):
        parts = [gpu_plan((k, 3)) for k in (1, 2, 3)]
        assert Counter(job for part in parts for job in part.jobs) == Counter(plan.jobs)
        assert Counter(n for part in parts for n in part.networks) == Counter(plan.networks)
        first, second, third = (set(works(part.jobs)) for part in parts)
        assert not first & second | first & third | second & third  # a repeat is with its row
        assert all(len(part.jobs) == pytest.approx(len(plan.jobs) / 3, rel=0.05) for part in parts)

    def test_are_each_balanced(self):
        for k in range(1, 6):  # every fifth row of the whole plan is a random one
            jobs = gpu_plan((k, 5)).jobs
            assert {"inference", "training"} == {mode_of(work) for work in works(jobs[:100])}
            assert len(flagged(jobs, "test")) > 10

    def test_exact_networks_are_with_their_layers(self):
        for k in (1, 2):
            part = gpu_plan((k, 2))
            assert bool(flagged(part.jobs, "validation")) == (k == 1)
            assert any(job.exact for job in part.networks) == (k == 1)

    def test_of_a_mode(self, plan):
        inference, training = gpu_plan(mode="inference"), gpu_plan(mode="training")
        assert {mode_of(work) for work in works(inference.jobs)} == {"inference"}
        assert {mode_of(work) for work in works(training.jobs)} == {"training"}
        assert len(inference.jobs) + len(training.jobs) == len(plan.jobs)
        assert {job.mode for job in inference.networks} == {"inference"}
        assert {job.mode for job in training.networks} == set(MODES) - {"inference"}
        assert inference.identity["mode"] == "inference"

    @pytest.mark.parametrize("shard", [(0, 1), (4, 3)])
    def test_a_shard_that_is_none_is_refused(self, shard):
        with pytest.raises(InvalidInput, match="K/N"):
            gpu_plan(shard)

    def test_a_mode_that_is_none_is_refused(self):
        with pytest.raises(InvalidInput, match="inference, training or all, got 'both'"):
            gpu_plan(mode="both")


class TestMeasured:
    def test_rows_do_not_come_again_but_repeats_do(self, plan):
        known = set(works(plan.jobs[:1500]))
        left = gpu_plan(measured=known)
        again = [job for job in left.jobs if job.workload in known]
        assert again
        assert all("repeat" in job.flags for job in again)
        rest = [job for job in plan.jobs if job.workload not in known]
        assert [job for job in left.jobs if job.workload not in known] == rest


class TestJoules:
    def test_the_first_rows_cover_most(self, plan):
        shares = [joules_covered(works(plan.jobs[:n])) for n in (0, 600, 2000, 4000, None)]
        assert shares == sorted(shares)
        assert shares[0] == 0
        assert shares[1] > 0.5
        assert shares[2] > 0.8
        assert 0.9 < shares[3] < shares[4] < 1

    def test_a_row_counts_once(self, plan):
        once = works(plan.jobs[:50])
        assert joules_covered([*once, *once]) == joules_covered(once)
        assert joules_covered([workload("fill", elements=17)]) == 0

    def test_rows_that_are_not_fitted_on_add_nothing(self, plan):
        assert joules_covered(works(flagged(plan.jobs, "validation"))) == 0
        assert joules_covered(works(flagged(plan.jobs, "test"))) == 0


def test_reading_needs_no_packages_of_models():
    code = (
        "import sys; from layer_energy.gpu_plan import gpu_plan; assert gpu_plan().jobs;"
        "print([m for m in ('timm', 'transformers', 'torchvision') if m in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert printed.stdout.strip() == "[]", printed.stderr


SMALL = Drawn(
    (
        Job(workload("relu", elements=1000, in_place=0)),
        Job(replace(workload("mse_loss", elements=10), gradients="input"), ("test",)),
    ),
    (0.25, 0.0),
    (NetworkJob("resnet18", "3,64,64", 2, "tf32", "training", exact=True),),
)


class TestFile:
    @pytest.fixture
    def path(self, tmp_path):
        return tmp_path / "plan.jsonl.gz"

    def write(self, path, line, **changes):
        """SMALL with some fields of one line changed."""
        lines = [json.loads(each) for each in gzip.decompress(encode(SMALL)).splitlines()]
        lines[line - 1] |= changes
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))

    def test_comes_back_as_it_was(self, path):
        path.write_bytes(encode(SMALL))
        assert read_plan(path) == SMALL
        assert encode(read_plan(module.PLAN_FILE)) == module.PLAN_FILE.read_bytes()

    @pytest.mark.parametrize(
        ("line", "changes", "told"),
        [
            (1, {"schema": 2}, "line 1: the plan's schema is 2, this version reads 1"),
            (1, {"rows": -1}, "line 1: rows must be a non-negative integer"),
            (1, {"rows": 7}, "has 4 lines, its first one says 9"),
            (2, {"kind": "relo"}, "line 2: no layer type is called 'relo'"),
            (2, {"params": {"elements": 3}}, "line 2: relu takes the parameters"),
            (2, {"params": {"elements": -3, "in_place": 0}}, "line 2: elements must be"),
            (2, {"params": [1]}, "line 2: params must be an object"),
            (2, {"dtype": "int8"}, "line 2: dtype must be one of"),
            (3, {"gradients": "all"}, "line 3: gradients must be one of"),
            (3, {"flags": "test"}, "line 3: flags must be a list"),
            (3, {"gain": "much"}, "line 3: gain must be a finite"),
            (3, {"more": 1}, "line 3: it must have the fields"),
            (4, {"mode": "sleep"}, "line 4: mode must be one of"),
            (4, {"exact": "yes"}, "line 4: exact must be true or false"),
        ],
    )
    def test_a_line_at_fault_is_named(self, path, line, changes, told):
        self.write(path, line, **changes)
        with pytest.raises(DatasetError, match=told):
            read_plan(path)

    @pytest.mark.parametrize("content", [b"", b"[]", b"[1]\n", b"{", b"\xff\xfe"])
    def test_nonsense_is_refused(self, path, content):
        path.write_bytes(gzip.compress(content))
        with pytest.raises(DatasetError, match=r"plan\.jsonl\.gz"):
            read_plan(path)

    @pytest.mark.parametrize(
        "damage", [lambda b: b[:40], lambda b: b"x" + b[1:], lambda b: b[:60] + b"?" + b[61:]]
    )
    def test_a_damaged_file_is_told(self, path, damage):
        path.write_bytes(damage(encode(SMALL)))
        with pytest.raises(DatasetError, match=r"cannot be read.*install layer-energy again"):
            read_plan(path)

    def test_a_missing_file_is_told(self, path):
        with pytest.raises(DatasetError, match="cannot be read"):
            read_plan(path)
