"""Stand-ins for a model that cost no memory and leave the model itself untouched."""

from __future__ import annotations

import contextlib
import copy
import random
from collections import OrderedDict
from collections.abc import Container, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from layer_energy.errors import WalkError
from layer_energy.walk import wrappers

HOST_CONSTANT_ELEMENTS = 4096
"""Integer buffers up to this size keep their values: they steer control flow (position ids ...)."""


def check_materialised(model: nn.Module, modules: list[nn.Module]) -> None:
    """Refuse lazy modules, whose shapes are not known before their first call.

    Args:
        model: to name them by their paths.
        modules: all of the model.
    """
    registries = (held for m in modules for held in (m._parameters, m._buffers) if held)
    one_of_each = {type(t): t for tensors in registries for t in tensors.values()}
    if not any(t is not None and nn.parameter.is_lazy(t) for t in one_of_each.values()):
        return
    for path, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise WalkError(
                f"{path!r} of {type(model).__name__} is still lazy: its shape is set by "
                "the first forward. Run the model once on a real input, then ask again."
            )


def to_meta(tree: Any) -> Any:
    """The same nest of containers with every tensor replaced by one without storage."""
    of = type(tree)
    if isinstance(tree, torch.Tensor):
        return _without_storage(tree).requires_grad_(tree.requires_grad)
    if of is tuple or of is list:  # what nearly all are, and slow by way of tree_map_only
        return of(map(to_meta, tree))
    if of is dict:
        return {name: to_meta(value) for name, value in tree.items()}
    return tree_map_only(torch.Tensor, to_meta, tree)


def meta_clone(model: nn.Module, stand_ins: Mapping[int, nn.Module] | None = None) -> nn.Module:
    """Deep-copy a model's structure with parameters and buffers on the meta device.

    ``requires_grad``, attributes, hooks and integer buffers up to ``HOST_CONSTANT_ELEMENTS``
    elements are kept. Wrappers are not: the clone is of what they wrap, whole where it is sharded.

    Args:
        model: what to copy.
        stand_ins: ``id`` of a module → what to put in its place.
    """
    memo: dict[int, Any] = dict(stand_ins or {})
    modules = modules_of(model, memo)
    for module in modules:
        for p in module._parameters.values():
            if p is not None and id(p) not in memo:
                memo[id(p)] = nn.Parameter(_without_storage(p), requires_grad=p.requires_grad)
        for b in module._buffers.values():
            if b is not None and id(b) not in memo:
                constant = not b.is_floating_point() and b.numel() <= HOST_CONSTANT_ELEMENTS
                memo[id(b)] = b.detach().clone() if constant else _without_storage(b)
    wrapped = wrappers.present(modules)
    if wrapped:
        wrappers.seed(model, memo)
    elif all(map(_copied_by_attributes, set(map(type, modules)))):
        # what copy.deepcopy does too, many times slower
        for module in modules:
            memo[id(module)] = type(module).__new__(type(module))
        for module in modules:
            _copy_attributes(module.__dict__, memo[id(module)].__dict__, memo)
    clone = copy.deepcopy(model, memo)
    if wrapped:
        wrappers.strip(clone)
    return clone


def evaluating(model: nn.Module, without: Container[int] = ()) -> None:
    """``model.train(False)``, quickly where no class has its own ``train``.

    Args:
        model: what to set.
        without: ``id`` of modules that are in evaluation mode already.
    """
    modules = modules_of(model, without)
    if any(of.train is not nn.Module.train for of in {type(module) for module in modules}):
        model.train(False)
        return
    for module in modules:
        module.__dict__["training"] = False


def modules_of(model: nn.Module, without: Container[int] = ()) -> list[nn.Module]:
    """``model.modules()``, faster and in another order, without those of some ``id``."""
    found = {} if id(model) in without else {id(model): model}
    todo = list(found.values())
    while todo:
        for child in todo.pop()._modules.values():
            if child is not None and id(child) not in found and id(child) not in without:
                found[id(child)] = child
                if child._modules:
                    todo.append(child)
    return list(found.values())


def _copied_by_attributes(cls: type[nn.Module]) -> bool:
    """Whether to copy a module of this class is to copy its attributes, and nothing else."""
    return (
        cls.__getstate__ is nn.Module.__getstate__
        # torch's own only add what old pickles lack
        and cls.__setstate__.__module__.startswith("torch.nn.modules.")
        and cls.__reduce_ex__ is object.__reduce_ex__
        and not hasattr(cls, "__deepcopy__")
        and not any(getattr(base, "__slots__", ()) for base in cls.__mro__)
    )


_ATOMS = frozenset({bool, int, float, str, type(None)})
_CONTAINERS = frozenset({dict, OrderedDict, set, list})
_REGISTRIES = frozenset({"_parameters", "_buffers", "_modules"})


def _copy_attributes(source: dict[str, Any], target: dict[str, Any], memo: dict[int, Any]) -> None:
    target.update(source)
    for name, value in source.items():
        of = type(value)
        if of in _ATOMS:
            continue
        if of in _CONTAINERS and not value:
            target[name] = of()
        elif name in _REGISTRIES:
            target[name] = {k: v if v is None else memo[id(v)] for k, v in value.items()}
        elif of is not tuple or not _ATOMS.issuperset(map(type, value)):
            target[name] = copy.deepcopy(value, memo)
    target.pop("_compiled_call_impl", None)


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
