"""What an energy meter is, and the registry of all of them.

A meter is anything with five facts about itself and one method: ``read()`` returns the joules
counted so far. Only the difference of two readings means something. Every meter is held to that
by :func:`check_meter`, which strangers can run on their own.

Other distributions add meters through the entry-point group ``layer_energy.meters``: each entry
point names a module (or a class in it) whose import registers them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from inspect import signature
from typing import Any, Protocol, TypeVar, runtime_checkable

from layer_energy.errors import InvalidInput, MeterError

QUALITIES = ("measured", "estimated", "simulated", "replayed")
READ_EVERY_S = 30.0
"""Counters wrap: during work that takes longer, a meter is read this often."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One sample of a cumulative counter; both origins are arbitrary.

    Attributes:
        time_s: when it was read.
        energy_j: joules counted until then.
    """

    time_s: float
    energy_j: float


@runtime_checkable
class Meter(Protocol):
    """A source of joules.

    Attributes:
        name: short name, such as ``"rapl"``.
        quality: one of ``QUALITIES``; ``"measured"`` only where hardware counts.
        relative_uncertainty: half-width of the systematic uncertainty of the joules, 0 to 1.
        period_s: seconds between two updates of the counter; 0 if every read is fresh.
        assumptions: sentences to print beside every result.
    """

    name: str
    quality: str
    relative_uncertainty: float
    period_s: float
    assumptions: tuple[str, ...]

    def read(self) -> Reading:
        """Return the joules counted so far.

        Raises:
            MeterError: if the source can no longer be read.
        """
        ...


def average_power_w(first: Reading, second: Reading) -> float:
    """Mean watts between two readings.

    Raises:
        MeterError: if time does not advance or energy goes backwards.
    """
    time_s = second.time_s - first.time_s
    energy_j = second.energy_j - first.energy_j
    if not time_s > 0:
        raise MeterError(f"no time passes between {first} and {second}; read them in order")
    if not energy_j >= 0:
        raise MeterError(f"energy goes backwards from {first} to {second}; drop this interval")
    return energy_j / time_s


@dataclass(frozen=True, slots=True)
class _Entry:
    factory: Callable[..., Meter]
    rank: float | None
    kind: str


_REGISTRY: dict[str, _Entry] = {}

F = TypeVar("F", bound=Callable[..., Meter])


def register(name: str, rank: float | None = None, kind: str = "cpu") -> Callable[[F], F]:
    """Add a meter class or factory, which takes keyword arguments or none.

    Registering a name again replaces it. ``open_meter("auto")`` tries the meters of a kind of
    device, ``"cpu"`` or ``"cuda"``, in ascending order of ``rank``; without a rank a meter opens by
    name only.
    """

    def add(factory: F) -> F:
        _REGISTRY[name] = _Entry(factory, rank, kind)
        return factory

    return add


def meters() -> list[str]:
    """Names of all registered meters, sorted."""
    for entry_point in entry_points(group="layer_energy.meters"):
        entry_point.load()
    return sorted(_REGISTRY)


def open_meter(name: str = "auto", kind: str = "cpu", **options: Any) -> Meter:
    """Open a meter by name, or with ``"auto"`` the best one that this machine can read.

    Args:
        name: a name from :func:`meters`, or ``"auto"``.
        kind: with ``"auto"``, the kind of device whose joules are wanted, ``"cpu"`` or ``"cuda"``.
        options: arguments of the meter. With ``"auto"`` each meter gets those it takes, so that
            ``open_meter(max_power_w=65)`` says what to assume only where nothing is measured.

    Raises:
        InvalidInput: if no meter has this name, or it does not take these options.
        MeterError: if the meter, or with ``"auto"`` every one, cannot be read here.
    """
    names = meters()
    if name != "auto":
        if name not in names:
            raise InvalidInput(f"no meter is called {name!r}; choose auto, {', '.join(names)}")
        return _open(name, options)

    ranks = {
        name: entry.rank
        for name in names
        if (entry := _REGISTRY[name]).rank is not None and entry.kind == kind
    }
    takes = {name: set(signature(_REGISTRY[name].factory).parameters) for name in ranks}
    unknown = set(options).difference(*takes.values())
    if unknown:
        raise InvalidInput(f"none of the meters {', '.join(ranks)} takes {sorted(unknown)}")
    reasons = []
    for candidate in sorted(ranks, key=lambda name: (ranks[name], name)):
        try:
            return _open(candidate, {k: v for k, v in options.items() if k in takes[candidate]})
        except MeterError as error:
            reasons.append(f"{candidate}: {error}")
    raise MeterError("no energy source can be read on this machine: " + "; ".join(reasons))


def _open(name: str, options: dict[str, Any]) -> Meter:
    factory = _REGISTRY[name].factory
    expected = signature(factory)
    try:
        expected.bind(**options)
    except TypeError as error:
        raise InvalidInput(f"the {name} meter takes {expected}: {error}") from None
    return factory(**options)


def check_meter(meter: Meter) -> None:
    """Check that a meter keeps the contract; it takes 20 readings.

    Raises:
        AssertionError: naming what is wrong.
    """
    who = f"the meter {getattr(meter, 'name', None)!r} ({type(meter).__name__})"

    def require(condition: bool, problem: str) -> None:
        if not condition:
            raise AssertionError(f"{who} {problem}")

    for attribute in ("name", "quality", "relative_uncertainty", "period_s", "assumptions", "read"):
        require(hasattr(meter, attribute), f"has no attribute {attribute!r}")
    require(isinstance(meter.name, str) and meter.name != "", "needs a name, a non-empty string")
    require(meter.quality in QUALITIES, f"has quality {meter.quality!r}; the known are {QUALITIES}")
    require(
        _is_number(meter.relative_uncertainty) and 0 <= meter.relative_uncertainty <= 1,
        f"has relative_uncertainty {meter.relative_uncertainty!r}; it must be from 0 to 1",
    )
    require(
        _is_number(meter.period_s) and meter.period_s >= 0,
        f"has period_s {meter.period_s!r}; it must be 0 or more seconds",
    )
    require(
        isinstance(meter.assumptions, tuple) and all(isinstance(s, str) for s in meter.assumptions),
        f"has assumptions {meter.assumptions!r}; it must be a tuple of strings",
    )
    require(callable(meter.read), "has a read that cannot be called")
    previous: Reading | None = None
    for _ in range(20):
        reading = meter.read()
        require(isinstance(reading, Reading), f"read {reading!r}, which is no Reading")
        require(
            _is_number(reading.time_s) and _is_number(reading.energy_j),
            f"read {reading}, which are not finite numbers",
        )
        if previous is not None:
            require(
                reading.time_s >= previous.time_s,
                f"goes backwards in time, from {previous} to {reading}",
            )
            require(
                reading.energy_j >= previous.energy_j,
                f"goes backwards in energy, from {previous} to {reading}",
            )
        previous = reading


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
