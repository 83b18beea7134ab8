"""Matrix products: ``linear`` (by a weight) and ``matmul`` (of two activations, or with a bias)."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

import torch
from torch import nn

from layer_energy.layers.base import (
    Built,
    Call,
    LayerType,
    LogInt,
    flag,
    module,
    prod,
    register,
)
from layer_energy.workload import Cost

TILE = 16


def _padded(rows: int, inner: int, columns: int) -> float:
    """Multiply-accumulates with the output tile rounded up to whole vectors."""
    return float(-(-rows // 4) * 4 * inner * (-(-columns // TILE) * TILE))


@register
class Linear(LayerType):
    """``x @ w.T + b`` with ``x`` of ``(..., in_features)``; ``tokens`` is their product."""

    kind = "linear"
    claims = ("linear",)
    space = {
        "tokens": LogInt(1, 65536, powers=0.5, aligned=0.2),
        "in_features": LogInt(16, 16384, aligned=0.8),
        "out_features": LogInt(8, 16384, aligned=0.8),
        "bias": flag(0.7),
    }

    def build(self, p: Mapping[str, int]) -> Built:
        layer = nn.Linear(p["in_features"], p["out_features"], bias=bool(p["bias"]))
        return layer, (torch.empty(p["tokens"], p["in_features"]),)

    def describe(self, call: Call) -> dict[str, int] | None:
        x, w = call["input"], call["weight"]
        if w.dim() != 2:
            return None
        return {
            "tokens": prod(x.shape[:-1]),
            "in_features": x.shape[-1],
            "out_features": w.shape[0],
            "bias": int(call["bias"] is not None),
        }

    def cost(self, p: Mapping[str, int], itemsize: int) -> Cost:
        tokens, inner, outer = p["tokens"], p["in_features"], p["out_features"]
        return Cost(
            macs=tokens * inner * outer,
            bytes_in=itemsize * tokens * inner,
            bytes_weight=itemsize * (inner * outer + p["bias"] * outer),
            bytes_out=itemsize * tokens * outer,
            elements=tokens * outer,
        )

    def drivers(self, p: Mapping[str, int], cost: Cost) -> dict[str, float]:
        padded = _padded(p["tokens"], p["in_features"], p["out_features"])
        return {"macs_padded": padded, **super().drivers(p, cost)}


@register
class MatMul(LayerType):
    """``(batch, m, k) @ (batch, k, n)``; ``bias``: a whole matrix is added, not just a row."""

    kind = "matmul"
    claims = ("mm", "bmm", "addmm", "baddbmm", "mv", "addmv")
    space = {
        "batch": LogInt(1, 512, powers=0.6),
        "m": LogInt(1, 4096, aligned=0.6, powers=0.2),
        "k": LogInt(1, 4096, aligned=0.6, powers=0.2),
        "n": LogInt(1, 4096, aligned=0.6, powers=0.2),
        "bias": flag(0.2),
        "transposed": flag(0.3),
    }

    def sample(self, rng: Random) -> dict[str, int] | None:
        p = super().sample(rng)
        assert p is not None
        if (p["transposed"] and min(p["k"], p["n"]) < 2) or (p["bias"] and p["m"] < 2):
            return None
        return p

    def build(self, p: Mapping[str, int]) -> Built:
        a = torch.empty(p["batch"], p["m"], p["k"])
        b = torch.empty(p["batch"], p["k"], p["n"])
        if p["transposed"]:
            b = torch.empty(p["batch"], p["n"], p["k"]).transpose(1, 2)
        if p["bias"]:
            return module(torch.baddbmm), (torch.empty(1, p["m"], p["n"]), a, b)
        return module(torch.bmm), (a, b)

    def describe(self, call: Call) -> dict[str, int] | None:
        *rest, a, b = call.tensors
        bias = rest[0] if rest else None
        batch = a.shape[0] if a.dim() == 3 else 1
        return {
            "batch": batch,
            "m": a.shape[-2],
            "k": a.shape[-1],
            "n": b.shape[-1] if b.dim() > 1 else 1,
            "bias": int(bias is not None and bias.numel() > b.shape[-1]),
            "transposed": int(b.dim() > 1 and b.stride(-2) == 1 and b.shape[-1] > 1 < b.shape[-2]),
        }

    def cost(self, p: Mapping[str, int], itemsize: int) -> Cost:
        batch, m, k, n = p["batch"], p["m"], p["k"], p["n"]
        return Cost(
            macs=batch * m * k * n,
            bytes_in=itemsize * (batch * (m * k + k * n) + p["bias"] * m * n),
            bytes_weight=0,
            bytes_out=itemsize * batch * m * n,
            elements=batch * m * n,
        )

    def drivers(self, p: Mapping[str, int], cost: Cost) -> dict[str, float]:
        padded = p["batch"] * _padded(p["m"], p["k"], p["n"])
        return {"macs_padded": padded, "matrices": p["batch"], **super().drivers(p, cost)}
