"""Stand-ins for torch's own layers that many models share, told apart by all that they are."""

from __future__ import annotations

import copy
import marshal
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import torch
from torch import nn

from layer_energy.walk.clone import meta_clone

LONGEST = 8
"""Layers of an ``nn.Sequential`` that is taken as one; longer ones are seldom met again."""

_NOT_PLAIN = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training"}


@dataclass(slots=True)
class Leaf:
    """A layer on the meta device, in place of every layer that is like it.

    Attributes:
        kind: the same for all stand-ins of like layers.
        module: the layer.
        held: containers of its attributes in all its parts.
        before: copies of those, to see whether a forward changed any.
        empty: the containers that hold nothing, such as those of hooks.
        constants: tensors that have values.
        versions: how often those had been written.
    """

    kind: object
    module: nn.Module
    held: list[Any] = field(init=False)
    before: list[Any] = field(init=False)
    empty: list[Any] = field(init=False)
    constants: list[torch.Tensor] = field(init=False)
    versions: list[int] = field(init=False)

    def watch(self) -> None:
        """Note how all attributes are."""
        containers = _containers(self.module)
        self.held = [held for held in containers if held]
        self.before = list(map(copy.copy, self.held))
        self.empty = [held for held in containers if not held]
        self.constants = [b for b in self.module.buffers() if not b.is_meta]
        self.versions = [b._version for b in self.constants]

    @property
    def intact(self) -> bool:
        """Whether all attributes are as they were."""
        try:
            return (
                not any(self.empty)
                and [t._version for t in self.constants] == self.versions
                and self.held == self.before
            )
        except (RuntimeError, ValueError):  # another tensor or array, which has no truth value
            return False


class Leaves:
    """Makes stand-ins, as many of a kind as the largest model needs.

    A layer has one if its class is one of ``torch.nn`` and it has no hooks, no attributes but plain
    values, and no children; or if it is a short ``nn.Sequential`` of such layers.
    """

    def __init__(self, replace_forward: Callable[[Leaf], Callable[..., Any]]) -> None:
        self._replace_forward = replace_forward
        self._made: dict[Hashable, list[Leaf]] = {}
        self._attributes: dict[type, tuple[int, Any, Any] | None] = {}

    def __len__(self) -> int:
        return len(self._made)

    def stand_ins(self, model: nn.Module) -> list[tuple[nn.Module, Leaf]]:
        """Layers of the model and their stand-ins, no two the same."""
        used: dict[int, int] = {}
        chosen: list[tuple[nn.Module, Leaf]] = []
        visited = set()
        todo = [model]
        while todo:
            module = todo.pop()
            if id(module) in visited:
                continue
            visited.add(id(module))
            key = self._key(module)
            if key is None:
                todo += [child for child in module._modules.values() if child is not None]
                continue
            alike = self._made.setdefault(key, [])
            n = used.get(id(alike), 0)
            used[id(alike)] = n + 1
            if n == len(alike):
                alike.append(self._make(alike[0].kind if alike else object(), module))
            chosen.append((module, alike[n]))
        return chosen

    def forget(self) -> None:
        """Drop all stand-ins."""
        self._made.clear()

    def _make(self, kind: object, module: nn.Module) -> Leaf:
        clone = meta_clone(module).train(False)
        leaf = Leaf(kind, clone)
        clone.__dict__["forward"] = self._replace_forward(leaf)
        leaf.watch()
        return leaf

    def _key(self, module: nn.Module) -> Hashable | None:
        of, state = type(module), module.__dict__
        if of not in self._attributes:
            self._attributes[of] = _attributes(module)
        known = self._attributes[of]
        if known is None or len(state) != known[0]:
            return None
        _, plain, hooks = known
        try:
            if any(hooks(state)):
                return None
            # bytes that tell 1, 1.0 and True apart; version 2 has no references between objects
            key = [of, marshal.dumps(plain(state), 2)]
        except (KeyError, ValueError):  # attributes of its own, or not of a plain type
            return None
        for tensors in (state["_parameters"], state["_buffers"]):
            for name, t in tensors.items():
                key.append(name)
                if t is None:
                    continue
                key += (type(t), t.shape, t.stride(), t.dtype, t.requires_grad)
                if not t.is_floating_point() and not t.is_meta:
                    if t.numel() > 1:
                        return None
                    key.append(t.item())  # a forward may read it: the clone keeps its value
        children = state["_modules"]
        if children:
            if of is not nn.Sequential or len(children) > LONGEST:
                return None
            for name, child in children.items():
                inner = self._key(child)
                if inner is None:
                    return None
                key += (name, inner)
        return tuple(key)


def _attributes(module: nn.Module) -> tuple[int, Any, Any] | None:
    """How many there are, and how to get the plain ones and the hooks."""
    if not type(module).__module__.startswith("torch.nn.modules."):
        return None
    names = module.__dict__.keys() - _NOT_PLAIN
    hooks = sorted(name for name in names if "_hooks" in name)
    return len(module.__dict__), itemgetter(*sorted(names - set(hooks))), itemgetter(*hooks)


def _containers(module: nn.Module) -> list[Any]:
    """Whatever a forward may put something into."""
    held: list[Any] = []
    for part in module.modules():
        held.append(part.__dict__)
        held += (v for v in part.__dict__.values() if isinstance(v, (dict, list, set)))
    return held
