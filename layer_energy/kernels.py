"""Workloads of any layer type → the kernels they run, in numbers that a physical law can price.

A forward pass is one kernel; the gradients of inputs and of weights are one more each, with the
sides of their matrix product exchanged. What is told apart here was found on layers measured one by
one on an NVIDIA H200 (``datasets/nvidia-h200``):

- products run in *tiles* that fill multiprocessors in waves. cuBLAS splits the depth of a product
  over several of them; so does cuDNN on tensor cores and for gradients of weights. Small tiles cost
  tensor cores more of their peak than ordinary cores;
- tensor cores want channels in multiples of 16 bytes; other products run on slower kernels;
- convolutions of fewer than 8 input channels and depthwise ones run on the ordinary cores, in any
  dtype; grouped and transposed ones have kernels of their own, and so have products with a side of
  at most 16;
- attention works on blocks of 64 queries. With heads of a width that is no multiple of 8, above
  128, or with a mask it falls back to slow kernels; in TF32 mode it runs in float32;
- convolutions on tensor cores copy a channels-first input and output, but for 1×1 ones without
  stride whose image is a multiple of 16 bytes: those multiply in place;
- a convolution's bias is added by a kernel of its own, depthwise ones apart; a bias' gradient is a
  kernel of its own, too;
- one kernel gives both gradients of a normalisation; those of ``cat`` and ``copy`` are views;
- max pooling writes the index of each maximum, 8 bytes an output;
- normalisation, pooling and depthwise convolutions pay for each row, plane or output; reductions
  and bilinear interpolation pay for the work that a single thread does in sequence; recurrent
  layers pay for each step's small product.

A CPU (``Sheet.kind``) has registers for tiles, and adds biases on the way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from layer_energy.layers.base import count
from layer_energy.layers.optimizer import OPTIMIZER_STEPS
from layer_energy.sheet import Sheet
from layer_energy.workload import Gradients, Workload

Array = NDArray[np.float64]
Index = NDArray[np.int64]

DTYPES = ("float32", "tf32", "bfloat16", "float16")
PASSES = ("forward", "input", "weight")
PRODUCTS = (
    "product", "thin", "conv1", "conv1_gathered", "conv3", "conv_large", "few_channels", "grouped",
    "depthwise", "transposed", "attention", "attention_fallback", "attention_decode",
    "recurrent", "other",
)  # fmt: skip
"""What multiplies: each has kernels of its own."""

_GRADIENTS: dict[Gradients, tuple[int, ...]] = {
    "none": (0,), "input": (0, 1), "weight": (0, 2), "both": (0, 1, 2)
}  # fmt: skip
_FUSED_BACKWARD = ("batch_norm", "layer_norm", "group_norm", "instance_norm")
"""One kernel gives both gradients."""

_VIEWS_BACKWARD = ("copy", "cat")
"""Their gradients are views of the one they get."""

_TWO_GRADIENTS = ("mul", "div")
"""Each of their inputs has a gradient."""

_BROADCAST = "add:broadcast"
"""The group of a bias that is added by a kernel of its own."""

_AXES = "dhw"
_CONVOLUTIONS = tuple(f"{name}{n}d" for name in ("conv", "conv_transpose") for n in (1, 2, 3))
_POOLS = tuple(
    f"{name}_pool{n}d" for name in ("max", "avg", "adaptive_max", "adaptive_avg") for n in (1, 2, 3)
)
_MAX_POOLS = tuple(kind for kind in _POOLS if "max" in kind)
_INDEX_BYTES = 8
"""Max pooling writes where each maximum was."""

_TILES = {
    "cuda": (
        (128, 256, 1.0), (256, 128, 1.0), (128, 128, 0.95), (128, 64, 0.8), (64, 128, 0.8),
        (64, 64, 0.6), (64, 32, 0.4), (32, 64, 0.4),
    ),
    "cpu": ((8, 16, 1.0),),
}  # fmt: skip
"""Rows and columns of a tile, and the share of the peak it reaches: larger ones reuse more. Those
of a CPU fill its vector registers."""

_ORDINARY = 0.5
"""Power of that share on ordinary cores, which small tiles keep busy more easily."""

_SPLITS = {"cuda": (1, 2, 4, 8), "cpu": (1,)}
_SPLIT_DEPTH, _FILL, _SPLIT_SHARE = 256, 32, 0.9
"""Least depth of a part, depth lost to filling the pipeline, share left after adding parts up."""

_THIN, _MAX_SERIAL, _ATTENTION_ROWS = 16, 4096, 64
_ATTENTION_BACKWARD = 2.5
"""Products of its backward pass, in those of the forward: five for two, the first one repeated."""

_ON_TENSOR_CORES = ("product", "conv1", "conv1_gathered", "conv3", "conv_large")
_ON_ORDINARY_CORES = ("few_channels", "depthwise")
_IN_PLACE = ("conv1", "few_channels")
_GATES = {"lstm": 4, "gru": 3, "rnn": 1}
_STEP_LAUNCH = 0.3
"""What a step of a recurrent layer takes of a launch: cuDNN launches several together."""

_TENSORS = 32
"""How many of them one launch of an optimizer's step works on."""

