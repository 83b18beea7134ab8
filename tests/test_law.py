"""The law against arithmetic by hand, and what must hold whatever its coefficients are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layer_energy.law import COEFFICIENTS, Law, carry_over, nominal, work
from layer_energy.layers import workload
from layer_energy.workload import Workload

ZERO = dict.fromkeys(COEFFICIENTS, 1e-300)
LINEAR = workload("linear", tokens=256, in_features=512, out_features=1024, bias=0)
RELU = workload("relu", elements=1000, in_place=0)
CONV = workload(
    "conv2d", batch=1, in_channels=64, out_channels=64, groups=1, in_h=8, in_w=8, kernel_h=1,
    kernel_w=1, stride_h=1, stride_w=1, padding_h=0, padding_w=0, dilation_h=1, dilation_w=1,
    bias=0, channels_last=0,
)  # fmt: skip


def total(law, *workloads):
    energy_j, time_s = law.price(work(workloads), np.ones(len(workloads)))
    return energy_j.sum(), time_s.sum()


def half(w):
    return Workload(w.kind, w.params, "bfloat16")


def test_each_coefficient_prices_what_it_says():
    macs, moved = 256 * 512 * 1024, 4 * (256 * 512 + 512 * 1024 + 256 * 1024)
    expected = {
        "mac_s": (0, macs), "byte_s": (0, moved), "output_s": (0, 256 * 1024),
        "host_op_s": (0, 1), "host_layer_s": (0, 1), "mac_j": (macs, 0), "byte_j": (moved, 0),
        "half_mac_s": (0, 0), "half_mac_j": (0, 0),
    }  # fmt: skip
    for name, (joules, seconds) in expected.items():
        energy_j, time_s = total(Law({**ZERO, name: 1.0}), LINEAR)
        assert energy_j == pytest.approx(joules, abs=1e-9)
        assert time_s == pytest.approx(seconds, abs=1e-9)


def test_power_is_idle_power_plus_busy_power_while_the_device_works():
    busy = {**ZERO, "byte_s": 1.0, "idle_w": 3.0, "busy_w": 2.0}
    joules, seconds = total(Law(busy), RELU)
    assert seconds == pytest.approx(8000)
    assert joules == pytest.approx(5 * seconds)
    waiting = {**ZERO, "host_op_s": 1.0, "idle_w": 3.0, "busy_w": 2.0}
    assert total(Law(waiting), RELU) == pytest.approx((3.0, 1.0))


def test_time_is_the_larger_of_host_and_device_not_their_sum():
    law = Law({**ZERO, "host_op_s": 1.0, "byte_s": 1e-3 / 8})
    assert total(law, RELU, RELU)[1] == pytest.approx(2 * 2**0.25)  # equal: the norm's corner
    assert total(law, *[RELU] * 99, workload("relu", elements=10, in_place=0))[1] < 1.2 * 100
    assert total(law, workload("relu", elements=10**6, in_place=0))[1] == pytest.approx(1000)


def test_small_products_fill_whole_tiles_and_a_part_of_a_wave():
    thin = workload("linear", tokens=1, in_features=512, out_features=1000, bias=0)
    assert work([thin]).padded == 64 * 1024 * 512
    assert work([LINEAR]).padded == 256 * 1024 * 512
    law = Law({**ZERO, "mac_s": 1.0, "wave": 0.5}, units=100)
    assert total(law, thin)[1] == pytest.approx(64 * 1024 * 512 + 0.5 * 100 * 64 * 128 * 512)


def test_cores():
    law = Law({**ZERO, "mac_s": 8.0, "half_mac_s": 1.0, "convolution": 1.5, "depthwise": 3.0})
    macs = 64 * 64 * 64
    assert total(law, CONV)[1] == pytest.approx(8 * 1.5 * macs)
    assert total(law, half(CONV))[1] == pytest.approx(1.5 * macs)
    tensor_float = Law(law.coefficients, tf32=2.0)
    assert total(tensor_float, CONV)[1] == pytest.approx(2 * 1.5 * macs)
    assert total(tensor_float, LINEAR) == total(law, LINEAR)
    depthwise = Workload("conv2d", type(CONV.params)({**CONV.params, "groups": 64}), "bfloat16")
    assert total(law, depthwise)[1] == pytest.approx(8 * 3 * 64 * 64)


@given(
    st.lists(st.floats(-3, 3), min_size=len(COEFFICIENTS), max_size=len(COEFFICIENTS)),
    st.integers(1, 4096),
)
def test_prices_are_positive_grow_with_the_work_and_sum_to_the_network(logs, tokens):
    start = nominal(1e14, 1e13, 1e12, 250, 108, 2.0)
    changed = zip(start.coefficients.items(), logs, strict=True)
    law = Law({name: value * np.exp(x) for (name, value), x in changed}, 108, 2.0)

    def network(n):
        return [workload("linear", tokens=n, in_features=64, out_features=64, bias=1), RELU, CONV]

    calls = np.array([3.0, 5.0, 1.0])
    energy_j, time_s = law.price(work(network(tokens)), calls)
    assert (energy_j > 0).all()
    assert (time_s > 0).all()
    spelt_out = [w for w, n in zip(network(tokens), (3, 5, 1), strict=True) for _ in range(n)]
    assert total(law, *spelt_out) == pytest.approx((calls @ energy_j, calls @ time_s))
    more = law.price(work(network(2 * tokens)), calls)
    assert calls @ more[0] >= calls @ energy_j * (1 - 1e-12)
    assert calls @ more[1] >= calls @ time_s * (1 - 1e-12)


def test_networks_are_priced_apart():
    law = nominal(1e14, 1e13, 1e12, 250, 108)
    together = law.price(work([LINEAR, RELU]), np.ones(2), np.array([0, 1]))
    assert together[1][0] == pytest.approx(total(law, LINEAR)[1])
    assert together[1][1] == pytest.approx(total(law, RELU)[1])


def test_a_law_carried_over_keeps_its_shares_of_the_data_sheet():
    sheet, other = nominal(1e14, 1e13, 1e12, 250, 108, 2.0), nominal(4e14, 1e13, 2e12, 250, 132)
    fitted = Law({**sheet.coefficients, "half_mac_s": 2e-14, "idle_w": 40.0}, 108, 2.0)
    carried = carry_over(fitted, sheet, other)
    assert carried.coefficients["half_mac_s"] == pytest.approx(0.5e-14)
    assert carried.coefficients["byte_s"] == pytest.approx(other.coefficients["byte_s"])
    assert carried.coefficients["idle_w"] == pytest.approx(40.0)
    assert (carried.units, carried.tf32) == (132, None)


@pytest.mark.parametrize(
    "change", [{"mac_j": -1.0}, {"mac_j": float("nan")}, {"mac_j": "much"}, {"mac_j": None}]
)
def test_a_damaged_law_is_refused(change):
    state = nominal(1e14, 1e13, 1e12, 250, 108).to_dict()
    assert Law.from_dict(state).to_dict() == state
    with pytest.raises((ValueError, TypeError)):
        Law.from_dict({**state, "coefficients": {**state["coefficients"], **change}})
