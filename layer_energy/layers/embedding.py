"""Look-ups: embeddings, and gathers by an index tensor."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from layer_energy.layers.base import Built, Call, LayerType, LogInt, module, prod, register
from layer_energy.workload import Cost


@register
class Embedding(LayerType):
    """``tokens`` rows of ``dim`` elements copied from a table of ``vocabulary`` rows."""

    kind = "embedding"
    claims = ("embedding",)
    space = {
        "tokens": LogInt(1, 65536, powers=0.5),
        "vocabulary": LogInt(2, 131072),
        "dim": LogInt(8, 4096, aligned=0.8),
    }

    def build(self, p: Mapping[str, int]) -> Built:
        indices = torch.randint(p["vocabulary"], (p["tokens"],), device="cpu")
        return nn.Embedding(p["vocabulary"], p["dim"]), (indices,)

    def describe(self, call: Call) -> dict[str, int] | None:
        vocabulary, dim = call["weight"].shape
        return {"tokens": call["indices"].numel(), "vocabulary": vocabulary, "dim": dim}

    def cost(self, p: Mapping[str, int], itemsize: int) -> Cost:
        elements = p["tokens"] * p["dim"]
        return Cost(0, 8 * p["tokens"], itemsize * elements, itemsize * elements, elements)

    def drivers(self, p: Mapping[str, int], cost: Cost) -> dict[str, float]:
        return {"tokens": p["tokens"], "bytes_out": cost.bytes_out}

    def training_drivers(self, p: Mapping[str, int], cost: Cost) -> dict[str, float]:
        """The gradient is as large as the table, zeros for every word that did not occur."""
        return {**self.drivers(p, cost), "table": p["vocabulary"] * p["dim"]}


@register
class Gather(LayerType):
    """``elements`` elements in runs of ``run`` read at an index; ``index_select`` and its kin."""

    kind = "gather"
    claims = ("index_select", "gather", "index", "take", "index_put_", "index_put", "scatter")
    space = {"elements": LogInt(16, 2**25), "run": LogInt(1, 4096, aligned=0.6)}

    def build(self, p: Mapping[str, int]) -> Built:
        rows = max(1, p["elements"] // p["run"])
        indices = torch.randint(rows, (rows,), device="cpu")
        x = torch.empty(rows, p["run"])
        return module(lambda x, i: x.index_select(0, i)), (x, indices)

    def sample(self, rng: object) -> dict[str, int] | None:
        p = super().sample(rng)  # type: ignore[arg-type]  # the base draws from a random.Random
        assert p is not None
        return {**p, "elements": max(1, p["elements"] // p["run"]) * p["run"]}

    def describe(self, call: Call) -> dict[str, int] | None:
        source, target = call.tensors[0], call.result
        if target is None:
            return None
        run = 1
        if call.op == "index_select":
            dim = call["dim"] % max(source.dim(), 1)
            run = prod(source.shape[dim + 1 :])
        elif call.op in ("index", "index_put", "index_put_"):
            run = prod(source.shape[_last_indexed(call["indices"]) + 1 :])
        written = call["values"] if call.op.startswith("index_put") else target
        return {"elements": written.numel(), "run": max(1, run)}

    def cost(self, p: Mapping[str, int], itemsize: int) -> Cost:
        size = itemsize * p["elements"]
        return Cost(0, size + 8 * (p["elements"] // p["run"]), 0, size, p["elements"])

    def drivers(self, p: Mapping[str, int], cost: Cost) -> dict[str, float]:
        return {"runs": p["elements"] / p["run"], "bytes_in": cost.bytes_in}


def _last_indexed(indices: list[torch.Tensor | None]) -> int:
    return max((d for d, i in enumerate(indices) if i is not None), default=0)
