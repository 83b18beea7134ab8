"""Convolutions: 1d, 2d, 3d, grouped, depthwise, and transposed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from random import Random

import torch
from torch import nn

from layer_energy.layers.base import (
    CHANNELS,
    SIZE,
    Built,
    Call,
    Choice,
    Distribution,
    LayerType,
    LogInt,
    Mixture,
    along,
    by_axis,
    flag,
    prod,
    register,
    same_on_axes,
    spread,
)
from layer_energy.workload import Cost

VECTOR = 16
"""Channels are padded to a multiple of this: one AVX-512 register of float32, half a tensor-core
tile. Where there are fewer of them, as in a network's first layer, another kernel runs."""

_MODULES = {
    (1, False): nn.Conv1d,
    (2, False): nn.Conv2d,
    (3, False): nn.Conv3d,
    (1, True): nn.ConvTranspose1d,
    (2, True): nn.ConvTranspose2d,
    (3, True): nn.ConvTranspose3d,
}
_CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
_EXTENTS: dict[int, Distribution] = {
    1: LogInt(8, 16384),
    2: SIZE,
    3: Mixture((7, 8, 14, 16, 28, 32, 56), 0.7, LogInt(2, 64)),
}
_KERNELS = Choice({1: 0.40, 2: 0.02, 3: 0.40, 4: 0.02, 5: 0.08, 7: 0.06, 11: 0.02})


