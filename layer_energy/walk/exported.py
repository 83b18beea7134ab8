"""Programs of ``torch.export``: their modules, the inputs they were exported for, their paths."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from layer_energy.errors import InvalidInput

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from layer_energy.walk.scope import Scope


def is_program(model: object) -> TypeGuard[ExportedProgram]:
    """Whether it is a ``torch.export.ExportedProgram``, told by name: the import is slow."""
    return f"{type(model).__module__}.{type(model).__qualname__}" == (
        "torch.export.exported_program.ExportedProgram"
    )


def example_inputs(model: nn.Module, batch_size: int | None) -> tuple[Any, dict[str, Any]] | None:
    """Arguments on meta as a program was exported for them; ``None`` for any other module.

    A dynamic first dimension becomes ``batch_size``, other dynamic ones keep their example.

    Raises:
        InvalidInput: if the program was exported for another, fixed batch size.
    """
    spec = getattr(model, "_in_spec", None)
    if not isinstance(model, GraphModule) or spec is None:
        return None
    values = [n.meta.get("val") for n in model.graph.nodes if n.op == "placeholder"]
    first = next((v for v in values if isinstance(v, torch.Tensor) and v.dim()), None)
    leading: Any = None if first is None else first.shape[0]
    if batch_size is not None and isinstance(leading, int) and leading != batch_size:
        raise InvalidInput(
            f"the program was exported for a batch of {leading}, not {batch_size}; export it with "
            'dynamic_shapes, torch.export.Dim("batch") for the first dimension, or for that batch'
        )

    def size(n: Any) -> int:
        if batch_size is not None and str(n) == str(leading):
            return batch_size
        return n if isinstance(n, int) else int(n.node.hint)

    def concrete(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value if not isinstance(value, torch.SymInt) else size(value)
        return torch.empty([size(n) for n in value.shape], dtype=value.dtype, device="meta")

    args, kwargs = pytree.tree_unflatten([concrete(v) for v in values], spec)
    return args, kwargs


def mark_paths(graph: GraphModule, scope: Scope) -> None:
    """Let a graph tell which module of the original model each of its operations is from.

    Written into the graph itself, so only ever into a copy of the user's.
    """

    def move(path: str, kind: str, call: int) -> None:
        scope.move_to(path, kind, call)

    here = None
    for node in list(graph.graph.nodes):
        stack = node.meta.get("nn_module_stack")
        if node.op != "call_function" or not stack:
            continue
        key, (path, kind) = list(stack.items())[-1]
        if key != here:
            here = key
            call = key.rpartition("@")[2]  # the key of a module's second call ends in @1
            place = (path, str(kind).rpartition(".")[2], int(call) if call.isdigit() else 0)
            with graph.graph.inserting_before(node):
                graph.graph.call_function(move, place)
    graph.recompile()
