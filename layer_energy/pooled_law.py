"""One physical law for all layer types of a device, fitted on few rows of many of them at once.

A regressor per layer type needs dozens of rows of each. Here all rows share the coefficients of
the device, and whatever is peculiar to a layer type, a product, a dtype or a pass is a *deviation*
from them, a factor whose logarithm is pulled towards zero: with few rows it stays there, with many
it follows them (ridge regression, equivalently a normal prior whose standard deviations stand in
``_TIME`` and ``_POWER``). A Gaussian process on what the law leaves was tried: it did not help
whole networks, so there is none.

For a kernel with ``m`` multiply-accumulates, ``b`` bytes, ``r`` rows or planes, ``l`` launches and
``s`` steps of one thread (:mod:`layer_energy.kernels`)::

    arithmetic = m / (peak × filled) × deviations + depth in sequence × seconds
    memory     = (b + layout bytes) / bandwidth × deviations + r × seconds + s × seconds
    time_s     = l × launch + ᵖ√(arithmeticᵖ + memoryᵖ)                         with p = _ORDER

    power_w    = idle + softmin(limit − idle, busy + (m + b + r, × joules each) / time)

A layer's time and energy are the sums over its kernels. Sources: the roofline is Williams, Waterman
& Patterson 2009 (doi 10.1145/1498765.1498785); energy as constant power plus a price per operation
and per byte is Choi et al. 2013 (doi 10.1109/IPDPS.2013.77).

**What stays in the cache.** Rows are measured cold: their inputs are not in the L2. In a network a
layer finds there what the one before it wrote, as far as both fit: of its input the share
``hit = clip(1.25 − (bytes_in + bytes_out) / cache_bytes, 0, 1)`` is read at ``_CACHED`` of the time
and joules of a byte, which copies within the L2 and beyond it gave (``datasets/nvidia-h200``).

**Waiting for the host.** Launched eagerly, a network needs its host's time too:
``time_s = ⁿ√(device_sⁿ + host_sⁿ)`` with ``host_s = HOST_OVERHEAD × Σ host time of its calls``, and
while the GPU waits it draws idle power. A backward pass counts as further calls
(``_HOST_CALLS``): rows with gradients start the autograd engine for a single call, which a training
step does once, so their own host times are of no use.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from layer_energy.kernels import (
    DTYPES,
    PASSES,
    PRODUCTS,
    Array,
    Index,
    Kernels,
    extent,
    group_of,
    kernels,
)
from layer_energy.profile_format import LARGEST, finite, half_width
from layer_energy.sheet import Sheet, sheet_from_dict
from layer_energy.workload import Gradients, Measurement, Workload

_T, _D, _P = len(DTYPES), len(PRODUCTS), len(PASSES)
_G = -1
"""Stands in the shapes below for the number of groups, and one more without deviations: others."""

_TIME = {
    "peak": ((_T,), 0.3), "product": ((_D,), 0.6), "product_dtype": ((_D, _T), 0.5),
    "product_pass": ((_D, _P), 0.4), "misaligned": ((_T,), 0.7), "serial": ((_T,), 0.7),
    "bandwidth": ((1,), 0.2), "group": ((_G,), 0.5), "group_half": ((_G,), 0.3),
    "group_pass": ((_G, _P), 0.6), "plane": ((_G,), 1.0), "step": ((_G,), 1.0),
    "layout": ((1,), 0.5),
    "launch": ((1,), 0.3), "group_launch": ((_G,), 0.5), "pass_launch": ((_P,), 0.7),
}  # fmt: skip
_POWER = {
    "mac": ((_T,), 0.4), "product": ((_D,), 0.4), "byte": ((1,), 0.4), "group": ((_G,), 0.4),
    "waste": ((1,), 0.5), "plane": ((_G,), 1.0), "busy": ((1,), 0.6), "group_busy": ((_G,), 0.5),
}  # fmt: skip
"""Deviation → shape, and standard deviation of its logarithm."""

_STRENGTH = {"time": 0.35, "power": 0.07}
"""Weight of a deviation of one standard deviation beside a row's error of one (in the log)."""


class _Start(NamedTuple):
    """Where the fit of a kind of device starts.

    Attributes:
        serial_s: seconds of one multiply-accumulate after the other.
        plane_s, plane_j: seconds and joules of a row or plane.
        step_s: seconds of an element that one thread works off after the other.
        launch_s: seconds of a launch or call.
        slower: logarithm of how far each of ``PRODUCTS`` stays below the peak of dense ones.
    """

    serial_s: float
    plane_s: float
    plane_j: float
    step_s: float
    launch_s: float
    slower: Array


