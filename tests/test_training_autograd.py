"""What a model asks of autograd in its forward, against the arithmetic of a real step."""

import threading

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from layer_energy.errors import InvalidInput
from layer_energy.model import PASSES
from layer_energy.optimization import TrainingStep, default_loss
from layer_energy.walk import walk
from layer_energy.walk.training import OPTIMIZER


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)
        self.c = nn.Linear(16, 4)


class Probe(Layers):
    """The body of a linear probe is not frozen, but run without gradients."""

    def forward(self, x):
        with torch.no_grad():
            x = self.b(self.a(x))
            with torch.enable_grad():
                first = self.c(x)
        return first + self.c(x)


class Decorated(Layers):
    @torch.no_grad()
    def body(self, x):
        return self.a(x)

    def forward(self, x):
        return self.c(self.b(self.body(x)))


class Written(Layers):
    """Outputs are written into parts of a tensor, as detection heads and caches do."""

    def forward(self, x):
        out = x.new_zeros(len(x), 32)
        out[:, :16] = self.a(x)
        out[:, 16:] = self.b(x)
        return self.c(out.view(-1, 16))


class WrittenIntoAView(Layers):
    def forward(self, x):
        out = x.new_zeros(len(x), 2, 16)
        part = out.select(1, 0)
        part.copy_(self.a(x))
        with torch.no_grad():
            out[:, 1] = self.b(x)
        return self.c(out)


class Complex(Layers):
    """Rotary positions multiply by complex numbers, spectral layers go through a transform."""

    def forward(self, x):
        turned = torch.view_as_complex(self.a(x).view(-1, 8, 2)) * torch.tensor(1j)
        x = torch.view_as_real(turned).flatten(-2)
        return self.c(torch.fft.irfft(torch.fft.rfft(self.b(x)), n=16))


class Checkpointed(Layers):
    reentrant = False

    def forward(self, x):
        def part(x):
            return checkpoint(self.b, self.b(x).relu(), use_reentrant=self.reentrant)

        return self.c(checkpoint(part, self.a(x), use_reentrant=self.reentrant))


class ReentrantlyCheckpointed(Checkpointed):
    reentrant = True


class Custom(Layers):
    """Functions of a model's own run without gradients inside, and have them nevertheless."""

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            return gradient * 2

    def forward(self, x):
        return self.c(self.Doubled.apply(self.a(x)))


def flops_of_a_step(model, x):
    with FlopCounterMode(display=False) as counter:
        default_loss(model(x)).backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "make", [Probe, Decorated, Written, WrittenIntoAView, Complex, Custom], ids=lambda m: m.__name__
)
def test_gradients_are_those_of_a_real_step(make):
    model = make().train()
    expected = flops_of_a_step(model, torch.randn(8, 16))
    calls = walk(model, (8, 16), step=TrainingStep()).calls
    assert sum(2 * call.cost.macs * PASSES[call.workload.gradients] for call in calls) == expected


@pytest.mark.parametrize("make", [Checkpointed, ReentrantlyCheckpointed])
def test_checkpoints_of_the_model_run_twice(make):
    """One inside another is computed again with it."""
    calls = walk(make(), (8, 16), step=TrainingStep()).calls
    again = [call for call in calls if call.op.endswith("again")]
    assert [call.path for call in again if call.workload.kind == "linear"] == ["b", "b"]
    assert [call.op for call in again if call.workload.kind == "relu"] == ["relu again"]


def test_checkpoints_are_those_of_torch():
    class One(Layers):
        def forward(self, x):
            return self.c(checkpoint(lambda x: self.b(x).relu(), self.a(x), use_reentrant=True))

    model = One().train()
    expected = flops_of_a_step(model, torch.randn(8, 16))
    calls = walk(model, (8, 16), step=TrainingStep()).calls
    assert sum(2 * call.cost.macs * PASSES[call.workload.gradients] for call in calls) == expected


def test_what_gets_no_gradient_is_not_stepped():
    class Head(Layers):
        def forward(self, x):
            return self.c(x)

    trace = walk(Head(), (8, 16), step=TrainingStep(accumulation=2))
    alone = nn.Linear(16, 4)
    expected = walk(alone, (8, 16), step=TrainingStep(accumulation=2))

    def of(trace, path):
        return sorted(repr(c.workload) for c in trace.calls if c.path == path)

    assert of(trace, OPTIMIZER) == of(expected, OPTIMIZER)
    assert of(trace, "(gradient accumulation)") == of(expected, "(gradient accumulation)")
    assert any("4 trained parameters got no gradient" in note for note in trace.notes)
    assert not any("no gradient" in note for note in expected.notes)


def test_a_step_without_any_gradient_is_refused():
    class Detached(Layers):
        def forward(self, x):
            with torch.no_grad():
                return self.c(x)

    with pytest.raises(InvalidInput, match="no parameter of Detached gets a gradient"):
        walk(Detached(), (8, 16), step=TrainingStep())


def test_a_model_walked_itself_keeps_no_marks():
    model = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)).train()
    model.lock = threading.Lock()  # which cannot be copied
    before = {name: dict(vars(t)) for name, t in model.state_dict(keep_vars=True).items()}
    trace = walk(model, (8, 16), step=TrainingStep())
    assert trace.via != "meta clone"
    after = {name: dict(vars(t)) for name, t in model.state_dict(keep_vars=True).items()}
    assert after == before


def test_torch_is_as_before(monkeypatch):
    from torch.utils import checkpoint as module

    def methods():
        names = [n for n in vars(module) if n.startswith("_checkpoint_without")]
        return [
            torch.no_grad.__enter__, torch.no_grad.__exit__,
            torch.enable_grad.__enter__, torch.enable_grad.__exit__,
            module.CheckpointFunction.apply, *(getattr(module, n) for n in names),
        ]  # fmt: skip

    before = methods()
    walk(Probe(), (8, 16), step=TrainingStep())
    assert methods() == before
    assert "apply" not in vars(module.CheckpointFunction)
    x = torch.ones(2, requires_grad=True)
    assert (x * 2).requires_grad
    with torch.no_grad():
        assert not (x * 2).requires_grad


@pytest.mark.parametrize("place", ["(nowhere)", ""])
def test_checkpointing_names_modules(place):
    with pytest.raises(InvalidInput, match="no module of Layers"):
        walk(Layers(), (8, 16), step=TrainingStep(checkpointing=[place]))


def test_a_checkpointed_module_runs_again_as_a_whole():
    model = nn.Sequential(nn.Linear(16, 16), nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4)))
    model[0].requires_grad_(False)
    model[1][0].requires_grad_(False)
    calls = walk(model, (8, 16), step=TrainingStep(checkpointing=["1"])).calls
    again = [call.path for call in calls if call.op == "linear again"]
    assert again == ["1.0", "1.1"]


def test_a_loss_that_is_a_module_is_not_checkpointed():
    target = torch.zeros(8, dtype=torch.int64)
    loss = nn.CrossEntropyLoss()
    step = TrainingStep(checkpointing=True, loss=lambda out: loss(out, target))
    calls = walk(nn.Linear(16, 4), (8, 16), step=step).calls
    assert [call.path for call in calls if call.op.endswith("again")] == [""]
