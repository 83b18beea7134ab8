"""Small models whose costs are known in closed form."""

import pytest
import torch
from torch import nn
from torch.nn import functional


class Functional(nn.Module):
    """Everything that leaf-module hooks miss."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 48)

    def forward(self, x):
        q, k, v = self.linear(x).chunk(3, dim=-1)
        y = functional.scaled_dot_product_attention(q, k, v)
        y = functional.relu(y + x)
        return torch.cat([y, x], dim=-1)


class Shared(nn.Module):
    """One module under two names, called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = self.first

    def forward(self, x):
        return self.second(self.first(self.first(x)))


@pytest.fixture
def functional_model():
    return Functional()


@pytest.fixture
def shared_model():
    return Shared()
