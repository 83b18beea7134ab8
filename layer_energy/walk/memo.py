"""Walking many models: what a call did to arguments of such shapes is remembered.

Networks of one search space call the same functions on tensors of the same shapes over and over.
A :class:`Memo` stands *in front of* the recorder: of a function of torch, or a layer of torch.nn,
that was called in the same way before, the recorded operations are taken over and the outputs are
made from their shapes. Whatever cannot be remembered exactly runs under the recorder, as in
:func:`layer_energy.walk.walk`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._C._functorch import maybe_current_level
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch

from layer_energy.walk.clone import evaluating, generators_kept, meta_clone, to_meta
from layer_energy.walk.inputs import Inputs
from layer_energy.walk.leaves import Leaf, Leaves
from layer_energy.walk.recorder import Recorder, Seen
from layer_energy.walk.rules import META
from layer_energy.walk.scope import Scope
from layer_energy.workload import Workload

LARGEST = 20_000
"""Calls, and layers, that are remembered; some hundred megabytes."""


class Changed(Exception):
    """A forward changed what models share."""


@dataclass(frozen=True, slots=True)
class _Output:
    """How an output is made again.

    Attributes:
        argument: position among the tensors given of the one that it is, or is a view of; -1 for a
            tensor of its own.
        offset: of a view, beyond that of the argument; ``None`` for the argument itself.
    """

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    argument: int = -1
    offset: int | None = None

    def again(self, tensors: list[torch.Tensor]) -> torch.Tensor:
        if self.argument < 0:
            return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=META)
        of = tensors[self.argument]
        if self.offset is None:
            return of
        return of.as_strided(self.shape, self.stride, of.storage_offset() + self.offset)


@dataclass(frozen=True, slots=True)
class _Call:
    """What a call recorded and returned; ``container`` is the type of several outputs."""

    seen: list[Seen]
    outputs: list[_Output]
    container: type | None

    def again(self, tensors: list[torch.Tensor]) -> Any:
        if self.container is None:
            return self.outputs[0].again(tensors)
        return self.container([output.again(tensors) for output in self.outputs])


class Memo(TorchFunctionMode):
    """Walks models, one after the other, remembering the calls of all of them."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: dict[Hashable, _Call] = {}
        self._workloads: dict[Workload, Workload] = {}
        self._leaves = Leaves(self._forward_of)
        self._nowhere = Scope(nn.Module())
        self._recorder = Recorder(self._nowhere)
        self._certain = True
        self._changed = False

    def walk(self, model: nn.Module, inputs: Inputs) -> Recorder:
        """Record one forward pass in inference mode, on a clone without storage.

        Returns the recorder; what it has seen has no scope and no gradients.

        Raises:
            Exception: whatever the model raises, or ``Changed``; ``layer_energy.walk.walk`` may
                still walk it, and says what is wrong if not.
        """
        if max(len(self._calls), len(self._leaves)) > LARGEST:
            self._calls.clear()
            self._workloads.clear()
            self._leaves.forget()
        leaves = self._leaves.stand_ins(model)
        stand_ins: dict[int, nn.Module] = {}
        for original, leaf in leaves:
            stand_ins[id(original)] = leaf.module
            if original._modules:
                children = zip(
                    original._modules.values(), leaf.module._modules.values(), strict=True
                )
                stand_ins |= {id(child): copy for child, copy in children if copy is not None}
        clone = meta_clone(model, stand_ins)
        evaluating(clone)
        args, kwargs = to_meta((inputs.args, inputs.kwargs))
        recorder = self._recorder = Recorder(self._nowhere)
        self._certain, self._changed = True, False
        try:
            with generators_kept(), torch.inference_mode(), recorder, self:
                clone(*args, **kwargs)
        finally:
            changed = self._changed or not all(leaf.intact for _, leaf in leaves)
            if changed:
                self._leaves.forget()
        if changed:
            raise Changed(f"the forward of {type(model).__name__} changes its tensors or layers")
        return recorder

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        tensors: list[torch.Tensor] = []
        kwargs = kwargs or {}
        key = _key(func, args, kwargs, tensors)
        known = self._known(key, tensors)
        if known is None:
            return self._run(key, func, args, kwargs, tensors)
        with no_dispatch():
            return known.again(tensors)

    def _forward_of(self, leaf: Leaf) -> Callable[..., Any]:
        """The forward of a layer that many models share."""
        run = leaf.module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            tensors: list[torch.Tensor] = []
            with torch._C.DisableTorchFunction(), no_dispatch():
                intact = leaf.intact
                if intact:
                    key = _key(leaf.kind, args, kwargs, tensors)
                    known = self._known(key, tensors)
                    if known is not None:
                        return known.again(tensors)
            if intact:
                return self._run(key, run, args, kwargs, tensors)
            self._changed = True  # perhaps only for this call
            return run(*args, **kwargs)

        return forward

    def _known(self, key: Hashable, tensors: list[torch.Tensor]) -> _Call | None:
        known = self._calls.get(key)
        if known is None or not _told_by_keys(tensors):
            return None
        self._recorder.seen += known.seen
        return known

    def _run(
        self,
        key: tuple[Any, ...],
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[torch.Tensor],
    ) -> Any:
        """Call under the recorder, and remember it if the key holds all that mattered."""
        recorder, before = self._recorder, len(self._recorder.seen)
        notes, outer = recorder.notes, self._certain
        recorder.notes, self._certain = {}, _told_by_keys(tensors)
        try:
            out = function(*args, **kwargs)
        finally:
            certain = self._certain and not recorder.notes and not recorder._guessing
            recorder.notes, self._certain = notes | recorder.notes, outer and certain
        with torch._C.DisableTorchFunction():
            if key != _key(key[0], args, kwargs, []):
                self._changed = True
            elif certain:
                outputs = _outputs(out, tensors)
                if outputs:
                    for seen in recorder.seen[before:]:
                        seen.workload = self._workloads.setdefault(seen.workload, seen.workload)
                    container = type(out) if isinstance(out, (tuple, list)) else None
                    self._calls[key] = _Call(recorder.seen[before:], outputs, container)
        return out


