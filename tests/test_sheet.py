"""Data sheets that rows imply, where nobody wrote one down."""

from __future__ import annotations

import pytest

from layer_energy.layers.base import count, workload
from layer_energy.sheet import implied_sheet
from layer_energy.workload import Device, Measurement

TFLOPS = {"float32": 2.0, "tf32": 8.0, "bfloat16": 16.0}
BYTES_PER_S = 1e11
GPU = Device("Some GPU", "cuda", "some-gpu", 1, 4 << 20, {"multiprocessors": 40})


def rows(dtypes=tuple(TFLOPS), share=1.0):
    """Products and copies of a device of known peaks; one in fifty at the peak is enough."""
    works = [workload("copy", elements=1 << n, run=1 << n) for n in range(10, 20)] * 10
    products = [
        workload("linear", dtype, tokens=64, in_features=1 << n, out_features=64, bias=0)
        for dtype in dtypes
        for n in range(5, 15)
    ] * 10
    times = [count(w)[0].bytes / BYTES_PER_S for w in works]
    times += [2e-12 * count(w)[0].macs / TFLOPS[w.dtype] for w in products]
    return [
        Measurement(w, t / share, 50.0 * t, 50.0, 0.0, 5, 5, "measured", "nvml", (), i)
        for i, (w, t) in enumerate(zip(works + products, times, strict=True))
    ]


def test_the_fastest_rows_are_the_peaks():
    slow = [row for row in rows(share=0.1) for _ in range(2)]
    sheet = implied_sheet(GPU, rows() + slow, 20.0, 300.0)
    assert sheet.fp32_tflops == pytest.approx(2.0)
    assert sheet.tf32_tflops == pytest.approx(8.0)
    assert sheet.half_tflops == pytest.approx(16.0)
    assert (sheet.kind, sheet.units, sheet.limit_w, sheet.idle_w) == ("cuda", 40, 300.0, 20.0)
    assert (sheet.name, sheet.cache_bytes) == ("Some GPU", 4 << 20)


def test_bytes_are_those_of_the_fastest_copies():
    copies = [row for row in rows() if row.workload.kind == "copy"]
    assert implied_sheet(GPU, copies).memory_bytes_per_s == pytest.approx(BYTES_PER_S)


def test_what_did_not_run_is_as_fast_as_float32():
    sheet = implied_sheet(GPU, rows(("float32",)))
    assert (sheet.tf32_tflops, sheet.half_tflops) == pytest.approx((2.0, 2.0))
    halves = implied_sheet(GPU, rows(("bfloat16",)))
    assert halves.fp32_tflops == pytest.approx(16.0)


@pytest.mark.parametrize(("idle_w", "expected"), [(None, 10.0), (60.0, 10.0), (30.0, 30.0)])
def test_idle_power_lies_below_the_limit(idle_w, expected):
    """Rows drew 50 W at most; a fifth of the limit is assumed where nothing below it is known."""
    sheet = implied_sheet(GPU, rows(), idle_w)
    assert (sheet.limit_w, sheet.idle_w) == (50.0, expected)


def test_a_cpu_has_its_threads():
    cpu = Device("Some CPU", "cpu", "some-cpu-2t", 2, 32 << 20)
    sheet = implied_sheet(cpu, rows(("float32",)))
    assert (sheet.kind, sheet.units) == ("cpu", 2)
