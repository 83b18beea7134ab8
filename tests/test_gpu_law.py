"""The physical law of a GPU: against closed forms, and against rows made by a known law."""

from __future__ import annotations

import json
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from layer_energy.gpu_law import HOST_OVERHEAD, GpuLaw, waiting_s
from layer_energy.gpu_sheet import sheet_of
from layer_energy.kernels import DTYPES, PRODUCTS, kernels
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
        assert x.filled[0] == pytest.approx(16 * 0.4 / 132 * 128 / (128 + 32))

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


def conv(dtype="bfloat16", **given):
    p = {
        "batch": 32, "in_channels": 64, "out_channels": 64, "groups": 1, "in_h": 56, "in_w": 56,
        "kernel_h": 1, "kernel_w": 1, "stride_h": 1, "stride_w": 1, "padding_h": 0, "padding_w": 0,
        "dilation_h": 1, "dilation_w": 1, "bias": 0, "channels_last": 0,
    }  # fmt: skip
    return workload("conv2d", dtype, **(p | given))


class TestFacts:
    """What the H200's rows showed of kernels."""

    @pytest.mark.parametrize(
        ("work", "product", "copied"),
        [
            (conv(), "conv1", False),
            (conv(in_h=7, in_w=7), "conv1_gathered", True),  # 49 is no multiple of 8
            (conv(stride_h=2, stride_w=2), "conv1_gathered", True),
            (conv(stride_h=2, stride_w=2, channels_last=1), "conv1", False),
            (conv("float32", in_h=7, in_w=7), "conv1", False),
            (conv(kernel_h=3, kernel_w=3), "conv3", True),
            (conv("float32", kernel_h=3, kernel_w=3), "conv3", False),
            (conv(kernel_h=3, kernel_w=3, channels_last=1), "conv3", False),
            (conv(kernel_h=5, kernel_w=5), "conv_large", True),
            (conv(in_channels=3, kernel_h=7, kernel_w=7), "few_channels", False),
            (conv(groups=64, kernel_h=3, kernel_w=3), "depthwise", False),
            (conv(groups=8), "grouped", False),
        ],
    )
    def test_convolutions(self, work, product, copied):
        x = kernels([work], 132)
        assert PRODUCTS[x.product[0]] == product
        cost, _ = count(work)
        assert x.layout_bytes[0] == (cost.bytes_in + cost.bytes_out if copied else 0)

    def test_few_channels_run_on_the_ordinary_cores(self):
        assert kernels([conv(in_channels=3)], 132).dtype[0] == DTYPES.index("float32")
        assert kernels([conv()], 132).dtype[0] == DTYPES.index("bfloat16")

    def test_a_stride_skips_rows_but_reads_them_whole(self):
        whole, half = kernels([conv()], 132), kernels([conv(stride_h=2, stride_w=2)], 132)
        assert half.bytes_in[0] == whole.bytes_in[0] / 2

    @pytest.mark.parametrize(
        ("given", "product"),
        [
            ({}, "attention"), ({"head_dim": 60}, "attention_fallback"),
            ({"head_dim": 160}, "attention_fallback"), ({"mask": 1}, "attention_fallback"),
            ({"q_length": 1}, "attention_decode"),
        ],
    )  # fmt: skip
    def test_attention(self, given, product):
        p = {
            "batch": 4, "heads": 8, "kv_heads": 8, "q_length": 256, "k_length": 256,
            "head_dim": 64, "causal": 0, "mask": 0,
        }  # fmt: skip
        x = kernels([workload("attention", "bfloat16", **(p | given))], 132)
        assert PRODUCTS[x.product[0]] == product
        causal = kernels([workload("attention", "bfloat16", **(p | {"causal": 1}))], 132)
        assert causal.macs[0] == kernels([workload("attention", "bfloat16", **p)], 132).macs[0] / 2

    def test_the_gradient_of_an_embedding_is_as_large_as_its_weight(self):
        work = workload("embedding", "float32", tokens=8, vocabulary=1000, dim=16)
        x = kernels([replace(work, gradients="weight")], 132)
        assert x.bytes_out.tolist() == [8 * 16 * 4, 1000 * 16 * 4]

    def test_a_recurrent_layer_multiplies_step_by_step(self):
        p = {"in_features": 650, "hidden": 650, "layers": 2, "bidirectional": 0}
        works = [workload("lstm", "float32", batch=32, length=n, **p) for n in (1, 128)]
        x = kernels(works, 132)
        assert x.filled[0] == x.filled[1] < 0.2
        assert x.launches[1] > 30 * x.launches[0] / 2


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

    @pytest.mark.parametrize(
        ("device_s", "host_s", "expected"),
        [(1.0, 0.0, 0.0), (1e-3, 1.0, HOST_OVERHEAD - 1e-3), (1.0, 0.1, 0.0), (0.0, 0.0, 0.0)],
    )
    def test_a_gpu_waits_for_what_its_host_needs_longer(self, device_s, host_s, expected):
        assert waiting_s(device_s, host_s) == pytest.approx(expected, abs=1e-5)

    def test_it_survives_json(self, truth):
        law = GpuLaw.fit(rows_of(truth, drawn()), SHEET)
        read = GpuLaw.from_dict(json.loads(json.dumps(law.to_dict())))
        for a, b in zip(
            law.price(drawn(), cached=True), read.price(drawn(), cached=True), strict=True
        ):
            assert np.array_equal(a, b)
        assert read.kinds == sorted({w.kind for w in drawn()})
        assert read.dtypes == ["bfloat16", "float32"]
        assert not read.trains

    @pytest.mark.parametrize(
        ("place", "value"),
        [
            (("sheet", "units"), 0), (("sheet", "idle_w"), 900.0), (("time", "peak"), [1.0]),
            (("power", "byte"), [50.0]), (("host",), {"relu": -1.0}), (("half_width",), [1.0]),
            (("time", "plane"), None), (("groups",), 3),
        ],
    )  # fmt: skip
    def test_a_damaged_law_is_refused(self, truth, place, value):
        state = json.loads(json.dumps(truth.to_dict()))
        inner = state
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        with pytest.raises((ValueError, TypeError, KeyError, AttributeError)):
            GpuLaw.from_dict(state)

    def test_a_layer_type_without_rows_says_so(self, truth):
        law = GpuLaw.fit(rows_of(truth, drawn()), SHEET)
        assert law.outside(drawn()[0]) == ""
        assert "no row of gelu/float32/none" in law.outside(
            workload("gelu", elements=9, in_place=0)
        )
        large = workload("relu", elements=2**33, in_place=0)
        assert law.outside(large).startswith("bytes ")

    def test_the_interval_of_a_layer_holds_rows_left_out(self, truth):
        """Rows that scatter by 20 % around a law: nine in ten within the interval."""
        rng = np.random.default_rng(0)
        noisy = [
            replace(m, time_s=m.time_s * f, energy_j=m.energy_j * f)
            for m, f in zip(
                rows_of(truth, drawn(30)), np.exp(rng.normal(0, 0.2, 420)), strict=False
            )
        ]
        law = GpuLaw.calibrated(noisy, SHEET)
        assert 0.25 < law.half_width[1] < 0.5  # 1.645 × 0.2 is 0.33
