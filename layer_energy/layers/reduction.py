"""Reductions of one or more dimensions to a number each."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from layer_energy.layers.base import Built, Call, LayerType, LogInt, flag, module, prod, register
from layer_energy.workload import Cost


@register
class Reduction(LayerType):
    """``kept`` results, each of ``reduced`` elements; ``inner`` 1 where the last dimension goes."""

    kind = "reduction"
    claims = ("sum", "mean", "amax", "amin", "max", "min", "prod", "var", "std", "var_mean",
              "std_mean", "norm", "linalg_vector_norm", "argmax", "argmin", "any", "all",
              "logsumexp", "aminmax", "count_nonzero")  # fmt: skip
    space = {
        "kept": LogInt(1, 2**20),
        "reduced": LogInt(2, 2**16),
        "inner": flag(0.7),
    }

    def build(self, p: Mapping[str, int]) -> Built:
        if p["inner"]:
            return module(lambda x: x.sum(1)), (torch.empty(p["kept"], p["reduced"]),)
        return module(lambda x: x.sum(0)), (torch.empty(p["reduced"], p["kept"]),)

    def describe(self, call: Call) -> dict[str, int] | None:
        x, result = call.tensors[0], call.result
        if result is None or not x.numel():
            return None
        if len(call.tensors) > 1:  # max and min of two tensors are element-wise
            return None
        dims = call.get("dim")
        dims = [dims] if isinstance(dims, int) else list(dims or range(x.dim()))
        dims = [d % max(x.dim(), 1) for d in dims]
        reduced = prod([x.shape[d] for d in dims]) if x.dim() else 1
        last = max(x.dim() - 1, 0)
        kept = max(1, x.numel() // max(reduced, 1))
        return {"kept": kept, "reduced": reduced, "inner": int(last in dims or not x.dim())}

    def cost(self, p: Mapping[str, int], itemsize: int) -> Cost:
        kept = p["kept"]
        return Cost(0, itemsize * kept * p["reduced"], 0, itemsize * kept, kept)
