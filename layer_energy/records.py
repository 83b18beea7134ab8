"""Measurements as plain dicts and back, each field checked on the way.

The one place that knows how a measured value is written down: the collector's journal and the
dataset on disk both go through it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from layer_energy.errors import DatasetError
from layer_energy.meters.base import QUALITIES
from layer_energy.workload import (
    GRADIENTS,
    LAUNCHES,
    Conditions,
    Measurement,
    NetworkMeasurement,
    Params,
    Workload,
)

WITHOUT_TIME = frozenset({"failed", "too_slow"})
"""Flags of rows that may lack time, energy and power (0)."""

_KEYS = {"kind", "params", "dtype", "gradients"} | {
    field.name for field in fields(Measurement) if field.name != "workload"
}
_NETWORK_KEYS = {field.name for field in fields(NetworkMeasurement)}
_CONDITION_KEYS = {field.name for field in fields(Conditions)}
_LATER = {"launch", "counter_power_w", "instant_power_w", "burst_power_w", "board"}
"""Fields that rows in older files lack."""


def text(row: Mapping[str, Any], key: str) -> str:
    """Return ``row[key]`` if it is non-empty printable text, else raise DatasetError."""
    value = row.get(key)
    if not isinstance(value, str) or not value or not value.isprintable():
        raise DatasetError(f"{key} must be non-empty printable text, got {value!r}")
    return value


def integer(row: Mapping[str, Any], key: str) -> int:
    """Return ``row[key]`` if it is a non-negative integer, else raise DatasetError."""
    value = row.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise DatasetError(f"{key} must be a non-negative integer, got {value!r}")
    return value


def number(row: Mapping[str, Any], key: str, *, positive: bool = False) -> float:
    """Return ``row[key]`` if it is finite and not negative (or zero), else raise DatasetError."""
    value = row.get(key)
    if (
        not isinstance(value, (int, float))
        or isinstance(value, bool)
        or not 0 <= value <= sys.float_info.max
        or (positive and value == 0)
    ):
        sign = "positive" if positive else "non-negative"
        raise DatasetError(f"{key} must be a finite {sign} number, got {value!r}")
    return float(value)


def flag_names(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return ``row["flags"]`` if it is a list of names free of ``|``, else raise DatasetError."""
    names = row.get("flags")
    if not isinstance(names, list) or not all(
        isinstance(name, str) and name and name.isprintable() and "|" not in name for name in names
    ):
        raise DatasetError(f"flags must be a list of non-empty names without '|', got {names!r}")
    return tuple(names)


def one_of(row: Mapping[str, Any], key: str, allowed: tuple[str, ...]) -> Any:
    """Return ``row[key]`` if it is one of ``allowed``, else raise DatasetError."""
    if row.get(key) not in allowed:
        raise DatasetError(f"{key} must be one of {', '.join(allowed)}, got {row.get(key)!r}")
    return row[key]


def measurement_to_dict(measurement: Measurement) -> dict[str, Any]:
    """Return a JSON-able dict, lossless; raise DatasetError if reading would refuse it."""
    workload = measurement.workload
    row = {
        "row_id": int(measurement.row_id),
        "kind": workload.kind,
        "params": {name: int(value) for name, value in workload.params.items()},
        "dtype": workload.dtype,
        "gradients": workload.gradients,
        "time_s": float(measurement.time_s),
        "energy_j": float(measurement.energy_j),
        "power_w": float(measurement.power_w),
        "spread": float(measurement.spread),
        "repeats": int(measurement.repeats),
        "executions": int(measurement.executions),
        "quality": measurement.quality,
        "meter": measurement.meter,
        "flags": list(measurement.flags),
        "conditions": asdict(measurement.conditions) if measurement.conditions else None,
    }
    measurement_from_dict(row)
    return row


