"""The dispatch mode under which a model runs without computing, and every operation is seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from layer_energy.layers.base import Call, claimants, recognise
from layer_energy.layers.memory import Generic
from layer_energy.walk.autocast import Autocast
from layer_energy.walk.quantized import unquantised
from layer_energy.walk.rules import META, SATURATING, SHAPES, expand_masks
from layer_energy.walk.scope import Scope
from layer_energy.walk.tape import Tape, differentiable
from layer_energy.workload import Gradients, Params, Workload

HOST_ELEMENTS = 1 << 14
"""Tensors made during the forward stay real up to this size: they are constants, not data."""

_FREE = ("empty", "new_empty", "resize", "set_", "_assert", "sym_", "record_stream")


@dataclass(slots=True)
class Seen:
    """One recorded operation; the memo shares everything but the scope and the gradients."""

    op: str
    workload: Workload
    modelled: bool
    scope: tuple[str, str, int] = ("", "", 0)
    gradients: Gradients = "none"
    segment: int = 0  # of the model's own checkpoints, 0 outside any


@dataclass(frozen=True, slots=True)
class _Operation:
    """What the schema of an overload says, read once."""

    name: str
    names: tuple[str, ...]
    defaults: dict[str, Any] = field(hash=False)
    mutable: bool
    view: bool
    composite: bool
    free: bool

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Every argument by name, in the order of the schema."""
        values = {**self.defaults, **dict(zip(self.names, args, strict=False)), **kwargs}
        return {name: values.get(name) for name in self.names}


_OPERATIONS: dict[Any, _Operation] = {}


def _operation(func: Any) -> _Operation:
    known = _OPERATIONS.get(func)
    if known is None:
        schema = func._schema
        namespace, _, name = func.overloadpacket._qualified_op_name.partition("::")
        known = _OPERATIONS[func] = _Operation(
            name=name if namespace == "aten" else f"{namespace}.{name}",
            names=tuple(a.name for a in schema.arguments),
            defaults={a.name: a.default_value for a in schema.arguments if a.has_default_value()},
            mutable=schema.is_mutable,
            view=not schema.is_mutable and any(r.alias_info for r in schema.returns),
            composite=torch._C._dispatch_has_kernel_for_dispatch_key(
                func.name(), "CompositeImplicitAutograd"
            ),
            free=name.startswith(_FREE) or namespace == "prim",
        )
    return known


def _tensors(values: Iterable[Any]) -> list[torch.Tensor]:
    found = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += [v for v in value if isinstance(v, torch.Tensor)]
    return found


