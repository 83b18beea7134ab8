"""Calibrate a device from whole-network measurements alone, whatever tool made them.

The coefficients of one :class:`~layer_energy.law.Law` are fitted to joules and seconds of whole
networks. They are positive by construction (their logarithms are fitted), outliers count linearly,
and what the totals do not say stays where a base profile puts it: each coefficient may leave it
by its own spread, and all seconds, all joules and all watts may move together, as they do from one
device to another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from layer_energy.errors import DatasetError
from layer_energy.kernels import extent
from layer_energy.law import COEFFICIENTS, Array, Law, Work, nominal, work
from layer_energy.model import COVERAGE, EnergyModel
from layer_energy.totals import Total
from layer_energy.workload import Workload

SPREAD = {
    "host_op_s": 0.5, "host_layer_s": 0.5, "byte_s": 0.25, "half_mac_s": 0.25, "mac_s": 0.25,
    "output_s": 1.0, "convolution": 0.25, "depthwise": 1.0, "wave": 0.5,
    "idle_w": 0.3, "busy_w": 0.5, "half_mac_j": 0.5, "mac_j": 0.5, "byte_j": 0.5,
}  # fmt: skip
"""Standard deviation of the logarithm of each coefficient around the base's."""

SHIFTS = (
    ("byte_s", "half_mac_s", "mac_s", "output_s"),
    ("half_mac_j", "mac_j", "byte_j"),
    ("idle_w", "busy_w"),
)
"""Coefficients that move together from one device to another, by about ``SHIFT_SPREAD``."""
SHIFT_SPREAD = 2.0

NOISE = 0.05
"""Log ratios of networks beyond this count linearly, not quadratically (``soft_l1``)."""
LAYER_NOISE = 0.5
"""The law's own error on a single call; over the many calls of a network it averages out."""

IMPLAUSIBLE = 3.0
"""Totals farther than this factor from the fit are left out of it: runs that failed half-way."""

MIN_NETWORKS = 5
"""From fewer networks, intervals of totals are not calibrated; those of layers are summed."""

Ratios = NDArray[np.float64]
"""``(n, 2)`` measured over predicted joules and seconds."""


def fit_law(totals: Sequence[Total], prior: Law) -> Law:
    """Fit the coefficients to totals, starting from and drawn to those of ``prior``.

    Raises:
        DatasetError: if there are no totals.
    """
    if not totals:
        raise DatasetError("there are no totals to fit; at least one measured network is needed")
    law = _fitted(totals, prior)
    kept = plausible(totals, law)
    if 0 < len(kept) < len(totals):
        law, totals = _fitted(kept, prior), kept
    return replace(law, seen=_seen(totals))


def _fitted(totals: Sequence[Total], prior: Law) -> Law:
    from scipy.optimize import least_squares

    x, calls, network = _stacked(totals)
    measured = np.log([[t.energy_j, t.time_s] for t in totals])
    start = np.log([prior.coefficients[name] for name in COEFFICIENTS])
    runs = np.bincount(network, calls)
    noise = np.sqrt(NOISE**2 + LAYER_NOISE**2 / runs)[:, None]
    shifts = np.array([[float(name in group) for name in COEFFICIENTS] for group in SHIFTS])
    spread = np.array([SPREAD[name] for name in COEFFICIENTS])
    n = len(COEFFICIENTS)

    def law(theta: Array) -> Law:
        logs = start + theta[:n] * spread + SHIFT_SPREAD * theta[n:] @ shifts
        return replace(prior, coefficients=dict(zip(COEFFICIENTS, np.exp(logs), strict=True)))

    def residuals(theta: Array) -> Array:
        error = (np.log(_sums(law(theta), x, calls, network)) - measured) / noise
        # soft_l1 for the totals alone: the square of what is returned is the loss
        robust = np.sign(error) * np.sqrt(2 * (np.sqrt(1 + error**2) - 1))
        return np.concatenate([robust.ravel(), theta])

    solution = least_squares(residuals, np.zeros(n + len(SHIFTS)), max_nfev=60)
    return law(solution.x)


def _stacked(totals: Sequence[Total]) -> tuple[Work, Array, NDArray[np.int64]]:
    """The distinct calls of all totals, how often each runs, and in which total."""
    rows = [(w, times, i) for i, total in enumerate(totals) for w, times in total.workloads.items()]
    calls = np.array([times for _, times, _ in rows], dtype=float)
    return work([w for w, _, _ in rows]), calls, np.array([i for _, _, i in rows], dtype=np.int64)


def _sums(law: Law, x: Work, calls: Array, network: NDArray[np.int64]) -> Array:
    """``(totals, 2)`` joules and seconds."""
    return np.column_stack(
        [np.bincount(network, calls * each) for each in law.price(x, calls, network)]
    )


def predict_totals(totals: Sequence[Total], law: Law) -> Array:
    """``(n, 2)`` joules and seconds that a law gives the networks of ``n`` totals."""
    return _sums(law, *_stacked(totals))


