"""Workloads of any layer type → the GPU kernels they run, in numbers that a physical law can price.

A forward pass is one kernel; the gradients of inputs and of weights are one more each, with the
sides of their matrix product exchanged. What is told apart here was found on layers measured one by
one on an NVIDIA H200 (``datasets/nvidia-h200``):

- products run in *tiles* that fill multiprocessors in waves; cuBLAS splits the depth of a product
  over several of them, cuDNN's convolutions only for gradients of weights;
- tensor cores want channels in multiples of 16 bytes; other products run on slower kernels;
- convolutions of fewer than 8 input channels, depthwise, grouped, dilated and transposed ones each
  have kernels of their own, and so have products with a side of at most 16;
- attention with heads of a width that is no multiple of 8, above 128, or with a mask falls back to
  slow kernels; in TF32 mode it runs in float32;
- convolutions larger than 1×1 in half precision or TF32 copy a channels-first input and output;
- normalisation, pooling and depthwise convolutions pay for each row or plane.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from layer_energy.layers.base import count
from layer_energy.workload import Gradients, Workload

Array = NDArray[np.float64]
Index = NDArray[np.int64]

DTYPES = ("float32", "tf32", "bfloat16", "float16")
PASSES = ("forward", "input", "weight")
PRODUCTS = (
    "product", "thin", "conv1", "conv3", "conv_large", "few_channels", "dilated", "grouped",
    "depthwise", "transposed", "attention", "attention_fallback", "attention_decode", "other",
)  # fmt: skip
"""What multiplies: each has kernels of its own."""

_GRADIENTS: dict[Gradients, tuple[int, ...]] = {
    "none": (0,), "input": (0, 1), "weight": (0, 2), "both": (0, 1, 2)
}  # fmt: skip
_AXES = "dhw"
_TILES = (
    (128, 256, 1.0), (256, 128, 1.0), (128, 128, 0.95), (128, 64, 0.8), (64, 128, 0.8),
    (64, 64, 0.6), (64, 32, 0.4), (32, 64, 0.4),
)  # fmt: skip
"""Rows and columns of a tile, and the share of the peak it reaches: larger ones reuse more."""

_SPLITS = (1, 2, 4, 8)
_SPLIT_DEPTH, _FILL, _SPLIT_SHARE = 256, 64, 0.9
"""Least depth of a part, depth lost to filling the pipeline, share left after adding parts up."""

_MAX_SERIAL = 4096


@dataclass(frozen=True)
class Kernels:
    """The kernels of ``n`` workloads, ``k`` in all; each field but ``groups`` has shape ``(k,)``.

    Attributes:
        groups: ``n`` names of what shares a price per byte: a layer type, or a variant of it.
        workload: number of the workload.
        passes: index into ``PASSES``.
        product: index into ``PRODUCTS``, −1 where nothing multiplies.
        dtype: index into ``DTYPES`` of what the arithmetic runs in.
        macs: multiply-accumulates, those that a causal mask saves left out.
        filled: share of the multiprocessors' tiles that is useful.
        misaligned: 1 where tensor cores find no 16-byte multiples.
        serial: depth that one multiprocessor works off in sequence.
        bytes_in, bytes_weight, bytes_out: memory traffic; skipped input left out.
        layout_bytes: copied between channels first and last besides.
        planes: rows or planes, each a piece of work of its own.
    """

    groups: tuple[str, ...]
    workload: Index
    passes: Index
    product: Index
    dtype: Index
    macs: Array
    filled: Array
    misaligned: Array
    serial: Array
    bytes_in: Array
    bytes_weight: Array
    bytes_out: Array
    layout_bytes: Array
    planes: Array

    def sum(self, values: Array) -> Array:
        """``(k,)`` values of kernels → ``(n,)`` of workloads."""
        return np.bincount(self.workload, values, len(self.groups)).astype(float)


class _Product(NamedTuple):
    name: str
    matrices: int
    rows: float
    columns: float
    depth: float


def kernels(workloads: Sequence[Workload], units: int) -> Kernels:
    """The kernels of workloads on a GPU with so many multiprocessors (``units``)."""
    rows = [row for i, w in enumerate(workloads) for row in _of(i, w, units)]
    table = np.array(rows, dtype=float).reshape(-1, 13).T
    indices = (column.astype(np.int64) for column in table[:4])
    return Kernels(tuple(group_of(w) for w in workloads), *indices, *table[4:])


def group_of(workload: Workload) -> str:
    """What shares a price per byte with this workload."""
    p, kind, product = workload.params, workload.kind, _product(workload)
    if product is not None and (kind.startswith("conv") or kind == "attention"):
        return f"{kind}:{product.name}"
    if kind in ("add", "mul", "div") and 0 < p["other"] < p["elements"]:
        return f"{kind}:broadcast"
    if kind == "copy" and p["run"] < p["elements"]:
        return "copy:strided"
    return kind


def extent(workload: Workload) -> tuple[str, float]:
    """Name and value of the quantity that says how large a call is."""
    cost, _ = count(workload)
    return ("macs", float(cost.macs)) if cost.macs else ("bytes", float(cost.bytes))


def _of(number: int, workload: Workload, units: int) -> list[tuple[float, ...]]:
    cost, _ = count(workload)
    p, dtype, product = workload.params, _dtype(workload), _product(workload)
    convolution = workload.kind.startswith("conv")
    bytes_in = cost.bytes_in * (_read_share(workload) if convolution else 1.0)
    traffic = (bytes_in, cost.bytes_weight, cost.bytes_out)
    planes = _planes(workload)
    rows: list[tuple[float, ...]] = []
    for passes in _GRADIENTS[workload.gradients]:
        if product is None:
            rows.append((number, passes, -1, dtype, 0, 1, 0, 0, *traffic, 0, planes))
            continue
        attention = product.name.startswith("attention")
        m, n, k = product.rows, product.columns, product.depth
        if not attention:
            m, n, k = ((m, n, k), (m, k, n), (n, k, m))[passes]
        macs, filled = float(cost.macs), 1.0
        if attention:
            macs *= 0.5 if p["causal"] and p["q_length"] == p["k_length"] else 1.0
            if product.name != "attention_decode":
                filled = min(1.0, product.matrices * -(-product.rows // 128) / units)
        elif product.name not in ("depthwise", "other"):
            split = product.name == "product" or PASSES[passes] == "weight"
            filled = _filled(product.matrices, m, n, k, units, _SPLITS if split else (1,))
        step = 16 // workload.itemsize_bytes
        tensor = dtype > 0 and product.name in (
            "product",
            "conv1",
            "conv3",
            "conv_large",
            "dilated",
        )
        inner = p["in_channels"] if convolution else k
        thin = product.name == "product" and min(m, n) <= 16
        layout = (
            convolution and dtype > 0 and not p["channels_last"] and p["groups"] == 1
            and any(p.get(f"kernel_{axis}", 1) > 1 for axis in _AXES)
        )  # fmt: skip
        rows.append(
            (
                number, passes, PRODUCTS.index("thin" if thin else product.name), dtype, macs,
                filled, float(tensor and bool(n % step or inner % step)),
                0.0 if attention or product.name == "other" else min(k, _MAX_SERIAL), *traffic,
                cost.bytes_in + cost.bytes_out if layout else 0.0, planes,
            )
        )  # fmt: skip
    return rows


def _dtype(workload: Workload) -> int:
    """Attention has no TF32 kernel; dtypes without tensor cores count as float32."""
    if workload.dtype not in DTYPES or (workload.kind == "attention" and workload.dtype == "tf32"):
        return 0
    return DTYPES.index(workload.dtype)


def _product(workload: Workload) -> _Product | None:
    p, kind = workload.params, workload.kind
    cost, _ = count(workload)
    if kind == "linear":
        return _Product("product", 1, p["tokens"], p["out_features"], p["in_features"])
    if kind == "matmul":
        return _Product("product", p["batch"], p["m"], p["n"], p["k"])
    if kind == "attention":
        wide = p["head_dim"] % 8 or p["head_dim"] > 128 or p["mask"]
        name = "attention_fallback" if wide and _dtype(workload) else "attention"
        name = "attention_decode" if p["q_length"] == 1 else name
        return _Product(name, p["batch"] * p["heads"], p["q_length"], p["k_length"], p["head_dim"])
    if not kind.startswith("conv"):
        return _Product("other", 1, 1, 1, 1) if cost.macs else None
    groups = p["groups"]
    inputs, outputs = p["in_channels"] // groups, p["out_channels"] // groups
    kernel = [p[f"kernel_{axis}"] for axis in _AXES if f"kernel_{axis}" in p]
    taps = int(np.prod(kernel))
    if groups > 1:
        name = "depthwise" if inputs == 1 else "grouped"
    elif "transpose" in kind:
        name = "transposed"
    elif inputs < 8:
        name = "few_channels"
    elif taps == 1:
        name = "conv1"
    elif any(p.get(f"dilation_{axis}", 1) > 1 for axis in _AXES):
        name = "dilated"
    else:
        name = "conv3" if max(kernel) <= 3 else "conv_large"
    return _Product(name, groups, cost.elements / p["out_channels"], outputs, inputs * taps)


def _read_share(workload: Workload) -> float:
    """A stride beyond the kernel skips planes and rows, but reads the whole of each row."""
    p = workload.params
    share = 1.0
    for axis in "dh":
        if f"stride_{axis}" in p and "transpose" not in workload.kind:
            share *= min(1.0, p[f"kernel_{axis}"] / p[f"stride_{axis}"])
    return share


def _filled(
    matrices: int, rows: float, columns: float, depth: float, units: int, splits: tuple[int, ...]
) -> float:
    """Share of the peak that the best tile size reaches, tiles and waves being whole."""
    best = 0.0
    for height, width, share in _TILES:
        tiles = matrices * -(-rows // height) * -(-columns // width)
        for parts in splits:
            if parts > 1 and depth / parts < _SPLIT_DEPTH:
                break
            waves = -(-tiles * parts // units)
            useful = matrices * rows * columns * parts / (waves * units * height * width)
            pipeline = depth / (depth + _FILL * parts)
            best = max(best, useful * share * pipeline * (1 if parts == 1 else _SPLIT_SHARE))
    return max(best, 1e-4)


def _planes(workload: Workload) -> int:
    p, kind = workload.params, workload.kind
    if kind in ("layer_norm", "rms_norm"):
        return p["rows"]
    if kind in ("batch_norm", "instance_norm", "group_norm") or "pool" in kind:
        return p["batch"] * p["channels"]
    if kind in ("softmax", "log_softmax"):
        return p["outer"] * p["inner"]
    if kind == "reduction":
        return p["kept"]
    if kind == "embedding":
        return p["tokens"]
    if kind.startswith("conv") and 1 < p["groups"] == p["in_channels"]:
        return p["batch"] * p["in_channels"]
    return 0
