"""Neighbourhoods of workloads, and the greedy choice of what to measure."""

from dataclasses import replace
from random import Random

import pytest

from layer_energy.coverage import category, cover, covered, gains, without_tf32
from layer_energy.layers import count, workload
from layer_energy.plan import GPU_LIMITS, sample


def linear(tokens, dtype="float32", features=64):
    return workload(
        "linear", dtype, tokens=tokens, in_features=features, out_features=features, bias=0
    )


def relu(elements, in_place=0, dtype="float32"):
    return workload("relu", dtype, elements=elements, in_place=in_place)


def conv(**params):
    made = {
        "batch": 8, "in_channels": 64, "out_channels": 64, "groups": 1, "in_h": 28, "in_w": 28,
        "kernel_h": 3, "kernel_w": 3, "stride_h": 1, "stride_w": 1, "padding_h": 1,
        "padding_w": 1, "dilation_h": 1, "dilation_w": 1, "bias": 0, "channels_last": 0,
    }  # fmt: skip
    return workload("conv2d", **{**made, **params})


def near(a, b):
    return covered({a: 1.0}, [b]) == 1.0


@pytest.fixture(scope="module")
def shares():
    rng = Random(0)
    works = [
        work
        for kind in ("conv2d", "linear", "relu", "batch_norm")
        for work in sample(kind, 60, Random(kind), GPU_LIMITS)
    ]
    return {work: rng.random() for work in works}


def by_hand(shares, measured):
    """The covered share, from the definition."""

    def within(a, b):
        x, y = count(a)[0], count(b)[0]
        pairs = [(getattr(x, n), getattr(y, n)) for n in
                 ("macs", "bytes_in", "bytes_weight", "bytes_out")]  # fmt: skip
        return all((p + 1) <= 2 * (q + 1) and (q + 1) <= 2 * (p + 1) for p, q in pairs)

    found = sum(
        share
        for work, share in shares.items()
        if any(category(work) == category(m) and within(work, m) for m in measured)
    )
    return found / sum(shares.values())


class TestNeighbourhood:
    def test_is_all_within_a_factor_of_two(self):
        assert near(relu(1000), relu(1990))
        assert near(relu(1990), relu(1000))
        assert not near(relu(1000), relu(2100))
        assert near(linear(100), linear(190))
        assert not near(linear(100, features=64), linear(100, features=128))  # 4 times the macs

    @pytest.mark.parametrize(
        "other",
        [
            {"kernel_h": 1, "kernel_w": 9, "padding_h": 0, "padding_w": 4},
            {"stride_h": 2},
            {"dilation_h": 2, "padding_h": 2},
            {"channels_last": 1},
            {"groups": 64},
            {"groups": 2},
        ],
    )
    def test_is_of_one_kind_of_kernel(self, other):
        assert category(conv()) != category(conv(**other))

    def test_knows_no_bias_and_no_number_of_groups(self):
        assert near(conv(), conv(bias=1))
        assert category(conv(groups=2)) == category(conv(groups=4)) != category(conv(groups=64))
        assert category(conv(groups=64)) == category(
            conv(groups=32, in_channels=32, out_channels=32)
        )

    def test_is_of_one_pass_and_of_one_way_to_write(self):
        assert category(relu(1000)) != category(replace(relu(1000), gradients="input"))
        assert category(relu(1000)) != category(relu(1000, in_place=1))
        assert category(relu(1000)) != category(relu(1000, dtype="bfloat16"))

    def test_tf32_is_float32_where_nothing_is_multiplied_and_accumulated(self):
        cell = {"batch": 8, "length": 10, "in_features": 64, "hidden": 64, "layers": 1}
        lstm = workload("lstm", "tf32", **cell, bidirectional=0)
        assert near(relu(1000), relu(1000, dtype="tf32"))
        assert without_tf32(lstm) == lstm
        assert not near(linear(100), linear(100, "tf32"))
        assert without_tf32(relu(10, dtype="bfloat16")).dtype == "bfloat16"


class TestCover:
    def test_gains_sum_to_the_covered_share(self, shares):
        measured = list(shares)[::17]
        chosen = list(cover(shares, measured=measured))
        start = by_hand(shares, measured)
        assert 0 < start < 1
        assert covered(shares, measured) == pytest.approx(start)
        for rows in (1, 10, len(chosen)):
            works = [work for work, _ in chosen[:rows]]
            total = start + sum(gain for _, gain in chosen[:rows])
            assert by_hand(shares, [*measured, *works]) == pytest.approx(total)
        assert total == pytest.approx(1.0)

    def test_always_takes_the_one_that_adds_most(self, shares):
        shares, measured = dict(list(shares.items())[::4]), []
        for work, gain in list(cover(shares))[:10]:
            before = by_hand(shares, measured)
            best = max(by_hand(shares, [*measured, other]) for other in shares)
            assert gain == pytest.approx(best - before)
            measured.append(work)
        assert len(set(measured)) == 10

    def test_takes_only_what_is_allowed(self, shares):
        chosen = [work for work, _ in cover(shares, lambda work: work.kind == "relu")]
        assert {work.kind for work in chosen} == {"relu"}
        assert list(cover(shares, lambda work: False)) == []

    def test_what_cannot_be_measured_is_covered_by_a_neighbour(self):
        shares = {relu(1000): 3.0, relu(1500): 1.0}
        assert list(cover(shares, lambda work: work == relu(1500))) == [(relu(1500), 1.0)]

    def test_what_lies_elsewhere_covers_nothing(self, shares):
        assert covered(shares, [workload("softmax", outer=8, dim=8, inner=1)]) == 0
        assert gains(shares, []) == []

    def test_a_row_again_adds_nothing(self, shares):
        first = next(iter(shares))
        once, again = gains(shares, [first, first])
        assert once > 0
        assert again == 0
