"""Small networks of families that no package of ready models has, to measure beside them."""

from __future__ import annotations

import torch
from torch import nn


class UNet(nn.Module):
    """The U-Net of Ronneberger, Fischer and Brox 2015 (arXiv 1505.04597), padded, narrower."""

    def __init__(self, in_channels: int = 3, classes: int = 2, width: int = 32) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(5)]
        self.down = nn.ModuleList(
            _double(a, b) for a, b in zip([in_channels, *widths], widths, strict=False)
        )
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.widen = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in pairs)
        self.up = nn.ModuleList(_double(a, b) for a, b in pairs)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(batch, in_channels, height, width)`` → ``(batch, classes, height, width)``."""
        skipped = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else nn.functional.max_pool2d(x, 2))
            skipped.append(x)
        skipped.pop()
        for widen, block in zip(self.widen, self.up, strict=True):
            x = block(torch.cat([skipped.pop(), widen(x)], 1))
        return self.head(x)  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped


def _double(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(out_channels, out_channels, 3, padding=1),
        nn.ReLU(inplace=True),
    )


class RecurrentModel(nn.Module):
    """An embedding or a vector per step, a recurrent stack, a linear head."""

    def __init__(self, front: nn.Module, stack: nn.RNNBase, outputs: int) -> None:
        super().__init__()
        self.front, self.stack = front, stack
        self.head = nn.Linear(stack.hidden_size, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(batch, length, ...)`` → ``(batch, length, outputs)``."""
        return self.head(self.stack(self.front(x))[0])  # type: ignore[no-any-return]  # likewise


class DecoderBlock(nn.Module):
    """Attention with grouped keys and a gated product, as in Llama 3 (arXiv 2407.21783)."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(
        self, width: int, heads: int, kv_heads: int, inner: int, cache: tuple[int, int] | None
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.cached = heads, kv_heads, cache is not None
        kv_width = kv_heads * (width // heads)
        self.attention_norm, self.product_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.query, self.output = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.key, self.value = (nn.Linear(width, kv_width, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, width, bias=False)
        if cache is not None:
            batch, length = cache
            for name in ("keys", "values"):
                self.register_buffer(name, torch.randn(batch, kv_heads, length, width // heads))

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """``(batch, tokens, width)`` → the same; with a cache, ``tokens`` is 1."""
        y = self.attention_norm(x)
        query = _rotated(_split(self.query(y), self.heads), cos, sin)
        key = _rotated(_split(self.key(y), self.kv_heads), cos, sin)
        value = _split(self.value(y), self.kv_heads)
        if self.cached:
            self.keys[:, :, -1:].copy_(key)
            self.values[:, :, -1:].copy_(value)
            key, value = self.keys, self.values
        y = nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=not self.cached, enable_gqa=True
        )
        x = x + self.output(y.transpose(1, 2).reshape(x.shape))
        y = self.product_norm(x)
        return x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))  # type: ignore[no-any-return]  # likewise


def _split(x: torch.Tensor, heads: int) -> torch.Tensor:
    batch, tokens, width = x.shape
    return x.view(batch, tokens, heads, width // heads).transpose(1, 2)


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding (arXiv 2104.09864)."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


class Decoder(nn.Module):
    """A language model of Llama 3.2 1B's shapes: 16 blocks, 1.24 G parameters.

    Args:
        tokens: of the input.
        cache: batch and length of the filled key-value cache; none for a prompt.
    """

    def __init__(self, tokens: int, cache: tuple[int, int] | None = None) -> None:
        super().__init__()
        width, heads = 2048, 32
        self.embedding = nn.Embedding(128_256, width)
        self.blocks = nn.ModuleList(DecoderBlock(width, heads, 8, 8192, cache) for _ in range(16))
        self.norm = nn.RMSNorm(width)
        angles = torch.randn(tokens, width // heads)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """``(batch, tokens)`` → ``(batch, 1, words)``: the scores of the next token."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return nn.functional.linear(self.norm(x[:, -1:]), self.embedding.weight)


def decoder_prefill() -> nn.Module:
    """A decoder reading prompts of 512 tokens."""
    return Decoder(512)


def decoder_decode1() -> nn.Module:
    """A decoder writing one token after 2048, for one request."""
    return Decoder(1, (1, 2048))


def decoder_decode16() -> nn.Module:
    """A decoder writing one token after 2048, for 16 requests."""
    return Decoder(1, (16, 2048))


def decoder_decode64() -> nn.Module:
    """A decoder writing one token after 1024, for 64 requests."""
    return Decoder(1, (64, 1024))


def unet() -> nn.Module:
    """A U-Net of 7.8 M parameters."""
    return UNet()


def lstm_language_model() -> nn.Module:
    """Two layers of 650 cells over a vocabulary of 10 000."""
    return RecurrentModel(nn.Embedding(10_000, 650), nn.LSTM(650, 650, 2, batch_first=True), 10_000)


def gru_classifier() -> nn.Module:
    """Two layers of 256 units over 64 features."""
    return RecurrentModel(nn.Identity(), nn.GRU(64, 256, 2, batch_first=True), 12)


def mlp() -> nn.Module:
    """Three layers for images of 28 × 28 pixels."""
    return nn.Sequential(
        nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)
    )
