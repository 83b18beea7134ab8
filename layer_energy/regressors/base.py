"""What a regressor is: features of one layer type → joules and seconds per execution."""

from __future__ import annotations

from typing import Any, Protocol

from layer_energy.errors import InvalidInput, ProfileError
from layer_energy.regressors.features import Array, Features

TARGETS = ("energy_j", "time_s")
"""Columns of ``y``, in order."""


class Regressor(Protocol):
    """Fits and predicts ``(n, 2)`` targets: joules and seconds."""

    name: str

    def fit(self, x: Features, y: Array) -> Regressor:
        """Fit on ``n`` rows; ``y`` is ``(n, 2)`` and positive. Returns itself."""
        ...

    def predict(self, x: Features) -> Array:
        """Return ``(n, 2)`` positive predictions."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Return everything learnt, as plain JSON values."""
        ...

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Regressor:
        """Rebuild what ``to_dict`` described."""
        ...


_REGRESSORS: dict[str, type[Regressor]] = {}


def register(regressor: type[Any]) -> type[Any]:
    """Class decorator: make a regressor available by its ``name``."""
    _REGRESSORS[regressor.name] = regressor
    return regressor


def names() -> list[str]:
    """Names of the registered regressors."""
    return sorted(_REGRESSORS)


def make(name: str) -> Regressor:
    """Return an unfitted regressor.

    Raises:
        InvalidInput: if no regressor has this name.
    """
    if name not in _REGRESSORS:
        raise InvalidInput(f"no regressor is called {name!r}; there are {', '.join(names())}")
    regressor: Regressor = _REGRESSORS[name]()
    return regressor


def load(state: dict[str, Any]) -> Regressor:
    """Rebuild a regressor from its ``to_dict``.

    Raises:
        ProfileError: if the state is damaged or names an unknown regressor.
    """
    regressor = _REGRESSORS.get(state.get("name", ""))
    if regressor is None:
        raise ProfileError(f"unknown regressor {state.get('name')!r}; upgrade layer_energy")
    try:
        return regressor.from_dict(state)
    except (KeyError, TypeError, ValueError) as error:
        raise ProfileError(
            f"the {state['name']} regressor of the profile is damaged ({error!r}); fetch the "
            "profile again or rebuild it with `layer-energy fit`"
        ) from error