_NEIGHBOURS = 8
"""Steps of a pixel between four others: two for each that it waits for."""

_THREADS, _OUTPUTS = 512, 64
"""Threads that reduce a row; outputs of a depthwise convolution that count as a plane."""


@dataclass(frozen=True)
class Kernels:
    """The ``k`` kernels of ``n`` workloads; each field but ``n`` has shape ``(k,)``.

    Attributes:
        n: how many workloads.
        groups: names of what shares a price per byte: a layer type, or a variant of it.
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
        steps: elements that one thread works off in sequence.
        launches: kernels that follow each other, such as the steps of a recurrent layer.
    """

    n: int
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
    steps: Array
    launches: Array

    def sum(self, values: Array) -> Array:
        """``(k,)`` values of kernels → ``(n,)`` of workloads."""
        return np.bincount(self.workload, values, self.n).astype(float)


class _Kernel(NamedTuple):
    """A row of :class:`Kernels`."""

    group: str
    workload: int
    passes: int
    product: int
    dtype: int
    macs: float
    filled: float
    misaligned: bool
    serial: float
    bytes_in: float
    bytes_weight: float
    bytes_out: float
    layout_bytes: float
    planes: float
    steps: float
    launches: float


class _Product(NamedTuple):
    name: str
    matrices: int
    rows: float
    columns: float
    depth: float


class _Arithmetic(NamedTuple):
    """What a kernel multiplies; without a product, nothing."""

    product: int = -1
    dtype: int = 0
    macs: float = 0.0
    filled: float = 1.0
    misaligned: bool = False
    serial: float = 0.0


def kernels(workloads: Sequence[Workload], sheet: Sheet) -> Kernels:
    """The kernels of workloads on a device: its kind and number of multiprocessors count."""
    rows = [row for i, w in enumerate(workloads) for row in _of(i, w, sheet)]
    groups = tuple(row.group for row in rows)
    table = np.array([row[1:] for row in rows], dtype=float).reshape(-1, len(_Kernel._fields) - 1).T
    indices = (column.astype(np.int64) for column in table[:4])
    return Kernels(len(workloads), groups, *indices, *table[4:])


def group_of(workload: Workload) -> str:
    """What shares a price per byte with this workload."""
    p, kind, product = workload.params, workload.kind, _product(workload)
    if product is not None and (kind in _CONVOLUTIONS or kind == "attention"):
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


def _of(number: int, workload: Workload, sheet: Sheet) -> Iterator[_Kernel]:
    product, group = _product(workload), group_of(workload)
    for passes in _passes(workload):
        arithmetic = _Arithmetic(dtype=_dtype(workload))
        if product is not None:
            arithmetic = _arithmetic(workload, product, passes, sheet)
        yield _Kernel(
            group,
            number,
            passes,
            *arithmetic,
            *_traffic(workload, passes),
            _layout_bytes(workload, product),
            _planes(workload),
            _steps(workload),
            _launches(workload),
        )
    if sheet.kind == "cuda" and workload.params.get("bias"):
        yield from _bias(number, workload, product)


def _passes(workload: Workload) -> tuple[int, ...]:
    """Forward and backward passes, but for those that another does as well, or nobody."""
    if workload.kind in _VIEWS_BACKWARD:
        return (0,)
    if workload.kind in _TWO_GRADIENTS and workload.gradients == "input":
        return 0, 1, 1
    passes = _GRADIENTS[workload.gradients]
    return passes[:2] if workload.kind in _FUSED_BACKWARD else passes


