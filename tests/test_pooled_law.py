"""The physical law of a GPU: against closed forms, and against rows made by a known law."""

from __future__ import annotations

import json
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from layer_energy.kernels import DTYPES, PRODUCTS, kernels
from layer_energy.layers import base
from layer_energy.layers.base import count, workload
from layer_energy.plan import GPU_LIMITS, sample
from layer_energy.pooled_law import HOST_OVERHEAD, PooledLaw, waiting_s
from layer_energy.sheet import sheet_of
from layer_energy.workload import Cost, Measurement

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
    return PooledLaw.fit([], sheet)


class TestKernels:
    def test_a_training_call_has_a_kernel_for_each_gradient(self):
        for gradients, n in (("none", 1), ("input", 2), ("weight", 2), ("both", 3)):
            x = kernels([replace(linear(), gradients=gradients)], SHEET)
            assert len(x.macs) == n
            assert x.macs.sum() == n * 4096 * 1024 * 1024

    def test_a_small_product_fills_few_multiprocessors(self):
        """128 × 256 outputs are 16 tiles of 32 × 64; the depth is too small to be split."""
        x = kernels([linear(128, 128, 256)], SHEET)
        assert x.filled[0] == pytest.approx(16 * 0.4 / 132 * 128 / (128 + 32))

    def test_a_whole_wave_reaches_the_peak(self):
        x = kernels([linear(128 * 132, 2**20, 256)], SHEET)
        assert x.filled[0] == pytest.approx(1.0, abs=0.01)

    @pytest.mark.parametrize(("inputs", "misaligned"), [(1024, 0), (1028, 1)])
    def test_tensor_cores_want_sixteen_bytes(self, inputs, misaligned):
        assert kernels([linear(inputs=inputs)], SHEET).misaligned[0] == misaligned
        assert kernels([linear(inputs=inputs, dtype="float32")], SHEET).misaligned[0] == 0

    def test_convolutions_have_kernels_of_their_own(self):
        named = {}
        for work in sample(
            "conv2d", 200, Random(1), GPU_LIMITS, "float32", lambda w: True, seen=[]
        ):
            p, x = work.params, kernels([work], SHEET)
            assert x.macs[0] == count(work)[0].macs
            named[PRODUCTS[x.product[0]]] = p
        assert named["depthwise"]["groups"] == named["depthwise"]["in_channels"]
        assert named["few_channels"]["in_channels"] < 8
        assert named["conv1"]["kernel_h"] == 1
        assert named["conv_large"]["kernel_h"] > 3 or named["conv_large"]["kernel_w"] > 3


