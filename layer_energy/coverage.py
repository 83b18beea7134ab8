"""How much of the joules of networks lies near measured layers, and which to measure next.

The *neighbourhood* of a workload is every workload of its category, see :func:`category`, with
multiply-accumulates and bytes within a factor of two. A regressor has little to guess there.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from layer_energy.layers.base import count
from layer_energy.workload import Workload

RADIUS = 1.0
"""Powers of two by which neighbours may differ."""

ROUNDING = 1e-12
"""A share of joules this small is none."""

_SAME = {
    "affine", "bidirectional", "causal", "ceil_mode", "channels_last", "in_place", "mask",
    "training", "transposed",
}  # fmt: skip
_SAME_ON_AXES = ("kernel_", "stride_", "dilation_")


def without_tf32(work: Workload) -> Workload:
    """What computes the same in TensorFloat-32, in float32.

    That is everything without multiply-accumulates, and attention, which has no such kernel.
    """
    if work.dtype == "tf32" and (work.kind == "attention" or not count(work)[0].macs):
        return replace(work, dtype="float32")
    return work


def category(work: Workload) -> Hashable:
    """What neighbours have in common: layer type, dtype, gradients, and how the kernel is made."""
    work = without_tf32(work)
    p = work.params
    shape = [(k, n) for k, n in p.items() if k in _SAME or k.startswith(_SAME_ON_AXES)]
    return work.kind, work.dtype, work.gradients, _grouping(work), tuple(sorted(shape))


def size(work: Workload) -> tuple[float, ...]:
    """Powers of two of multiply-accumulates, and of bytes in, of weights, and out."""
    cost, _ = count(work)
    amounts = (cost.macs, cost.bytes_in, cost.bytes_weight, cost.bytes_out)
    return tuple(math.log2(n + 1) for n in amounts)


def cover(
    shares: Mapping[Workload, float],
    allowed: Callable[[Workload], bool] = lambda work: True,
    measured: Iterable[Workload] = (),
) -> Iterator[tuple[Workload, float]]:
    """Choose what to measure: always the workload with most uncovered joules near it.

    Args:
        shares: workload → joules, in any unit; these are also what is chosen from.
        allowed: whether a workload can be measured.
        measured: what is measured already.

    Yields:
        A workload and the share of all joules that it adds, until none adds any.
    """
    total = sum(shares.values())
    groups = _groups(shares)
    for work in measured:
        if (group := groups.get(category(work))) is not None:
            group.measure(size(work))
    heap: list[tuple[float, int, _Group]] = []
    for number, group in enumerate(groups.values()):
        group.choose_among(allowed)
        heapq.heappush(heap, (-group.best_gain(), number, group))
    while heap and -heap[0][0] > ROUNDING * total:
        _, number, group = heap[0]
        work, gain = group.take()
        yield work, gain / total
        heapq.heapreplace(heap, (-group.best_gain(), number, group))


def gains(shares: Mapping[Workload, float], measured: Iterable[Workload]) -> list[float]:
    """The share of all joules that each workload adds to those before it."""
    total = sum(shares.values())
    groups = _groups(shares)
    found = []
    for work in measured:
        group = groups.get(category(work))
        found.append(0.0 if group is None else group.measure(size(work)) / total)
    return found


def covered(shares: Mapping[Workload, float], measured: Iterable[Workload]) -> float:
    """The share of all joules in the neighbourhoods of measured workloads."""
    return sum(gains(shares, measured))


class _Group:
    """Workloads of one category, and which of their joules are not covered yet."""

    def __init__(self, joules: Mapping[Workload, float]) -> None:
        self._works = list(joules)
        self._sizes = np.array([size(work) for work in joules])
        self._left = np.array(list(joules.values()))

    def measure(self, at: tuple[float, ...]) -> float:
        """Cover what is near a size; return how much that was."""
        return self._cover(_near(self._sizes, np.array(at)))

    def choose_among(self, allowed: Callable[[Workload], bool]) -> None:
        """Prepare to choose the best of the workloads that are allowed."""
        self._near = np.array([_near(self._sizes, each) for each in self._sizes])
        self._gains = self._near @ self._left
        self._gains[[not allowed(work) for work in self._works]] = -np.inf

    def best_gain(self) -> float:
        """What :meth:`take` would cover."""
        return float(self._gains.max())

    def take(self) -> tuple[Workload, float]:
        """Cover what is near the best workload; return it, and how much that was."""
        best = int(self._gains.argmax())
        new = self._near[best] & (self._left > 0)
        self._gains -= self._near[:, new] @ self._left[new]
        self._gains[best] = -np.inf
        return self._works[best], self._cover(new)

    def _cover(self, near: NDArray[np.bool_]) -> float:
        gain = float(self._left[near].sum())
        self._left[near] = 0.0
        return gain


def _groups(shares: Mapping[Workload, float]) -> dict[Hashable, _Group]:
    found: defaultdict[Hashable, dict[Workload, float]] = defaultdict(dict)
    for work, joules in shares.items():
        found[category(work)][work] = joules
    return {key: _Group(joules) for key, joules in found.items()}


def _near(sizes: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.bool_]:
    near: NDArray[np.bool_] = np.all(np.abs(sizes - at) <= RADIUS, axis=1)
    return near


def _grouping(work: Workload) -> str:
    """How a convolution's channels depend on each other."""
    groups = work.params.get("groups", 1)
    if groups == 1 or not work.kind.startswith("conv"):
        return "dense"
    return "depthwise" if groups == work.params["in_channels"] else "grouped"
