"""Scaled dot-product attention, fused."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

import torch
from torch.nn import functional

from layer_energy.layers.base import (
    Built,
    Call,
    Choice,
    LayerType,
    LogInt,
    Mixture,
    flag,
    module,
    prod,
    register,
)
from layer_energy.workload import Cost

_LENGTH = LogInt(4, 4096, powers=0.4)


@register
class Attention(LayerType):
    """``softmax(q k' / √d) v``; fewer ``kv_heads`` than ``heads`` is grouped-query attention."""

    kind = "attention"
    claims = ("scaled_dot_product_attention",)
    differentiated_inputs = 3  # a mask with gradients would forbid the fused kernels
    space = {
        "batch": LogInt(1, 64, powers=0.8),
        "heads": LogInt(1, 32),
        "kv_heads": Choice({0: 0.85, 2: 0.15}),
        "q_length": _LENGTH,
        "k_length": _LENGTH,
        "head_dim": Mixture((32, 64, 64, 80, 128), 0.9, LogInt(8, 256)),
        "causal": flag(0.4),
        "mask": flag(0.15),
    }

    def sample(self, rng: Random) -> dict[str, int] | None:
        p = super().sample(rng)
        assert p is not None
        p["kv_heads"] = p["heads"] if p["heads"] % 2 or not p["kv_heads"] else p["heads"] // 2
        if rng.random() < 0.8:
            p["k_length"] = p["q_length"]
        if p["causal"]:
            p["mask"] = 0
        return p

    def build(self, p: Mapping[str, int]) -> Built:
        grouped = p["kv_heads"] != p["heads"]
        q = torch.empty(p["batch"], p["heads"], p["q_length"], p["head_dim"])
        k, v = (torch.empty(p["batch"], p["kv_heads"], p["k_length"], p["head_dim"]) for _ in "kv")
        causal = bool(p["causal"])

        def attend(q: Any, k: Any, v: Any, mask: Any = None) -> Any:
            return functional.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped
            )

        masks = (torch.empty(p["q_length"], p["k_length"]),) if p["mask"] else ()
        return module(attend), (q, k, v, *masks)

    def describe(self, call: Call) -> dict[str, int] | None:
        q, k, v = call["query"], call["key"], call["value"]
        if q.shape[-1] != v.shape[-1]:
            return None
        heads = q.shape[-3] if q.dim() > 2 else 1
        return {
            "batch": prod(q.shape[:-3]),
            "heads": heads,
            "kv_heads": k.shape[-3] if k.dim() > 2 else 1,
            "q_length": q.shape[-2],
            "k_length": k.shape[-2],
            "head_dim": q.shape[-1],
            "causal": int(call["is_causal"]),
            "mask": int(call["attn_mask"] is not None),
        }

    def cost(self, p: Mapping[str, int], itemsize: int) -> Cost:
        queries = p["batch"] * p["heads"] * p["q_length"]
        keys = p["batch"] * p["kv_heads"] * p["k_length"]
        elements = queries * p["head_dim"]
        mask = p["mask"] * p["q_length"] * p["k_length"]
        return Cost(
            macs=2 * elements * p["k_length"],
            bytes_in=itemsize * (elements + 2 * keys * p["head_dim"] + mask),
            bytes_weight=0,
            bytes_out=itemsize * elements,
            elements=elements,
        )

    def drivers(self, p: Mapping[str, int], cost: Cost) -> dict[str, float]:
        scores = p["batch"] * p["heads"] * p["q_length"] * p["k_length"]
        return {
            "macs": cost.macs,
            "scores": scores,
            "bytes_in": cost.bytes_in,
            "bytes_out": cost.bytes_out,
        }
