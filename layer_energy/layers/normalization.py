"""Batch, instance, group, layer and RMS normalisation."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

import torch
from torch import nn

from layer_energy.layers.base import (
    BATCH,
    CHANNELS,
    Built,
    Call,
    Choice,
    Distribution,
    LayerType,
    LogInt,
    Mixture,
    flag,
    prod,
    register,
)
from layer_energy.workload import Cost

_SPATIAL = Mixture((1, 49, 64, 196, 256, 784, 1024, 3136, 4096, 12544), 0.6, LogInt(1, 65536))


class ChannelNorm(LayerType):
    """Normalises ``(batch, channels, spatial)`` per channel, per group of channels or per plane."""

    base_space: Mapping[str, Distribution] = {
        "batch": BATCH,
        "channels": CHANNELS,
        "spatial": _SPATIAL,
        "affine": flag(0.9),
    }
    space = base_space
    statistics = 0
    """Running vectors read besides weight and bias."""

    def describe(self, call: Call) -> dict[str, int] | None:
        x = call["input"]
        return {
            "batch": x.shape[0],
            "channels": x.shape[1],
            "spatial": prod(x.shape[2:]),
            "affine": int(call["weight"] is not None),
        }

    def cost(self, p: Mapping[str, int], itemsize: int) -> Cost:
        elements = p["batch"] * p["channels"] * p["spatial"]
        vectors = (2 * p["affine"] + self.statistics) * p["channels"]
        return Cost(0, itemsize * elements, itemsize * vectors, itemsize * elements, elements)

    def drivers(self, p: Mapping[str, int], cost: Cost) -> dict[str, float]:
        return {"planes": p["batch"] * p["channels"], "bytes_in": cost.bytes_in}


@register
class BatchNorm(ChannelNorm):
    """``batch_norm`` with running statistics, or (``training`` 1) with those of the batch."""

    kind = "batch_norm"
    claims = ("batch_norm", "_native_batch_norm_legit_no_training")
    statistics = 2
    space = {**ChannelNorm.base_space, "training": flag(0.15)}

    def sample(self, rng: Random) -> dict[str, int] | None:
        p = super().sample(rng)
        assert p is not None
        return None if p["training"] and p["batch"] * p["spatial"] < 2 else p

    def build(self, p: Mapping[str, int]) -> Built:
        layer = nn.BatchNorm2d(p["channels"], affine=bool(p["affine"]))
        layer.num_batches_tracked = None  # else training counts batches, one more operation
        return layer.train(bool(p["training"])), (
            torch.empty(p["batch"], p["channels"], p["spatial"], 1),
        )

    def describe(self, call: Call) -> dict[str, int] | None:
        p = super().describe(call)
        return p and {**p, "training": int(bool(call.get("training")))}


@register
class InstanceNorm(ChannelNorm):
    """``instance_norm``: statistics per sample and channel."""

    kind = "instance_norm"
    claims = ("instance_norm",)

    def sample(self, rng: Random) -> dict[str, int] | None:
        p = super().sample(rng)
        assert p is not None
        return None if p["spatial"] < 2 else p

    def build(self, p: Mapping[str, int]) -> Built:
        layer = nn.InstanceNorm2d(p["channels"], affine=bool(p["affine"]))
        return layer, (torch.empty(p["batch"], p["channels"], p["spatial"], 1),)


@register
class GroupNorm(ChannelNorm):
    """``group_norm``: statistics per sample and group of channels."""

    kind = "group_norm"
    claims = ("group_norm",)
    space = {**ChannelNorm.base_space, "groups": Choice({1: 0.2, 8: 0.2, 16: 0.2, 32: 0.4})}

    def sample(self, rng: Random) -> dict[str, int] | None:
        p = super().sample(rng)
        assert p is not None
        p["channels"] = max(1, p["channels"] // p["groups"]) * p["groups"]
        return p

    def build(self, p: Mapping[str, int]) -> Built:
        layer = nn.GroupNorm(p["groups"], p["channels"], affine=bool(p["affine"]))
        return layer, (torch.empty(p["batch"], p["channels"], p["spatial"]),)

    def describe(self, call: Call) -> dict[str, int] | None:
        p = super().describe(call)
        return p and {**p, "groups": call["num_groups"]}


class RowNorm(LayerType):
    """Normalises rows of ``dim`` elements: layer and RMS normalisation."""

    space = {
        "rows": LogInt(1, 131072, powers=0.3),
        "dim": LogInt(16, 8192, aligned=0.8),
        "affine": flag(0.9),
    }

    def __init__(self, kind: str, claims: tuple[str, ...], layer: type[nn.Module]) -> None:
        self.kind, self.claims, self.layer = kind, claims, layer

    def build(self, p: Mapping[str, int]) -> Built:
        layer = self.layer(p["dim"], elementwise_affine=bool(p["affine"]))
        return layer, (torch.empty(p["rows"], p["dim"]),)

    def describe(self, call: Call) -> dict[str, int] | None:
        dim = prod(call["normalized_shape"])
        rows = call["input"].numel() // max(dim, 1)
        return {"rows": rows, "dim": dim, "affine": int(call["weight"] is not None)}

    def cost(self, p: Mapping[str, int], itemsize: int) -> Cost:
        elements = p["rows"] * p["dim"]
        vectors = (1 if self.layer is nn.RMSNorm else 2) * p["affine"] * p["dim"]
        return Cost(0, itemsize * elements, itemsize * vectors, itemsize * elements, elements)

    def drivers(self, p: Mapping[str, int], cost: Cost) -> dict[str, float]:
        return {"rows": p["rows"], "bytes_in": cost.bytes_in}


register(RowNorm("layer_norm", ("layer_norm", "native_layer_norm"), nn.LayerNorm))
register(RowNorm("rms_norm", ("rms_norm", "_fused_rms_norm"), nn.RMSNorm))
