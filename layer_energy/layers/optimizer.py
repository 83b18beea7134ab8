"""Optimizer steps: one fused kernel over a list of parameters."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

import torch

from layer_energy.layers.base import Built, Call, LayerType, LogInt, module, prod, register
from layer_energy.workload import Cost


class FusedStep(LayerType):
    """A step over ``tensors`` parameters of ``elements`` elements together.

    ``states`` lists of running moments lie beside the parameters and their gradients: the step
    reads and writes the parameters and every state, and reads the gradients.
    """

    space = {"elements": LogInt(10**4, 2**28), "tensors": LogInt(1, 512)}
    differentiable = False

    def __init__(self, kind: str, states: int, claim: str) -> None:
        self.kind, self.states, self.claims = kind, states, (claim,)

    def sample(self, rng: Random) -> dict[str, int] | None:
        p = super().sample(rng)
        assert p is not None
        return p if p["elements"] >= p["tensors"] else None

    def build(self, p: Mapping[str, int]) -> Built:
        each = p["elements"] // p["tensors"]
        sizes = [p["elements"] - each * (p["tensors"] - 1)] + [each] * (p["tensors"] - 1)

        def tensors() -> list[torch.Tensor]:
            return [torch.empty(size) for size in sizes]

        states = [tensors() for _ in range(self.states)]
        steps = torch.ones(len(sizes), device="cpu")  # goes to the device in one copy
        return module(self._step), (tensors(), tensors(), states, steps)

    def _step(self, parameters: Any, gradients: Any, states: Any, steps: Any) -> None:
        if self.states == 1:
            torch._fused_sgd_(
                parameters, gradients, states[0], weight_decay=1e-4, momentum=0.9, lr=1e-6,
                dampening=0.0, nesterov=False, maximize=False, is_first_step=False,
            )  # fmt: skip
            return
        step: Any = torch._fused_adamw_ if self.kind == "adamw_step" else torch._fused_adam_
        step(  # with beta2 = 0 random second moments, negative ones too, are forgotten at once
            parameters, gradients, *states, [], list(steps.unbind()), lr=1e-6, beta1=0.9, beta2=0.0,
            weight_decay=1e-2, eps=1e-8, amsgrad=False, maximize=False,
        )  # fmt: skip

    def describe(self, call: Call) -> dict[str, int]:
        parameters = call["self"]
        return {
            "elements": sum(prod(t.shape) for t in parameters),
            "tensors": len(parameters),
        }

    def cost(self, p: Mapping[str, int], itemsize: int) -> Cost:
        n = p["elements"]
        written = (1 + self.states) * n
        return Cost(0, itemsize * (n + written), 0, itemsize * written, n)

    def drivers(self, p: Mapping[str, int], cost: Cost) -> dict[str, float]:
        return {"bytes": cost.bytes, "tensors": p["tensors"]}


register(FusedStep("sgd_step", 1, "_fused_sgd_"))
register(FusedStep("adam_step", 2, "_fused_adam_"))
register(FusedStep("adamw_step", 2, "_fused_adamw_"))

OPTIMIZER_STEPS = ("sgd_step", "adam_step", "adamw_step")
