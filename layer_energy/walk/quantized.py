"""Quantised operations as the ones they stand for: int8 weights are packed where none can see."""

from __future__ import annotations

from typing import Any

import torch

from layer_energy.layers.base import Call

_PREFIX = "quantized."
_SUFFIXES = ("_relu", "_add", "_dynamic")
"""What may be fused behind the operation, or says when activations are quantised."""


def unquantised(call: Call) -> Call:
    """A quantised call under the names of the plain one; every other call as it is.

    Packed weights are taken apart. A fused ReLU is no operation of its own.
    """
    if not call.op.startswith(_PREFIX):
        return call
    op = call.op.removeprefix(_PREFIX)
    for suffix in _SUFFIXES:
        op = op.removesuffix(suffix)
    packed: Any = next((v for v in call.arguments.values() if _is_packed(v)), None)
    if packed is None:
        return Call(op, call.arguments, call.output, call.in_place)
    weight, bias = packed.unpack()
    arguments = {"input": call.tensors[0], "weight": weight, "bias": bias}
    if op.startswith("conv"):
        for name in ("stride", "padding", "dilation", "groups"):
            arguments[name] = getattr(packed, name)()
    return Call(op, arguments, call.output, call.in_place)


def _is_packed(value: Any) -> bool:
    return isinstance(value, torch.ScriptObject) and hasattr(value, "unpack")
