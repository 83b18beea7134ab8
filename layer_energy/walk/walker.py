"""``walk(model)``: any ``nn.Module`` into the layer calls of one forward pass.

The model is not run, copied or changed: its structure is cloned onto the meta device and called
under a dispatch mode. Models that resist cloning are walked in place with everything restored
after, and, as the last resort, run once for real on the CPU. The trace says which it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.fx import GraphModule

from layer_energy.errors import InvalidInput, WalkError
from layer_energy.optimization import TrainingStep
from layer_energy.walk import wrappers
from layer_energy.walk.autocast import AMP
from layer_energy.walk.autograd import noticed
from layer_energy.walk.clone import (
    check_materialised,
    generators_kept,
    meta_clone,
    modules_of,
    restored,
    to_meta,
)
from layer_energy.walk.exported import is_program, mark_paths
from layer_energy.walk.inputs import Inputs, check_batch_size, given, infer, materialised
from layer_energy.walk.recorder import Recorder
from layer_energy.walk.scope import Scope
from layer_energy.walk.tape import unmarked
from layer_energy.walk.trace import LayerCall, Trace
from layer_energy.walk.training import LOSS, check_step, step_calls, unused, unused_note

if TYPE_CHECKING:
    from torch.export import ExportedProgram


@dataclass(frozen=True)
class _How:
    training: bool
    step: TrainingStep | None
    autocast: torch.dtype | None

    def recorder(self, scope: Scope, real: bool = False) -> Recorder:
        return Recorder(scope, real, self.step is not None, self.autocast)


Attempt = Callable[[nn.Module, Inputs, _How], Recorder]


def walk(
    model: nn.Module | ExportedProgram,
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    training: bool = False,
    step: TrainingStep | None = None,
    autocast: str | None = None,
) -> Trace:
    """Trace one forward pass of ``model``, or one training step, without running it.

    Args:
        model: any module, or a ``torch.export.ExportedProgram``; wrappers (``torch.compile``,
            ``DataParallel``, FSDP ...) are taken off.
        args: the forward's positional inputs: tensors on any device (only their shapes and dtypes
            are used), shapes such as ``(1, 3, 224, 224)``, or lists of them. With none given and no
            ``kwargs``, an input is inferred and named in ``Trace.notes``.
        kwargs: the forward's keyword inputs, as they are.
        batch_size: samples of an inferred input; with inputs given it must agree with them.
        training: walk in training mode (dropout and batch statistics) instead of inference; a
            model that is in training mode keeps the modes of its modules.
        step: trace a whole training step, each call with the gradients it pays for: forward and
            backward of the network and the loss, and the optimizer on what is not frozen.
        autocast: walk as under ``torch.autocast`` of a GPU in this dtype, ``"bfloat16"`` or
            ``"float16"``: casts are calls of their own.

    Raises:
        InvalidInput: for inputs that cannot be understood or inferred, and a step of which nothing
            is trained.
        WalkError: if the model cannot be walked; names the module and the operation.
    """
    if autocast not in (None, *AMP.values()):
        raise InvalidInput(f"autocast must be one of {', '.join(AMP.values())}, got {autocast!r}")
    inputs = given(args, kwargs) if args or kwargs else None
    ready = prepared(model, inputs, batch_size)
    if step is not None:
        check_step(step, ready.model)
    half = None if autocast is None else getattr(torch, autocast)
    how = _How(training or step is not None, step, half)
    recorder, via = _first_that_works(ready.model, ready.inputs, how)
    notes = [*ready.notes, *recorder.notes]
    if autocast is not None:
        notes.append(f"mixed precision: matrix products in {autocast}, as torch.autocast on a GPU")
    if via != "meta clone":
        notes.append(f"walked by {via}")
    described, samples = ready.inputs.description, ready.inputs.batch_size
    if step is not None:
        calls = step_calls(recorder, ready.model, step)
        samples *= step.accumulation
        notes += [step.sentence, *unused_note(recorder.unused)]
        return Trace(ready.name, calls, described, samples, via, notes, "training", autocast)
    calls = [
        LayerCall(*seen.scope, seen.op, seen.workload, seen.gradients, seen.modelled)
        for seen in recorder.seen
    ]
    return Trace(ready.name, calls, described, samples, via, notes, autocast=autocast)


class Prepared(NamedTuple):
    """What to walk: the model without its wrappers, all modules of that, its name, its inputs,
    notes about all.
    """

    model: nn.Module
    modules: list[nn.Module]
    name: str
    inputs: Inputs
    notes: list[str]


def prepared(
    model: nn.Module | ExportedProgram,
    inputs: Inputs | None,
    batch_size: int | None,
) -> Prepared:
    """Take off wrappers, and find inputs if there are none.

    Raises:
        InvalidInput: for inputs that cannot be understood or inferred.
        WalkError: for lazy modules that no forward has shaped yet.
    """
    name = ""
    if is_program(model):
        model, name = model.module(), "ExportedProgram"
    if not isinstance(model, nn.Module):
        raise InvalidInput(_not_a_model(model))
    check_batch_size(batch_size)
    notes: list[str] = []
    modules = modules_of(model)
    if wrappers.present(modules):
        model, notes = wrappers.unwrap(model)
        modules = modules_of(model)
    check_materialised(model, modules)
    if notes and wrappers.is_sharded(model):  # a forward of it would wait for the other processes
        model = _unsharded(model)
        modules = modules_of(model)
    if inputs is None:
        inputs = infer(model, batch_size)
    elif batch_size is not None and batch_size != inputs.batch_size:
        raise InvalidInput(
            f"batch_size={batch_size}, but the input {inputs.description} holds "
            f"{inputs.batch_size}; give one of the two"
        )
    return Prepared(model, modules, name or type(model).__name__, inputs, [*notes, *inputs.assumed])


def _unsharded(model: nn.Module) -> nn.Module:
    try:
        return meta_clone(model)
    except Exception as error:  # whatever a stranger's attributes raise when copied
        raise WalkError(
            f"{type(model).__name__} is sharded by FSDP and cannot be copied without it: "
            f"{type(error).__name__}: {error}. Give the model as it is before it is sharded"
        ) from error


def _not_a_model(given: Any) -> str:
    text = f"model must be a torch.nn.Module, got {type(given).__name__}"
    if isinstance(given, type) and issubclass(given, nn.Module):
        return f"model must be a torch.nn.Module, got the class {given.__name__}; call it first"
    if isinstance(given, str):
        return f"{text}; make one of a name with layer_energy.models.build_model({given!r})"
    if isinstance(given, Mapping):
        return f"{text}; a state dict holds weights only: build the model they belong to"
    return text


def _on_meta(model: nn.Module, inputs: Inputs, how: _How, own: bool = False) -> Recorder:
    args, kwargs = to_meta((inputs.args, inputs.kwargs))
    _set_mode(model, how.training)
    scope = Scope(model)
    if own and isinstance(model, GraphModule):
        mark_paths(model, scope)
    with scope, torch.inference_mode(), how.recorder(scope) as recorder:
        return _forward(model, args, kwargs, recorder, how.step)


def _on_meta_clone(model: nn.Module, inputs: Inputs, how: _How) -> Recorder:
    return _on_meta(meta_clone(model), inputs, how, own=True)


def _in_place(model: nn.Module, inputs: Inputs, how: _How) -> Recorder:
    with restored(model), unmarked(model):
        return _on_meta(model, inputs, how)


def _set_mode(model: nn.Module, training: bool) -> None:
    if not (training and model.training):  # some may have been set to evaluation in it
        model.train(training)


def _for_real(model: nn.Module, inputs: Inputs, how: _How) -> Recorder:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if device.type != "cpu":
        remedy = "give it weights" if device.type == "meta" else "move it there with model.cpu()"
        raise WalkError(f"a real forward needs the model on the CPU, it is on {device}; {remedy}")
    tensors = {id(t): materialised(t) for t in inputs.tensors}
    args, kwargs = torch.utils._pytree.tree_map_only(
        torch.Tensor, lambda t: tensors[id(t)], (inputs.args, inputs.kwargs)
    )
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with restored(model):
            _set_mode(model, how.training)
            with (
                unmarked(model),
                Scope(model) as scope,
                torch.inference_mode(),
                how.recorder(scope, real=True) as recorder,
            ):
                return _forward(model, args, kwargs, recorder, how.step)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def _forward(
    model: nn.Module, args: Any, kwargs: Any, recorder: Recorder, step: TrainingStep | None
) -> Recorder:
    try:
        if step is None:
            model(*args, **kwargs)
        else:
            with noticed(recorder):
                outputs = model(*args, **kwargs)
                with recorder.scope.inside(LOSS, "loss"):
                    step.loss_of(outputs)
            recorder.unused = unused(recorder, model)
    except Exception as error:
        path, op = recorder.failed_at or (recorder.scope.last[0], "")
        where = f"module {path or '(the model)'}" + (f", operation {op}" if op else "")
        raise WalkError(f"{where}: {type(error).__name__}: {error}") from error
    return recorder


_ATTEMPTS: tuple[tuple[str, Attempt], ...] = (
    ("meta clone", _on_meta_clone),
    ("meta in place", _in_place),
    ("CPU forward", _for_real),
)


def _first_that_works(model: nn.Module, inputs: Inputs, how: _How) -> tuple[Recorder, str]:
    failures = []
    for via, attempt in _ATTEMPTS:
        try:
            with generators_kept():
                return attempt(model, inputs, how), via
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
    if any("more than 1 value per channel" in str(error) for _, error in failures):
        hint = (
            "Batch normalisation cannot train on one value per channel: give batch_size=2 or more, "
            "or set those modules to eval()."
        )
    reasons = "\n".join(f"  {via}: {str(error)[:400]}" for via, error in failures)
    raise WalkError(
        f"{type(model).__name__} could not be walked with input {inputs.description}.\n{reasons}\n"
        f"{hint}"
    ) from failures[0][1]
