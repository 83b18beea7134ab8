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


@dataclass(frozen=True, slots=True, eq=False)
class _Spec:
    """All there is to know of a plain tensor on meta; one object for all that are alike."""

    of: type
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool


@dataclass(frozen=True, slots=True)
class _Output:
    """How an output is made again.

    Attributes:
        argument: position among the tensors given of the one that it is, or is a view of; -1 for a
            tensor of its own.
        offset: of a view, beyond that of the argument; ``None`` for the argument itself.
    """

    spec: _Spec
    argument: int = -1
    offset: int | None = None


@dataclass(frozen=True, slots=True)
class _Call:
    """What a call recorded and returned; ``container`` is the type of several outputs."""

    seen: list[Seen]
    outputs: list[_Output]
    container: type | None


class Memo(TorchFunctionMode):
    """Walks models, one after the other, remembering the calls of all of them."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: dict[Hashable, _Call] = {}
        self._specs: dict[Hashable, _Spec] = {}
        self._workloads: dict[Workload, Workload] = {}
        self._leaves = Leaves(self._forward_of)
        self._nowhere = Scope(nn.Module())
        self._recorder = Recorder(self._nowhere)
        self._met: dict[int, tuple[torch.Tensor, _Spec]] = {}
        """``id`` of a tensor of this walk → the tensor, lest another gets its ``id``; its spec."""
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
            self._specs.clear()
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
        evaluating(clone, {id(copy) for copy in stand_ins.values()})  # which are already
        args, kwargs = to_meta((inputs.args, inputs.kwargs))
        recorder = self._recorder = Recorder(self._nowhere)
        self._changed = False
        try:
            with generators_kept(), torch.inference_mode(), recorder, self:
                clone(*args, **kwargs)
        finally:
            self._met.clear()
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
        key, known = self._look_up(func, args, kwargs, tensors)
        if known is None:
            return self._run(key, func, args, kwargs, tensors)
        with torch._C._DisableTorchDispatch():
            return self._again(known, tensors)

    def _forward_of(self, leaf: Leaf) -> Callable[..., Any]:
        """The forward of a layer that many models share."""
        run = leaf.module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            tensors: list[torch.Tensor] = []
            key: Hashable | None = None
            known: _Call | None = None
            with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
                intact = leaf.intact
                if intact:
                    key, known = self._look_up(leaf.kind, args, kwargs, tensors)
                if known is not None:
                    return self._again(known, tensors)
            if key is None:
                self._changed |= not intact  # perhaps for this call only
                return run(*args, **kwargs)
            with torch._C.DisableTorchFunction():  # the layer is remembered, not its functions
                return self._run(key, run, args, kwargs, tensors)

        return forward

    def _look_up(
        self,
        head: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[torch.Tensor],
    ) -> tuple[Hashable | None, _Call | None]:
        """The key of a call and what is known of it; no key where none says all that matters.

        Tensors among the arguments are collected on the way.
        """
        parts: list[Any] = [head]
        told = self._describe(args, parts, tensors)
        if kwargs:
            parts += kwargs
            told &= self._describe(kwargs.values(), parts, tensors)
        if not (told and tensors) or maybe_current_level() is not None:  # in a vmap, for example
            return None, None
        key = tuple(parts)
        try:
            return key, self._calls.get(key)
        except TypeError:  # an unhashable argument
            return None, None

    def _describe(self, values: Iterable[Any], key: list[Any], tensors: list[torch.Tensor]) -> bool:
        told, met = True, self._met
        for value in values:
            known = met.get(id(value))
            if known is not None:
                tensors.append(value)
                key.append(known[1])
                continue
            of = value.__class__
            if of in _ATOMS:
                key += (of, value)
            elif isinstance(value, torch.Tensor):
                tensors.append(value)
                spec = self._spec(value)
                told &= spec is not None
                key.append(spec)
            elif of is tuple or of is list:
                kinds = tuple(map(type, value))
                key += (of, kinds)
                if _ATOMS.issuperset(kinds):
                    key += value
                else:
                    told &= self._describe(value, key, tensors)
            elif of is slice:
                key.append(of)
                told &= self._describe((value.start, value.stop, value.step), key, tensors)
            else:
                key += (of, value)
        return told

    def _spec(self, t: torch.Tensor) -> _Spec | None:
        """``None`` for what is more than its shape, such as a constant of the host."""
        of = t.__class__
        plain = (
            (of is torch.Tensor or of is nn.Parameter)
            and t.is_meta
            and t.layout is torch.strided
            and not (t.is_conj() or t.is_neg() or t.is_quantized)
        )
        if not plain:
            return None
        facts = of, t.shape, t.stride(), t.dtype, t.requires_grad
        spec = self._specs.get(facts)
        if spec is None:
            spec = self._specs[facts] = _Spec(*facts)
        self._met[id(t)] = t, spec
        return spec

    def _run(
        self,
        key: Hashable | None,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[torch.Tensor],
    ) -> Any:
        """Call under the recorder, and remember it if the key holds all that mattered."""
        recorder, before = self._recorder, len(self._recorder.seen)
        facts = list(map(_facts, tensors))
        notes, recorder.notes = recorder.notes, {}
        try:
            out = function(*args, **kwargs)
        finally:
            certain = key is not None and not recorder.notes and not recorder._guessing
            recorder.notes = notes | recorder.notes
        with torch._C.DisableTorchFunction():
            if facts != list(map(_facts, tensors)):
                self._changed = True
            elif certain:
                self._remember(key, out, tensors, recorder.seen[before:])
        return out

    def _remember(
        self, key: Hashable, out: Any, tensors: list[torch.Tensor], recorded: list[Seen]
    ) -> None:
        container = type(out) if type(out) in (tuple, list) else None
        outputs: list[_Output] = []
        for one in (out,) if container is None else out:
            output = self._output(one, tensors)
            if output is None:
                return
            outputs.append(output)
        for seen in recorded:
            seen.workload = self._workloads.setdefault(seen.workload, seen.workload)
        self._calls[key] = _Call(recorded, outputs, container)

    def _output(self, out: Any, tensors: list[torch.Tensor]) -> _Output | None:
        """How to make an output again; ``None`` where that is not known."""
        spec = self._spec(out) if isinstance(out, torch.Tensor) else None
        if spec is None:
            return None
        for i, t in enumerate(tensors):
            if out is t:
                return _Output(spec, i)
        if spec.of is not torch.Tensor or spec.requires_grad:
            return None
        storage = out.untyped_storage()._cdata
        for i, t in enumerate(tensors):
            if t.untyped_storage()._cdata == storage:
                offset = int(out.storage_offset() - t.storage_offset())
                return _Output(spec, i, offset) if t.dtype == out.dtype else None
        return _Output(spec)

    def _again(self, call: _Call, tensors: list[torch.Tensor]) -> Any:
        """Do what a call did, without running it."""
        self._recorder.seen += call.seen
        if call.container is None:
            return self._made(call.outputs[0], tensors)
        return call.container([self._made(output, tensors) for output in call.outputs])

    def _made(self, output: _Output, tensors: list[torch.Tensor]) -> torch.Tensor:
        spec = output.spec
        if output.argument < 0:
            made = torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype, device=META)
        else:
            of = tensors[output.argument]
            if output.offset is None:
                return of
            made = of.as_strided(spec.shape, spec.stride, of.storage_offset() + output.offset)
        self._met[id(made)] = made, spec
        return made


_ATOMS = frozenset({int, float, bool, str, type(None), torch.dtype})


def _facts(t: torch.Tensor) -> tuple[Any, ...]:
    """What a call may change of a tensor besides its values."""
    stride = t.stride() if t.layout is torch.strided else None
    return t.shape, stride, t.dtype, t.requires_grad, t.is_meta