def _pad_channels(n: int) -> int:
    return n if n < VECTOR else -(-n // VECTOR) * VECTOR


class Convolution(LayerType):
    """``conv{n}d`` and ``conv_transpose{n}d``; each size per axis: kernels need not be square."""

    def __init__(self, ndim: int, transposed: bool = False) -> None:
        self.ndim = ndim
        self.transposed = transposed
        self.kind = f"conv_transpose{ndim}d" if transposed else f"conv{ndim}d"
        self.claims = (self.kind, "convolution", "_convolution")
        self.space: dict[str, Distribution] = {
            "batch": LogInt(1, 128, powers=0.8),
            "in_channels": CHANNELS,
            "out_channels": CHANNELS,
            "groups": Choice({1: 1.0}),
            **same_on_axes("in", _EXTENTS[ndim], ndim),
            **same_on_axes("kernel", _KERNELS, ndim),
            **same_on_axes("stride", Choice({1: 0.7, 2: 0.25, 4: 0.05}), ndim),
            **same_on_axes("padding", Choice({0: 1.0}), ndim),
            **same_on_axes("output_padding", Choice({0: 1.0}), ndim),
            **same_on_axes("dilation", Choice({1: 0.95, 2: 0.05}), ndim),
            "bias": flag(0.5),
            "channels_last": flag(0.2 if ndim > 1 else 0.0),
        }
        if not transposed:
            self.space = {k: v for k, v in self.space.items() if "output_padding" not in k}

    def sample(self, rng: Random) -> dict[str, int] | None:
        p = super().sample(rng)
        assert p is not None
        square = rng.random() < 0.9
        axes = [k.removeprefix("kernel_") for k in p if k.startswith("kernel_")]
        for axis in axes:
            if square:
                for name in ("in", "kernel", "stride", "dilation"):
                    p[f"{name}_{axis}"] = p[f"{name}_{axes[-1]}"]
            kernel, dilation = p[f"kernel_{axis}"], p[f"dilation_{axis}"]
            if kernel == 1:
                dilation = p[f"dilation_{axis}"] = 1
            p[f"padding_{axis}"] = 0 if rng.random() < 0.15 else dilation * (kernel - 1) // 2
        lottery = rng.random()
        if rng.random() < 0.08:
            p["in_channels"] = rng.choice((1, 3, 3))
        elif lottery < 0.20:  # depthwise
            p["out_channels"] = p["groups"] = p["in_channels"]
        elif lottery < 0.27:  # grouped
            p["groups"] = rng.choice((2, 4, 8, 16, 32))
            p["in_channels"] = max(1, p["in_channels"] // p["groups"]) * p["groups"]
            p["out_channels"] = max(1, p["out_channels"] // p["groups"]) * p["groups"]
        if p["in_channels"] == 1 or all(p[f"in_{axis}"] == 1 for axis in axes):
            p["channels_last"] = 0  # the same memory either way
        return p if min(self._extent_out(p)) >= 1 else None

    def build(self, p: Mapping[str, int]) -> Built:
        n = self.ndim
        extra = {"output_padding": tuple(along(p, "output_padding", n))} if self.transposed else {}
        module = _MODULES[n, self.transposed](
            p["in_channels"],
            p["out_channels"],
            tuple(along(p, "kernel", n)),
            stride=tuple(along(p, "stride", n)),
            padding=tuple(along(p, "padding", n)),
            dilation=tuple(along(p, "dilation", n)),
            groups=p["groups"],
            bias=bool(p["bias"]),
            **extra,
        )
        x = torch.empty(p["batch"], p["in_channels"], *along(p, "in", n))
        if p["channels_last"]:
            x = x.to(memory_format=_CHANNELS_LAST[n])
            module = module.to(memory_format=_CHANNELS_LAST[n])
        return module, (x,)

    def describe(self, call: Call) -> dict[str, int] | None:
        x, w, n = call["input"], call["weight"], self.ndim
        if w.dim() != n + 2 or call.get("transposed") not in (None, self.transposed):
            return None
        extents = list(x.shape[-n:])
        dilation = spread(call["dilation"], n)
        padding = call["padding"]
        if isinstance(padding, str):
            full = [
                d * (k - 1) * (padding == "same")
                for d, k in zip(dilation, w.shape[-n:], strict=True)
            ]
            padding = [total // 2 for total in full]
            # an odd total is padded by one more on one side, before the convolution
            extents = [i + total % 2 for i, total in zip(extents, full, strict=True)]
        in_channels = x.shape[-n - 1]
        groups = call["groups"]
        extra = (
            by_axis("output_padding", spread(call["output_padding"], n)) if self.transposed else {}
        )
        memory_format = _CHANNELS_LAST.get(n)
        return {
            "batch": x.shape[0] if x.dim() == n + 2 else 1,
            "in_channels": in_channels,
            "out_channels": w.shape[1] * groups if self.transposed else w.shape[0],
            "groups": groups,
            **by_axis("in", extents),
            **by_axis("kernel", w.shape[-n:]),
            **by_axis("stride", spread(call["stride"], n)),
            **by_axis("padding", spread(padding, n)),
            **extra,
            **by_axis("dilation", dilation),
            "bias": int(call["bias"] is not None),
            "channels_last": int(
                memory_format is not None
                and x.dim() == n + 2
                and not x.is_contiguous()
                and x.is_contiguous(memory_format=memory_format)
            ),
        }

    def _extent_out(self, p: Mapping[str, int]) -> list[int]:
        n = self.ndim
        axes = zip(
            *(along(p, name, n) for name in ("in", "kernel", "stride", "padding", "dilation")),
            strict=True,
        )
        if not self.transposed:
            return [(i + 2 * pad - d * (k - 1) - 1) // s + 1 for i, k, s, pad, d in axes]
        grow = along(p, "output_padding", n)
        return [
            (i - 1) * s - 2 * pad + d * (k - 1) + g + 1
            for (i, k, s, pad, d), g in zip(axes, grow, strict=True)
        ]

    def cost(self, p: Mapping[str, int], itemsize: int) -> Cost:
        n = self.ndim
        extent_in, extent_out = prod(along(p, "in", n)), prod(self._extent_out(p))
        weights = p["in_channels"] * p["out_channels"] // p["groups"] * prod(along(p, "kernel", n))
        elements = p["batch"] * p["out_channels"] * extent_out
        return Cost(
            macs=p["batch"] * weights * (extent_in if self.transposed else extent_out),
            bytes_in=itemsize * p["batch"] * p["in_channels"] * extent_in,
            bytes_weight=itemsize * (weights + p["bias"] * p["out_channels"]),
            bytes_out=itemsize * elements,
            elements=elements,
        )

    def drivers(self, p: Mapping[str, int], cost: Cost) -> dict[str, float]:
        groups = p["groups"]
        wide_in, wide_out = p["in_channels"] // groups, p["out_channels"] // groups
        # dense, grouped and depthwise convolutions run different kernels
        kernel = "padded" if groups == 1 else "depthwise" if wide_in == 1 else "grouped"
        macs = dict.fromkeys(("macs_padded", "macs_grouped", "macs_depthwise"), 0.0)
        macs[f"macs_{kernel}"] = float(cost.macs)
        if kernel == "padded":
            macs["macs_padded"] *= _pad_channels(wide_in) * _pad_channels(wide_out)
            macs["macs_padded"] /= wide_in * wide_out
        return {**macs, **super().drivers(p, cost), "bytes_in": cost.bytes_in * self._rows_read(p)}

    def _rows_read(self, p: Mapping[str, int]) -> float:
        """Share of the input's rows that windows cover; of a row, whole cache lines are read."""
        if self.transposed:
            return 1.0
        strides = zip(along(p, "kernel", self.ndim), along(p, "stride", self.ndim), strict=True)
        return math.prod(min(1.0, kernel / stride) for kernel, stride in list(strides)[:-1])


for _ndim in (1, 2, 3):
    register(Convolution(_ndim))
    register(Convolution(_ndim, transposed=True))
