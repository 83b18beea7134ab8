"""Losses: the last operation of a training step's forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

import torch
from torch.nn import functional

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

LARGEST_SAMPLE = 2**22
"""Elements of the log probabilities, of which many copies are made though few are read."""


@register
class NegativeLogLikelihood(LayerType):
    """The mean over ``rows`` of one of ``classes`` log probabilities each: cross entropy's end."""

    kind = "nll_loss"
    claims = ("nll_loss_forward", "nll_loss2d_forward")
    space = {"rows": LogInt(1, 65536, powers=0.5), "classes": LogInt(2, 65536)}

    def sample(self, rng: Random) -> dict[str, int] | None:
        p = super().sample(rng)
        assert p is not None
        return p if p["rows"] * p["classes"] <= LARGEST_SAMPLE else None

    def build(self, p: Mapping[str, int]) -> Built:
        target = torch.randint(p["classes"], (p["rows"],), device="cpu")
        return module(functional.nll_loss), (torch.empty(p["rows"], p["classes"]), target)

    def describe(self, call: Call) -> dict[str, int]:
        x = call["self"]
        classes = x.shape[1] if x.dim() > 1 else x.shape[0]
        return {"rows": prod(x.shape) // max(classes, 1), "classes": classes}

    def cost(self, p: Mapping[str, int], itemsize: int) -> Cost:
        return Cost(0, (itemsize + 8) * p["rows"], 0, 2 * itemsize, 2)

    def training_drivers(self, p: Mapping[str, int], cost: Cost) -> dict[str, float]:
        """The gradient is as large as the input, zeros but for one class of each row."""
        return {**self.drivers(p, cost), "gradient": p["rows"] * p["classes"]}


@register
class ElementwiseLoss(LayerType):
    """The mean over ``elements`` of a function of two tensors: squares, Huber's."""

    kind = "mse_loss"
    claims = ("mse_loss", "smooth_l1_loss", "huber_loss")
    differentiated_inputs = 1
    space = {"elements": ELEMENTS}

    def build(self, p: Mapping[str, int]) -> Built:
        return module(functional.mse_loss), (torch.empty(p["elements"]), torch.empty(p["elements"]))

    def describe(self, call: Call) -> dict[str, int]:
        return {"elements": call["self"].numel()}

    def cost(self, p: Mapping[str, int], itemsize: int) -> Cost:
        return Cost(0, 2 * itemsize * p["elements"], 0, itemsize, 1)