def measurement_from_dict(row: Any) -> Measurement:
    """Return the measurement that :func:`measurement_to_dict` wrote, checked field by field.

    Raises:
        DatasetError: if a field is missing, unknown, of the wrong type or out of its range.
    """
    _check_keys(row, _KEYS)
    params = row["params"]
    if not isinstance(params, dict):
        raise DatasetError(f"params must be an object, got {params!r}")
    flags = flag_names(row)
    timed = WITHOUT_TIME.isdisjoint(flags)
    return Measurement(
        workload=Workload(
            kind=text(row, "kind"),
            params=Params({name: integer(params, name) for name in params}),
            dtype=text(row, "dtype"),
            gradients=one_of(row, "gradients", GRADIENTS),
        ),
        time_s=number(row, "time_s", positive=timed),
        energy_j=number(row, "energy_j", positive=timed),
        power_w=number(row, "power_w", positive=timed),
        spread=number(row, "spread"),
        repeats=integer(row, "repeats"),
        executions=integer(row, "executions"),
        quality=one_of(row, "quality", QUALITIES),
        meter=text(row, "meter"),
        flags=flags,
        row_id=integer(row, "row_id"),
        conditions=_conditions(row["conditions"]),
    )


def network_to_dict(network: NetworkMeasurement) -> dict[str, Any]:
    """Return a JSON-able dict, lossless; raise DatasetError if reading would refuse it."""
    row = {**asdict(network), "flags": list(network.flags)}
    network_from_dict(row)
    return row


def network_from_dict(row: Any) -> NetworkMeasurement:
    """Return the network that :func:`network_to_dict` wrote, checked field by field.

    Raises:
        DatasetError: naming the field at fault.
    """
    _check_keys(row, _NETWORK_KEYS)
    return NetworkMeasurement(
        model=text(row, "model"),
        batch_size=integer(row, "batch_size"),
        input=text(row, "input"),
        dtype=text(row, "dtype"),
        mode=text(row, "mode"),
        time_s=number(row, "time_s", positive=True),
        energy_j=number(row, "energy_j", positive=True),
        power_w=number(row, "power_w", positive=True),
        spread=number(row, "spread"),
        repeats=integer(row, "repeats"),
        quality=one_of(row, "quality", QUALITIES),
        meter=text(row, "meter"),
        flags=flag_names(row),
        layers_time_s=_optional(row, "layers_time_s", positive=True),
        layers_energy_j=_optional(row, "layers_energy_j", positive=True),
        conditions=_conditions(row["conditions"]),
        launch=None if row.get("launch") is None else one_of(row, "launch", LAUNCHES),
    )


def _check_keys(row: Any, expected: set[str]) -> None:
    if not isinstance(row, dict):
        raise DatasetError(f"a row must be an object, got {type(row).__name__}")
    if not expected - _LATER <= row.keys() <= expected:
        missing, unknown = sorted(expected - _LATER - row.keys()), sorted(row.keys() - expected)
        raise DatasetError(f"a row lacks the fields {missing} and has the unknown ones {unknown}")


def _optional(row: Mapping[str, Any], key: str, *, positive: bool = False) -> float | None:
    return None if row.get(key) is None else number(row, key, positive=positive)


def _conditions(row: Any) -> Conditions | None:
    if row is None:
        return None
    _check_keys(row, _CONDITION_KEYS)
    return Conditions(
        energy_source=text(row, "energy_source"),
        burst_time_s=number(row, "burst_time_s"),
        host_time_s=_optional(row, "host_time_s"),
        idle_power_w=number(row, "idle_power_w"),
        temperature_c=_optional(row, "temperature_c"),
        sm_clock_mhz=_optional(row, "sm_clock_mhz"),
        memory_clock_mhz=_optional(row, "memory_clock_mhz"),
        power_cap_s=number(row, "power_cap_s"),
        counter_power_w=_optional(row, "counter_power_w", positive=True),
        instant_power_w=_optional(row, "instant_power_w", positive=True),
        burst_power_w=_optional(row, "burst_power_w", positive=True),
        board=None if row.get("board") is None else text(row, "board"),
    )
