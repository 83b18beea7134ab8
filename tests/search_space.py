"""A search space of small image classifiers, for tests and benchmarks."""

import random

import torch
from torch import nn

INPUT = (1, 3, 32, 32)
OPERATIONS = ("conv", "separable", "max_pool", "avg_pool", "skip", "gate")


class Gate(nn.Module):
    """Squeeze and excitation: linear layers and functions in a forward of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, max(1, channels // 4))
        self.excite = nn.Linear(max(1, channels // 4), channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = torch.relu(self.squeeze(x.mean((2, 3))))
        return x * torch.sigmoid(self.excite(weights))[:, :, None, None]


def operation(name: str, channels: int, kernel: int) -> nn.Module:
    """One edge of a cell; neither channels nor extents change."""
    same = {"padding": kernel // 2, "bias": False}
    match name:
        case "conv":
            layers = [nn.Conv2d(channels, channels, kernel, **same)]
        case "separable":
            layers = [nn.Conv2d(channels, channels, kernel, groups=channels, **same),
                      nn.Conv2d(channels, channels, 1, bias=False)]  # fmt: skip
        case "max_pool":
            return nn.MaxPool2d(3, 1, 1)
        case "avg_pool":
            return nn.AvgPool2d(3, 1, 1)
        case "gate":
            return Gate(channels)
        case _:
            return nn.Identity()
    return nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


class Cell(nn.Module):
    """Node ``i`` sums an operation on the input and on each node before it."""

    def __init__(self, channels: int, edges: list[list[tuple[str, int]]]) -> None:
        super().__init__()
        self.nodes = nn.ModuleList(
            nn.ModuleList(operation(name, channels, kernel) for name, kernel in node)
            for node in edges
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states = [x]
        for node in self.nodes:
            states.append(sum(edge(state) for edge, state in zip(node, states, strict=True)))
        return torch.cat(states[1:], 1)


def network(cells: list[tuple[int, list[list[tuple[str, int]]]]]) -> nn.Module:
    """A stem, cells of some width with pooling between them, and a linear classifier."""
    layers: list[nn.Module] = []
    channels = 3
    for width, edges in cells:
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [Cell(width, edges), nn.MaxPool2d(2)]
        channels = width * len(edges)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def random_network(rng: random.Random) -> nn.Module:
    """Two or three cells of two to four nodes."""

    def edge() -> tuple[str, int]:
        return rng.choice(OPERATIONS), rng.choice((1, 3, 5))

    return network(
        [
            (rng.randrange(16, 129, 8), [[edge() for _ in range(i + 1)] for i in range(nodes)])
            for nodes in (rng.randint(2, 4) for _ in range(rng.randint(2, 3)))
        ]
    )
