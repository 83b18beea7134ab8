"""Operations whose meta kernels are missing, slow, or depend on values nobody has.

Data-dependent operations saturate: every element counts as non-zero, every box survives
non-maximum suppression, every read of a number gives 1. Totals with such notes are upper bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

META = torch.device("meta")

Arguments = Mapping[str, Any]
Rule = Callable[[Arguments], Any]


def _indices(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.int64, device=META)


def _item(a: Arguments) -> Any:
    dtype = a["self"].dtype
    return True if dtype == torch.bool else 1.0 if dtype.is_floating_point else 1


def _nonzero(a: Arguments) -> Any:
    return _indices(a["self"].numel(), a["self"].dim())


def _nonzero_per_axis(a: Arguments) -> Any:
    return [_indices(a["self"].numel()) for _ in range(max(1, a["self"].dim()))]


def _where(a: Arguments) -> Any:
    return NotImplemented if "other" in a else _nonzero_per_axis({"self": a["condition"]})


def _unique(a: Arguments) -> Any:
    x = a["self"]
    return x.new_empty(1, device=META), _indices(*x.shape), _indices(1)


def _masked_select(a: Arguments) -> Any:
    return a["self"].new_empty(a["self"].numel(), device=META)


def _all_boxes(a: Arguments) -> Any:
    return _indices(a["dets"].shape[0])


SATURATING: dict[str, tuple[Rule, str]] = {
    "_local_scalar_dense": (_item, "a number read from a tensor was taken as 1"),
    "item": (_item, "a number read from a tensor was taken as 1"),
    "is_nonzero": (lambda a: True, "a truth value read from a tensor was taken as true"),
    "equal": (lambda a: True, "two tensors were taken as equal"),
    "allclose": (lambda a: True, "two tensors were taken as equal"),
    "nonzero": (_nonzero, "nonzero kept every element"),
    "nonzero_numpy": (_nonzero_per_axis, "nonzero kept every element"),
    "where": (_where, "nonzero kept every element"),
    "_unique2": (_unique, "unique kept one element"),
    "masked_select": (_masked_select, "masked_select kept every element"),
    "torchvision.nms": (_all_boxes, "non-maximum suppression kept every box"),
}
"""Operation → its saturated result and the sentence to print."""


def expand_masks(indices: list[torch.Tensor | None]) -> tuple[list[torch.Tensor | None], bool]:
    """Replace boolean masks among indices by integer ones that select every element."""
    expanded: list[torch.Tensor | None] = []
    saturated = False
    for index in indices:
        if index is not None and index.dtype in (torch.bool, torch.uint8):
            expanded += [_indices(index.numel()) for _ in range(index.dim())]
            saturated = True
        else:
            expanded.append(index)
    return expanded, saturated


def _convolution(a: Arguments) -> Any:
    """Output of a plain convolution; unlike the meta kernel it keeps channels_last strides."""
    x, w = a["input"], a["weight"]
    n = w.dim() - 2
    if isinstance(a["padding"], str) or x.dim() != n + 2:
        return NotImplemented
    if x.shape[1] != w.shape[1] * a["groups"]:
        raise RuntimeError(
            f"the weight expects {w.shape[1] * a['groups']} input channels, got {x.shape[1]}"
        )
    stride, padding, dilation = (
        list(a[name]) * (n if len(a[name]) == 1 else 1)
        for name in ("stride", "padding", "dilation")
    )
    extents = [
        (x.shape[2 + i] + 2 * padding[i] - dilation[i] * (w.shape[2 + i] - 1) - 1) // stride[i] + 1
        for i in range(n)
    ]
    if min(extents) < 1:
        raise RuntimeError(f"the kernel is larger than the padded input {tuple(x.shape)}")
    layout = {2: torch.channels_last, 3: torch.channels_last_3d}.get(n)
    strided = layout is not None and any(
        t.is_contiguous(memory_format=layout) and not t.is_contiguous() for t in (x, w)
    )
    return torch.empty(
        (x.shape[0], w.shape[0], *extents),
        dtype=x.dtype,
        device=META,
        memory_format=layout if strided else torch.contiguous_format,
    )


def _recurrent(a: Arguments) -> Any:
    """Outputs of a recurrent stack, without unrolling it step by step."""
    if "hx" not in a:
        return NotImplemented
    x = a.get("input", a.get("data"))
    several = isinstance(a["hx"], (list, tuple))
    state = a["hx"] if several else [a["hx"]]
    hidden = state[0].shape[-1] * (2 if a["bidirectional"] else 1)
    y = x.new_empty((*x.shape[:-1], hidden), device=META)
    return (y, *(torch.empty_like(h, device=META) for h in state))


def _dense(x: torch.Tensor) -> bool:
    return x.is_contiguous() or (
        x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    )


def _like(x: torch.Tensor) -> Any:
    """A result of the same shape, layout and dtype."""
    if not _dense(x):
        return NotImplemented
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=META)


def _pointwise(a: Arguments) -> Any:
    x = a["self"]
    return _like(x) if x.is_floating_point() else NotImplemented  # integers are promoted


def _batch_norm(a: Arguments) -> Any:
    x = a["input"]
    vectors = (a["weight"], a["bias"], a["running_mean"], a["running_var"])
    fits = x.dim() > 1 and all(v is None or v.numel() == x.shape[1] for v in vectors)
    return _like(x) if fits else NotImplemented  # torch's kernel says what is wrong


def _layer_norm(a: Arguments) -> Any:
    x, normalized = a["input"], list(a["normalized_shape"])
    return _like(x) if list(x.shape[-len(normalized) :]) == normalized else NotImplemented


def _itself(a: Arguments) -> Any:
    return a["self"]


def _same_shapes(rule: Rule) -> Rule:
    """Apply ``rule`` to two operands that are alike; all else is broadcast or promoted."""

    def check(a: Arguments) -> Any:
        x, y = a["self"], a["other"]
        alike = (
            isinstance(y, torch.Tensor)
            and x.shape == y.shape
            and x.stride() == y.stride()
            and x.dtype == y.dtype
        )
        return rule(a) if alike else NotImplemented

    return check


_POINTWISE = ("relu", "relu6", "silu", "gelu", "sigmoid", "tanh", "hardswish", "hardsigmoid",
              "hardtanh", "leaky_relu", "elu", "mish")  # fmt: skip

SHAPES: dict[str, Rule] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(_POINTWISE, _pointwise),
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    **{f"{name}_": _itself for name in _POINTWISE},
    **dict.fromkeys(("add", "mul"), _same_shapes(lambda a: _like(a["self"]))),
    **dict.fromkeys(("add_", "mul_"), _same_shapes(_itself)),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent),
}
"""Operation → its output; ``NotImplemented`` hands over to torch's own meta kernel."""
