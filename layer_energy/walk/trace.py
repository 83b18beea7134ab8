"""What a walk returns: the layer calls of a model, in the order they run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from layer_energy.layers.base import count
from layer_energy.workload import Cost, Gradients, Workload


@dataclass(frozen=True, slots=True)
class LayerCall:
    """One operation of a model.

    Attributes:
        path: dotted path of the module that ran it; ``""`` is the model itself.
        module: class name of that module.
        call: how often the module had run before.
        op: torch's name of the operation.
        workload: what to price.
        gradients: what a training step would pay for it.
        modelled: ``False`` if no layer type claims the operation.
        times: how often it runs, one time after the other: in each micro-batch of a training step.
    """

    path: str
    module: str
    call: int
    op: str
    workload: Workload
    gradients: Gradients
    modelled: bool
    times: int = 1

    @property
    def cost(self) -> Cost:
        """Counts of the forward passes of this call."""
        return count(self.workload)[0] * self.times


@dataclass(frozen=True)
class Trace:
    """The walked model.

    Attributes:
        model: class name of the model.
        calls: its layer calls, in order.
        inputs: the inputs it was walked with, in words.
        batch_size: samples per forward pass, or per step of the optimizer.
        via: ``"meta clone"``, ``"meta in place"`` or ``"CPU forward"``.
        notes: everything assumed on the way, in sentences.
        mode: ``"inference"``, or ``"training"`` for the calls of a whole training step, each with
            the gradients that it pays for.
        autocast: the dtype of mixed precision, if it was walked so.
    """

    model: str
    calls: list[LayerCall]
    inputs: str
    batch_size: int
    via: str
    notes: list[str] = field(default_factory=list)
    mode: str = "inference"
    autocast: str | None = None

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the forward passes: one, or those of a training step.

        Those are of every micro-batch, recomputed activations included; backward passes are not.
        """
        return sum(call.cost.macs for call in self.calls)

    @property
    def bytes(self) -> int:
        """Bytes that all calls move, were nothing cached; backward passes are not counted."""
        return sum(call.cost.bytes for call in self.calls)

    def workloads(self) -> Counter[Workload]:
        """The distinct workloads and how often each runs."""
        times: Counter[Workload] = Counter()
        for call in self.calls:
            times[call.workload] += call.times
        return times
