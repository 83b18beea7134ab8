"""Activations: functions of one element, and softmax over one dimension."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from layer_energy.layers.base import (
    ELEMENTS,
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


class Activation(LayerType):
    """``y = f(x)`` element by element, written in place or to a new tensor."""

    space = {"elements": ELEMENTS, "in_place": flag(0.5)}

    def __init__(
        self, kind: str, make: Callable[[bool], nn.Module], claims: tuple[str, ...] = ()
    ) -> None:
        self.kind, self.make = kind, make
        self.claims = tuple(name + suffix for name in claims or (kind,) for suffix in ("", "_"))

    def build(self, p: Mapping[str, int]) -> Built:
        return self.make(bool(p["in_place"])), (torch.empty(p["elements"]),)

    def describe(self, call: Call) -> dict[str, int] | None:
        return {"elements": call.tensors[0].numel(), "in_place": int(call.in_place)}

    def cost(self, p: Mapping[str, int], itemsize: int) -> Cost:
        size = itemsize * p["elements"]
        return Cost(0, size, 0, size, p["elements"])

    def drivers(self, p: Mapping[str, int], cost: Cost) -> dict[str, float]:
        fresh = 0 if p["in_place"] else cost.bytes_out
        return {"bytes_in": cost.bytes_in, "bytes_fresh": fresh}


def _either(name: str) -> Callable[[bool], nn.Module]:
    """A module for functions that torch offers in place as ``name_``, but not as a module."""

    def make(in_place: bool) -> nn.Module:
        return module(getattr(torch, f"{name}_" if in_place else name))

    return make


class OutOfPlaceActivation(Activation):
    """An activation that torch never runs in place."""

    space = {"elements": ELEMENTS, "in_place": flag(0.0)}

    def __init__(self, kind: str, layer: type[nn.Module]) -> None:
        super().__init__(kind, lambda in_place: layer(), (kind,))


_MODULES: dict[str, Callable[[bool], nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "mish": nn.Mish,
    "sigmoid": _either("sigmoid"),
    "tanh": _either("tanh"),
}
for _kind, _make in _MODULES.items():
    register(Activation(_kind, _make))
register(Activation("relu6", nn.ReLU6, ("hardtanh", "relu6")))
register(Activation("leaky_relu", lambda in_place: nn.LeakyReLU(0.1, in_place)))
register(Activation("elu", lambda in_place: nn.ELU(1.0, in_place), ("elu", "celu", "selu")))
register(OutOfPlaceActivation("gelu", nn.GELU))
register(OutOfPlaceActivation("softplus", nn.Softplus))


class Softmax(LayerType):
    """Softmax over ``dim`` entries that lie ``inner`` elements apart, ``outer`` times."""

    space = {
        "outer": LogInt(1, 2**20),
        "dim": LogInt(2, 65536),
        "inner": LogInt(1, 4096),
    }

    def __init__(self, kind: str, layer: type[nn.Module], claims: tuple[str, ...]) -> None:
        self.kind, self.layer, self.claims = kind, layer, claims

    def sample(self, rng: Any) -> dict[str, int] | None:
        p = super().sample(rng)
        assert p is not None
        if rng.random() < 0.8:
            p["inner"] = 1
        return p

    def build(self, p: Mapping[str, int]) -> Built:
        return self.layer(dim=1), (torch.empty(p["outer"], p["dim"], p["inner"]),)

    def describe(self, call: Call) -> dict[str, int] | None:
        x = call.tensors[0]
        dim = call["dim"] % max(x.dim(), 1)
        return {
            "outer": prod(x.shape[:dim]),
            "dim": x.shape[dim] if x.dim() else 1,
            "inner": prod(x.shape[dim + 1 :]),
        }

    def cost(self, p: Mapping[str, int], itemsize: int) -> Cost:
        elements = p["outer"] * p["dim"] * p["inner"]
        return Cost(0, itemsize * elements, 0, itemsize * elements, elements)

    def drivers(self, p: Mapping[str, int], cost: Cost) -> dict[str, float]:
        return {"rows": p["outer"] * p["inner"], "bytes_in": cost.bytes_in}


register(Softmax("softmax", nn.Softmax, ("softmax", "_softmax", "_safe_softmax")))
register(Softmax("log_softmax", nn.LogSoftmax, ("log_softmax", "_log_softmax")))
