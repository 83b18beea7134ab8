"""Arithmetic element by element, and random masks (dropout)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import torch
from torch import nn

from layer_energy.layers.base import (
    ELEMENTS,
    Built,
    Call,
    Distribution,
    LayerType,
    LogInt,
    flag,
    module,
    register,
)
from layer_energy.workload import Cost


def _both(*names: str) -> tuple[str, ...]:
    return tuple(name + suffix for name in names for suffix in ("", "_"))


class Arithmetic(LayerType):
    """``elements`` results of a function of two operands.

    ``other`` is the number of elements of the second operand: 0 for a Python number, fewer than
    ``elements`` where it is broadcast.
    """

    space: Mapping[str, Distribution] = {
        "elements": ELEMENTS,
        "other": LogInt(1, 2**12),
        "in_place": flag(0.3),
    }

    def __init__(self, kind: str, function: Callable[..., Any], claims: tuple[str, ...]) -> None:
        self.kind, self.function, self.claims = kind, function, claims

    def sample(self, rng: Random) -> dict[str, int] | None:
        p = super().sample(rng)
        assert p is not None
        lottery = rng.random()
        if lottery < 0.2:
            p["other"] = 0
        elif lottery < 0.8:
            p["other"] = p["elements"]
        else:
            p["elements"] = max(1, p["elements"] // p["other"]) * p["other"]
        return p

    def build(self, p: Mapping[str, int]) -> Built:
        function = getattr(torch.Tensor, self.kind + "_") if p["in_place"] else self.function
        if not p["other"]:
            return module(lambda x: function(x, 2)), (torch.empty(p["elements"]),)
        x = torch.empty(p["elements"] // p["other"], p["other"])
        return module(function), (x, torch.empty(p["other"]))

    def describe(self, call: Call) -> dict[str, int] | None:
        result, tensors = call.result, call.tensors
        if result is None or not tensors:  # of plain numbers
            return None
        other = tensors[1].numel() if len(tensors) > 1 else 0
        if other > (first := tensors[0].numel()):
            other = first
        return {"elements": result.numel(), "other": other, "in_place": int(call.in_place)}

    def cost(self, p: Mapping[str, int], itemsize: int) -> Cost:
        size = itemsize * p["elements"]
        return Cost(0, size + itemsize * p["other"], 0, size, p["elements"])

    def drivers(self, p: Mapping[str, int], cost: Cost) -> dict[str, float]:
        fresh = 0 if p["in_place"] else cost.bytes_out
        return {"elements": cost.elements, "bytes_in": cost.bytes_in, "bytes_fresh": fresh}


register(Arithmetic("add", torch.add, (*_both("add", "sub"), "rsub")))
register(Arithmetic("mul", torch.mul, _both("mul", "addcmul", "lerp")))
register(Arithmetic("div", torch.div, _both("div", "addcdiv", "floor_divide", "remainder", "fmod")))


class Unary(LayerType):
    """``elements`` results of a cheap (compare, clamp) or a costly (exp, pow) function."""

    space: Mapping[str, Distribution] = {"elements": ELEMENTS, "in_place": flag(0.2)}

    def __init__(self, kind: str, function: str, claims: tuple[str, ...]) -> None:
        self.kind, self.function, self.claims = kind, function, claims

    def build(self, p: Mapping[str, int]) -> Built:
        function = getattr(torch, self.function + ("_" if p["in_place"] else ""))
        return module(function), (torch.empty(p["elements"]),)

    def describe(self, call: Call) -> dict[str, int] | None:
        result = call.result
        if result is None:
            return None
        return {"elements": result.numel(), "in_place": int(call.in_place)}

    def cost(self, p: Mapping[str, int], itemsize: int) -> Cost:
        size = itemsize * p["elements"]
        return Cost(0, size, 0, size, p["elements"])

    def drivers(self, p: Mapping[str, int], cost: Cost) -> dict[str, float]:
        fresh = 0 if p["in_place"] else cost.bytes_out
        return {"bytes_in": cost.bytes_in, "bytes_fresh": fresh}


_CHEAP = _both(
    *("abs", "neg", "sign", "round", "floor", "ceil", "trunc", "clamp", "clamp_min", "clamp_max"),
    *("eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_not"),
    *("bitwise_and", "bitwise_or", "bitwise_not", "bitwise_xor", "masked_fill", "tril", "triu"),
)
_CHEAP += ("where", "minimum", "maximum", "isnan", "isinf", "isfinite", "threshold", "threshold_")
_COSTLY = _both(
    *("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "rsqrt", "pow", "square"),
    *("reciprocal", "sin", "cos", "tan", "erf", "atan2", "erfinv", "cumsum", "cumprod"),
)
register(Unary("compare", "abs", _CHEAP))
register(Unary("transcendental", "exp", (*_COSTLY, "logit", "log_sigmoid", "logaddexp")))


@register
class Dropout(LayerType):
    """Random zeroing while training; at inference it returns its input and costs nothing."""

    kind = "dropout"
    claims = ("dropout", "dropout_", "native_dropout", "feature_dropout", "alpha_dropout")
    space = {"elements": ELEMENTS, "in_place": flag(0.3)}

    def build(self, p: Mapping[str, int]) -> Built:
        return nn.Dropout(0.5, bool(p["in_place"])).train(), (torch.empty(p["elements"]),)

    def describe(self, call: Call) -> dict[str, int] | None:
        if not call["train"]:
            return None
        return {"elements": call.tensors[0].numel(), "in_place": int(call.in_place)}

    def cost(self, p: Mapping[str, int], itemsize: int) -> Cost:
        size = itemsize * p["elements"]
        return Cost(0, size, 0, size, p["elements"])