def conv(dtype="bfloat16", gradients="none", **given):
    p = {
        "batch": 32, "in_channels": 64, "out_channels": 64, "groups": 1, "in_h": 56, "in_w": 56,
        "kernel_h": 1, "kernel_w": 1, "stride_h": 1, "stride_w": 1, "padding_h": 0, "padding_w": 0,
        "dilation_h": 1, "dilation_w": 1, "bias": 0, "channels_last": 0,
    }  # fmt: skip
    return replace(workload("conv2d", dtype, **(p | given)), gradients=gradients)


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
        x = kernels([work], SHEET)
        assert PRODUCTS[x.product[0]] == product
        cost, _ = count(work)
        assert x.layout_bytes[0] == (cost.bytes_in + cost.bytes_out if copied else 0)

    def test_few_channels_run_on_the_ordinary_cores(self):
        assert kernels([conv(in_channels=3)], SHEET).dtype[0] == DTYPES.index("float32")
        assert kernels([conv()], SHEET).dtype[0] == DTYPES.index("bfloat16")

    def test_a_stride_skips_rows_but_reads_them_whole(self):
        whole, half = kernels([conv()], SHEET), kernels([conv(stride_h=2, stride_w=2)], SHEET)
        assert half.bytes_in[0] == whole.bytes_in[0] / 2

    def test_so_do_depthwise_convolutions(self):
        work = conv(groups=64, kernel_h=3, kernel_w=3)
        assert kernels([work], SHEET).dtype[0] == DTYPES.index("float32")

    def test_small_tiles_cost_tensor_cores_more(self):
        """Nine tiles of 64 × 32: 0.4 of the peak on tensor cores, √0.4 on ordinary ones."""
        half, single = (
            kernels([conv(dtype, batch=1, out_channels=32, kernel_h=3, kernel_w=3, in_h=26, in_w=26,
                          in_channels=16)], SHEET).filled[0]
            for dtype in ("bfloat16", "float32")
        )  # fmt: skip
        assert half == pytest.approx(single * 0.4**0.5)

    def test_a_bias_is_added_by_a_kernel_of_its_own(self):
        """Read and written once more; its gradient reads that of the output."""
        plain, biased = conv(gradients="weight"), conv(bias=1, gradients="weight")
        cost, _ = count(plain)
        x = kernels([plain], SHEET)
        y = kernels([biased], SHEET)
        assert [len(x.macs), len(y.macs)] == [2, 4]
        assert (y.bytes_in[2], y.bytes_out[2], y.passes[2]) == (cost.bytes_out, cost.bytes_out, 0)
        assert (y.bytes_in[3], y.bytes_out[3], y.passes[3]) == (cost.bytes_out, 64 * 2, 2)
        assert y.macs[2:].sum() == 0
        assert y.groups[2:] == ("add:broadcast", "conv2d:conv1")
        assert y.steps[3] == pytest.approx(32 * 56 * 56 / 512)
        groups = {"groups": 64, "kernel_h": 3, "kernel_w": 3}
        assert len(kernels([conv(**groups, bias=1)], SHEET).macs) == 1
        assert len(kernels([linear(), replace(linear(), gradients="both")], SHEET).macs) == 4

    def test_cpus_add_a_bias_on_the_way(self):
        assert len(kernels([conv(bias=1)], replace(SHEET, kind="cpu")).macs) == 1

    @pytest.mark.parametrize(
        ("work", "gradients", "passes"),
        [
            (workload("layer_norm", rows=8, dim=64, affine=1), "both", [0, 1]),
            (workload("layer_norm", rows=8, dim=64, affine=1), "weight", [0, 2]),
            (workload("rms_norm", rows=8, dim=64, affine=1), "both", [0, 1, 2]),
            (workload("copy", elements=64, run=64), "input", [0]),
            (workload("cat", elements=64, inputs=2, run=8), "input", [0]),
            (workload("mul", elements=64, other=64, in_place=0), "input", [0, 1, 1]),
            (workload("add", elements=64, other=64, in_place=0), "input", [0, 1]),
        ],
    )
    def test_backward_passes(self, work, gradients, passes):
        x = kernels([replace(work, gradients=gradients)], SHEET)
        assert x.passes.tolist() == passes

    def test_attention_works_in_blocks_and_waves(self):
        """132 matrices of 64 queries are one whole wave; one query more makes it two."""
        p = {
            "batch": 1, "heads": 132, "kv_heads": 132, "k_length": 64, "head_dim": 64,
            "causal": 0, "mask": 0,
        }  # fmt: skip
        whole, more = (
            kernels([workload("attention", "bfloat16", **p, q_length=q)], SHEET).filled[0]
            for q in (64, 65)
        )
        assert (whole, more) == (1.0, 65 / 128)

    def test_attention_goes_back_through_five_products(self):
        p = {
            "batch": 1, "heads": 8, "kv_heads": 8, "q_length": 64, "k_length": 64, "head_dim": 64,
            "causal": 0, "mask": 0,
        }  # fmt: skip
        work = replace(workload("attention", "bfloat16", **p), gradients="input")
        forward, backward = kernels([work], SHEET).macs
        assert backward == 2.5 * forward

    def test_tensor_cores_split_the_depth_of_a_convolution(self):
        """49 × 64 outputs of depth 9216: two tiles of 64 × 32, each in eight parts."""
        work = conv(batch=1, in_channels=1024, in_h=7, in_w=7, kernel_h=3, kernel_w=3, padding_h=1,
                    padding_w=1)  # fmt: skip
        useful = 49 * 64 * 8 / (132 * 64 * 32)
        pipeline = 9216 / (9216 + 8 * 32)
        assert kernels([work], SHEET).filled[0] == pytest.approx(useful * 0.4 * 0.9 * pipeline)

    @pytest.mark.parametrize(
        ("given", "misaligned"),
        [({"outputs": 1001}, 1), ({"inputs": 1001}, 1), ({"tokens": 97}, 0)],
    )
    def test_gradients_are_aligned_as_the_layer_is_wide(self, given, misaligned):
        x = kernels([replace(linear(**given), gradients="both")], SHEET)
        assert x.misaligned.tolist() == [misaligned] * 3

    def test_pooling_skips_rows_too(self):
        p = {"batch": 1, "channels": 8, "in_h": 64, "in_w": 64, "kernel_h": 2, "kernel_w": 2,
             "padding_h": 0, "padding_w": 0, "ceil_mode": 0}  # fmt: skip
        whole, half = (
            kernels([workload("max_pool2d", **p, stride_h=n, stride_w=n)], SHEET).bytes_in[0]
            for n in (2, 4)
        )
        assert half == whole / 2

    def test_a_cpu_fills_registers(self):
        cpu = replace(SHEET, kind="cpu", units=2)
        x = kernels([linear(tokens=8, inputs=96, outputs=32, dtype="float32")], cpu)
        assert x.filled[0] == pytest.approx(96 / (96 + 32))

    def test_max_pooling_writes_indices(self):
        p = {"batch": 2, "channels": 8, "in_h": 7, "in_w": 7, "out_h": 1, "out_w": 1}
        average, largest = (
            kernels([workload(f"adaptive_{kind}_pool2d", **p)], SHEET).bytes_out[0]
            for kind in ("avg", "max")
        )
        assert (average, largest) == (16 * 4, 16 * (4 + 8))

    def test_a_pixel_between_four_is_the_work_of_one_thread(self):
        sizes = {"in_h": 7, "in_w": 7, "out_h": 28, "out_w": 28}
        one, many = (
            kernels([workload("interpolate_bilinear", batch=b, channels=64, **sizes)], SHEET).steps
            for b in (1, 8)
        )
        assert many[0] == 8 * one[0] > 0

    @pytest.mark.parametrize(
        "work",
        [
            linear(tokens=0), conv(batch=0), conv("float32", batch=0, kernel_h=3, kernel_w=3),
            workload("lstm", batch=0, length=5, in_features=8, hidden=8, layers=1, bidirectional=0),
            workload("adaptive_avg_pool2d", batch=0, channels=8, in_h=7, in_w=7, out_h=1, out_w=1),
            workload("matmul", batch=1, m=4, k=0, n=4, bias=0, transposed=0),
            workload("relu", elements=0, in_place=0),
        ],
    )  # fmt: skip
    def test_nothing_costs_a_launch(self, work):
        prices = PooledLaw.fit([], SHEET).price([work], cached=True)
        assert 0 < prices.time_s[0] < 2e-5
        assert SHEET.idle_w <= prices.energy_j[0] / prices.time_s[0] <= 1.06 * SHEET.limit_w

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
        x = kernels([workload("attention", "bfloat16", **(p | given))], SHEET)
        assert PRODUCTS[x.product[0]] == product
        causal = kernels([workload("attention", "bfloat16", **(p | {"causal": 1}))], SHEET)
        assert (
            causal.macs[0] == kernels([workload("attention", "bfloat16", **p)], SHEET).macs[0] / 2
        )

    def test_the_gradient_of_an_embedding_is_as_large_as_its_weight(self):
        work = workload("embedding", "float32", tokens=8, vocabulary=1000, dim=16)
        x = kernels([replace(work, gradients="weight")], SHEET)
        assert x.bytes_out.tolist() == [8 * 16 * 4, 1000 * 16 * 4]

    def test_a_recurrent_layer_multiplies_step_by_step(self):
        p = {"in_features": 650, "hidden": 650, "layers": 2, "bidirectional": 0}
        works = [workload("lstm", "float32", batch=32, length=n, **p) for n in (1, 128)]
        x = kernels(works, SHEET)
        assert x.filled[0] == x.filled[1] < 0.2
        assert x.launches[1] > 30 * x.launches[0] / 2


