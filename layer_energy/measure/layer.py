"""A workload → something to execute again and again, on whatever device torch runs it."""

from __future__ import annotations

import functools
import itertools
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map_only

from layer_energy.layers.base import layer_type
from layer_energy.workload import Device, Workload

MAX_COPIES = 64
CACHE_MULTIPLE = 3

Execution = Callable[[], Any]
Forward = Callable[[], Execution]
"""A forward pass that returns its backward pass, which does nothing where none is wanted."""


def rotation(device: Device, bytes_per_copy: int) -> int:
    """How many copies of a layer exceed ``CACHE_MULTIPLE`` last-level caches."""
    wanted = -(-CACHE_MULTIPLE * device.cache_bytes // max(bytes_per_copy, 1))
    return max(1, min(MAX_COPIES, wanted))


def executions(
    workload: Workload, copies: int, device: str = "cpu", rectified: bool = False
) -> Iterator[Execution]:
    """Build a layer ``copies`` times and rotate over them for ever.

    With gradients, an execution is a forward pass on one copy and the backward pass on the one
    whose forward pass is longest past: by then, as in a network, what that left behind is no
    longer in the caches. For that, the forward passes of the other copies run at once.

    Args:
        workload: what to execute.
        copies: distinct sets of weights and inputs.
        device: torch's name of it.
        rectified: inputs are zero where they would be negative, as behind a ReLU: how many bits
            toggle decides part of a GPU's power.
    """
    made = [passes(workload, device, rectified) for _ in range(copies)]
    if workload.gradients == "none":
        return itertools.cycle(made)
    return _staggered(made)


def execute(forwards: Iterable[Forward], lag: int) -> None:
    """Forward and backward passes, these once ``lag`` forward passes are under way."""
    waiting: deque[Execution] = deque()
    for forward in forwards:
        waiting.append(forward())
        if len(waiting) == lag:
            waiting.popleft()()
    while waiting:
        waiting.popleft()()


def _staggered(forwards: Sequence[Forward]) -> Iterator[Execution]:
    rotating = itertools.cycle(forwards)
    waiting = deque(next(rotating)() for _ in forwards[1:])

    def run() -> Any:
        waiting.append(next(rotating)())
        return waiting.popleft()()

    return itertools.repeat(run)


def behind_relu(workload: Workload) -> bool:
    """Whether a workload's inputs are those behind a ReLU: half of all, always the same ones."""
    return zlib.crc32(repr(workload).encode()) % 2 == 1


def tensor_dtype(workload: Workload) -> torch.dtype:
    """The dtype of a workload's tensors; TensorFloat-32 is a mode of float32."""
    dtype: torch.dtype = getattr(torch, workload.dtype.replace("tf32", "float32"))
    return dtype


def passes(workload: Workload, device: str, rectified: bool, captured: bool = False) -> Forward:
    """Build a layer once.

    Args:
        workload: what to execute.
        device: torch's name of it.
        rectified: see :func:`executions`.
        captured: it will run in a CUDA graph. There a copy of contiguous memory becomes a node that
            copies at 2.65 TB/s on an H200, against 4.2 TB/s eagerly and in kernels: it is
            executed as a kernel that reads and writes the same.
    """
    module, inputs = _materialise(workload, device, rectified)
    if (
        captured
        and workload.kind == "copy"
        and workload.params["run"] == workload.params["elements"]
    ):
        module = _KernelCopy()
    if workload.gradients == "none":
        module.requires_grad_(False)

        def alone() -> Execution:
            module(*inputs)
            return _nothing

        return alone
    wanted: list[torch.Tensor] = []
    if workload.gradients in ("input", "both"):
        first = inputs[: layer_type(workload.kind).differentiated_inputs]
        wanted += [t for t in tree_leaves(first) if _differentiable(t)]
    module.requires_grad_(workload.gradients in ("weight", "both"))
    wanted += [parameter for parameter in module.parameters() if parameter.requires_grad]
    for tensor in wanted:
        tensor.requires_grad_()
    arriving: list[torch.Tensor] = []

    def forward() -> Execution:
        outputs = [t for t in tree_leaves(module(*inputs)) if _differentiable(t) and t.grad_fn]
        if not arriving:
            arriving.extend(_fill(torch.empty_like(t)) for t in outputs)
        return lambda: torch.autograd.grad(outputs, wanted, arriving, allow_unused=True)

    return forward


class _KernelCopy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0


def _nothing() -> None:
    pass


def _differentiable(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _materialise(
    workload: Workload, device: str, rectified: bool
) -> tuple[nn.Module, tuple[Any, ...]]:
    """Build the layer with every floating tensor filled."""
    dtype = tensor_dtype(workload)
    with torch.device("meta"):
        module, inputs = layer_type(workload.kind).build(workload.params)
    if dtype.is_floating_point:
        module = module.to(dtype)
    module = module.to_empty(device=device)
    for parameter in module.parameters():
        _fill(parameter)
    for buffer in module.buffers():
        _fill(buffer).abs_()  # running variances are positive

    def real(t: torch.Tensor) -> torch.Tensor:
        if not t.is_meta:
            return t.clone().to(device)
        target = dtype if t.is_floating_point() else t.dtype
        if not target.is_floating_point:
            return torch.ones(t.shape, dtype=target, device=device)
        tensor = _fill(torch.empty_strided(t.shape, t.stride(), dtype=target, device=device))
        return tensor.relu_() if rectified and tensor.is_floating_point() else tensor

    return module, tree_map_only(torch.Tensor, real, inputs)


@functools.cache
def _pool(device: torch.device) -> torch.Tensor:
    return torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)).to(device)


def _fill(t: torch.Tensor) -> torch.Tensor:
    """Standard normal values, tiled from a pool: fresh random numbers would take longer."""
    whole = (t.untyped_storage().size() // t.element_size(),)
    flat = torch.as_strided(t.detach(), whole, (1,), 0)  # weights may be parts of one storage
    pool = _pool(t.device)
    for start in range(0, len(flat), len(pool)):
        part = flat[start : start + len(pool)]
        part.copy_(pool[: len(part)])
    return t
