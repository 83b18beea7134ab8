"""A whole model → something to execute again and again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from layer_energy.errors import MeasureError
from layer_energy.optimization import MODES, TrainingStep, freeze_backbone

HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}

Inputs = Sequence[Any]


def network(
    model: torch.nn.Module, inputs: Sequence[Inputs], mode: str, dtype: str = "float32"
) -> Callable[[], Any]:
    """One execution of a model, in its mode, over rotating inputs.

    Args:
        model: on its device, its parameters in their dtype.
        inputs: positional inputs, one of which is taken after the other.
        mode: one of :data:`layer_energy.optimization.MODES`.
        dtype: of a training step under autocast, if it is of half precision.

    Raises:
        MeasureError: for a mode that is none.
    """
    if mode not in MODES:
        raise MeasureError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    rotating = itertools.cycle(inputs)
    step = MODES[mode].step
    if step is None:
        model.eval()

        def forward() -> Any:
            with torch.inference_mode():
                return model(*next(rotating))

        return forward
    if MODES[mode].frozen_backbone:
        freeze_backbone(model)
    return training_step(model.train(), rotating, step, dtype)


def training_step(
    model: torch.nn.Module, inputs: Any, step: TrainingStep, dtype: str = "float32"
) -> Callable[[], None]:
    """A step of ``step.accumulation`` micro-batches, under autocast in half precision."""
    trained = [p for p in model.parameters() if p.requires_grad]
    device = trained[0].device.type
    optimizer = step.make_optimizer(trained)

    def run() -> None:
        optimizer.zero_grad()
        for _ in range(step.accumulation):
            with torch.autocast(device, HALF.get(dtype, torch.bfloat16), enabled=dtype in HALF):
                loss = step.loss_of(model(*next(inputs)))
            loss.backward()
        optimizer.step()

    return run