class TestOwnLayerTypes:
    @pytest.mark.parametrize("kind", ["mamba_scan", "my_pool2d", "conv_lora", "own_step"])
    def test_any_name_and_parameters_will_do(self, kind, monkeypatch):
        """Kernels go by the kinds of this package, never by a word in a name."""

        class Own(base.LayerType):
            def cost(self, p, itemsize_bytes):
                return Cost(1000, 4000, 0, 4000, 1000)

        Own.kind = kind
        Own.space = dict.fromkeys(("hidden", "tensors", "groups"), base.LogInt(1, 9))
        monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))
        base.register(Own)
        work = workload(kind, hidden=4, tensors=4, groups=4)
        assert PooledLaw.fit([], SHEET).price([work], cached=True).time_s[0] > 0


class TestLaw:
    def test_it_finds_the_law_that_made_the_rows(self, truth):
        works = drawn()
        law = PooledLaw.fit(rows_of(truth, works), SHEET)
        others = drawn(16)[::3]
        want, got = truth.price(others, cached=False), law.price(others, cached=False)
        sheet = PooledLaw.fit([], SHEET).price(others, cached=False)
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
        law = PooledLaw.fit(rows_of(truth, drawn()), SHEET)
        read = PooledLaw.from_dict(json.loads(json.dumps(law.to_dict())))
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
            (("time", "plane"), None), (("groups",), 3), (("sheet", "units"), 10**400),
            (("sheet", "fp32_tflops"), 1e-300), (("sheet", "kind"), "abacus"),
            (("seen",), {"linear": [1, 2]}), (("seen",), {"relu/float32/none": [2, 1]}),
            (("seen",), {"relu/float32/none": [float("nan"), 1]}),
        ],
    )  # fmt: skip
    def test_a_damaged_law_is_refused(self, truth, place, value):
        state = json.loads(json.dumps(truth.to_dict()))
        inner = state
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        with pytest.raises((ValueError, TypeError, KeyError, AttributeError, OverflowError)):
            PooledLaw.from_dict(state)

    def test_a_layer_type_without_rows_says_so(self, truth):
        law = PooledLaw.fit(rows_of(truth, drawn()), SHEET)
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
        law = PooledLaw.calibrated(noisy, SHEET)
        assert 0.25 < law.half_width[1] < 0.5  # 1.645 × 0.2 is 0.33
