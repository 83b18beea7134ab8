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
