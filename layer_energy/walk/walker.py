"""``walk(model)``: any ``nn.Module`` into the layer calls of one forward pass.

The model is not run, copied or changed: its structure is cloned onto the meta device and called
under a dispatch mode. Models that resist cloning are walked in place with everything restored
after, and, as the last resort, run once for real on the CPU. The trace says which it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from layer_energy.errors import InvalidInput, WalkError
from layer_energy.walk.clone import (
    check_materialised,
    generators_kept,
    meta_clone,
    restored,
    to_meta,
    unwrap,
)
from layer_energy.walk.inputs import Inputs, check_batch_size, given, infer, materialised
from layer_energy.walk.recorder import Recorder
from layer_energy.walk.scope import Scope
from layer_energy.walk.trace import LayerCall, Trace

Attempt = Callable[[nn.Module, Inputs, bool], Recorder]


def walk(
    model: nn.Module,
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    training: bool = False,
) -> Trace:
    """Trace one forward pass of ``model`` without running it.

    Args:
        model: any module; wrappers (``torch.compile``, ``DataParallel``) are taken off.
        args: the forward's positional inputs: tensors on any device (only their shapes and dtypes
            are used), shapes such as ``(1, 3, 224, 224)``, or lists of them. With none given and no
            ``kwargs``, an input is inferred and named in ``Trace.notes``.
        kwargs: the forward's keyword inputs, as they are.
        batch_size: samples of an inferred input; with inputs given it must agree with them.
        training: walk in training mode (dropout and batch statistics) instead of inference.

    Raises:
        InvalidInput: for inputs that cannot be understood or inferred.
        WalkError: if the model cannot be walked; names the module and the operation.
    """
    model, inputs, notes = prepared(model, args, kwargs, batch_size)
    recorder, via = _first_that_works(model, inputs, training)
    calls = [
        LayerCall(*seen.scope, seen.op, seen.workload, seen.gradients, seen.modelled)
        for seen in recorder.seen
    ]
    notes += recorder.notes
    if via != "meta clone":
        notes.append(f"walked by {via}")
    return Trace(type(model).__name__, calls, inputs.description, inputs.batch_size, via, notes)


def prepared(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None, batch_size: int | None
) -> tuple[nn.Module, Inputs, list[str]]:
    """What to walk: the model without its wrappers, its inputs, and notes about both.

    Raises:
        InvalidInput: for inputs that cannot be understood or inferred.
        WalkError: for lazy modules that no forward has shaped yet.
    """
    if not isinstance(model, nn.Module):
        raise InvalidInput(_not_a_model(model))
    check_batch_size(batch_size)
    model, notes = unwrap(model)
    check_materialised(model)
    if args or kwargs:
        inputs = given(args, kwargs)
        if batch_size is not None and batch_size != inputs.batch_size:
            raise InvalidInput(
                f"batch_size={batch_size}, but the input {inputs.description} holds "
                f"{inputs.batch_size}; give one of the two"
            )
    else:
        inputs = infer(model, 1 if batch_size is None else batch_size)
    return model, inputs, [*notes, *inputs.assumed]


def _not_a_model(given: Any) -> str:
    text = f"model must be a torch.nn.Module, got {type(given).__name__}"
    if isinstance(given, type) and issubclass(given, nn.Module):
        return f"model must be a torch.nn.Module, got the class {given.__name__}; call it first"
    if isinstance(given, str):
        return f"{text}; make one of a name with layer_energy.models.build_model({given!r})"
    if isinstance(given, Mapping):
        return f"{text}; a state dict holds weights only: build the model they belong to"
    return text


def _on_meta(model: nn.Module, inputs: Inputs, training: bool) -> Recorder:
    args, kwargs = to_meta((inputs.args, inputs.kwargs))
    model.train(training)
    with Scope(model) as scope, torch.inference_mode(), Recorder(scope) as recorder:
        return _forward(model, args, kwargs, recorder)


def _on_meta_clone(model: nn.Module, inputs: Inputs, training: bool) -> Recorder:
    return _on_meta(meta_clone(model), inputs, training)


def _in_place(model: nn.Module, inputs: Inputs, training: bool) -> Recorder:
    with restored(model):
        return _on_meta(model, inputs, training)


def _for_real(model: nn.Module, inputs: Inputs, training: bool) -> Recorder:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if device.type != "cpu":
        how = "give it weights" if device.type == "meta" else "move it there with model.cpu()"
        raise WalkError(f"a real forward needs the model on the CPU, it is on {device}; {how}")
    tensors = {id(t): materialised(t) for t in inputs.tensors}
    args, kwargs = torch.utils._pytree.tree_map_only(
        torch.Tensor, lambda t: tensors[id(t)], (inputs.args, inputs.kwargs)
    )
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with restored(model):
            model.train(training)
            with (
                Scope(model) as scope,
                torch.inference_mode(),
                Recorder(scope, real=True) as recorder,
            ):
                return _forward(model, args, kwargs, recorder)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def _forward(model: nn.Module, args: Any, kwargs: Any, recorder: Recorder) -> Recorder:
    try:
        model(*args, **kwargs)
    except Exception as error:
        path, op = recorder.failed_at or (recorder._scope.last[0], "")
        where = f"module {path or '(the model)'}" + (f", operation {op}" if op else "")
        raise WalkError(f"{where}: {type(error).__name__}: {error}") from error
    return recorder


_ATTEMPTS: tuple[tuple[str, Attempt], ...] = (
    ("meta clone", _on_meta_clone),
    ("meta in place", _in_place),
    ("CPU forward", _for_real),
)


def _first_that_works(model: nn.Module, inputs: Inputs, training: bool) -> tuple[Recorder, str]:
    failures = []
    for via, attempt in _ATTEMPTS:
        try:
            with generators_kept():
                return attempt(model, inputs, training), via
        except Exception as error:  # each attempt may fail in ways of the model's own
            failures.append((via, error))
    hint = (
        "If the input is wrong, pass the right one: predict_energy(model, (1, 3, 224, 224)); "
        "integer inputs as tensors."
    )
    if not inputs.tensors:
        types = ", ".join(type(value).__name__ for value in (*inputs.args, *inputs.kwargs.values()))
        hint = (
            f"No tensor is among the inputs ({types}): give tensors, or shapes as tuples of whole "
            "numbers, such as predict_energy(model, (1, 3, 224, 224))."
        )
    reasons = "\n".join(f"  {via}: {str(error)[:400]}" for via, error in failures)
    raise WalkError(
        f"{type(model).__name__} could not be walked with input {inputs.description}.\n{reasons}\n"
        f"{hint}"
    ) from failures[0][1]
