"""What a layer type is, and the registry of all of them.

A layer type answers five questions about one kind of operation: which parameters it has and how
to sample them (``space``), how to run it (``build``), how to recognise it in a running model
(``claims`` and ``describe``), how to count it (``cost``) and which quantities drive its energy
(``drivers``). One law ties them together and is checked for every type by
:func:`layer_energy.testing.check_layer_type`: *walking what* ``build(p)`` *makes gives exactly one
call of this kind with parameters* ``p``.

What the counts mean: ``macs`` are the multiply-accumulates of convolutions, matrix products and
attention, one per weight use, padding included, biases and softmax left out (half of what
``torch.utils.flop_counter`` calls flops). ``bytes_*`` are the sizes of the tensors an operation
reads and writes once; caches and re-reads are the regressors' business.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

from layer_energy.errors import InvalidInput
from layer_energy.workload import Cost, Gradients, Params, Workload

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class LogInt:
    """Integers from ``low`` to ``high``, uniform in the logarithm.

    ``aligned`` is the share of draws rounded to a multiple of 8, 16, 32 or 64, as the widths of
    real networks are; ``powers`` the share rounded to a power of two.
    """

    low: int
    high: int
    aligned: float = 0.0
    powers: float = 0.0

    def draw(self, rng: Random) -> int:
        """One integer within the bounds."""
        value = math.exp(rng.uniform(math.log(self.low), math.log(self.high + 1)))
        lottery = rng.random()
        if lottery < self.powers:
            value = 2 ** round(math.log2(value))
        elif lottery < self.powers + self.aligned:
            step = rng.choice((8, 16, 32, 64))
            value = max(step, step * round(value / step))
        return min(max(int(value), self.low), self.high)


@dataclass(frozen=True)
class Choice:
    """One of the keys of ``weights``, drawn in proportion to the values."""

    weights: Mapping[int, float]

    def draw(self, rng: Random) -> int:
        """One of the keys."""
        return rng.choices(list(self.weights), list(self.weights.values()))[0]


@dataclass(frozen=True)
class Mixture:
    """``common`` values with probability ``share``, else a draw from ``rest``."""

    common: tuple[int, ...]
    share: float
    rest: LogInt

    def draw(self, rng: Random) -> int:
        """One integer."""
        return rng.choice(self.common) if rng.random() < self.share else self.rest.draw(rng)


def flag(probability: float) -> Choice:
    """1 with ``probability``, else 0."""
    return Choice({1: probability, 0: 1 - probability})


Distribution = LogInt | Choice | Mixture

BATCH = LogInt(1, 512, powers=0.8)
CHANNELS = LogInt(1, 2048, aligned=0.8)
SIZE = Mixture((7, 8, 14, 16, 28, 32, 56, 64, 112, 128, 224), 0.6, LogInt(4, 384))
ELEMENTS = LogInt(16, 2**26)
AXES = ("d", "h", "w")


@dataclass(frozen=True, slots=True)
class Call:
    """One operation as the walker saw it, its arguments bound to the names of its schema.

    Attributes:
        op: name of the operation without namespace and overload, such as ``"conv2d"``.
        arguments: name → value, defaults filled in; tensors are on the meta device.
        output: what the operation returned.
        in_place: whether it writes to one of its arguments.
    """

    op: str
    arguments: Mapping[str, Any]
    output: Any
    in_place: bool

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get(self, name: str) -> Any:
        """The argument, or ``None`` where this operation has none of that name."""
        return self.arguments.get(name)

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All tensors among the arguments, those inside lists included, in order."""
        return list(_tensors(self.arguments.values()))

    @property
    def result(self) -> torch.Tensor | None:
        """The first tensor of the output."""
        return next(_tensors([self.output]), None)


