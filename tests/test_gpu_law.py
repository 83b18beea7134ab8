"""The physical law of a GPU: against closed forms, and against rows made by a known law."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import pytest

from layer_energy.gpu_law import HOST_OVERHEAD, GpuLaw, Prices
from layer_energy.gpu_sheet import sheet_of
from layer_energy.kernels import PRODUCTS, kernels
from layer_energy.layers.base import count, workload
from layer_energy.plan import GPU_LIMITS, sample
from layer_energy.workload import Measurement

SHEET = sheet_of("NVIDIA H200")


def linear(tokens=4096, inputs=1024, outputs=1024, dtype="bfloat16"):
    return workload(
        "linear", dtype, tokens=tokens, in_features=inputs, out_features=outputs, bias=0
    )


def drawn(per_kind=12):
    rng = Random(0)
    kinds = ("linear", "conv2d", "relu", "layer_norm", "batch_norm", "attention", "add")
    return [
        work
        for kind in kinds
        for dtype in ("float32", "bfloat16")
        for work in sample(kind, per_kind, rng, GPU_LIMITS, dtype, lambda work: True, seen=[])
    ]


def rows_of(law, works):
    prices = law.price(works, cached=False)
    return [
        Measurement(w, float(t), float(e), float(e / t), 0.0, 5, 5, "simulated", "virtual", (), i)
        for i, (w, e, t) in enumerate(zip(works, prices.energy_j, prices.time_s, strict=True))
    ]


@pytest.fixture(scope="module")
def truth():
    """A GPU that is half as fast and twice as costly as its data sheet says."""
    sheet = replace(
        SHEET,
        fp32_tflops=SHEET.fp32_tflops / 2,
        tf32_tflops=SHEET.tf32_tflops / 2,
        half_tflops=SHEET.half_tflops / 2,
        memory_bytes_per_s=SHEET.memory_bytes_per_s / 2,
    )
    return GpuLaw.fit([], sheet)


class TestKernels:
    def test_a_training_call_has_a_kernel_for_each_gradient(self):
        for gradients, n in (("none", 1), ("input", 2), ("weight", 2), ("both", 3)):
            x = kernels([replace(linear(), gradients=gradients)], 132)
            assert len(x.macs) == n
            assert x.macs.sum() == n * 4096 * 1024 * 1024

    def test_a_small_product_fills_few_multiprocessors(self):
        """128 × 256 outputs are 16 tiles of 32 × 64; the depth is too small to be split."""
        x = kernels([linear(128, 128, 256)], 132)
        assert x.filled[0] == pytest.approx(16 * 0.4 / 132 * 128 / (128 + 64))

    def test_a_whole_wave_reaches_the_peak(self):
        x = kernels([linear(128 * 132, 2**20, 256)], 132)
        assert x.filled[0] == pytest.approx(1.0, abs=0.01)

    @pytest.mark.parametrize(("inputs", "misaligned"), [(1024, 0), (1028, 1)])
    def test_tensor_cores_want_sixteen_bytes(self, inputs, misaligned):
        assert kernels([linear(inputs=inputs)], 132).misaligned[0] == misaligned
        assert kernels([linear(inputs=inputs, dtype="float32")], 132).misaligned[0] == 0

    def test_convolutions_have_kernels_of_their_own(self):
        named = {}
        for work in sample(
            "conv2d", 200, Random(1), GPU_LIMITS, "float32", lambda w: True, seen=[]
        ):
            p, x = work.params, kernels([work], 132)
            assert x.macs[0] == count(work)[0].macs
            named[PRODUCTS[x.product[0]]] = p
        assert named["depthwise"]["groups"] == named["depthwise"]["in_channels"]
        assert named["few_channels"]["in_channels"] < 8
        assert named["conv1"]["kernel_h"] == 1
        assert named["conv_large"]["kernel_h"] > 3 or named["conv_large"]["kernel_w"] > 3


class TestLaw:
    def test_it_finds_the_law_that_made_the_rows(self, truth):
        works = drawn()
        law = GpuLaw.fit(rows_of(truth, works), SHEET)
        others = drawn(16)[::3]
        want, got = truth.price(others, cached=False), law.price(others, cached=False)
        sheet = GpuLaw.fit([], SHEET).price(others, cached=False)
        for name in ("time_s", "energy_j"):
            fitted, unfitted = (
                np.median(np.abs(getattr(p, name) / getattr(want, name) - 1)) for p in (got, sheet)
            )
            assert fitted < 0.05
            assert unfitted > 0.2

    def test_every_layer_draws_between_idle_and_the_limit(self, truth):
        prices = truth.price(drawn(), cached=True)
        power = prices.energy_j / prices.time_s
        assert power.min() >= SHEET.idle_w
        assert power.max() <= 1.06 * SHEET.limit_w

    def test_what_stays_in_the_cache_costs_less(self, truth):
        small, large = (
            workload("relu", elements=10**6, in_place=0),
            workload("relu", elements=10**8, in_place=0),
        )
        cold, warm = (truth.price([small, large], cached=c) for c in (False, True))
        assert warm.energy_j[0] < 0.95 * cold.energy_j[0]
        assert warm.time_s[0] < cold.time_s[0]
        assert warm.energy_j[1] == pytest.approx(cold.energy_j[1])

    def test_waiting_for_the_host_costs_idle_power(self, truth):
        prices = Prices(np.array([2.0]), np.array([1e-3]), np.array([1.0]))
        energy_j, time_s, waiting_s = truth.network(prices, np.array([10.0]), "eager")
        assert time_s == pytest.approx(10 * HOST_OVERHEAD, rel=1e-3)
        assert energy_j == pytest.approx(20 + SHEET.idle_w * waiting_s)
        assert waiting_s == pytest.approx(time_s - 1e-2)
        assert truth.network(prices, np.array([10.0]), "graph") == (20.0, 1e-2, 0.0)
