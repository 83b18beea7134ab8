"""One physical law for all layer types of a device, with a handful of coefficients.

It says what layers cost where none of them was measured, only networks as a whole: the processor
that launches kernels (*host*) and the one that runs them (*device*) work side by side, and energy
is power × time plus a price per multiply-accumulate and per byte.

For a call with ``m`` multiply-accumulates of depth ``k``, ``o`` outputs of them and ``b`` bytes::

    host_s   = host_op_s (+ host_layer_s if it multiplies or has weights)
    device_s = ⁿ√(arithmeticⁿ + (b × byte_s)ⁿ)                             the roofline, rounded
    arithmetic = (m padded to tiles + wave × units × tile × k) × mac_s + o × output_s

and for the network, over its calls::

    time_s   = ⁿ√((Σ host_s)ⁿ + (Σ device_s)ⁿ)                             launch-bound or not
    energy_j = idle_w × time_s + busy_w × Σ device_s + Σ m × mac_j + Σ b × byte_j

Sources: the roofline is Williams, Waterman & Patterson 2009 (doi 10.1145/1498765.1498785); energy
as constant power plus a price per operation and per byte is Choi et al. 2013 (doi
10.1109/IPDPS.2013.77); tiles and the last, partly filled wave of them over the multiprocessors are
NVIDIA's *Matrix Multiplication Background User's Guide*. Half-precision products run on tensor
cores, ``float32`` ones on the ordinary cores, except convolutions where cuDNN rounds to TF32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layer_energy.kernels import extent
from layer_energy.layers.base import count
from layer_energy.profile_format import LARGEST, half_width
from layer_energy.workload import Workload

Array = NDArray[np.float64]

COEFFICIENTS = (
    "host_op_s", "host_layer_s", "byte_s", "half_mac_s", "mac_s", "output_s",
    "convolution", "depthwise", "wave",
    "idle_w", "busy_w", "half_mac_j", "mac_j", "byte_j",
)  # fmt: skip
"""Seconds, watts and joules per unit; ``convolution`` and ``depthwise`` multiply the seconds of a
multiply-accumulate, ``wave`` is the share of the last wave of tiles that runs empty."""

TILE = 128
"""Rows and columns of a matrix product are rounded up to this many, or to half of it if few."""

_SHARPNESS = {"roofline": 3.0, "launch": 4.0}
_SLACK = 1e-4
"""A saved range is rounded to six digits."""

_HALF = ("bfloat16", "float16")
_TENSOR, _VECTOR, _TENSOR_CONV, _VECTOR_CONV, _DEPTHWISE, _NONE = range(6)


@dataclass(frozen=True)
class Work:
    """What ``n`` workloads do, in the law's terms; each field has the shape ``(n,)``.

    Attributes:
        core: what multiplies.
        macs, padded: multiply-accumulates, as counted and rounded up to whole tiles.
        depth: multiply-accumulates behind one output.
        outputs: elements written by multiply-accumulates.
        bytes: memory traffic.
        layer: 1 where the call multiplies or has weights, else 0.
    """

    core: NDArray[np.int64]
    macs: Array
    padded: Array
    depth: Array
    outputs: Array
    bytes: Array
    layer: Array

    def __getitem__(self, rows: NDArray[np.int64]) -> Work:
        """The rows of these numbers, which may repeat."""
        return Work(*(getattr(self, f.name)[rows] for f in fields(self)))


def work(workloads: Sequence[Workload]) -> Work:
    """Count workloads of any layer types."""
    rows = np.array([_row(w) for w in workloads], dtype=float).reshape(-1, 7).T
    return Work(rows[0].astype(np.int64), *rows[1:])


def _row(workload: Workload) -> tuple[float, ...]:
    cost, _ = count(workload)
    p, kind, half = workload.params, workload.kind, workload.dtype in _HALF
    layer = float(bool(cost.macs or cost.bytes_weight))
    if not cost.macs:
        return _NONE, 0, 0, 0, 0, cost.bytes, layer
    depth = cost.macs / max(cost.elements, 1)
    core, padded = (_TENSOR if half else _VECTOR), float(cost.macs)
    if kind == "linear":
        padded = _tiles(1, p["tokens"], p["out_features"]) * p["in_features"]
    elif kind == "matmul":
        padded = _tiles(p["batch"], p["m"], p["n"]) * p["k"]
    elif kind.startswith("conv"):
        groups, rows = p["groups"], cost.elements / p["out_channels"]
        if 1 < groups == p["in_channels"]:
            core = _DEPTHWISE
        else:
            core = _TENSOR_CONV if half else _VECTOR_CONV
            padded = _tiles(groups, rows, p["out_channels"] / groups) * depth
    return core, cost.macs, padded, depth, cost.elements, cost.bytes, layer


def _tiles(matrices: int, rows: float, columns: float) -> float:
    """Elements of the output, rounded up to whole tiles."""
    tiles = [TILE if size > TILE // 2 else TILE // 2 for size in (rows, columns)]
    return matrices * (-(-rows // tiles[0]) * tiles[0]) * (-(-columns // tiles[1]) * tiles[1])


@dataclass(frozen=True)
class Law:
    """Coefficients of one device; see the module's text.

    Attributes:
        coefficients: one positive number for each of ``COEFFICIENTS``.
        units: multiprocessors, or hardware threads.
        tf32: seconds and joules of a ``float32`` convolution's multiply-accumulate on the tensor
            cores, relative to half precision; ``None`` where there are none.
        half_width: (energy, time) log half-width of the 90 % interval of a network.
        seen: ``"kind/dtype"`` → range of the multiply-accumulates (of the bytes, where there are
            none) of the fitted calls.
    """

    coefficients: Mapping[str, float]
    units: int = 1
    tf32: float | None = None
    half_width: tuple[float, float] = (1.0, 1.0)
    seen: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def price(
        self, x: Work, calls: Array, network: NDArray[np.int64] | None = None
    ) -> tuple[Array, Array]:
        """Price one execution of each workload, as a part of its network.

        The time in which the device waits for the host is shared among the calls in proportion to
        their host time, so that calls × price sums to the network's total.

        Args:
            x: ``n`` workloads.
            calls: ``(n,)``, how often each runs in its network.
            network: ``(n,)`` number of the network each belongs to; one network if not given.

        Returns:
            ``(n,)`` joules and ``(n,)`` seconds.
        """
        if network is None:
            network = np.zeros(len(calls), dtype=np.int64)
        c, tf32 = self.coefficients, self.tf32
        tensor, vector = c["half_mac_s"], c["mac_s"]
        single_s = tensor * tf32 if tf32 else vector
        single_j = c["half_mac_j"] * tf32 if tf32 else c["mac_j"]
        conv = c["convolution"]
        mac_s = np.array([tensor, vector, tensor * conv, single_s * conv, vector * c["depthwise"],
                          0.0])[x.core]  # fmt: skip
        mac_j = np.array([c["half_mac_j"], c["mac_j"], c["half_mac_j"], single_j, c["mac_j"],
                          0.0])[x.core]  # fmt: skip
        wave = c["wave"] * self.units * (TILE * TILE / 2) * x.depth * (x.core < _DEPTHWISE)
        arithmetic = (x.padded + wave) * mac_s + x.outputs * c["output_s"]
        device = _rounded_max(arithmetic, x.bytes * c["byte_s"], "roofline")
        host = c["host_op_s"] + c["host_layer_s"] * x.layer
        host_s, device_s = (
            np.asarray(np.bincount(network, calls * each), dtype=float) for each in (host, device)
        )
        gap = (_rounded_max(host_s, device_s, "launch") - device_s) / host_s
        time_s = device + gap[network] * host
        energy_j = c["idle_w"] * time_s + c["busy_w"] * device + x.macs * mac_j
        return energy_j + x.bytes * c["byte_j"], time_s

    @property
    def dtypes(self) -> list[str]:
        """Floating dtypes of the calls it was fitted on."""
        return sorted({key.split("/")[1] for key in self.seen if "float" in key.split("/")[1]})

    @property
    def kinds(self) -> list[str]:
        """Layer types of the calls it was fitted on."""
        return sorted({key.split("/")[0] for key in self.seen})

    def outside(self, workload: Workload) -> str:
        """Why a workload is unlike the calls it was fitted on; empty if it is not."""
        key = f"{workload.kind}/{workload.dtype}"
        if key not in self.seen:
            return f"no network of the fit ran {workload.kind} in {workload.dtype}"
        (low, high), (name, size) = self.seen[key], extent(workload)
        if low * (1 - _SLACK) <= size <= high * (1 + _SLACK):
            return ""
        return f"{name} {size:.4g} is outside {low:.4g} to {high:.4g}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "coefficients": dict(self.coefficients),
            "units": self.units,
            "tf32": self.tf32,
            "half_width": list(self.half_width),
            "seen": {key: list(limits) for key, limits in self.seen.items()},
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Law:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError, KeyError, TypeError: if the state is damaged.
        """
        coefficients = {name: float(state["coefficients"][name]) for name in COEFFICIENTS}
        if not all(0 < v <= LARGEST for v in coefficients.values()):
            raise ValueError("a coefficient is not a positive number, or far too large")
        units, tf32 = int(state["units"]), state["tf32"]
        if not 1 <= units <= LARGEST or not (tf32 is None or 0 < float(tf32) <= LARGEST):
            raise ValueError(f"units are {units} and tf32 is {tf32}")
        return cls(
            coefficients,
            units,
            None if tf32 is None else float(tf32),
            half_width(state["half_width"]),
            {key: (float(v[0]), float(v[1])) for key, v in state["seen"].items()},
        )


