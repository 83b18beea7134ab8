"""What ``score`` remembers of one candidate changes no other's price: models that lay traps."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

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


class SlicesItsWeights(nn.Module):
    """Calls a layer with part of its weights, as supernets do."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x):
        some = {"weight": self.conv.weight[:4], "bias": self.conv.bias[:4]}
        return self.conv(x), functional_call(self.conv, some, (x,))


class SwitchesItsDilation(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())

    def forward(self, x):
        before = self.layers(x)
        self.layers[0].dilation = (5, 5)
        after = self.layers(x)
        self.layers[0].dilation = (1, 1)
        return before, after


class TrainsABit(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        evaluated = self.norm(x)
        self.norm.train()
        trained = self.norm(x)
        self.norm.eval()
        return evaluated, trained


class HooksItsLayer(nn.Module):
    def __init__(self, hook):
        super().__init__()
        self.hook = hook
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x):
        self.hook(self.conv)
        return self.conv(x)


def relu_after(layer):
    layer.register_forward_hook(lambda module, args, out: out.relu())


def relu_before(layer):
    layer.register_forward_pre_hook(lambda module, args: (args[0].relu(),))


class Conjugates(nn.Module):
    """Copies what is only marked as conjugated, or negated, and what is neither."""

    def forward(self, x):
        z = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
        turned = z.conj()
        plain = torch.resolve_conj(z), torch.resolve_neg(z.imag)
        return *plain, torch.resolve_conj(turned), torch.resolve_neg(turned.imag)


class MapsSamples(nn.Module):
    """Does to one sample what it does to each."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x):
        first = self.conv(x[0] * 2)
        return torch.vmap(lambda image: self.conv(image * 2))(x), first


class CountsBatches(nn.Module):
    """Reads, and writes, what a layer of torch's own keeps count of."""

    def __init__(self, batches):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.norm.num_batches_tracked.fill_(batches)

    def forward(self, x):
        x = self.norm(x)
        if self.norm.num_batches_tracked > 0:
            return x.relu()
        self.norm.num_batches_tracked += 1
        return x


@pytest.mark.parametrize(
    "make",
    [
        lambda: [ReadsConstants(in_place=False)],
        lambda: [ReadsConstants(in_place=True)],
        lambda: [SlicesItsWeights()],
        lambda: [SwitchesItsDilation()],
        lambda: [TrainsABit()],
        lambda: [HooksItsLayer(relu_after), nn.Conv2d(3, 8, 3)],
        lambda: [HooksItsLayer(relu_before), nn.Conv2d(3, 8, 3)],
        lambda: [Conjugates()],
        lambda: [MapsSamples()],
        lambda: [CountsBatches(0), CountsBatches(1)],
    ],
)
def test_every_candidate_has_the_price_it_has_alone(make):
    candidates = [*make(), *make()]
    frame = score(candidates, INPUT, device=DEVICE)
    for row, model in zip(frame.itertuples(), candidates, strict=True):
        report = predict_energy(model, INPUT, device=DEVICE)
        assert row.energy_j == pytest.approx(report.energy_j, rel=1e-9)
        assert row.macs == report.macs
