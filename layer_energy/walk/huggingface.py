"""What a Hugging Face model takes, read from its configuration and its forward's signature."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

TOKENS = 128
IMAGE = 224
SAMPLES = 16000
"""Of sound: one second."""

Shapes = dict[str, tuple[int, ...]]


def example_kwargs(model: nn.Module, batch: int) -> tuple[Shapes, tuple[str, ...]]:
    """Shapes by keyword, and sentences about what is left out; empty if not of Hugging Face."""
    config, main = getattr(model, "config", None), getattr(model, "main_input_name", None)
    if config is None or main is None:
        return {}, ()
    taken = inspect.signature(model.forward).parameters
    shapes: Shapes = {}
    left_out: tuple[str, ...] = ()
    if main == "pixel_values":
        shapes[main] = _pixels(config, batch)
    elif main == "input_features":
        frames = 2 * (_first(config, "max_source_positions") or 1500)
        shapes[main] = (batch, _first(config, "num_mel_bins") or 80, frames)
    elif main == "input_values":
        shapes[main] = _sound(config, batch)
    elif main == "input_ids":
        text = getattr(config, "text_config", None) or config
        limit = _first(text, "max_position_embeddings", "n_positions") or TOKENS
        shapes[main] = (batch, min(TOKENS, limit))
        sees = hasattr(config, "vision_config") or hasattr(config, "image_size")
        if sees and "pixel_values" in taken:
            if hasattr(config, "image_token_id") or hasattr(config, "image_token_index"):
                left_out = (
                    "text alone, without an image; give pixel_values and input_ids for one",
                )
            else:
                shapes["pixel_values"] = _pixels(config, batch)
    else:
        return {}, ()
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in taken:
        shapes["decoder_input_ids"] = (batch, TOKENS)
    return shapes, left_out


def _first(config: Any, *names: str) -> Any:
    values = (getattr(config, name, None) for name in names)
    return next((v for v in values if isinstance(v, (int, list, tuple))), None)


def _pixels(config: Any, batch: int) -> tuple[int, ...]:
    vision = getattr(config, "vision_config", None) or config
    size = _first(vision, "image_size") or _first(config, "image_size") or IMAGE
    height, width = list(size)[:2] if isinstance(size, (list, tuple)) else (size, size)
    frames = (_first(config, "num_frames"),) if _first(config, "num_frames") else ()
    return (batch, *frames, _first(vision, "num_channels") or 3, height, width)


def _sound(config: Any, batch: int) -> tuple[int, ...]:
    bins, channels = _first(config, "num_mel_bins"), _first(config, "audio_channels")
    if bins and _first(config, "max_length"):  # a spectrogram
        return (batch, config.max_length, bins)
    return (batch, channels, SAMPLES) if channels else (batch, SAMPLES)