def _outputs(out: Any, tensors: list[torch.Tensor]) -> list[_Output]:
    """How to make the outputs again; empty where that is not known."""
    several = out if type(out) in (tuple, list) else (out,)
    made = [_output(o, tensors) for o in several if isinstance(o, torch.Tensor)]
    known = [o for o in made if o is not None]
    return known if len(known) == len(several) else []


def _output(out: torch.Tensor, tensors: list[torch.Tensor]) -> _Output | None:
    like = (out.shape, out.stride(), out.dtype)
    storage = out.untyped_storage()._cdata
    for i, t in enumerate(tensors):
        if out is t:
            return _Output(*like, i)
    if type(out) is not torch.Tensor or not _is_plain(out):
        return None
    for i, t in enumerate(tensors):
        if t.untyped_storage()._cdata == storage:
            offset = int(out.storage_offset() - t.storage_offset())
            return _Output(*like, i, offset) if t.dtype == out.dtype else None
    return _Output(*like)


def _told_by_keys(tensors: list[torch.Tensor]) -> bool:
    """Whether calls on such tensors are determined by their keys."""
    plain = bool(tensors) and all(map(_is_plain, tensors))
    return plain and maybe_current_level() is None  # else of samples of what vmap is given


def _is_plain(t: torch.Tensor) -> bool:
    """Whether a tensor has neither values nor a conjugation or negation still to be done."""
    return t.is_meta and not t.is_conj() and not t.is_neg()


_ATOMS = frozenset({int, float, bool, str, type(None), torch.dtype})


def _key(
    head: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[torch.Tensor]
) -> tuple[Any, ...]:
    """All that a call can depend on but the values of its tensors, which are collected."""
    key: list[Any] = [head]
    _describe(args, key, tensors)
    if kwargs:
        key += kwargs
        _describe(kwargs.values(), key, tensors)
    return tuple(key)


def _describe(values: Iterable[Any], key: list[Any], tensors: list[torch.Tensor]) -> None:
    for value in values:
        of = value.__class__
        if of in _ATOMS:
            key += (of, value)
        elif isinstance(value, torch.Tensor):
            tensors.append(value)
            key += (of, value.shape, value.stride(), value.dtype, value.requires_grad)
        elif of is tuple or of is list:
            kinds = tuple(map(type, value))
            key += (of, kinds)
            if _ATOMS.issuperset(kinds):
                key += value
            else:
                _describe(value, key, tensors)
        elif of is slice:
            key.append(of)
            _describe((value.start, value.stop, value.step), key, tensors)
        else:
            key += (of, value)
