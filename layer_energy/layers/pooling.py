"""Max, average and adaptive pooling in one, two and three dimensions."""

from __future__ import annotations

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

_EXTENTS: dict[int, Distribution] = {
    1: LogInt(8, 16384),
    2: SIZE,
    3: Mixture((7, 8, 14, 16, 28, 32, 56), 0.7, LogInt(2, 64)),
}
_BATCH = LogInt(1, 256, powers=0.8)


def _pool_out(i: int, kernel: int, stride: int, padding: int, dilation: int, ceil: int) -> int:
    """Length of a pooled axis; torch's rule that the last window must start inside the input."""
    span = i + 2 * padding - dilation * (kernel - 1) - 1
    out = (span + (stride - 1) * ceil) // stride + 1
    if ceil and (out - 1) * stride >= i + padding:
        out -= 1
    return out


class Pooling(LayerType):
    """``{max|avg}_pool{n}d``: a window slides over the input."""

    def __init__(self, function: str, ndim: int, layer: type[nn.Module]) -> None:
        self.function, self.ndim, self.layer = function, ndim, layer
        self.kind = f"{function}_pool{ndim}d"
        self.claims = (self.kind, f"{self.kind}_with_indices")
        self.space: dict[str, Distribution] = {
            "batch": _BATCH,
            "channels": CHANNELS,
            **same_on_axes("in", _EXTENTS[ndim], ndim),
            **same_on_axes("kernel", Choice({2: 0.4, 3: 0.4, 4: 0.05, 5: 0.1, 7: 0.05}), ndim),
            **same_on_axes("stride", Choice({1: 0.25, 2: 0.65, 3: 0.05, 4: 0.05}), ndim),
            **same_on_axes("padding", Choice({0: 1.0}), ndim),
            "ceil_mode": flag(0.2),
        }

    def sample(self, rng: Random) -> dict[str, int] | None:
        p = super().sample(rng)
        assert p is not None
        pad = rng.random() < 0.4
        axes = [k.removeprefix("in_") for k in p if k.startswith("in_")]
        for axis in axes:
            for name in ("in", "kernel", "stride"):
                p[f"{name}_{axis}"] = p[f"{name}_{axes[-1]}"]
            p[f"padding_{axis}"] = p[f"kernel_{axis}"] // 2 if pad else 0
        return p if min(self._extent_out(p)) >= 1 else None

    def build(self, p: Mapping[str, int]) -> Built:
        n = self.ndim
        kernel, stride, padding = (along(p, name, n) for name in ("kernel", "stride", "padding"))
        options = {"stride": stride, "padding": padding, "ceil_mode": bool(p["ceil_mode"])}
        x = torch.empty(p["batch"], p["channels"], *along(p, "in", n))
        return self.layer(kernel, **options), (x,)

    def describe(self, call: Call) -> dict[str, int] | None:
        n, x = self.ndim, call.tensors[0]
        kernel = spread(call["kernel_size"], n)
        if any(d != 1 for d in spread(call.get("dilation") or 1, n)):
            return None
        return {
            "batch": x.shape[0] if x.dim() == n + 2 else 1,
            "channels": x.shape[-n - 1],
            **by_axis("in", x.shape[-n:]),
            **by_axis("kernel", kernel),
            **by_axis("stride", spread(call["stride"], n) or kernel),
            **by_axis("padding", spread(call["padding"], n)),
            "ceil_mode": int(call["ceil_mode"]),
        }

    def _extent_out(self, p: Mapping[str, int]) -> list[int]:
        names = ("in", "kernel", "stride", "padding")
        axes = zip(*(along(p, name, self.ndim) for name in names), strict=True)
        return [_pool_out(i, k, s, pad, 1, p["ceil_mode"]) for i, k, s, pad in axes]

    def cost(self, p: Mapping[str, int], itemsize: int) -> Cost:
        planes = p["batch"] * p["channels"]
        elements = planes * prod(self._extent_out(p))
        read = planes * prod(along(p, "in", self.ndim))
        return Cost(0, itemsize * read, 0, itemsize * elements, elements)

    def drivers(self, p: Mapping[str, int], cost: Cost) -> dict[str, float]:
        kernel = along(p, "kernel", self.ndim)
        return {
            "comparisons": float(cost.elements * prod(kernel)),
            "window_rows": float(cost.elements * prod(kernel[:-1])),
            **super().drivers(p, cost),
        }


class AdaptivePooling(LayerType):
    """``adaptive_{max|avg}_pool{n}d``: the output size is given, the windows follow."""

    def __init__(self, function: str, ndim: int, layer: type[nn.Module]) -> None:
        self.function, self.ndim, self.layer = function, ndim, layer
        self.kind = f"adaptive_{function}_pool{ndim}d"
        self.claims = (self.kind,)
        self.space: dict[str, Distribution] = {
            "batch": _BATCH,
            "channels": CHANNELS,
            **same_on_axes("in", _EXTENTS[ndim], ndim),
            **same_on_axes("out", Choice({1: 0.6, 2: 0.1, 4: 0.1, 6: 0.1, 7: 0.1}), ndim),
        }

    def sample(self, rng: Random) -> dict[str, int] | None:
        p = super().sample(rng)
        assert p is not None
        axes = [k.removeprefix("in_") for k in p if k.startswith("in_")]
        for axis in axes:
            for name in ("in", "out"):
                p[f"{name}_{axis}"] = p[f"{name}_{axes[-1]}"]
        return p

    def build(self, p: Mapping[str, int]) -> Built:
        x = torch.empty(p["batch"], p["channels"], *along(p, "in", self.ndim))
        return self.layer(along(p, "out", self.ndim)), (x,)

    def describe(self, call: Call) -> dict[str, int] | None:
        n, x = self.ndim, call.tensors[0]
        return {
            "batch": x.shape[0] if x.dim() == n + 2 else 1,
            "channels": x.shape[-n - 1],
            **by_axis("in", x.shape[-n:]),
            **by_axis("out", spread(call["output_size"], n)),
        }

    def cost(self, p: Mapping[str, int], itemsize: int) -> Cost:
        planes = p["batch"] * p["channels"]
        read, elements = (planes * prod(along(p, name, self.ndim)) for name in ("in", "out"))
        return Cost(0, itemsize * read, 0, itemsize * elements, elements)


_LAYERS = {
    (Pooling, "max"): (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    (Pooling, "avg"): (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    (AdaptivePooling, "max"): (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    (AdaptivePooling, "avg"): (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
}
for (_family, _function), _layers in _LAYERS.items():
    for _ndim, _layer in enumerate(_layers, start=1):
        register(_family(_function, _ndim, _layer))