def ratios(totals: Sequence[Total], predicted: Array) -> Ratios:
    """``(n, 2)`` measured over predicted."""
    return np.array([[t.energy_j, t.time_s] for t in totals]) / predicted


def plausible(totals: Sequence[Total], law: Law) -> list[Total]:
    """The totals within a factor of ``IMPLAUSIBLE`` of the law."""
    errors = np.abs(np.log(ratios(totals, predict_totals(totals, law)))).max(axis=1)
    return [t for t, error in zip(totals, errors, strict=True) if error <= np.log(IMPLAUSIBLE)]


def leave_one_network_out(totals: Sequence[Total], prior: Law) -> Array:
    """``(n, 2)`` joules and seconds, each network predicted by a fit without any total of it."""
    predicted = np.full((len(totals), 2), np.nan)
    for name in {t.model for t in totals}:
        out = np.array([t.model == name for t in totals])
        rest = [t for t in totals if t.model != name]
        law = fit_law(rest, prior) if rest else prior
        predicted[out] = predict_totals([t for t in totals if t.model == name], law)
    return predicted


def _seen(totals: Sequence[Total]) -> dict[str, tuple[float, float]]:
    seen: dict[str, tuple[float, float]] = {}
    for workload in {w for total in totals for w in total.workloads}:
        key, (_, size) = f"{workload.kind}/{workload.dtype}", extent(workload)
        low, high = seen.get(key, (size, size))
        seen[key] = min(low, size), max(high, size)
    return dict(sorted(seen.items()))


def law_of(base: EnergyModel, totals: Sequence[Total]) -> Law:
    """The law of a profile; for one without, the law nearest to its prices of these layers."""
    if base.law is not None:
        return base.law
    layers: list[Workload] = sorted({w for t in totals for w in t.workloads}, key=repr)
    prices = base.price(layers)
    alone = [
        Total(w.kind, w.dtype, 1, prices[w].energy_j, prices[w].time_s, {w: 1}) for w in layers
    ]
    threads = int(base.device["threads"])
    return _fitted(alone, nominal(1e11, 1e11, 2e10, 50.0, threads))


def calibrate(
    totals: Sequence[Total],
    base: EnergyModel | Law,
    name: str,
    source: str,
    relative_uncertainty: float = 0.05,
    assumptions: Sequence[str] = (),
) -> EnergyModel:
    """Fit a profile to whole networks.

    Args:
        totals: measured networks, best of several kinds and sizes.
        base: the profile, or law, that says what the totals do not.
        name: of the device.
        source: where the totals are from, in words.
        relative_uncertainty: systematic half-width of the joules of the totals.
        assumptions: sentences to print beside every result.

    Raises:
        DatasetError: if there are no totals, or none that the law could be made to agree with.
    """
    from layer_energy.device import slugify

    prior = law_of(base, totals) if isinstance(base, EnergyModel) else base
    law = fit_law(totals, prior)
    kept = plausible(totals, law)
    if not kept:
        raise DatasetError(
            f"no total lies within a factor of {IMPLAUSIBLE:.0f} of the fit; energy_j and time_s "
            "are joules and seconds of one forward pass"
        )
    networks = sorted({t.model for t in kept})
    left_out = _balanced(kept, ratios(kept, leave_one_network_out(kept, prior)))
    rank = min(1.0, COVERAGE * (1 + 1 / len(left_out)))
    width = np.quantile(np.abs(np.log(left_out)), rank, axis=0)
    model = EnergyModel(
        device={"name": name, "kind": "unknown", "slug": slugify(name), "threads": prior.units,
                "details": {}},
        dataset={"name": source, "rows": len(kept), "regressor": "law"},
        quality=next((t.quality for t in totals if t.quality != "measured"), "measured"),
        relative_uncertainty=relative_uncertainty,
        assumptions=(
            *assumptions,
            f"Fitted on {len(kept)} totals of {len(networks)} networks ({', '.join(networks)}); "
            "layers were not measured one by one, so how a total is shared among them is inferred.",
            *([f"{len(totals) - len(kept)} of {len(totals)} totals are farther than a factor of "
               f"{IMPLAUSIBLE:.0f} from the fit and were left out of it."]
              if len(kept) < len(totals) else []),
        ),
        kinds={},
        law=replace(law, half_width=(float(width[0]), float(width[1]))),
    )  # fmt: skip
    if len(networks) >= MIN_NETWORKS:
        model.calibrate_networks([(float(e), float(t)) for e, t in left_out])
        model.totals = {
            mode: replace(totals, count=len(networks)) for mode, totals in model.totals.items()
        }
    return model


def _balanced(totals: Sequence[Total], ratio: Ratios) -> Ratios:
    """As many ratios of each network, evenly over its own: a much measured one counts once."""
    names = np.array([t.model for t in totals])
    evenly = np.linspace(0, 1, 11)
    return np.concatenate([np.quantile(ratio[names == n], evenly, axis=0) for n in set(names)])
