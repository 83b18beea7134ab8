"""The law of every registered layer type: what is built is what is recognised."""

import pytest

from layer_energy.errors import InvalidInput
from layer_energy.layers import count, kinds, layer_type, register, workload
from layer_energy.layers.base import LogInt
from layer_energy.testing import check_layer_type


@pytest.mark.parametrize("kind", [kind for kind in kinds() if kind != "generic"])
def test_walking_what_build_makes_gives_the_parameters_back(kind):
    check_layer_type(kind, samples=15)


def test_a_layer_type_that_describes_wrongly_fails_the_check():
    relu = layer_type("relu")

    class Forgetful(type(relu)):
        def describe(self, call):
            return {"elements": 1, "in_place": 0}

    register(Forgetful("relu", relu.make))
    try:
        with pytest.raises(AssertionError, match="relu: built"):
            check_layer_type("relu")
    finally:
        register(relu)
    check_layer_type("relu")


def test_unknown_kind_lists_the_known_ones():
    with pytest.raises(InvalidInput, match="conv2d"):
        layer_type("conv9d")


def test_a_workload_by_hand_needs_exactly_the_parameters():
    with pytest.raises(InvalidInput, match="in_place"):
        workload("relu", elements=3)


@pytest.mark.parametrize(
    ("kind", "params", "macs", "bytes_total"),
    [
        # VGG-16's second convolution at 224: 64·64·9·224², input + output + weights and biases
        (
            "conv2d",
            {"batch": 1, "in_channels": 64, "out_channels": 64, "groups": 1, "in_h": 224,
             "in_w": 224, "kernel_h": 3, "kernel_w": 3, "stride_h": 1, "stride_w": 1,
             "padding_h": 1, "padding_w": 1, "dilation_h": 1, "dilation_w": 1, "bias": 1,
             "channels_last": 0},
            64 * 64 * 9 * 224**2,
            4 * (2 * 64 * 224**2 + 64 * 64 * 9 + 64),
        ),
        (
            "linear",
            {"tokens": 7, "in_features": 20, "out_features": 30, "bias": 0},
            7 * 20 * 30,
            4 * (7 * 20 + 7 * 30 + 20 * 30),
        ),
        ("relu", {"elements": 1000, "in_place": 1}, 0, 8000),
        (
            "attention",
            {"batch": 2, "heads": 3, "kv_heads": 3, "q_length": 5, "k_length": 7, "head_dim": 8,
             "causal": 0, "mask": 0},
            2 * 2 * 3 * 5 * 7 * 8,
            4 * 2 * 3 * 8 * (5 + 7 + 7 + 5),
        ),
    ],
)  # fmt: skip
def test_counts_by_hand(kind, params, macs, bytes_total):
    cost, drivers = count(workload(kind, **params))
    assert cost.macs == macs
    assert cost.bytes == bytes_total
    assert all(amount >= 0 for amount in drivers.values())


def test_log_int_stays_within_bounds_and_reaches_both_ends():
    from random import Random

    rng = Random(0)
    drawn = {LogInt(1, 4).draw(rng) for _ in range(500)}
    assert drawn == {1, 2, 3, 4}
