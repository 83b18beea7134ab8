"""What the file of a profile must hold: it may be old, damaged, or from a stranger."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layer_energy.errors import ProfileError
from layer_energy.meters.base import QUALITIES

SCHEMA_VERSION = 2

LARGEST = 1e30
"""Of a number in a profile: far beyond any physical one, and products of them are still finite."""

MAX_HALF_WIDTH = 100.0
"""Of an interval in the log; no fit is that bad, and its exponential is still a number."""

INFERRED = "inferred"
"""Quality of the joules of a profile that rests on a data sheet and on another GPU's rows."""

_REBUILD = "rebuild it with `layer-energy fit DATASET --out FILE`"
_DEVICE = {"name": str, "kind": str, "slug": str, "threads": int, "details": dict}
_DATASET = {"name": str, "rows": int, "finished": str}


def read_profile(path: Path) -> dict[str, Any]:
    """The JSON of a profile of this schema; its regressors check themselves.

    Raises:
        ProfileError: if it cannot be read, is no profile, is of another schema, or lacks a field.
    """
    try:
        state = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except (OSError, ValueError, RecursionError) as error:
        raise ProfileError(f"{path} is not a readable profile ({error}); {_REBUILD}") from error
    if not isinstance(state, dict) or "schema_version" not in state:
        raise ProfileError(
            f"{path} is JSON, but not a profile: it has no schema_version; give a file made by "
            "`layer-energy fit`"
        )
    version = state["schema_version"]
    if type(version) is not int or version < SCHEMA_VERSION:
        raise ProfileError(
            f"{path} has the schema {version!r}, which this version no longer reads (it reads "
            f"{SCHEMA_VERSION}); {_REBUILD}"
        )
    if version > SCHEMA_VERSION:
        raise ProfileError(
            f"{path} has the schema {version}, this version reads up to {SCHEMA_VERSION}; "
            "upgrade layer_energy"
        )
    try:
        _check(state)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(path, error) from error
    return state


def damaged(path: Path, error: Exception) -> ProfileError:
    """The error for a profile whose fields cannot be what they are."""
    return ProfileError(f"{path} is damaged ({error!r}); fetch it again or {_REBUILD}")


def finite(values: Any, *shape: int | None) -> NDArray[np.float64]:
    """An array from a profile.

    Args:
        values: nested lists.
        shape: what they must have; ``None`` is any length.

    Raises:
        ValueError: if a value is not a number, beyond ``LARGEST``, or the shape is another.
    """
    array = np.array(values, dtype=float)
    fits = len(shape) == array.ndim and all(
        wanted in (None, length) for wanted, length in zip(shape, array.shape, strict=True)
    )
    if not fits or not (np.abs(array) <= LARGEST).all():
        raise ValueError(f"expected plausible numbers of the shape {shape}, got {str(values)[:60]}")
    return array


def half_width(values: Any) -> tuple[float, float]:
    """(energy, time) log half-widths of 90 % intervals.

    Raises:
        ValueError: if they are not two numbers from 0 to ``MAX_HALF_WIDTH``.
    """
    energy, time = finite(values, 2).tolist()
    if not (0 <= energy <= MAX_HALF_WIDTH and 0 <= time <= MAX_HALF_WIDTH):
        raise ValueError(f"half_width is {values}, not from 0 to {MAX_HALF_WIDTH:g}")
    return energy, time


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number")


def _check(state: Mapping[str, Any]) -> None:
    _check_fields(state["device"], _DEVICE, "device", required=True)
    _check_fields(state["dataset"], _DATASET, "dataset", required=False)
    known = (*QUALITIES, INFERRED)
    if state["quality"] not in known:
        raise ValueError(f"quality is {state['quality']!r}, not one of {', '.join(known)}")
    uncertainty = state["relative_uncertainty"]
    if not 0 <= uncertainty <= 1:
        raise ValueError(f"relative_uncertainty is {uncertainty!r}, not from 0 to 1")
    for name in ("idle_power_w", "max_power_w"):
        watts = state["dataset"].get(name)
        if watts is not None and not 0 <= watts <= LARGEST:
            raise ValueError(f"dataset.{name} is {watts!r}, not a plausible power")
    sentences = state["assumptions"]
    if not isinstance(sentences, list) or not all(isinstance(s, str) for s in sentences):
        raise ValueError("assumptions are not a list of sentences")
    for mode, totals in state["totals"].items():
        for target, (low, high) in totals["ratio"].items():
            if not 0 < low <= high <= LARGEST:
                raise ValueError(f"the ratio of networks' {mode} {target} is {low!r} to {high!r}")
    for key in state["kinds"]:
        if key.count("/") != 2:
            raise ValueError(f"{key!r} is not kind/dtype/gradients")
    if not (state["kinds"] or state.get("law") or state.get("pooled")):
        raise ValueError("it prices nothing: no layer types and no law")


def _check_fields(
    state: Mapping[str, Any], fields: Mapping[str, type], name: str, required: bool
) -> None:
    for field, kind in fields.items():
        if (required or field in state) and not isinstance(state[field], kind):
            raise ValueError(f"{name}.{field} is {state[field]!r}, not of type {kind.__name__}")
