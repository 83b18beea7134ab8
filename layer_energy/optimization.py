"""What a training step does besides its network: loss, optimizer, frozen layers, repetition."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils._pytree import tree_leaves

from layer_energy.errors import InvalidInput, WalkError

LEARNING_RATE = 1e-6

Loss = Callable[[Any], torch.Tensor]
"""What the model returned → one number."""

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": functools.partial(torch.optim.SGD, lr=LEARNING_RATE, momentum=0.9),
    "adam": functools.partial(torch.optim.Adam, lr=LEARNING_RATE),
    "adamw": functools.partial(torch.optim.AdamW, lr=LEARNING_RATE),
}
"""By name, as torch makes them: on a CPU tensor by tensor, on a GPU in lists (``foreach``)."""

FOREACH_DEVICES = ("cuda", "xpu")
"""Kinds of device on which torch's optimizers work on lists of tensors."""


@dataclass(frozen=True)
class TrainingStep:
    """A step: ``accumulation`` forward and backward passes, and one of the optimizer.

    Attributes:
        optimizer: ``"sgd"`` (with momentum), ``"adam"``, ``"adamw"``, or a callable that makes one
            of parameters, such as ``functools.partial(torch.optim.RMSprop, lr=0.1)``.
        loss: from what the model returns to one number; cross entropy with random classes if not
            given.
        accumulation: micro-batches per step of the optimizer.
        checkpointing: ``True`` where every activation is computed twice to save memory, or the
            paths of the modules of which that is true.
        foreach: an optimizer given by name works on lists of tensors, as torch's do on a GPU.

    Raises:
        InvalidInput: for an optimizer that has no such name, less than one micro-batch, and what is
            no loss and no module paths.
    """

    optimizer: str | MakeOptimizer = "adamw"
    loss: Loss | None = None
    accumulation: int = 1
    checkpointing: bool | Sequence[str] = False
    foreach: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.optimizer, str) and self.optimizer not in OPTIMIZERS:
            raise InvalidInput(
                f"optimizer must be one of {', '.join(OPTIMIZERS)}, or a callable that makes one "
                f"of parameters, got {self.optimizer!r}"
            )
        if not isinstance(self.optimizer, str) and not callable(self.optimizer):
            raise InvalidInput(
                "optimizer must be a name or a callable that makes one of parameters, such as "
                "functools.partial(torch.optim.RMSprop, lr=0.1); got "
                f"{type(self.optimizer).__name__}"
            )
        if self.loss is not None and not callable(self.loss):
            raise InvalidInput(
                "loss must be a callable: what the model returns -> a number, got "
                f"{type(self.loss).__name__}"
            )
        whole = isinstance(self.accumulation, Integral) and not isinstance(self.accumulation, bool)
        if not whole or self.accumulation < 1:
            raise InvalidInput(
                f"accumulation is a number of micro-batches, at least 1, got {self.accumulation!r}"
            )
        object.__setattr__(self, "accumulation", int(self.accumulation))  # NumPy's, too
        paths = self.checkpointing
        if isinstance(paths, str) or not isinstance(paths, (bool, Collection)):
            raise InvalidInput(
                f"checkpointing must be True, False or a list of module paths, got {paths!r}"
            )

    def make_optimizer(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """An optimizer of these parameters."""
        if isinstance(self.optimizer, str):
            return OPTIMIZERS[self.optimizer](parameters, foreach=self.foreach or None)
        optimizer = self.optimizer(parameters)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise InvalidInput(
                f"the optimizer's factory made a {type(optimizer).__name__}, not a "
                "torch.optim.Optimizer"
            )
        return optimizer

    def loss_of(self, outputs: Any) -> torch.Tensor:
        """The number to differentiate.

        Raises:
            InvalidInput: if the loss given makes anything else.
            WalkError: if none was given and there is nothing to make one of.
        """
        loss = (self.loss or default_loss)(outputs)
        tensor = isinstance(loss, torch.Tensor)
        if not tensor or loss.numel() != 1 or not loss.is_floating_point():
            made = f"{loss.dtype} of shape {tuple(loss.shape)}" if tensor else type(loss).__name__
            raise InvalidInput(
                "a loss is one floating number, a tensor with one element that gradients can be "
                f"computed of, got {made}; reduce it, as with .mean()"
            )
        return loss

    @property
    def sentence(self) -> str:
        """For the assumptions of a report."""
        name = self.optimizer if isinstance(self.optimizer, str) else "a given optimizer"
        loss = "the loss given" if self.loss else "the model's own loss or cross entropy"
        parts = [f"with {loss}"]
        if self.accumulation > 1:
            parts.append(f"{self.accumulation} micro-batches")
        if self.checkpointing:
            parts.append("activation checkpointing")
        return f"a training step {', '.join(parts)}, and {name} on what is not frozen"


@dataclass(frozen=True)
class Mode:
    """How a whole network is measured: its training step, ``None`` for a forward pass."""

    step: TrainingStep | None = None
    frozen_backbone: bool = False


MODES = {
    "inference": Mode(),
    "training": Mode(TrainingStep("sgd")),
    "training-adamw": Mode(TrainingStep("adamw")),
    "head-training": Mode(TrainingStep("sgd"), frozen_backbone=True),
}


def default_loss(outputs: Any) -> torch.Tensor:
    """Cross entropy of every output with an axis of classes, the second one of images.

    A model that computes its own (Hugging Face models, given labels) has it taken. For anything
    without classes it is the mean square.

    Raises:
        WalkError: if no output is a floating tensor.
    """
    own = getattr(outputs, "loss", None)
    if isinstance(own, torch.Tensor):
        return own
    tensors = [t for t in tree_leaves(_plain(outputs)) if isinstance(t, torch.Tensor)]
    losses = [_loss_of(t) for t in tensors if t.is_floating_point()]
    if not losses:
        raise WalkError(
            f"the model returned {type(outputs).__name__} without a floating tensor, of which no "
            "loss can be made; give one: loss=lambda outputs: ..."
        )
    return functools.reduce(torch.add, losses)


def _plain(outputs: Any) -> Any:
    """Logits alone, where a model names them; else everything it returned."""
    logits = getattr(outputs, "logits", None)
    if isinstance(logits, torch.Tensor) and not isinstance(outputs, tuple):
        return logits
    return dict(outputs) if hasattr(outputs, "keys") else outputs


def _loss_of(output: torch.Tensor) -> torch.Tensor:
    if output.dim() < 2:
        return output.square().mean()
    classes = 1 if output.dim() in (2, 4, 5) else output.dim() - 1
    logits = output.movedim(classes, -1).flatten(0, -2)
    target = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    return cross_entropy(logits, target)


def freeze_backbone(model: nn.Module) -> nn.Module:
    """Leave only the last layer that has parameters to be trained; returns the model.

    The first stage of transfer learning, as in del Rey et al. 2025 (arXiv 2307.05520).
    """
    model.requires_grad_(False)
    layers = [m for m in model.modules() if list(m.parameters(recurse=False))]
    if layers:
        layers[-1].requires_grad_(True)
    return model
