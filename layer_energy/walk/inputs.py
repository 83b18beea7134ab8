"""Inputs for a model: those the caller gave, or an inferred one that is named in the report."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from layer_energy.errors import InvalidInput
from layer_energy.walk.exported import example_inputs
from layer_energy.walk.huggingface import IMAGE, TOKENS, example_kwargs

_SPEC = re.compile(r"\s*(\d+\s*(?:[,x]\s*\d+\s*)*)(?::\s*(\w+))?\s*")


@dataclass(frozen=True)
class Inputs:
    """Arguments of a forward call on the meta device, and where they came from.

    Attributes:
        args: positional arguments.
        kwargs: keyword arguments.
        assumed: sentences about what was inferred; empty where the caller gave everything.
        samples: the batch size, where it is not the first dimension.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    assumed: tuple[str, ...] = ()
    samples: int | None = None

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All tensors, nested ones included."""
        return [t for t in tree_leaves((self.args, self.kwargs)) if isinstance(t, torch.Tensor)]

    @cached_property
    def description(self) -> str:
        """Shapes in words: ``"1x3x224x224"``."""
        shapes = ["x".join(map(str, t.shape)) or "scalar" for t in self.tensors]
        return ", ".join(shapes) or "no tensors"

    @cached_property
    def batch_size(self) -> int:
        """First dimension of the first tensor, or the number of images of a list of images."""
        if self.samples is not None:
            return int(self.samples)
        first = self.args[0] if self.args else next(iter(self.kwargs.values()), None)
        if isinstance(first, (list, tuple)) and first and isinstance(first[0], torch.Tensor):
            return len(first)
        tensors = self.tensors
        return int(tensors[0].shape[0]) if tensors and tensors[0].dim() else 1


def parse_shape(text: str) -> torch.Tensor:
    """Turn ``"1,3,224,224"`` or ``"1,128:int64"`` into a tensor without storage.

    Raises:
        InvalidInput: if the text is not a shape or the dtype is unknown.
    """
    match = _SPEC.fullmatch(text)
    if not match:
        raise InvalidInput(
            f"{text!r} is not an input shape; write numbers separated by commas, optionally a "
            "dtype: 1,3,224,224 or 1,128:int64"
        )
    shape = [int(n) for n in re.split(r"[,x]", match[1])]
    dtype = getattr(torch, match[2] or "float32", None)
    if not isinstance(dtype, torch.dtype):
        raise InvalidInput(f"{match[2]!r} is not a torch dtype; int64 and float32 are")
    return _empty(shape, dtype)


def given(args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> Inputs:
    """The caller's inputs; positional shapes, lists of them included, become tensors.

    Raises:
        InvalidInput: if a shape has a negative size.
    """
    return Inputs(tuple(_as_tensor(a) for a in args), dict(kwargs or {}))


def batched(sample: Any, batch_size: int) -> Any:
    """The input of one sample, as a batch of so many like it, without storage.

    Args:
        sample: a shape, a text as of :func:`parse_shape`, or a tensor; anything else is returned as
            it is.
        batch_size: size of the new first dimension.

    Raises:
        InvalidInput: for a text that is no shape, and a negative size.
    """
    if isinstance(sample, str):
        sample = parse_shape(sample)
    one = _as_tensor(tuple(sample) if isinstance(sample, list) else sample)
    if isinstance(one, torch.Tensor):
        return _empty((batch_size, *one.shape), one.dtype)
    return sample


def check_batch_size(batch_size: int | None) -> None:
    """Refuse what is no number of samples.

    Raises:
        InvalidInput: if it is not ``None`` nor a whole number of 1 or more.
    """
    if batch_size is not None and not (isinstance(batch_size, Integral) and batch_size >= 1):
        raise InvalidInput(f"batch_size must be a whole number, at least 1; got {batch_size!r}")


def materialised(t: torch.Tensor) -> torch.Tensor:
    """A tensor on the CPU: itself, or random numbers (zeros, if of integers) for one on meta."""
    if not t.is_meta:
        return t.detach().cpu().clone()
    make = torch.randn if t.is_floating_point() else torch.zeros
    return make(t.shape, dtype=t.dtype, device="cpu")


def infer(model: nn.Module, batch_size: int | None = None) -> Inputs:
    """Find an input the model accepts, from its example, its configuration or its first layer.

    Args:
        model: any module.
        batch_size: samples; if not given those of the model's own example, else 1.

    Raises:
        InvalidInput: if nothing fits; the message shows the call to make.
    """
    check_batch_size(batch_size)
    if (found := _from_example(model, batch_size)) is not None:
        return found
    for source in (_from_huggingface, _from_timm, _from_torchvision, _from_first_layer):
        found = source(model, 1 if batch_size is None else batch_size)
        if found is not None:
            return found
    raise InvalidInput(
        f"no input could be inferred for {type(model).__name__}; give one, as in "
        "predict_energy(model, (1, 3, 224, 224)) or, on the command line, --input 1,3,224,224"
    )


def _as_tensor(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_tensor(v) for v in value]
    if isinstance(value, (tuple, torch.Size)) and value and all(type(n) is int for n in value):
        if min(value) < 0:
            raise InvalidInput(f"the input shape {tuple(value)} has a negative size")
        return _empty(value)
    return value


def _empty(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(tuple(shape), dtype=dtype, device="meta")


def _image(batch: int, channels: int, size: int | tuple[int, int], source: str) -> Inputs:
    height, width = (size, size) if isinstance(size, int) else size
    x = _empty((batch, channels, height, width))
    return Inputs((x,), assumed=(f"input {batch}x{channels}x{height}x{width} from {source}",))


def _from_example(model: nn.Module, batch_size: int | None) -> Inputs | None:
    """What a program was exported for, or a Lightning module's ``example_input_array``."""
    exported = example_inputs(model, batch_size)
    if exported is not None:
        inputs = Inputs(*exported)
        return replace(inputs, assumed=(f"input {inputs.description}, as it was exported for",))
    example = getattr(model, "example_input_array", None)
    if example is None:
        return None
    args = () if isinstance(example, Mapping) else example
    inputs = Inputs(
        args if isinstance(args, tuple) else (args,),
        dict(example) if isinstance(example, Mapping) else {},
    )
    if batch_size not in (None, inputs.batch_size):
        return None
    source = f"{type(model).__name__}.example_input_array"
    return replace(inputs, assumed=(f"input {inputs.description} from {source}",))


