"""What autograd does for the operations of a forward pass, without running it.

A tensor carries a role: ``"weight"`` if it is a trained weight or made of such alone, ``"input"``
if gradients flow through it to anything trained, none otherwise. An operation then pays for the
gradients of its inputs, of its weights, of both, or of neither. Besides its operations a backward
pass adds the gradients of a tensor that several of them use, and undoes views: the gradient of a
slice is a tensor of zeros with a slice filled in, that of an expansion is a sum.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from layer_energy.layers.base import workload
from layer_energy.workload import Gradients, Workload

SLICES = frozenset({"slice", "select", "diagonal", "unfold", "as_strided"})
PIECES = frozenset({"split", "split_with_sizes", "unbind", "chunk", "tensor_split"})

_ROLE, _USES = "_layer_energy_role", "_layer_energy_uses"
_NONE = (None, None)


def differentiable(t: torch.Tensor) -> bool:
    """Whether gradients can flow through it."""
    return t.is_floating_point() or t.is_complex()


class Tape:
    """Follows roles from tensor to tensor; marks are attributes of the tensors themselves.

    What is written into a part of a tensor marks its storage, for all of its views to see.

    Attributes:
        used: ``id`` of each trained parameter that an operation used.
    """

    def __init__(self) -> None:
        self.used: set[int] = set()
        self._marks_storages = False

    def role(self, t: torch.Tensor) -> str | None:
        """``"weight"``, ``"input"``, or ``None`` where no gradient flows."""
        if isinstance(t, torch.nn.Parameter):
            return "weight" if t.requires_grad else None
        if t.requires_grad:
            return "input"
        marked_by, role = getattr(t, _ROLE, _NONE)
        if role is None and self._marks_storages and differentiable(t):
            marked_by, role = getattr(t.untyped_storage(), _ROLE, _NONE)
        return role if marked_by is self else None

    def gradients(self, tensors: list[torch.Tensor]) -> Gradients:
        """What an operation on these tensors pays for."""
        self.used.update(id(t) for t in tensors if isinstance(t, torch.nn.Parameter))
        roles = {self.role(t) for t in tensors}
        if "weight" in roles:
            return "both" if "input" in roles else "weight"
        return "input" if "input" in roles else "none"

    def mark(self, tensors: list[torch.Tensor], outputs: list[torch.Tensor], written: bool) -> None:
        """Hand the role of an operation's tensors on to what it returned, or wrote in place."""
        roles = {self.role(t) for t in tensors}
        if roles <= {None}:
            return
        role = "weight" if roles == {"weight"} else "input"
        for t in filter(differentiable, outputs):
            setattr(t, _ROLE, (self, role))
            if written and t.numel() * t.element_size() < t.untyped_storage().size():
                setattr(t.untyped_storage(), _ROLE, (self, role))
                self._marks_storages = True

    def backward(
        self, operation: str, tensors: list[torch.Tensor], outputs: list[torch.Tensor], view: bool
    ) -> Iterator[Workload]:
        """What a backward pass does for an operation's use of its tensors, besides the operation.

        Args:
            operation: its name.
            tensors: what it reads.
            outputs: what it returned, an input written in place among them.
            view: it moves nothing.
        """
        for t in {id(t): t for t in tensors}.values():
            if self.role(t) is None:
                continue
            if self._used(t):
                n = max(t.numel(), 1)
                yield _like(t, "add", elements=n, other=n, in_place=1)
            if view:
                yield from _undone(operation, t, outputs)
        for t in outputs:
            self._use(t, 0)  # what was written in place is a new tensor to autograd

    def _used(self, t: torch.Tensor) -> bool:
        """Count a use of a tensor; whether it had been used before."""
        marked_by, uses = getattr(t, _USES, (None, 0))
        uses = uses if marked_by is self else 0
        self._use(t, uses + 1)
        return uses > 0

    def _use(self, t: torch.Tensor, uses: int) -> None:
        setattr(t, _USES, (self, uses))


@contextlib.contextmanager
def unmarked(model: torch.nn.Module) -> Iterator[None]:
    """Take the marks off a model's own tensors in the end, where it is walked itself."""
    tensors = (*model.parameters(), *model.buffers())
    try:
        yield
    finally:
        for t in tensors:
            for mark in (_ROLE, _USES):
                vars(t).pop(mark, None)


def _undone(operation: str, base: torch.Tensor, outputs: list[torch.Tensor]) -> Iterator[Workload]:
    """The gradient of a view's base."""
    n = max(base.numel(), 1)
    result = outputs[0].numel()
    if operation in SLICES and result < n:
        yield _like(base, "fill", elements=n)
        yield _like(base, "copy", elements=max(result, 1), run=max(result, 1))
    elif operation in PIECES and len(outputs) > 1:
        yield _like(base, "cat", elements=n, inputs=len(outputs), run=n // len(outputs) or 1)
    elif operation == "expand" and result > n:
        yield _like(base, "reduction", kept=n, reduced=result // n, inner=0)


def _like(t: torch.Tensor, kind: str, **params: int) -> Workload:
    return workload(kind, str(t.dtype).removeprefix("torch."), **params)