def _slower(**known: float) -> Array:
    return np.array([known.get(name, 0.0) for name in PRODUCTS])


_START = {
    "cuda": _Start(
        3e-9, 3e-10, 1e-8, 2e-8, 1.3e-6,
        _slower(depthwise=1.5, grouped=1.2, attention_fallback=1.5, other=0.5),
    ),
    "cpu": _Start(1e-12, 3e-9, 1e-8, 2e-9, 6e-6, _slower()),
}  # fmt: skip
_MISALIGNED, _BACKWARD = 0.5, 0.5
"""Logarithms: how much slower misaligned products are, and the bytes of a backward pass."""

_ORDER = 1.5
"""Of the root that joins arithmetic and memory: 1 adds them up, ∞ takes the larger."""

_TINY = 1e-15
"""Seconds that keep the roots' derivatives finite."""

_BUSY, _RAMP_S, _WASTE = 0.0347, 1e-5, 0.2
"""What any kernel draws, as a share of what lies between idle power and limit; kernels shorter than
the ramp draw less of it. The idle part of a tile draws a share of what the useful part does."""

_LAYOUT_J = 2.0
"""Joules of a byte copied between layouts, in those of a byte."""

HOST_OVERHEAD = 1.1
"""Python between the calls. Of networks that waited for an H200's host it was 1.04 to 1.57 where
the launching thread also read the sensor, and 0.74 to 1.05 where another thread did."""

_EVALUATIONS = 60
_LOSS_SCALE = {"time": 0.2, "power": 0.1}

_LIMIT_ORDER, _HOST_ORDER = 5.0, 6.0
_REACHED = 0.85
"""Share of the peaks of a data sheet that kernels reach at best."""

_FULL = {"fp32": 1.5, "tensor": 2.0, "memory": 1.0}
"""Power that products and memory at their peak would draw, in that between idle and limit: 2.2, 1.5
and 1.3 on an A100 and an A10 (EnergAIzer, arXiv 2604.20105); less here, for kernels reach less."""

_LIMIT_SLACK = 1.06
"""The limit is an average; for a third of a second boards draw more."""

_CACHED = {"time": 4.2 / 6.2, "energy": 53 / 107}
_ASSUMED_HIT = 1.25
_HOST_S, _HOST_ROWS, _ANY = 15e-6, 2.0, "any"
_HOST_CALLS: dict[Gradients, float] = {"none": 1, "input": 2, "weight": 3, "both": 4}
"""A gradient takes as long to launch as the forward pass; that of a weight is also accumulated."""

_FOLDS, _COVERAGE = 5, 0.9
_ROUNDED = 1e-4
"""A saved range is rounded to six digits."""

_MOST = 20.0
"""No factor is beyond its exponential; a profile that says so is damaged."""


def _peaks(sheet: Sheet) -> Array:
    """Multiply-accumulates per second of each of ``DTYPES``."""
    tflops = (sheet.fp32_tflops, sheet.tf32_tflops, sheet.half_tflops, sheet.half_tflops)
    return np.array(tflops) * 1e12 / 2


def _mac_j(sheet: Sheet) -> Array:
    """Joules of a multiply-accumulate of each of ``DTYPES``: a share of the power at the peak."""
    shares = np.array((_FULL["fp32"], _FULL["tensor"], _FULL["tensor"], _FULL["tensor"]))
    return np.asarray(shares * (sheet.limit_w - sheet.idle_w) / _peaks(sheet))


def _byte_j(sheet: Sheet) -> float:
    return _FULL["memory"] * (sheet.limit_w - sheet.idle_w) / sheet.memory_bytes_per_s


Deviations = dict[str, Array]
Shapes = Mapping[str, tuple[tuple[int, ...], float]]


def _sides(shape: tuple[int, ...], groups: int) -> tuple[int, ...]:
    return tuple(groups + 1 if side == _G else side for side in shape)


def _named(shapes: Shapes, groups: int, values: Array) -> Deviations:
    """One flat vector → named arrays, which share its memory."""
    named, start = {}, 0
    for name, (shape, _) in shapes.items():
        sides = _sides(shape, groups)
        end = start + math.prod(sides)
        named[name] = values[start:end].reshape(sides)
        start = end
    return named