def _from_huggingface(model: nn.Module, batch: int) -> Inputs | None:
    shapes, left_out = example_kwargs(model, batch)
    if not shapes:
        return None
    kwargs = {
        name: _empty(shape, torch.int64 if name.endswith("input_ids") else torch.float32)
        for name, shape in shapes.items()
    }
    text = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())
    assumed = f"input {text} from the Hugging Face configuration {type(model.config).__name__}"
    return Inputs((), kwargs, (assumed, *left_out), samples=batch)


def _from_timm(model: nn.Module, batch: int) -> Inputs | None:
    cfg = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    size = cfg.get("input_size") if isinstance(cfg, Mapping) else None
    if not size:
        return None
    channels, height, width = size
    return _image(batch, channels, (height, width), "timm's default_cfg")


def _from_torchvision(model: nn.Module, batch: int) -> Inputs | None:
    module = type(model).__module__
    if not module.startswith("torchvision.models"):
        return None
    family = module.removeprefix("torchvision.models").strip(".").split(".")[0]
    name = type(model).__name__
    if family == "detection":
        size = min(getattr(getattr(model, "transform", None), "min_size", (800,)))
        images = [_empty((3, size, size)) for _ in range(batch)]
        assumed = f"input {batch} images 3x{size}x{size} (torchvision's {name} resizes to that)"
        return Inputs((images,), assumed=(assumed,))
    if family == "optical_flow":
        pair = tuple(_empty((batch, 3, 368, 496)) for _ in range(2))
        return Inputs(pair, assumed=(f"two images {batch}x3x368x496, torchvision's training crop",))
    if family == "video":
        clip = (16, 112, 112)
        if name in ("SwinTransformer3d", "MViT", "S3D"):
            clip = (16, 224, 224)
        x = _empty((batch, 3, *clip))
        shape = "x".join(map(str, x.shape))
        return Inputs((x,), assumed=(f"input {shape}, a clip as torchvision's {name} takes it",))
    if family == "segmentation":
        return _image(batch, 3, 520, f"torchvision's transforms for {name}")
    size = getattr(model, "image_size", None) or (299 if name == "Inception3" else IMAGE)
    return _image(batch, 3, size, f"torchvision's {name}")


def _from_first_layer(model: nn.Module, batch: int) -> Inputs | None:
    for path, layer in model.named_modules():
        source = f"the first layer, {path or 'the model'} ({type(layer).__name__})"
        if isinstance(layer, nn.Conv2d):
            return _image(batch, layer.in_channels, IMAGE, source)
        shape: tuple[int, ...] = ()
        dtype = torch.float32
        if isinstance(layer, nn.Conv1d):
            shape = (batch, layer.in_channels, 1024)
        elif isinstance(layer, nn.Conv3d):
            shape = (batch, layer.in_channels, 16, 112, 112)
        elif isinstance(layer, nn.Linear):
            shape = (batch, layer.in_features)
        elif isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
            shape, dtype = (batch, TOKENS), torch.int64
        elif isinstance(layer, nn.RNNBase):
            steps = (batch, TOKENS) if layer.batch_first else (TOKENS, batch)
            shape = (*steps, layer.input_size)
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
            return None
        if shape:
            text = "x".join(map(str, shape))
            assumed = (f"input {text} from {source}",)
            return Inputs((_empty(shape, dtype),), assumed=assumed, samples=batch)
    return None
