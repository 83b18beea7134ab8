"""Contracts to run on your own layer types and meters.

>>> from layer_energy.testing import check_layer_type
>>> check_layer_type("relu")
"""

from __future__ import annotations

from random import Random

import torch

from layer_energy.layers.base import LayerType, count, layer_type
from layer_energy.meters.base import check_meter
from layer_energy.walk import walk
from layer_energy.workload import Params, Workload

__all__ = ["check_layer_type", "check_meter"]


def check_layer_type(kind: str | LayerType, samples: int = 20, seed: int = 0) -> None:
    """Check the law of layer types on ``samples`` random parameter sets.

    Walking what ``build(p)`` makes must give exactly one call, of this kind, with parameters ``p``;
    the counts and drivers must be finite and not negative, and ``space`` must name the parameters.

    Raises:
        AssertionError: with the parameters and what was seen instead.
    """
    of = layer_type(kind) if isinstance(kind, str) else kind
    rng = Random(seed)
    drawn = 0
    for _ in range(samples * 50):
        p = of.sample(rng)
        if p is None:
            continue
        drawn += 1
        _check_one(of, p)
        if drawn == samples:
            return
    raise AssertionError(f"{of.kind}: only {drawn} of {samples * 50} draws were valid")


def _check_one(of: LayerType, p: dict[str, int]) -> None:
    assert list(p) == list(of.space), f"{of.kind}: sample gave {list(p)}, space {list(of.space)}"
    with torch.device("meta"):
        module, inputs = of.build(p)
    trace = walk(module, *inputs, training=module.training and _stays_training(of, p))
    seen = [(call.workload.kind, dict(call.workload.params)) for call in trace.calls]
    assert seen == [(of.kind, p)], f"{of.kind}: built {p}, walking it gave {seen}"
    cost, drivers = count(Workload(of.kind, Params(p)))
    for name in ("macs", "bytes_in", "bytes_weight", "bytes_out", "elements"):
        value = getattr(cost, name)
        assert isinstance(value, int), f"{of.kind}: {name} is {value!r}, expected an int"
        assert value >= 0, f"{of.kind}: {name} is {value}"
    assert drivers, f"{of.kind}: no drivers"
    for name, amount in drivers.items():
        assert 0 <= amount < float("inf"), f"{of.kind}: driver {name} is {amount} for {p}"


def _stays_training(of: LayerType, p: dict[str, int]) -> bool:
    return bool(p.get("training", of.kind == "dropout"))
