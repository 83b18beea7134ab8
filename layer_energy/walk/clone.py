"""Stand-ins for a model that cost no memory and leave the model itself untouched."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from layer_energy.errors import WalkError
from layer_energy.walk import wrappers

HOST_CONSTANT_ELEMENTS = 4096
"""Integer buffers up to this size keep their values: they steer control flow (position ids ...)."""


def check_materialised(model: nn.Module) -> None:
    """Refuse lazy modules, whose shapes are not known before their first call."""
    for path, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise WalkError(
                f"{path!r} of {type(model).__name__} is still lazy: its shape is set by "
                "the first forward. Run the model once on a real input, then ask again."
            )


def to_meta(tree: Any) -> Any:
    """The same nest of containers with every tensor replaced by one without storage."""

    def empty(t: torch.Tensor) -> torch.Tensor:
        return _without_storage(t).requires_grad_(t.requires_grad)

    return tree_map_only(torch.Tensor, empty, tree)


def meta_clone(model: nn.Module) -> nn.Module:
    """Deep-copy a model's structure with parameters and buffers on the meta device.

    ``requires_grad``, attributes, hooks and integer buffers up to ``HOST_CONSTANT_ELEMENTS``
    elements are kept. Wrappers are not: the clone is of what they wrap, whole where it is sharded.
    """
    memo: dict[int, Any] = {}
    for p in model.parameters():
        if id(p) not in memo:
            memo[id(p)] = nn.Parameter(_without_storage(p), requires_grad=p.requires_grad)
    for b in model.buffers():
        if id(b) not in memo and (b.is_floating_point() or b.numel() > HOST_CONSTANT_ELEMENTS):
            memo[id(b)] = _without_storage(b)
    wrappers.seed(model, memo)
    clone = copy.deepcopy(model, memo)
    wrappers.strip(clone)
    return clone


def _without_storage(t: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")


@contextlib.contextmanager
def generators_kept() -> Iterator[None]:
    """Undo on exit what was drawn from torch's and Python's random generators."""
    state = random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(state)


@contextlib.contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Undo on exit whatever a forward did to attributes, buffers and train flags."""
    modules = list(model.modules())
    attributes = [
        (m.__dict__, dict(m.__dict__), {k: copy.copy(v) for k, v in m.__dict__.items()
                                        if type(v) in (dict, list, set)})
        for m in modules
    ]  # fmt: skip
    buffers = [(b, b.detach().clone()) for b in model.buffers() if not b.is_meta]
    try:
        yield
    finally:
        for live, before, containers in attributes:
            for name in set(live) - set(before):
                del live[name]
            live.update(before)
            for name, contents in containers.items():
                container = live[name]
                container.clear()
                (container.extend if type(container) is list else container.update)(contents)
        with torch.no_grad():
            for buffer, value in buffers:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
