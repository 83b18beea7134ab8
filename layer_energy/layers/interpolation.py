"""Interpolation of images to another size."""

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
    LayerType,
    LogInt,
    module,
    prod,
    register,
)
from layer_energy.workload import Cost


class Interpolation(LayerType):
    """``(batch, channels, in_h, in_w)`` resampled to ``(out_h, out_w)``."""

    space = {
        "batch": LogInt(1, 64, powers=0.8),
        "channels": CHANNELS,
        "in_h": SIZE,
        "in_w": SIZE,
        "out_h": SIZE,
        "out_w": SIZE,
    }

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.kind = f"interpolate_{mode}"
        self.claims = (f"upsample_{mode}2d", f"_upsample_{mode}2d_aa")

    def sample(self, rng: Random) -> dict[str, int] | None:
        p = super().sample(rng)
        assert p is not None
        scale = rng.choice((2, 2, 2, 4))
        p["in_w"] = p["in_h"]
        if rng.random() < 0.6:
            p["out_h"] = scale * p["in_h"]
        p["out_w"] = p["out_h"]
        return p if p["out_h"] <= 512 else None

    def build(self, p: Mapping[str, int]) -> Built:
        layer = nn.Upsample(size=(p["out_h"], p["out_w"]), mode=self.mode)
        return layer, (torch.empty(p["batch"], p["channels"], p["in_h"], p["in_w"]),)

    def describe(self, call: Call) -> dict[str, int] | None:
        (batch, channels, in_h, in_w), result = call.tensors[0].shape, call.result
        if result is None:
            return None
        p = {"batch": batch, "channels": channels, "in_h": in_h, "in_w": in_w}
        return {**p, "out_h": result.shape[2], "out_w": result.shape[3]}

    def cost(self, p: Mapping[str, int], itemsize: int) -> Cost:
        planes = p["batch"] * p["channels"]
        elements = planes * p["out_h"] * p["out_w"]
        return Cost(0, itemsize * planes * p["in_h"] * p["in_w"], 0, itemsize * elements, elements)


for _mode in ("nearest", "bilinear", "bicubic"):
    register(Interpolation(_mode))


@register
class GridSample(LayerType):
    """``(batch, channels, in_size²)`` sampled bilinearly at ``points`` points each."""

    kind = "grid_sample"
    claims = ("grid_sampler_2d",)
    space = {
        "batch": LogInt(1, 64, powers=0.8),
        "channels": LogInt(1, 512, aligned=0.5),
        "in_elements": LogInt(16, 65536),
        "points": LogInt(16, 65536),
    }

    def build(self, p: Mapping[str, int]) -> Built:
        x = torch.empty(p["batch"], p["channels"], p["in_elements"], 1)
        grid = torch.empty(p["batch"], p["points"], 1, 2)
        return module(lambda x, g: torch.grid_sampler_2d(x, g, 0, 0, False)), (x, grid)

    def describe(self, call: Call) -> dict[str, int] | None:
        x, grid = call["input"], call["grid"]
        return {
            "batch": x.shape[0],
            "channels": x.shape[1],
            "in_elements": prod(x.shape[2:]),
            "points": prod(grid.shape[1:-1]),
        }

    def cost(self, p: Mapping[str, int], itemsize: int) -> Cost:
        elements = p["batch"] * p["channels"] * p["points"]
        read = p["batch"] * (p["channels"] * p["in_elements"] + 2 * p["points"])
        return Cost(0, itemsize * read, 0, itemsize * elements, elements)
