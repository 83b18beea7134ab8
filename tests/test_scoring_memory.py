"""What ``score`` remembers of one candidate changes no other's price: models that lay traps."""

import pytest
import torch
from torch import nn

from layer_energy import predict_energy, score

INPUT = (4, 3, 32, 32)
DEVICE = "amd-epyc-2t"


class ReadsConstants(nn.Module):
    """Constants of the forward steer it, and look like its data."""

    def __init__(self, in_place):
        super().__init__()
        self.in_place = in_place

    def forward(self, x):
        few = x[0, 0, 0, :4].clone()
        constant = torch.tensor([8.0, 8, 8, 8])
        if self.in_place:
            few.mul_(2)
            constant.mul_(2)
        else:
            few, constant = few * 2, constant * 2
        return x[..., : int(constant[0])].relu(), few


@pytest.mark.parametrize(
    "make",
    [
        lambda: [ReadsConstants(in_place=False)],
        lambda: [ReadsConstants(in_place=True)],
    ],
)
def test_every_candidate_has_the_price_it_has_alone(make):
    candidates = [*make(), *make()]
    frame = score(candidates, INPUT, device=DEVICE)
    for row, model in zip(frame.itertuples(), candidates, strict=True):
        report = predict_energy(model, INPUT, device=DEVICE)
        assert row.energy_j == pytest.approx(report.energy_j, rel=1e-9)
        assert row.macs == report.macs
