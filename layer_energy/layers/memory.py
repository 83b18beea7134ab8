"""Operations that only move bytes: copies, fills, concatenation, and the generic fallback."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

import torch

from layer_energy.layers.base import (
    ELEMENTS,
    Built,
    Call,
    LayerType,
    LogInt,
    module,
    prod,
    register,
)
from layer_energy.workload import Cost


def contiguous_run(x: torch.Tensor) -> int:
    """Elements that lie one after the other in memory, walking the last dimensions inwards."""
    run = 1
    for size, stride in zip(reversed(x.shape), reversed(x.stride()), strict=True):
        if size != 1 and stride != run:
            break
        run *= size
    return run


@register
class Copy(LayerType):
    """``elements`` copied in contiguous runs of ``run``: clone, contiguous, casts, rolls, pads."""

    kind = "copy"
    claims = ("clone", "copy_", "_to_copy", "constant_pad_nd", "roll", "flip",
              "reflection_pad1d", "reflection_pad2d", "replication_pad2d", "im2col", "repeat",
              "channel_shuffle", "pixel_shuffle", "pixel_unshuffle", "diagonal_copy")  # fmt: skip
    space = {"elements": ELEMENTS, "run": LogInt(1, 4096, aligned=0.5)}

    def sample(self, rng: Random) -> dict[str, int] | None:
        p = super().sample(rng)
        assert p is not None
        if rng.random() < 0.4:
            return {"elements": p["elements"], "run": p["elements"]}
        rows = max(2, p["elements"] // p["run"] // 2) * 2
        return {"elements": rows * p["run"], "run": p["run"]} if rows > 2 else None

    def build(self, p: Mapping[str, int]) -> Built:
        run, rows = p["run"], p["elements"] // p["run"]
        if rows == 1:
            return module(torch.clone), (torch.empty(p["elements"]),)
        # as square a transposition of rows as the count allows
        high = next(n for n in range(int(rows**0.5), 0, -1) if rows % n == 0)
        x = torch.empty(rows // high, high, run).transpose(0, 1)
        return module(lambda x: x.clone(memory_format=torch.contiguous_format)), (x,)

    def describe(self, call: Call) -> dict[str, int] | None:
        result = call.result
        if result is None:
            return None
        source = call.tensors[-1] if call.op == "copy_" else call.tensors[0]
        if source.numel() != result.numel():  # padding and repetition write whole rows
            run = prod(source.shape[-1:])
        elif call.op == "roll":
            run = prod(source.shape[min((d % source.dim() for d in call["dims"]), default=0) :])
        elif source.stride() == result.stride():
            run = source.numel()
        else:
            run = contiguous_run(source)
        return {"elements": result.numel(), "run": max(run, 1)}

    def cost(self, p: Mapping[str, int], itemsize: int) -> Cost:
        size = itemsize * p["elements"]
        return Cost(0, size, 0, size, p["elements"])

    def drivers(self, p: Mapping[str, int], cost: Cost) -> dict[str, float]:
        return {"runs": p["elements"] / p["run"], "bytes_in": cost.bytes_in}


@register
class Fill(LayerType):
    """``elements`` written with a constant or a sequence: zeros, ones, full, arange, one-hot."""

    kind = "fill"
    claims = ("zeros", "ones", "full", "zeros_like", "ones_like", "full_like", "new_zeros",
              "new_ones", "new_full", "fill_", "zero_", "arange", "linspace", "eye", "rand",
              "randn", "rand_like", "randn_like", "normal_", "uniform_", "bernoulli_",
              "scalar_tensor", "fill", "zero", "randint", "randperm", "tril_indices")  # fmt: skip
    space = {"elements": ELEMENTS}
    differentiable = False

    def build(self, p: Mapping[str, int]) -> Built:
        return module(torch.Tensor.zero_), (torch.empty(p["elements"]),)

    def describe(self, call: Call) -> dict[str, int] | None:
        return None if call.result is None else {"elements": call.result.numel()}

    def cost(self, p: Mapping[str, int], itemsize: int) -> Cost:
        return Cost(0, 0, 0, itemsize * p["elements"], p["elements"])

    def drivers(self, p: Mapping[str, int], cost: Cost) -> dict[str, float]:
        return {"bytes_out": cost.bytes_out}


@register
class Concatenation(LayerType):
    """``inputs`` tensors joined into ``elements``, copied in runs of ``run`` each."""

    kind = "cat"
    claims = ("cat", "concat", "stack")
    space = {
        "elements": ELEMENTS,
        "inputs": LogInt(2, 24),
        "run": LogInt(16, 2**20, aligned=0.5),
    }

    def sample(self, rng: Random) -> dict[str, int] | None:
        p = super().sample(rng)
        assert p is not None
        outer = max(1, p["elements"] // (p["inputs"] * p["run"]))
        return {**p, "elements": outer * p["inputs"] * p["run"]}

    def build(self, p: Mapping[str, int]) -> Built:
        outer = p["elements"] // (p["inputs"] * p["run"])
        tensors = tuple(torch.empty(outer, p["run"]) for _ in range(p["inputs"]))
        return module(lambda *tensors: torch.cat(tensors, 1)), tensors

    def describe(self, call: Call) -> dict[str, int] | None:
        result = call.result
        if result is None:
            return None
        tensors = [t for t in call.tensors if t.numel()] or call.tensors
        dim = call["dim"] % max(result.dim(), 1)
        outer = prod(result.shape[:dim])
        run = max(1, result.numel() // max(1, outer * len(tensors)))
        return {"elements": result.numel(), "inputs": len(tensors), "run": run}

    def cost(self, p: Mapping[str, int], itemsize: int) -> Cost:
        size = itemsize * p["elements"]
        return Cost(0, size, 0, size, p["elements"])

    def drivers(self, p: Mapping[str, int], cost: Cost) -> dict[str, float]:
        return {
            "inputs": p["inputs"],
            "runs": p["elements"] / p["run"],
            "bytes_in": cost.bytes_in,
        }


GENERIC = "generic"


@register
class Generic(LayerType):
    """What no layer type claims: priced by the bytes it moves, and always flagged."""

    kind = GENERIC
    space = {"bytes_in": LogInt(4, 2**28), "bytes_out": LogInt(4, 2**28)}

    def build(self, p: Mapping[str, int]) -> Built:
        raise NotImplementedError("the generic law is never measured: it borrows that of copies")

    def describe(self, call: Call) -> dict[str, int]:
        """Bytes of the distinct elements read and written; broadcast dimensions count once."""
        written = call.get("self") if call.output is None and call.in_place else call.output
        outputs = written if isinstance(written, (tuple, list)) else [written]
        return {
            "bytes_in": sum(_stored_bytes(t) for t in call.tensors),
            "bytes_out": sum(_stored_bytes(t) for t in outputs if isinstance(t, torch.Tensor)),
        }

    def cost(self, p: Mapping[str, int], itemsize: int) -> Cost:
        return Cost(0, p["bytes_in"], 0, p["bytes_out"], p["bytes_out"] // itemsize)


def _stored_bytes(x: Any) -> int:
    distinct = (n for n, stride in zip(x.shape, x.stride(), strict=True) if stride)
    return prod(list(distinct)) * int(x.element_size())