def _bias(number: int, workload: Workload, product: _Product | None) -> Iterator[_Kernel]:
    """Its sum with a convolution's output; its gradient, a sum over all but the channels."""
    cost, _ = count(workload)
    p, conv = workload.params, workload.kind in _CONVOLUTIONS
    if not conv and workload.kind != "linear":
        return
    if conv and product is not None and product.name != "depthwise":
        yield _Kernel(
            _BROADCAST, number, 0, *_Arithmetic(dtype=_dtype(workload)),
            bytes_in=cost.bytes_out, bytes_weight=0, bytes_out=cost.bytes_out,
            layout_bytes=0, planes=0, steps=0, launches=1,
        )  # fmt: skip
    if workload.gradients in ("weight", "both"):
        channels = p["out_channels" if conv else "out_features"]
        yield _Kernel(
            group_of(workload), number, PASSES.index("weight"),
            *_Arithmetic(dtype=_dtype(workload)),
            bytes_in=cost.bytes_out, bytes_weight=0, bytes_out=channels * workload.itemsize_bytes,
            layout_bytes=0, planes=0, steps=cost.elements / channels / _THREADS, launches=1,
        )  # fmt: skip


def _arithmetic(workload: Workload, product: _Product, passes: int, sheet: Sheet) -> _Arithmetic:
    name, matrices, m, n, k = product
    macs, dtype = float(count(workload)[0].macs), _dtype(workload)
    if name.startswith("attention"):
        p = workload.params
        causal = p["causal"] and p["q_length"] == p["k_length"]
        filled = 1.0
        if name != "attention_decode":
            per_matrix = -(-m // _ATTENTION_ROWS)
            waves = -(-matrices * per_matrix // sheet.units)
            filled = matrices * m / (waves * sheet.units * _ATTENTION_ROWS)
        macs *= (0.5 if causal else 1.0) * (_ATTENTION_BACKWARD if passes else 1.0)
        return _Arithmetic(PRODUCTS.index(name), dtype, macs, filled)
    tensor, misaligned = dtype > 0 and name in _ON_TENSOR_CORES, False
    if tensor:
        inner = workload.params.get("in_channels", k)
        misaligned = bool(n % _alignment(workload) or inner % _alignment(workload))
    if name in _ON_ORDINARY_CORES:
        dtype = 0
    m, n, k = ((m, n, k), (m, k, n), (n, k, m))[passes]
    filled = 1.0
    if name not in ("depthwise", "other"):
        split = name == "product" or tensor or PASSES[passes] == "weight"
        filled = _filled(matrices, m, n, k, sheet, split, dtype > 0)
    if name == "product" and min(m, n) <= _THIN:
        name = "thin"
    return _Arithmetic(
        PRODUCTS.index(name),
        dtype,
        macs,
        filled,
        misaligned,
        0.0 if name == "other" else min(k, _MAX_SERIAL),
    )


def _alignment(workload: Workload) -> int:
    """Elements in the 16 bytes that tensor cores load at once."""
    return 16 // workload.itemsize_bytes


def _traffic(workload: Workload, passes: int) -> tuple[float, float, float]:
    """Bytes of input, weight and output, or of what stands for them in a backward pass."""
    cost, _ = count(workload)
    if workload.kind == "embedding" and PASSES[passes] == "weight":
        # as large as the weight, most of it zeros
        p = workload.params
        return cost.bytes_out, 0.0, float(p["vocabulary"] * p["dim"] * workload.itemsize_bytes)
    indices = _INDEX_BYTES * cost.elements if workload.kind in _MAX_POOLS else 0
    return cost.bytes_in * _read_share(workload), cost.bytes_weight, cost.bytes_out + indices


def _layout_bytes(workload: Workload, product: _Product | None) -> float:
    p = workload.params
    if (
        product is None or workload.kind not in _CONVOLUTIONS or product.name in _IN_PLACE
        or p["channels_last"] or p["groups"] > 1 or not _dtype(workload)
    ):  # fmt: skip
        return 0.0
    cost, _ = count(workload)
    return cost.bytes_in + cost.bytes_out


def _dtype(workload: Workload) -> int:
    """Attention has no TF32 kernel; dtypes without tensor cores count as float32."""
    if workload.dtype not in DTYPES or (workload.kind == "attention" and workload.dtype == "tf32"):
        return 0
    return DTYPES.index(workload.dtype)


def _product(workload: Workload) -> _Product | None:
    p, kind = workload.params, workload.kind
    cost, _ = count(workload)
    if not cost.macs:
        return None
    if kind == "linear":
        return _Product("product", 1, p["tokens"], p["out_features"], p["in_features"])
    if kind == "matmul":
        return _Product("product", p["batch"], p["m"], p["n"], p["k"])
    if kind == "attention":
        wide = p["head_dim"] % 8 or p["head_dim"] > 128 or p["mask"]
        name = "attention_fallback" if wide and _dtype(workload) else "attention"
        name = "attention_decode" if p["q_length"] == 1 else name
        return _Product(name, p["batch"] * p["heads"], p["q_length"], p["k_length"], p["head_dim"])
    if kind in _GATES:
        return _Product("recurrent", 1, p["batch"], _GATES[kind] * p["hidden"], p["hidden"])
    if kind not in _CONVOLUTIONS:
        return _Product("other", 1, 1, 1, 1)
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
        name = "conv1_gathered" if _gathered(workload) else "conv1"
    else:
        name = "conv3" if max(kernel) <= 3 else "conv_large"
    return _Product(name, groups, cost.elements / p["out_channels"], outputs, inputs * taps)


def _gathered(workload: Workload) -> bool:
    """Whether a 1×1 convolution of a channels-first image cannot be a product on its memory."""
    p = workload.params
    if p["channels_last"] or not _dtype(workload):
        return False
    positions = count(workload)[0].elements // (p["batch"] * p["out_channels"])
    strided = any(p.get(f"stride_{axis}", 1) > 1 for axis in _AXES)
    return positions > 1 and (strided or bool(positions % (16 // workload.itemsize_bytes)))


def _read_share(workload: Workload) -> float:
    """A stride beyond the kernel skips planes and rows, but reads the whole of each row."""
    p, share = workload.params, 1.0
    if workload.kind not in (*_CONVOLUTIONS, *_POOLS) or "transpose" in workload.kind:
        return share
    for axis in "dh":
        if f"stride_{axis}" in p:
            share *= min(1.0, p[f"kernel_{axis}"] / p[f"stride_{axis}"])
    return share


def _filled(
    matrices: int,
    rows: float,
    columns: float,
    depth: float,
    sheet: Sheet,
    split: bool,
    tensor_cores: bool,
) -> float:
    """Share of the peak that the best tile size reaches, tiles and waves being whole."""
    best, units = 0.0, sheet.units
    for height, width, share in _TILES[sheet.kind]:
        share = share if tensor_cores else share**_ORDINARY
        tiles = matrices * -(-rows // height) * -(-columns // width)
        for parts in _SPLITS[sheet.kind] if split else (1,):
            if parts > 1 and depth / parts < _SPLIT_DEPTH:
                break
            waves = -(-tiles * parts // units)
            useful = matrices * rows * columns * parts / (waves * units * height * width)
            pipeline = depth / (depth + _FILL * parts)
            best = max(best, useful * share * pipeline * (1 if parts == 1 else _SPLIT_SHARE))
    return max(best, 1e-4)


def _steps(workload: Workload) -> float:
    """Reductions give a block of threads to a row or plane, pooling one thread to an output.

    Bilinear interpolation gives one thread to a pixel, which does all planes of the batch.
    """
    p, kind = workload.params, workload.kind
    if kind == "interpolate_bilinear":
        return _NEIGHBOURS * p["batch"] * p["channels"]
    if kind in ("layer_norm", "rms_norm"):
        return p["dim"] / _THREADS
    if kind == "batch_norm":
        return p["batch"] * p["spatial"] / _THREADS if p["training"] else 0
    if kind == "instance_norm":
        return p["spatial"] / _THREADS
    if kind == "group_norm":
        return p["channels"] / p["groups"] * p["spatial"] / _THREADS
    if kind in ("softmax", "log_softmax"):
        return p["dim"] / _THREADS
    if kind in _POOLS:
        window = 1.0
        for axis in _AXES:
            if f"out_{axis}" in p:
                window *= p[f"in_{axis}"] / max(p[f"out_{axis}"], 1)
            else:
                window *= p.get(f"kernel_{axis}", 1)
        return window
    return 0


def _launches(workload: Workload) -> float:
    p = workload.params
    if workload.kind in _GATES:
        return 1 + _STEP_LAUNCH * p["length"] * p["layers"] * (1 + p["bidirectional"])
    if workload.kind in OPTIMIZER_STEPS:
        return 1 + p["tensors"] / _TENSORS
    return 1


def _planes(workload: Workload) -> int:
    p, kind = workload.params, workload.kind
    if kind in ("layer_norm", "rms_norm"):
        return p["rows"]
    if kind in ("batch_norm", "instance_norm", "group_norm") or kind in _POOLS:
        return p["batch"] * p["channels"]
    if kind in ("softmax", "log_softmax"):
        return p["outer"] * p["inner"]
    if kind == "reduction":
        return p["kept"]
    if kind == "embedding":
        return p["tokens"]
    if kind in _CONVOLUTIONS and 1 < p["groups"] == p["in_channels"]:
        return count(workload)[0].elements // _OUTPUTS
    return 0