def _tensors(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _tensors(value)
        elif hasattr(value, "untyped_storage"):
            yield value


Built = tuple["nn.Module", tuple[Any, ...]]


class LayerType:
    """Base of all layer types; see the module's text for the contract."""

    kind: str
    claims: tuple[str, ...] = ()
    """Names of the operations it prices, without namespace and overload."""

    space: Mapping[str, Distribution]
    """Parameter → distribution; its keys are the parameters, in order."""

    differentiable = True
    """Whether a backward pass goes through it."""

    differentiated_inputs: int | None = None
    """How many of its inputs, the first ones, a network wants gradients of; all if ``None``."""

    def sample(self, rng: Random) -> dict[str, int] | None:
        """Draw parameters, or ``None`` if this draw makes no valid layer (draw again)."""
        return {name: distribution.draw(rng) for name, distribution in self.space.items()}

    def build(self, p: Mapping[str, int]) -> Built:
        """Return a module and its inputs. Called under ``torch.device("meta")``.

        Floating tensors are filled by the caller; integer tensors keep the values given here
        (create them with an explicit ``device="cpu"``).
        """
        raise NotImplementedError

    def describe(self, call: Call) -> dict[str, int] | None:
        """Return the parameters of a call to one of ``claims``, or ``None`` to decline it."""
        raise NotImplementedError

    def cost(self, p: Mapping[str, int], itemsize: int) -> Cost:
        """Count a forward execution; ``itemsize`` is the bytes per element."""
        raise NotImplementedError

    def drivers(self, p: Mapping[str, int], cost: Cost) -> dict[str, float]:
        """Return the non-negative quantities whose weighted sum the physical law is."""
        return {
            "bytes_in": cost.bytes_in,
            "bytes_weight": cost.bytes_weight,
            "bytes_out": cost.bytes_out,
        }

    def training_drivers(self, p: Mapping[str, int], cost: Cost) -> dict[str, float]:
        """The same for a forward and backward pass."""
        return self.drivers(p, cost)


_REGISTRY: dict[str, LayerType] = {}
_CLAIMS: dict[str, list[LayerType]] = {}

L = TypeVar("L", bound="type[LayerType] | LayerType")


def register(layer_type: L) -> L:
    """Add a layer type, class or instance. Registering a kind again replaces it."""
    instance = layer_type() if isinstance(layer_type, type) else layer_type
    previous = _REGISTRY.get(instance.kind)
    for claimants in _CLAIMS.values():
        if previous in claimants:
            claimants.remove(previous)
    _REGISTRY[instance.kind] = instance
    for op in instance.claims:
        _CLAIMS.setdefault(op, []).insert(0, instance)
    count.cache_clear()
    return layer_type


def layer_type(kind: str) -> LayerType:
    """Return the registered layer type of this name.

    Raises:
        InvalidInput: if there is none; the message lists the valid names.
    """
    try:
        return _REGISTRY[kind]
    except KeyError:
        raise InvalidInput(
            f"no layer type is called {kind!r}; the registered ones are {', '.join(kinds())}"
        ) from None


def kinds() -> list[str]:
    """Names of all registered layer types, sorted."""
    return sorted(_REGISTRY)


def claimants(op: str) -> Sequence[LayerType]:
    """Layer types that claim an operation, the newest first."""
    return _CLAIMS.get(op, ())


def recognise(call: Call) -> tuple[LayerType, dict[str, int]] | None:
    """Ask the claimants of an operation, in order, for its parameters."""
    for candidate in claimants(call.op):
        params = candidate.describe(call)
        if params is not None:
            return candidate, params
    return None


@functools.lru_cache(maxsize=65536)
def count(workload: Workload) -> tuple[Cost, dict[str, float]]:
    """Cost and energy drivers of a workload: the one place features come from."""
    of = layer_type(workload.kind)
    cost = of.cost(workload.params, workload.itemsize_bytes)
    drivers = of.drivers if workload.gradients == "none" else of.training_drivers
    return cost, drivers(workload.params, cost)


def differentiated(work: Workload, gradients: Gradients) -> Workload:
    """A forward workload → that of its forward and backward pass.

    What has no weights can only pay for the gradients of its inputs, what autograd does not go
    through for none; and what overwrites its input in the forward pass does not in the backward.
    """
    if gradients == "none" or not layer_type(work.kind).differentiable:
        return work
    if not count(work)[0].bytes_weight:
        gradients = "input"
    params = work.params
    if "in_place" in params:
        params = Params({**params, "in_place": 0})
    return Workload(work.kind, params, work.dtype, gradients)


def workload(kind: str, dtype: str = "float32", **params: int) -> Workload:
    """Make a workload by hand: ``workload("relu", elements=1024, in_place=0)``."""
    expected = list(layer_type(kind).space)
    if set(params) != set(expected):
        raise InvalidInput(f"{kind} takes the parameters {expected}, got {sorted(params)}")
    return Workload(kind, Params({name: int(params[name]) for name in expected}), dtype)


def prod(shape: Sequence[int]) -> int:
    """Product of the sizes."""
    return math.prod(int(n) for n in shape)


def spread(value: Any, ndim: int) -> list[int]:
    """An ``int`` or a list of 1 or ``ndim`` ints, as ``ndim`` ints."""
    values = [value] if isinstance(value, int) else list(value)
    return [int(v) for v in (values * ndim if len(values) == 1 else values)]


def by_axis(name: str, values: Sequence[int]) -> dict[str, int]:
    """``by_axis("kernel", (3, 5))`` → ``{"kernel_h": 3, "kernel_w": 5}``."""
    return {f"{name}_{axis}": int(v) for axis, v in zip(AXES[-len(values) :], values, strict=True)}


def along(p: Mapping[str, int], name: str, ndim: int) -> list[int]:
    """The inverse of :func:`by_axis`."""
    return [p[f"{name}_{axis}"] for axis in AXES[-ndim:]]


def same_on_axes(name: str, distribution: Distribution, ndim: int) -> dict[str, Distribution]:
    """A space with one entry per axis."""
    return {f"{name}_{axis}": distribution for axis in AXES[-ndim:]}


def module(function: Callable[..., Any]) -> nn.Module:
    """Wrap a function as a module whose forward it is."""
    from torch import nn

    class Functional(nn.Module):
        def forward(self, *inputs: Any) -> Any:
            return function(*inputs)

    return Functional()