def nominal(
    half_macs_per_s: float,
    macs_per_s: float,
    bytes_per_s: float,
    power_w: float,
    units: int,
    tf32: float | None = None,
) -> Law:
    """What a data sheet promises: the starting point where nothing like the device is known.

    Four fifths of the peaks are reached, launching takes 15 to 45 µs, and full load is a quarter
    each idle power, busy power, arithmetic and memory at their peaks. These shares are rules of
    thumb, chosen with the A100 and the A10 in view.
    """
    reached = 0.8
    return Law(
        {
            "host_op_s": 15e-6, "host_layer_s": 30e-6, "byte_s": 1 / (reached * bytes_per_s),
            "half_mac_s": 1 / (reached * half_macs_per_s), "mac_s": 1 / (reached * macs_per_s),
            "output_s": 512 / half_macs_per_s, "convolution": 1.4, "depthwise": 4.0, "wave": 0.5,
            "idle_w": power_w / 4, "busy_w": power_w / 4,
            "half_mac_j": power_w / 4 / half_macs_per_s, "mac_j": power_w / 4 / macs_per_s,
            "byte_j": power_w / 4 / bytes_per_s,
        },
        units,
        tf32,
    )  # fmt: skip


def carry_over(law: Law, sheet: Law, other: Law) -> Law:
    """The law of a device that reaches the same shares of its data sheet as a known one.

    Args:
        law: fitted on the known device.
        sheet: :func:`nominal` of the known device.
        other: :func:`nominal` of the other.
    """
    ratio = {name: other.coefficients[name] / sheet.coefficients[name] for name in COEFFICIENTS}
    carried = {name: price * ratio[name] for name, price in law.coefficients.items()}
    return replace(law, coefficients=carried, units=other.units, tf32=other.tf32)


def _rounded_max(a: Array, b: Array, where: str) -> Array:
    """The larger of two, rounded where they are close: a norm of high order."""
    n = _SHARPNESS[where]
    low, high = np.minimum(a, b), np.maximum(np.maximum(a, b), 1e-300)
    return np.asarray(high * (1 + (low / high) ** n) ** (1 / n))