def _spreads(shapes: Shapes, groups: int) -> Array:
    """The standard deviation of each value of the flat vector."""
    sizes = [math.prod(_sides(shape, groups)) for shape, _ in shapes.values()]
    return np.repeat([spread for _, spread in shapes.values()], sizes)


def waiting_s(device_s: float, host_s: float) -> float:
    """Seconds in which a GPU waits for its host in a network launched eagerly.

    Args:
        device_s: seconds of its kernels.
        host_s: sum of the host's seconds of its calls; ``HOST_OVERHEAD`` comes on top.
    """
    host_s *= HOST_OVERHEAD
    larger, smaller = max(host_s, device_s), min(host_s, device_s)
    if not larger:
        return 0.0
    time_s = larger * (1 + (smaller / larger) ** _HOST_ORDER) ** (1 / _HOST_ORDER)
    return float(time_s - device_s)


class Prices(NamedTuple):
    """Of ``n`` workloads, each of shape ``(n,)``: one execution without waiting for the host.

    Attributes:
        energy_j: joules of the device.
        time_s: seconds of the device.
        host_s: seconds of the host, were each call launched eagerly.
    """

    energy_j: Array
    time_s: Array
    host_s: Array


@dataclass(frozen=True)
class PooledLaw:
    """Coefficients of one GPU; see the module's text.

    Attributes:
        sheet: where the fit started.
        groups: what has deviations of its own; others take the device's.
        time, power: deviations, logarithms of factors.
        host: layer type, dtype and whether there is a backward pass → seconds of the host per call.
        seen: group, dtype and gradients of the fitted rows → range of their :func:`extent`.
        rows: how many were fitted.
        half_width: (energy, time) log half-width of the 90 % interval of a layer, from rows left
            out of the fit.
        host_speed: how much faster the host launches kernels than that of the rows.
    """

    sheet: Sheet
    groups: tuple[str, ...]
    time: Deviations
    power: Deviations
    host: Mapping[str, float]
    seen: Mapping[str, tuple[float, float]]
    rows: int
    half_width: tuple[float, float] = (1.0, 1.0)
    host_speed: float = 1.0

    @classmethod
    def fit(cls, rows: Sequence[Measurement], sheet: Sheet) -> PooledLaw:
        """Fit all rows at once: time first, then power given the measured time.

        Without rows it is the law of the data sheet.
        """
        x = kernels([row.workload for row in rows], sheet)
        groups = tuple(sorted(set(x.groups)))
        which = _which(x, groups)
        time_s = np.array([row.time_s for row in rows])
        power_w = np.array([row.power_w for row in rows])

        def time(d: Deviations) -> _Logs:
            seconds, slopes = _time_s(x, which, d, sheet, x.bytes_in)
            return _logs(x, x.sum(seconds), time_s, slopes)

        def power(d: Deviations) -> _Logs:
            watts, slopes = _power_w(x, which, d, sheet, time_s, x.bytes_in)
            return _logs(x, watts, power_w, slopes)

        return cls(
            sheet,
            groups,
            _fitted(_TIME, len(groups), time, "time"),
            _fitted(_POWER, len(groups), power, "power"),
            _host(rows),
            _seen([row.workload for row in rows]),
            len(rows),
        )

    @classmethod
    def calibrated(cls, rows: Sequence[Measurement], sheet: Sheet) -> PooledLaw:
        """Fit all rows, and take the interval of a layer from five fits without a part of them."""
        fold = np.random.default_rng(0).permutation(len(rows)) % _FOLDS
        errors = np.zeros((len(rows), 2))
        for k in range(_FOLDS):
            left_out = [row for row, its in zip(rows, fold, strict=True) if its == k]
            law = cls.fit([row for row, its in zip(rows, fold, strict=True) if its != k], sheet)
            prices = law.price([row.workload for row in left_out], cached=False)
            measured = np.array([[row.energy_j, row.time_s] for row in left_out])
            predicted = np.stack([prices.energy_j, prices.time_s], axis=1)
            errors[fold == k] = np.abs(np.log(predicted / measured))
        energy, time = np.quantile(errors, _COVERAGE, axis=0)
        return replace(cls.fit(rows, sheet), half_width=(float(energy), float(time)))

    @property
    def dtypes(self) -> list[str]:
        """Floating dtypes of the fitted rows."""
        return sorted({key.split("/")[1] for key in self.seen}.intersection(DTYPES))

    @property
    def kinds(self) -> list[str]:
        """Layer types of the fitted rows."""
        return sorted({key.split("/")[0].split(":")[0] for key in self.seen})

    @property
    def trains(self) -> bool:
        """Whether backward passes were among the rows."""
        return any(not key.endswith("/none") for key in self.seen)

    def outside(self, workload: Workload) -> str:
        """Why a workload is unlike the rows it was fitted on; empty if it is not."""
        key = _seen_key(workload)
        if key not in self.seen:
            return f"no row of {key} was measured: priced by what the device does with other layers"
        (low, high), (name, size) = self.seen[key], extent(workload)
        if low * (1 - _ROUNDED) <= size <= high * (1 + _ROUNDED):
            return ""
        return f"{name} {size:.4g} is outside {low:.4g} to {high:.4g}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "sheet": asdict(self.sheet),
            "groups": list(self.groups),
            "time": {name: values.tolist() for name, values in self.time.items()},
            "power": {name: values.tolist() for name, values in self.power.items()},
            "host": dict(self.host),
            "seen": {key: list(limits) for key, limits in self.seen.items()},
            "rows": self.rows,
            "half_width": list(self.half_width),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> PooledLaw:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError, KeyError, TypeError: if the state is damaged.
        """
        groups = tuple(map(str, state["groups"]))
        host = {str(key): float(value) for key, value in state["host"].items()}
        if not all(0 < value <= LARGEST for value in host.values()):
            raise ValueError("a host time is not a positive number, or far too large")
        return cls(
            sheet_from_dict(state["sheet"]),
            groups,
            _read(_TIME, len(groups), state["time"]),
            _read(_POWER, len(groups), state["power"]),
            host,
            {str(key): _range(str(key), limits) for key, limits in state["seen"].items()},
            int(state["rows"]),
            half_width(state["half_width"]),
        )

    def price(self, workloads: Sequence[Workload], *, cached: bool) -> Prices:
        """Price one execution of each workload.

        Args:
            workloads: of any layer types.
            cached: whether a layer before it wrote its input, as in a network.
        """
        x = kernels(workloads, self.sheet)
        which = _which(x, self.groups)
        hit = np.zeros(len(x.macs))
        if cached:
            footprint = (x.bytes_in + x.bytes_out) / self.sheet.cache_bytes
            hit = np.clip(_ASSUMED_HIT - footprint, 0.0, 1.0)
        read = {key: x.bytes_in * (1 - hit * (1 - share)) for key, share in _CACHED.items()}
        time_s = x.sum(_time_s(x, which, self.time, self.sheet, read["time"])[0])
        power_w, _ = _power_w(x, which, self.power, self.sheet, time_s, read["energy"])
        host_s = np.array([self._host_s(w) for w in workloads])
        return Prices(power_w * time_s, time_s, host_s)

    def _host_s(self, workload: Workload) -> float:
        known = (self.host[key] for key in _host_keys(workload) if key in self.host)
        return _HOST_CALLS[workload.gradients] * next(known, _HOST_S) / self.host_speed


_Slope = tuple[str, Index | tuple[Index, Index], Array]
"""Of ``k`` kernels: a deviation, which of its values each takes, and the derivative by it."""

_Logs = tuple[Array, list[tuple[str, Index | tuple[Index, Index], Index, Array]]]
"""Logarithms of predicted over measured, and the derivatives with the row that each belongs to."""


def _logs(x: Kernels, predicted: Array, measured: Array, slopes: Sequence[_Slope]) -> _Logs:
    share = 1 / predicted[x.workload]
    partials = [(name, index, x.workload, slope * share) for name, index, slope in slopes]
    return np.log(predicted / measured), partials


def _fitted(
    shapes: Shapes, groups: int, model: Callable[[Deviations], _Logs], target: str
) -> Deviations:
    """The deviations that explain the rows best, with the Jacobian that the model gives."""
    from scipy.optimize import least_squares

    spread, scale, strength = _spreads(shapes, groups), _LOSS_SCALE[target], _STRENGTH[target]

    def loss(values: Array) -> Array:
        logs, _ = model(_named(shapes, groups, values))
        return np.concatenate([logs / scale, strength / scale * values / spread])

    def jacobian(values: Array) -> Array:
        logs, partials = model(_named(shapes, groups, values))
        columns = _named(shapes, groups, np.arange(len(spread), dtype=float))
        dense = np.zeros((len(logs) + len(spread), len(spread)))
        for name, index, row, slope in partials:
            np.add.at(dense, (row, columns[name][index].astype(np.int64)), slope / scale)
        dense[len(logs) :] = np.diag(strength / scale / spread)
        return dense

    start = np.zeros(len(spread))
    found = least_squares(
        loss, start, jacobian, loss="soft_l1", tr_solver="lsmr", max_nfev=_EVALUATIONS
    )
    return _named(shapes, groups, found.x)


class _Which(NamedTuple):
    """Of ``k`` kernels: numbers of group and product, and what they are as 1 or 0."""

    group: Index
    product: Index
    multiplies: Array
    half: Array


def _which(x: Kernels, groups: Sequence[str]) -> _Which:
    number = {name: i for i, name in enumerate(groups)}
    group = np.array([number.get(name, len(groups)) for name in x.groups], dtype=np.int64)
    return _Which(
        group,
        np.maximum(x.product, 0),
        (x.product >= 0).astype(float),
        (x.dtype >= DTYPES.index("bfloat16")).astype(float),
    )


def _time_s(
    x: Kernels, which: _Which, d: Deviations, sheet: Sheet, bytes_in: Array
) -> tuple[Array, list[_Slope]]:
    """Seconds of each kernel, and their slopes."""
    group, product, passes, dtype = which.group, which.product, x.passes, x.dtype
    start = _START[sheet.kind]
    slower = (
        start.slower[product] + d["peak"][dtype] + d["product"][product]
        + d["product_dtype"][product, dtype] + d["product_pass"][product, passes]
        + x.misaligned * (_MISALIGNED + d["misaligned"][dtype])
    )  # fmt: skip
    peak = _REACHED * _peaks(sheet)[dtype] * x.filled
    parallel = which.multiplies * x.macs / peak * np.exp(slower)
    serial = which.multiplies * x.serial * start.serial_s * np.exp(d["serial"][dtype])
    per_byte = (
        d["bandwidth"][0] + d["group"][group] + d["group_half"][group] * which.half
        + d["group_pass"][group, passes] + _BACKWARD * (passes > 0)
    )  # fmt: skip
    bandwidth = _REACHED * sheet.memory_bytes_per_s
    moved = (bytes_in + x.bytes_weight + x.bytes_out) / bandwidth * np.exp(per_byte)
    layout = x.layout_bytes / bandwidth * np.exp(d["layout"][0])
    steps = x.steps * start.step_s * np.exp(d["step"][group])
    planes = x.planes * start.plane_s * np.exp(d["plane"][group])
    launch = (
        x.launches
        * start.launch_s
        * np.exp(d["launch"][0] + d["group_launch"][group] + d["pass_launch"][passes])
    )
    arithmetic, memory = parallel + serial + _TINY, moved + layout + planes + steps + _TINY
    rounded = (arithmetic**_ORDER + memory**_ORDER) ** (1 / _ORDER)
    by_arithmetic = (arithmetic / rounded) ** (_ORDER - 1)
    by_memory = (memory / rounded) ** (_ORDER - 1)
    first = np.zeros_like(group)
    slopes: list[_Slope] = [
        ("peak", dtype, by_arithmetic * parallel),
        ("product", product, by_arithmetic * parallel),
        ("product_dtype", (product, dtype), by_arithmetic * parallel),
        ("product_pass", (product, passes), by_arithmetic * parallel),
        ("misaligned", dtype, by_arithmetic * parallel * x.misaligned),
        ("serial", dtype, by_arithmetic * serial),
        ("bandwidth", first, by_memory * moved),
        ("group", group, by_memory * moved),
        ("group_half", group, by_memory * moved * which.half),
        ("group_pass", (group, passes), by_memory * moved),
        ("plane", group, by_memory * planes),
        ("step", group, by_memory * steps),
        ("layout", first, by_memory * layout),
        ("launch", first, launch),
        ("group_launch", group, launch),
        ("pass_launch", passes, launch),
    ]
    return launch + rounded, slopes


def _power_w(
    x: Kernels, which: _Which, d: Deviations, sheet: Sheet, time_s: Array, bytes_in: Array
) -> tuple[Array, list[_Slope]]:
    """Mean power of each workload, between idle and the limit, and its slopes by kernel."""
    group, product = which.group, which.product
    empty = _WASTE * math.exp(d["waste"][0]) * (1 / np.maximum(x.filled, 0.05) - 1)
    useful_j = x.macs * _mac_j(sheet)[x.dtype] * np.exp(d["mac"][x.dtype] + d["product"][product])
    moved_j = (
        (bytes_in + x.bytes_weight + x.bytes_out)
        * _byte_j(sheet) * np.exp(d["byte"][0] + d["group"][group])
    )  # fmt: skip
    planes_j = x.planes * _START[sheet.kind].plane_j * np.exp(d["plane"][group])
    layout_j = x.layout_bytes * _LAYOUT_J * _byte_j(sheet)
    forward = (x.passes == 0).astype(float)
    busy_w = (
        _BUSY
        * (sheet.limit_w - sheet.idle_w)
        * np.exp(d["busy"][0] + d["group_busy"][group])
        * forward
    )
    busy_w = busy_w * np.minimum(1.0, time_s / _RAMP_S)[x.workload]
    dynamic_w = (
        x.sum(busy_w) + x.sum(useful_j * (1 + empty) + moved_j + planes_j + layout_j) / time_s
    )
    most = _LIMIT_SLACK * sheet.limit_w - sheet.idle_w
    limited_w = (dynamic_w**-_LIMIT_ORDER + most**-_LIMIT_ORDER) ** (-1 / _LIMIT_ORDER)
    steep = (limited_w / dynamic_w) ** (_LIMIT_ORDER + 1)
    first, per_s = np.zeros_like(group), (steep / time_s)[x.workload]
    products_w, moved_w, busy_w = (
        useful_j * (1 + empty) * per_s, moved_j * per_s, busy_w * steep[x.workload],
    )  # fmt: skip
    slopes: list[_Slope] = [
        ("mac", x.dtype, products_w),
        ("product", product, products_w),
        ("waste", first, useful_j * empty * per_s),
        ("byte", first, moved_w),
        ("group", group, moved_w),
        ("plane", group, planes_j * per_s),
        ("busy", first, busy_w),
        ("group_busy", group, busy_w),
    ]
    return sheet.idle_w + limited_w, slopes


def _seen_key(workload: Workload) -> str:
    return f"{group_of(workload)}/{workload.dtype}/{workload.gradients}"


def _seen(workloads: Sequence[Workload]) -> dict[str, tuple[float, float]]:
    sizes: dict[str, list[float]] = {}
    for workload in workloads:
        sizes.setdefault(_seen_key(workload), []).append(extent(workload)[1])
    return {key: (min(found), max(found)) for key, found in sorted(sizes.items())}


def _read(shapes: Shapes, groups: int, state: Mapping[str, Any]) -> Deviations:
    """Deviations out of a profile."""
    found = {}
    for name, (shape, _) in shapes.items():
        found[name] = finite(state[name], *_sides(shape, groups))
        if not (np.abs(found[name]) <= _MOST).all():
            raise ValueError(f"the deviations {name} are beyond a factor of e^{_MOST:g}")
    return found


def _range(key: str, limits: Any) -> tuple[float, float]:
    low, high = finite(limits, 2).tolist()
    if key.count("/") != 2 or not 0 <= low <= high:
        raise ValueError(f"{key!r} with {low:g} to {high:g} is no kind/dtype/gradients and range")
    return low, high


def _host_keys(workload: Workload) -> tuple[str, ...]:
    """What a call's host time is known by, the most exact first."""
    return f"{workload.kind}/{workload.dtype}", workload.kind, _ANY


def _host(rows: Sequence[Measurement]) -> dict[str, float]:
    """Medians of host times of forward calls; those of few rows are drawn towards wider ones."""
    seen: dict[str, list[float]] = {}
    for row in rows:
        forward = row.workload.gradients == "none"
        if forward and row.conditions is not None and row.conditions.host_time_s:
            for key in _host_keys(row.workload):
                seen.setdefault(key, []).append(row.conditions.host_time_s)
    found: dict[str, float] = {}
    for key in sorted(seen, key=lambda key: (key != _ANY, key.count("/"))):
        kind, *dtype = key.split("/")
        own, n = statistics.median(seen[key]), len(seen[key])
        base = found.get(kind if dtype else _ANY, own)
        found[key] = math.exp((n * math.log(own) + _HOST_ROWS * math.log(base)) / (n + _HOST_ROWS))
    return found
