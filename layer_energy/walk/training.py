"""A recorded forward pass → the calls of a whole training step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import torch
from torch import nn

from layer_energy.errors import InvalidInput, WalkError
from layer_energy.layers.base import differentiated, workload
from layer_energy.optimization import TrainingStep
from layer_energy.walk.recorder import Recorder, Seen
from layer_energy.walk.rules import META
from layer_energy.walk.scope import Scope
from layer_energy.walk.trace import LayerCall

LOSS, ACCUMULATION, OPTIMIZER = "(loss)", "(gradient accumulation)", "(optimizer)"
"""Paths of what is in no module."""


def check_step(step: TrainingStep, model: nn.Module) -> None:
    """Refuse steps of which nothing is trained, and paths that lead nowhere.

    Raises:
        InvalidInput: see above.
    """
    trained = [p.requires_grad for p in model.parameters()]
    if not trained:
        raise InvalidInput(
            f"{type(model).__name__} has no parameters, so there is nothing to train; ask for "
            "mode='inference'"
        )
    if not any(trained):
        raise InvalidInput(
            f"no parameter of {type(model).__name__} is trained: requires_grad is False on all of "
            "them; set it where the step should train, or ask for mode='inference'"
        )
    if isinstance(step.checkpointing, bool):
        return
    paths = {path for path, _ in model.named_modules() if path}
    for path in step.checkpointing:
        if path not in paths:
            raise InvalidInput(
                f"checkpointing names {path!r}, which is no module of {type(model).__name__}; its "
                f"modules are {', '.join(name for name, _ in model.named_children())} and theirs"
            )


def unused(recorder: Recorder, model: nn.Module) -> frozenset[str]:
    """Names of the parameters that want a gradient and get none: optimizers leave them alone."""
    wanted = ((name, p) for name, p in model.named_parameters() if p.requires_grad)
    return frozenset(name for name, p in wanted if id(p) not in recorder.tape.used)


def unused_note(names: Collection[str]) -> list[str]:
    """A sentence about them, if there are any."""
    if not names:
        return []
    first = min(names)
    return [
        f"{len(names)} trained parameters got no gradient in this forward, {first} among them: "
        "they are neither differentiated nor stepped"
    ]


def step_calls(recorder: Recorder, model: nn.Module, step: TrainingStep) -> list[LayerCall]:
    """Every call of the step: forward with backward, views undone, accumulation, optimizer."""
    calls = []
    recomputed = _recomputed(recorder.seen, step)
    for seen in recorder.seen:
        work = differentiated(seen.workload, seen.gradients)
        call = LayerCall(
            *seen.scope, seen.op, work, work.gradients, seen.modelled, step.accumulation
        )
        calls.append(call)
        if recomputed(seen):
            again = replace(call, op=f"{seen.op} again", workload=seen.workload, gradients="none")
            calls.append(again)
    calls += [
        LayerCall(*seen.scope, seen.op, seen.workload, "none", True, step.accumulation)
        for seen in recorder.backward
    ]
    trained = [
        p for name, p in model.named_parameters() if p.requires_grad and name not in recorder.unused
    ]
    if not trained:
        raise InvalidInput(
            f"no parameter of {type(model).__name__} gets a gradient in this forward, so there is "
            "no step; leave torch.no_grad and detach() out, or ask for mode='inference'"
        )
    if step.accumulation > 1:
        calls += [_added(p, step.accumulation - 1) for p in trained]
    return calls + _optimizer_calls(trained, step)


def _recomputed(every: Sequence[Seen], step: TrainingStep) -> Callable[[Seen], bool]:
    """Which operations run again for their activations: all of a part that has a gradient."""
    followed = [seen for seen in every if seen.gradients != "none"]
    own = {seen.segment for seen in followed} - {0}
    if isinstance(step.checkpointing, bool):
        return lambda seen: (
            seen.segment in own
            or (
                step.checkpointing is True
                and seen.gradients != "none"
                and seen.scope[0].split(".")[0] != LOSS
            )
        )
    places = [
        place
        for place in step.checkpointing
        if any(_inside(seen.scope[0], place) for seen in followed)
    ]
    return lambda seen: seen.segment in own or any(_inside(seen.scope[0], p) for p in places)


def _inside(path: str, place: str) -> bool:
    return path == place or path.startswith(f"{place}.")


def _added(parameter: nn.Parameter, times: int) -> LayerCall:
    """The gradient of a later micro-batch, added to those before."""
    n = max(parameter.numel(), 1)
    dtype = str(parameter.dtype).removeprefix("torch.")
    work = workload("add", dtype, elements=n, other=n, in_place=1)
    return LayerCall(ACCUMULATION, "AccumulateGrad", 0, "add_", work, "none", True, times)


def _optimizer_calls(trained: Sequence[nn.Parameter], step: TrainingStep) -> list[LayerCall]:
    """What the optimizer does from its second step on, when it has all its state.

    Raises:
        InvalidInput: if the optimizer holds tensors of its own choice, which a step would change.
        WalkError: if it cannot make a step on parameters without memory.
    """
    with torch.inference_mode(False):
        stand_ins = []
        for p in trained:
            stand_ins.append(nn.Parameter(torch.empty(p.shape, dtype=p.dtype, device=META)))
            stand_ins[-1].grad = torch.empty_like(stand_ins[-1])
        optimizer = step.make_optimizer(stand_ins)
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if not held <= set(map(id, stand_ins)):
            raise InvalidInput(
                f"the optimizer given makes a {type(optimizer).__name__} of other parameters than "
                "it is asked to; give a callable that builds a new one of the parameters it is "
                "given, such as functools.partial(torch.optim.RMSprop, lr=0.1)"
            )
        try:
            optimizer.step()
            with Scope(nn.Identity()) as scope, Recorder(scope) as recorder:
                optimizer.step()
        except Exception as error:  # optimizers of strangers
            raise WalkError(
                f"{type(optimizer).__name__} could not make a step on parameters without memory: "
                f"{type(error).__name__}: {error}; name one of torch's instead"
            ) from error
    name = type(optimizer).__name__
    return [
        LayerCall(OPTIMIZER, name, 0, seen.op, seen.workload, "none", seen.modelled)
        for seen in recorder.seen
    ]
