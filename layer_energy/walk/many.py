"""Walking many models for their workloads alone, each quickly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from layer_energy.walk.inputs import Inputs, given
from layer_energy.walk.memo import Memo
from layer_energy.walk.trace import Trace
from layer_energy.walk.walker import prepared, walk
from layer_energy.workload import Workload


@dataclass(frozen=True, slots=True)
class Walked:
    """What there is to price about a model.

    Attributes:
        model: its class name.
        workloads: of its layer calls, in order.
        inputs: the inputs it was walked with, in words.
        batch_size: samples per forward pass; ``None`` where that is not known.
        notes: everything assumed on the way, in sentences.
        parameters: elements of its parameters; ``None`` where they are not known.
    """

    model: str
    workloads: Sequence[Workload]
    inputs: str
    batch_size: int | None
    notes: Sequence[str]
    parameters: int | None = None

    @classmethod
    def from_trace(cls, trace: Trace, parameters: int | None = None) -> Walked:
        """Without the places in the model."""
        workloads = [call.workload for call in trace.calls]
        return cls(trace.model, workloads, trace.inputs, trace.batch_size, trace.notes, parameters)


class Walks:
    """Walks models that take the same inputs; the workloads are those of :func:`walk`.

    What one model's layers did is remembered for the next ones.
    """

    def __init__(
        self, args: Sequence[Any], kwargs: Mapping[str, Any] | None, batch_size: int | None
    ) -> None:
        self._args, self._kwargs, self._batch_size = args, kwargs, batch_size
        self._inputs: Inputs | None = None
        self._memo = Memo()

    def walk(self, model: nn.Module) -> Walked:
        """Walk one model.

        Raises:
            InvalidInput: for inputs that cannot be understood or inferred.
            WalkError: if the model cannot be walked; names the module and the operation.
        """
        if self._inputs is None and (self._args or self._kwargs):
            self._inputs = given(self._args, self._kwargs)
        ready = prepared(model, self._inputs, self._batch_size)
        parameters = {id(p): p for m in ready.modules for p in m._parameters.values()}
        total = sum(p.numel() for p in parameters.values() if p is not None)
        try:
            recorder = self._memo.walk(ready.model, ready.inputs)
        except Exception:  # of the model's own; the thorough walk copes, or says what is wrong
            trace = walk(model, *self._args, kwargs=self._kwargs, batch_size=self._batch_size)
            return Walked.from_trace(trace, total)
        return Walked(
            ready.name,
            [seen.workload for seen in recorder.seen],
            ready.inputs.description,
            ready.inputs.batch_size,
            [*ready.notes, *recorder.notes],
            total,
        )