def _map_tensors(convert: Callable[[torch.Tensor], Any], value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return convert(value)
    if isinstance(value, (list, tuple)) and any(isinstance(v, torch.Tensor) for v in value):
        return [convert(v) if isinstance(v, torch.Tensor) else v for v in value]
    return value


def _signature(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return (value.shape, value.stride(), value.dtype)
    if isinstance(value, (list, tuple)):
        return tuple(map(_signature, value))
    return (value.__class__, value)


class Recorder(TorchDispatchMode):
    """Records operations at the level the framework names them: ``conv2d``, ``linear``, ``add``.

    Composite operations that no layer type claims are decomposed. With ``real=True`` operations
    are executed as they are; otherwise tensors are replaced by storage-free ones on first contact,
    small host constants excepted.
    """

    def __init__(
        self,
        scope: Scope,
        real: bool = False,
        training: bool = False,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.seen: list[Seen] = []
        self.backward: list[Seen] = []
        """With ``training=True``, what a backward pass does besides the operations' own."""
        self.notes: dict[str, None] = {}
        self.unused: frozenset[str] = frozenset()
        """Of a training step, the names of trained parameters that got no gradient."""
        self.failed_at: tuple[str, str] | None = None
        self.scope = scope
        self.tape = Tape()
        self.differentiating = True
        self.segment = 0
        self._real = real
        self._training = training
        self._autocast = None if autocast is None else Autocast(autocast)
        self._memo: dict[Any, tuple[type | None, list[Any], Seen | None]] = {}
        self._stand_ins: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._written: dict[int, torch.Tensor] = {}
        self._guessing = False
        self._dispatched = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        operation = _operation(func)
        kwargs = kwargs or {}
        if operation.name == "prim.device":
            return func(*args, **kwargs)
        if self._autocast is not None:
            args, kwargs = self._casted(self._autocast, operation, args, kwargs)
        tensors = _tensors((*args, *kwargs.values()))
        self._dispatched += 1
        dispatched, recorded = self._dispatched, len(self.seen)
        try:
            out = self._run(func, operation, args, kwargs, tensors)
        except Exception:
            if self.failed_at is None:
                self.failed_at = (self.scope.current[0], operation.name)
            raise
        if self.differentiating and not operation.name.startswith("detach"):
            whole = dispatched == self._dispatched  # else its parts were dispatched and noted
            self._note(operation, tensors, _tensors([out]), whole, self.seen[recorded:])
        return out

    def _casted(
        self,
        autocast: Autocast,
        operation: _Operation,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        target = autocast.target(operation.name)
        if target is None:
            return args, kwargs
        with self:  # casts are operations, too

            def cast(t: torch.Tensor) -> torch.Tensor:
                return autocast.cast(t, target)

            return (
                tuple(_map_tensors(cast, a) for a in args),
                {name: _map_tensors(cast, v) for name, v in kwargs.items()},
            )

    def _note(
        self,
        operation: _Operation,
        tensors: list[torch.Tensor],
        outputs: list[torch.Tensor],
        whole: bool,
        recorded: list[Seen],
    ) -> None:
        """Follow the gradients through an operation."""
        if whole and any(map(differentiable, outputs)):
            for seen in recorded:
                seen.gradients = self.tape.gradients(tensors)
            if self._training:
                self.backward += [
                    Seen(f"{operation.name} backward", work, True, self.scope.current)
                    for work in self.tape.backward(operation.name, tensors, outputs, operation.view)
                ]
        self.tape.mark(tensors, outputs, operation.mutable)

    def _run(
        self,
        func: Any,
        operation: _Operation,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[torch.Tensor],
    ) -> Any:
        virtual = not self._real and any(map(self._is_virtual, tensors))
        if virtual and operation.name in SATURATING:
            rule, sentence = SATURATING[operation.name]
            out = rule(operation.bind(args, kwargs))
            if out is not NotImplemented:
                self._guessing |= operation.name in ("_local_scalar_dense", "item")
                self.notes[sentence] = None
                self._record(func, operation, args, kwargs, out, tensors)
                return out
        if operation.composite and not claimants(operation.name):
            out = self._decompose(func, args, kwargs)
            if out is not NotImplemented:
                return out
        if not virtual and (self._real or tensors or not _is_large_factory(operation, args)):
            out = func(*args, **kwargs)
            self._record(func, operation, args, kwargs, out, tensors)
            return out
        return self._run_virtually(func, operation, args, kwargs, tensors)

    def _decompose(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with self:
            return func.decompose(*args, **kwargs)

    def _run_virtually(
        self,
        func: Any,
        operation: _Operation,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[torch.Tensor],
    ) -> Any:
        original = args[0] if args else None
        args = tuple(_map_tensors(self._stand_in, a) for a in args)
        kwargs = {name: _map_tensors(self._stand_in, v) for name, v in kwargs.items()}
        if kwargs.get("device") is not None or not tensors:
            kwargs["device"] = META
            kwargs.pop("pin_memory", None)
        if "indices" in operation.names and operation.name.startswith("index"):
            indices, saturated = expand_masks(args[1])
            if saturated:
                self.notes["a boolean mask selected every element"] = None
                args = (args[0], indices, *args[2:])
                if operation.name.startswith("index_put"):
                    out = args[0] if operation.mutable else torch.empty_like(args[0])
                    self._record(func, operation, args, kwargs, out, tensors)
                    return original if operation.mutable else out
        key = None
        if not operation.mutable and not operation.view:
            try:
                key = (func, _signature(args), *((n, _signature(v)) for n, v in kwargs.items()))
                hit = self._memo.get(key)
            except TypeError:  # an unhashable argument
                key = hit = None
            if hit is not None:
                container, specs, seen = hit
                outputs = [
                    torch.empty_strided(shape, stride, dtype=dtype, device=META)
                    for shape, stride, dtype in specs
                ]
                if seen is not None:
                    self._append(seen)
                return outputs[0] if container is None else container(outputs)
        try:
            rule = SHAPES.get(operation.name)
            out = rule(operation.bind(args, kwargs)) if rule else NotImplemented
            if out is NotImplemented:
                out = func(*args, **kwargs)
        except RuntimeError:
            if self._guessing and operation.mutable:
                # a size came from a number that was guessed: the write cannot match
                self.notes["a write whose size depends on data was skipped"] = None
                return original
            if self._guessing and operation.name == "expand":
                sizes = [n if n >= 0 else 1 for n in args[1]]
                return torch.empty(sizes, dtype=args[0].dtype, device=META)
            raise
        before = len(self.seen)
        recorded = self._record(func, operation, args, kwargs, out, tensors)
        if recorded is not NotImplemented:  # described differently once decomposed
            return recorded
        if key is not None and not _aliases(out, _tensors(args)):
            self._remember(key, out, self.seen[before] if len(self.seen) > before else None)
        if operation.mutable and isinstance(original, torch.Tensor) and out is args[0]:
            if not original.is_meta:
                storage = original.untyped_storage()._cdata
                self._written[storage] = original
            return original
        return out

    def _remember(self, key: Any, out: Any, seen: Seen | None) -> None:
        if isinstance(out, torch.Tensor):
            self._memo[key] = (None, [(out.shape, out.stride(), out.dtype)], seen)
        elif type(out) in (list, tuple) and all(isinstance(o, torch.Tensor) for o in out):
            specs = [(o.shape, o.stride(), o.dtype) for o in out]
            self._memo[key] = (type(out), specs, seen)

    def _record(
        self,
        func: Any,
        operation: _Operation,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        out: Any,
        tensors: list[torch.Tensor],
    ) -> Any:
        """Record one operation; the output of its decomposition where only that is recognised."""
        if operation.view or operation.free or not (_tensors([out]) or operation.mutable):
            return NotImplemented
        if not operation.mutable and _aliases(out, tensors if self._real else _tensors(args)):
            return NotImplemented
        call = unquantised(
            Call(operation.name, operation.bind(args, kwargs), out, operation.mutable)
        )
        recognised = recognise(call)
        if recognised is None and operation.composite:
            decomposed = self._decompose(func, args, kwargs)
            if decomposed is not NotImplemented:
                return decomposed
        of, params = recognised or (_GENERIC, _GENERIC.describe(call))
        workload = Workload(of.kind, Params(params), _compute_dtype(call))
        self._append(Seen(operation.name, workload, recognised is not None))
        return NotImplemented

    def _append(self, seen: Seen) -> None:
        self.seen.append(
            Seen(seen.op, seen.workload, seen.modelled, self.scope.current, segment=self.segment)
        )

    def _is_virtual(self, t: torch.Tensor) -> bool:
        return (
            t.is_meta
            or t.numel() > HOST_ELEMENTS
            or isinstance(t, torch.nn.Parameter)
            or (bool(self._written) and t.untyped_storage()._cdata in self._written)
        )

    def _stand_in(self, t: torch.Tensor) -> torch.Tensor:
        if t.is_meta:
            return t
        known = self._stand_ins.get(id(t))
        if known is None or known[0] is not t:
            with torch.inference_mode(False):  # views of a normal tensor keep its version counter
                meta = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=META)
            known = self._stand_ins[id(t)] = (t, meta)
        return known[1]


_GENERIC = Generic()


def _is_large_factory(operation: _Operation, args: tuple[Any, ...]) -> bool:
    if not args:
        return False
    if isinstance(args[0], (list, tuple)) and all(isinstance(n, int) for n in args[0]):
        return torch.Size(args[0]).numel() > HOST_ELEMENTS
    return operation.name == "arange" and isinstance(args[-1], (int, float)) and (
        abs(args[-1]) > HOST_ELEMENTS
    )  # fmt: skip


def _aliases(out: Any, tensors: list[torch.Tensor]) -> bool:
    outputs = _tensors([out])
    if not outputs:
        return False
    storages = {t.untyped_storage()._cdata for t in tensors}
    return all(o.untyped_storage()._cdata in storages for o in outputs)


def _compute_dtype(call: Call) -> str:
    tensors = call.tensors or _tensors([call.output])
    chosen = next((t for t in tensors if t.is_quantized), None)
    if chosen is None:
        chosen = next((t for t in tensors if t.is_floating_point()), tensors[0])
    return str(chosen.dtype).removeprefix("torch.")
