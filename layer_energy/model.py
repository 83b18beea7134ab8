"""``EnergyModel``: one device's fitted regressors, their intervals and their domain.

A profile is plain JSON with arrays inside, versioned and checked on reading: data from the
internet must not be able to run code.
"""

from __future__ import annotations

import functools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from layer_energy.device import local_gpu_name, slugify
from layer_energy.errors import DatasetError, InvalidInput, ProfileError
from layer_energy.files import write_text_atomically
from layer_energy.law import Law, work
from layer_energy.pooled_law import PooledLaw
from layer_energy.profile_format import (
    INFERRED,
    SCHEMA_VERSION,
    damaged,
    finite,
    half_width,
    read_profile,
)
from layer_energy.regressors import AUTO, Features, Regressor, choose, features, load, make
from layer_energy.regressors.base import TARGETS
from layer_energy.regressors.features import Array
from layer_energy.sheet import Sheet, implied_sheet, sheets
from layer_energy.workload import (
    LAUNCHES,
    Gradients,
    Measurement,
    Workload,
)

if TYPE_CHECKING:
    from layer_energy.dataset import Dataset

PROFILES = Path(__file__).parent / "profiles"
COVERAGE = 0.9
"""Share of layers, and of networks, that the intervals are meant to hold."""

MIN_ROWS = 20
POOLED = "pooled"
"""Name of the fit of all rows of a device together."""

_POOLED_ROWS = 2000
"""Rows of layer types with a regressor of their own that the pooled law sees: more do not help."""

FIRST = "nvidia-h200"
"""The measured GPU that others are inferred from, and what a newcomer without one sees first."""

_WIDER = {"energy_j": 1.5, "time_s": 1.4}
"""By what the intervals of an inferred GPU are wider, at either end."""

PASSES: dict[Gradients, int] = {"none": 1, "input": 2, "weight": 2, "both": 3}
"""Forward, and one pass of the same size for each gradient: where gradients were not measured."""

_LIKE: dict[Gradients, tuple[Gradients, ...]] = {
    "none": ("none",), "input": ("input", "both"), "weight": ("weight", "both"), "both": ("both",)
}  # fmt: skip
MODE_NAMES = ("inference", "training")
"""What a profile prices: forward passes, or training steps of whatever optimizer and freezing."""

_SLACK = 1e-4
"""On the log of a feature; a saved range is rounded to six digits."""

OUTSIDE_FACTOR = 2.0
"""Outside the fitted range the half-width of an interval is multiplied by this, in the log."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """The price of one workload.

    Attributes:
        energy_j, time_s: predictions for one execution.
        energy_low_j, energy_high_j: 90 % interval of the joules, systematic error of the meter
            not included.
        in_domain: whether all features lie in the fitted range.
        own_law: ``False`` where no row of the layer type was measured, and the law of all others
            priced it.
        outside: the features that do not, with that range; empty in domain.
        host_s: seconds of the host to launch it eagerly; 0 where no launch is priced apart.
    """

    energy_j: float
    time_s: float
    energy_low_j: float
    energy_high_j: float
    in_domain: bool
    own_law: bool = True
    outside: str = ""
    host_s: float = 0.0

    def __mul__(self, times: int) -> Estimate:
        """Of so many executions, which err together."""
        if times == 1:
            return self
        return replace(
            self,
            energy_j=times * self.energy_j,
            time_s=times * self.time_s,
            energy_low_j=times * self.energy_low_j,
            energy_high_j=times * self.energy_high_j,
            host_s=times * self.host_s,
        )


@dataclass
class KindModel:
    """The fitted regressor of one layer type.

    Attributes:
        regressor: features → joules and seconds.
        half_width: (energy, time) log half-width of the 90 % interval, from left-out rows.
        low, high: range of each log feature in the fitted rows.
        rows: how many there were.
    """

    regressor: Regressor
    half_width: tuple[float, float]
    low: Array
    high: Array
    rows: int

    @classmethod
    def fit(cls, x: Features, y: Array, regressor: str) -> KindModel:
        """Fit one layer type and calibrate its interval; ``"auto"`` chooses the regressor."""
        if regressor == AUTO:
            regressor = choose(x, y)
        fitted = make(regressor).fit(x, y)
        errors = getattr(fitted, "left_out", None)
        if errors is None:
            errors = _cross_validated(x, y, regressor)
        rank = min(1.0, COVERAGE * (1 + 1 / len(x)))
        widths = np.quantile(np.abs(errors), rank, axis=0)
        return cls(
            fitted,
            (float(widths[0]), float(widths[1])),
            x.logs.min(axis=0),
            x.logs.max(axis=0),
            len(x),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "regressor": self.regressor.to_dict(),
            "half_width": list(self.half_width),
            "low": self.low.tolist(),
            "high": self.high.tolist(),
            "rows": self.rows,
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> KindModel:
        """The inverse of :meth:`to_dict`."""
        low = finite(state["low"], None)
        return cls(
            load(state["regressor"]),
            half_width(state["half_width"]),
            low,
            finite(state["high"], len(low)),
            int(state["rows"]),
        )


def _cross_validated(x: Features, y: Array, regressor: str, folds: int = 5) -> Array:
    """``(n, 2)`` log of measured over predicted, each row predicted by a fit without it."""
    errors = np.empty_like(y)
    fold = np.random.default_rng(0).permutation(len(x)) % folds
    for k in range(folds):
        out = fold == k
        errors[out] = np.log(y[out]) - np.log(make(regressor).fit(x[~out], y[~out]).predict(x[out]))
    return errors


@dataclass(frozen=True)
class Totals:
    """Measured over predicted totals of whole networks.

    Attributes:
        count: how many.
        ratio: target → (low, high) quantiles, empty without networks.
    """

    count: int = 0
    ratio: dict[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Totals:
        """Of a profile."""
        ratio = {k: (float(v[0]), float(v[1])) for k, v in state["ratio"].items()}
        return cls(int(state["count"]), ratio)


@dataclass
class EnergyModel:
    """Prices workloads on one device.

    Attributes:
        device: name, kind, slug, threads and details of the device.
        dataset: where the rows came from: name, rows, meter, versions.
        quality: ``"measured"`` if a counter gave all joules, else ``"estimated"`` (or simulated);
            ``"inferred"`` where another GPU was measured.
        relative_uncertainty: systematic half-width of those joules.
        assumptions: sentences to print beside every result.
        kinds: layer type, dtype and gradients → fitted regressor.
        totals: mode → how measured whole networks, or their training steps, compare with
            predictions; without a mode in which too few were measured.
        law: where only networks were measured as a whole, what prices every layer type instead.
        pooled: what prices, from all rows together, every layer type without an own regressor.
    """

    device: dict[str, Any]
    dataset: dict[str, Any]
    quality: str
    relative_uncertainty: float
    assumptions: tuple[str, ...]
    kinds: dict[str, KindModel]
    totals: dict[str, Totals] = field(default_factory=dict)
    law: Law | None = None
    pooled: PooledLaw | None = None

    @classmethod
    def fit(cls, dataset: Dataset, regressor: str | None = None) -> EnergyModel:
        """Fit every layer type of a dataset.

        Args:
            dataset: measured rows of one device.
            regressor: ``"pooled"``: one physical law for all rows together, the default for GPUs
                in the catalogue. For others ``"hybrid"`` is: a regressor for each layer type that
                has ``MIN_ROWS`` rows, the pooled law for the others. Likewise ``"physical"``,
                ``"polynomial"`` (the paper's), and ``"auto"``: per layer type, what extrapolates
                best on its rows (several times slower).

        Raises:
            DatasetError: if there are fewer than ``MIN_ROWS`` usable rows.
            InvalidInput: if no regressor has this name.
        """
        sheet = sheets().get(dataset.device.name)
        if regressor is None:
            regressor = "hybrid" if sheet is None else POOLED
        usable = [m for m in dataset.measurements if m.usable and "test" not in m.flags]
        if len(usable) < MIN_ROWS:
            raise DatasetError(
                f"the dataset has {len(usable)} usable rows, {MIN_ROWS} are needed; collect more "
                "with `layer-energy collect`"
            )
        groups: dict[str, list[Measurement]] = {}
        for row in usable:
            groups.setdefault(_key(row.workload), []).append(row)
        kinds = {} if regressor == POOLED else _fit_kinds(groups, regressor)
        few = [row for key, rows in groups.items() if key not in kinds for row in rows]
        many = [row for key in kinds for row in _steady(groups[key])]
        chosen = np.random.default_rng(0).permutation(len(many))[:_POOLED_ROWS]
        rows = [*few, *(many[i] for i in sorted(chosen))]
        if sheet is None:
            known = (dataset.provenance.get(key) for key in ("idle_power_w", "max_power_w"))
            sheet = implied_sheet(dataset.device, rows, *known)
        fitted = len(few) + sum(model.rows for model in kinds.values())
        pooled = PooledLaw.calibrated(rows, sheet)
        return cls(**_origin(dataset, regressor, fitted), kinds=kinds, pooled=pooled)

    def calibrate_networks(
        self, ratios: Sequence[tuple[float, float]], mode: str = "inference"
    ) -> None:
        """Set the interval of totals from (energy, time) ratios of measured over predicted."""
        if len(ratios) < 10:
            return
        logs = np.log(np.array(ratios))
        intervals = {}
        for i, target in enumerate(TARGETS):
            low, high = conformal_interval(logs[:, i])
            intervals[target] = math.exp(low), math.exp(high)
        self.totals[mode] = Totals(len(ratios), intervals)

    def totals_of(self, mode: str) -> Totals:
        """Those of a mode; empty where there are none."""
        return self.totals.get(mode, Totals())

    @property
    def dtypes(self) -> list[str]:
        """Dtypes that were measured."""
        if self.kinds:
            return sorted({key.split("/")[1] for key in self.kinds})
        law = self.pooled or self.law
        return [] if law is None else law.dtypes

    @property
    def layer_types(self) -> list[str]:
        """Layer types that were measured, or ran in the networks that were."""
        law = self.pooled or self.law
        known = [] if law is None else law.kinds
        return sorted({key.split("/")[0] for key in self.kinds}.union(known))

    @property
    def knows_launches(self) -> bool:
        """Whether eager launches and CUDA graphs have prices of their own."""
        return not self.kinds and self.pooled is not None and self.pooled.sheet.kind == "cuda"

    @property
    def idle_power_w(self) -> float | None:
        """What the device draws without work, as far as that is known."""
        if self.pooled is not None and self.knows_launches:
            return self.pooled.sheet.idle_w
        known = self.law.coefficients["idle_w"] if self.law else self.dataset.get("idle_power_w")
        return None if known is None else float(known)

    @property
    def max_power_w(self) -> float | None:
        """Its power limit, as far as that is known."""
        known = self.dataset.get("max_power_w")
        return None if known is None else float(known)

    @property
    def trains(self) -> bool:
        """Whether backward passes were measured, without which no training step is priced."""
        own = any(not key.endswith("/none") for key in self.kinds)
        return own or (self.pooled is not None and self.pooled.trains)

    def waits_at_w(self, launch: str | None) -> float | None:
        """Power at which the device waits for its host, launched so; ``None`` if it need not wait.

        Args:
            launch: one of ``LAUNCHES``, or ``None`` for the device's default.

        Raises:
            InvalidInput: if the launch does not exist, or this profile cannot tell them apart.
        """
        if launch is not None and launch not in LAUNCHES:
            raise InvalidInput(f"launch must be one of {', '.join(LAUNCHES)}, got {launch!r}")
        if self.knows_launches:
            return None if launch == "graph" else self.idle_power_w
        if launch == "graph":
            what = "is of a CPU" if self.device["kind"] == "cpu" else "was fitted on eager networks"
            raise InvalidInput(
                f"launch='graph' is for GPUs whose launches were measured; the profile "
                f"{self.device['slug']} {what}. Leave launch out, or name another profile"
            )
        return None

    def on_host(self, speed: float) -> EnergyModel:
        """The same GPU, its kernels launched by another host.

        Args:
            speed: how much faster that host launches than the one of the dataset; 1 is the same.

        Raises:
            InvalidInput: if it is not a positive number, or launches have no price of their own.
        """
        if not 0 < speed < math.inf:
            raise InvalidInput(f"host_speed must be a positive number, got {speed!r}")
        if speed == 1:
            return self
        if self.pooled is None or not self.knows_launches:
            raise InvalidInput(
                "host_speed is for GPUs whose launches were measured; the profile "
                f"{self.device['slug']} has none. Leave host_speed out, or name another profile"
            )
        said = f"the host launches {speed:g} × as fast as that of the dataset: given, not measured"
        return replace(
            self,
            pooled=replace(self.pooled, host_speed=speed),
            assumptions=(said, *self.assumptions),
        )

    def price(self, workloads: Sequence[Workload]) -> Mapping[Workload, Estimate]:
        """Estimate one execution of each distinct workload.

        Args:
            workloads: give all calls of a network, repetitions included: a profile fitted on
                totals of networks shares the time in which the device waits for the host among
                them. Others leave waiting out; :func:`layer_energy.report.total.total` adds it.

        Raises:
            ProfileError: if the profile knows nothing that could price a workload.
        """
        return self.price_networks([Counter(workloads)])[0]

    def price_networks(
        self, networks: Sequence[Mapping[Workload, int]]
    ) -> list[Mapping[Workload, Estimate]]:
        """Estimate the workloads of many networks at once, each distinct one a single time.

        Args:
            networks: workload → how often it runs, of each.

        Returns:
            For each network a mapping that holds its workloads, and perhaps others'.

        Raises:
            ProfileError: if the profile knows nothing that could price a workload.
        """
        if self.law is not None:
            return _price_by_law(self.law, networks)
        groups: dict[str, list[_Priced]] = {}
        unlike: list[Workload] = []
        for workload in dict.fromkeys(chain.from_iterable(networks)):
            found = self._stand_in(workload)
            if found is None:
                unlike.append(workload)
            else:
                groups.setdefault(_key(found[0]), []).append((workload, *found))
        estimates = self._price_unlike(unlike)
        for key, group in groups.items():
            estimates |= self._price_kind(key, group)
        return [estimates] * len(networks)

    def _stand_in(self, workload: Workload) -> tuple[Workload, int] | None:
        """Whose regressor prices a workload, and how many of that it counts as."""
        if _key(workload) in self.kinds:
            return workload, 1
        kind, params = workload.kind, workload.params
        for gradients in _LIKE[workload.gradients]:
            for dtype in (workload.dtype, "float32", *self.dtypes):
                other = Workload(kind, params, dtype, gradients)
                if _key(other) in self.kinds:
                    return other, 1
        if workload.gradients == "none":
            return None
        forward = self._stand_in(replace(workload, gradients="none"))
        return forward and (forward[0], forward[1] * PASSES[workload.gradients])

    def _price_unlike(self, workloads: Sequence[Workload]) -> dict[Workload, Estimate]:
        """Workloads without a regressor of their own, by the law of all rows together.

        They are priced as in a network: what a layer reads, the one before it wrote.
        """
        if not workloads:
            return {}
        if self.pooled is None:
            raise ProfileError(
                f"the profile {self.device['slug']} has no regressor for {workloads[0].kind} and "
                "no law for layer types without one; fit it again with `layer-energy fit`"
            )
        law, kinds, launches = self.pooled, {*self.layer_types}, self.knows_launches
        estimates = {}
        prices = law.price(workloads, cached=True)
        for workload, energy_j, time_s, host_s in zip(
            workloads, *(values.tolist() for values in prices), strict=True
        ):
            outside = law.outside(workload)
            factor = math.exp(law.half_width[0] * (OUTSIDE_FACTOR if outside else 1.0))
            estimates[workload] = Estimate(
                energy_j,
                time_s,
                energy_j / factor,
                energy_j * factor,
                not outside,
                workload.kind in kinds,
                outside,
                host_s if launches else 0.0,
            )
        return estimates

    def _price_kind(self, key: str, group: Sequence[_Priced]) -> dict[Workload, Estimate]:
        model = self.kinds[key]
        x = features([priced_as for _, priced_as, _ in group])
        if x.logs.shape[1] != len(model.low):
            raise ProfileError(
                f"the profile's {key} has {len(model.low)} features, this version computes "
                f"{x.logs.shape[1]}; rebuild it with `layer-energy fit`"
            )
        y = model.regressor.predict(x)
        outside = (x.logs < model.low - _SLACK) | (x.logs > model.high + _SLACK)
        estimates = {}
        for i, (workload, priced_as, times) in enumerate(group):
            reasons = [
                f"{x.log_names[j]} {_bare(x.logs[i, j]):.4g} is outside "
                f"{_bare(model.low[j]):.4g} to {_bare(model.high[j]):.4g}"
                for j in np.flatnonzero(outside[i])
            ]
            if priced_as is not workload:
                often = f"{times} × " if times > 1 else ""
                reasons.insert(0, f"{_key(workload)} was not measured; priced as {often}{key}")
            factor = math.exp(model.half_width[0] * (OUTSIDE_FACTOR if reasons else 1.0))
            energy_j, time_s = (times * float(v) for v in y[i])
            estimates[workload] = Estimate(
                energy_j,
                time_s,
                energy_j / factor,
                energy_j * factor,
                not reasons,
                priced_as.kind == workload.kind,
                "; ".join(reasons),
            )
        return estimates

    def inferred(self, sheet: Sheet) -> EnergyModel:
        """What this GPU's rows and another one's data sheet say of the other.

        Peaks, bandwidth, cache, multiprocessors, idle power and limit are the other's; how far
        kernels stay below them is this one's. The intervals of joules are wider by a factor of 1.5,
        those of time by 1.4: guesses, from errors of 7 to 25 % of time on GPUs left out.

        Raises:
            ProfileError: if this is not the profile of a GPU whose layers were measured.
        """
        if self.pooled is None or not self.knows_launches:
            raise ProfileError(
                f"the profile {self.device['slug']} has no law of a GPU to carry over; take {FIRST}"
            )
        energy, time = (math.log(_WIDER[target]) for target in TARGETS)
        half_width = self.pooled.half_width
        law = replace(
            self.pooled,
            sheet=sheet,
            half_width=(half_width[0] + energy, half_width[1] + time),
        )
        totals = {
            mode: Totals(
                found.count,
                {k: (low / _WIDER[k], high * _WIDER[k]) for k, (low, high) in found.ratio.items()},
            )
            for mode, found in self.totals.items()
        }
        said = (
            f"{sheet.name} was not measured: inferred from its data sheet ({sheet.source}) and "
            f"from rows of {self.device['name']}"
        )
        return replace(
            self,
            device={
                **self.device,
                "name": sheet.name,
                "slug": slugify(sheet.name),
                "details": {k: v for k, v in self.device["details"].items() if k == "torch"},
            },
            dataset={**self.dataset, "max_power_w": sheet.limit_w, "idle_power_w": sheet.idle_w},
            quality=INFERRED,
            assumptions=(said, *self.assumptions),
            totals=totals,
            pooled=law,
        )

    def save(self, path: str | Path) -> None:
        """Write the profile as JSON; the file is replaced as a whole or not at all."""
        state = {
            "schema_version": SCHEMA_VERSION,
            "device": self.device,
            "dataset": self.dataset,
            "quality": self.quality,
            "relative_uncertainty": self.relative_uncertainty,
            "assumptions": list(self.assumptions),
            "totals": {mode: vars(totals) for mode, totals in self.totals.items()},
            "kinds": {key: model.to_dict() for key, model in self.kinds.items()},
            **({"law": self.law.to_dict()} if self.law else {}),
            **({"pooled": self.pooled.to_dict()} if self.pooled else {}),
        }
        text = json.dumps(_rounded(state), separators=(",", ":"), allow_nan=False)
        # one layer type a line: differences between two profiles can be read
        text = text.replace('},"', '},\n"')
        write_text_atomically(Path(path), text + "\n")

    @classmethod
    def load(cls, profile: str | Path) -> EnergyModel:
        """Read a profile by name or by path.

        A name is that of a profile that ships with the package, or of a GPU in the catalogue: one
        that was not measured is :meth:`inferred`.

        Raises:
            ProfileError: if it is missing, damaged, or of a newer schema.
        """
        sheet = _unmeasured_gpus().get(str(profile))
        if sheet is not None:
            return cls.load(FIRST).inferred(sheet)
        path = find_profile(profile)
        state = read_profile(path)
        try:
            model = cls(
                device={**state["device"], "slug": str(state["device"]["slug"])},
                dataset=dict(state["dataset"]),
                quality=str(state["quality"]),
                relative_uncertainty=float(state["relative_uncertainty"]),
                assumptions=tuple(map(str, state["assumptions"])),
                kinds={key: KindModel.from_dict(v) for key, v in state["kinds"].items()},
                totals={mode: Totals.from_dict(v) for mode, v in state["totals"].items()},
                law=Law.from_dict(state["law"]) if state.get("law") else None,
                pooled=PooledLaw.from_dict(state["pooled"]) if state.get("pooled") else None,
            )
            if model.pooled is not None and model.pooled.sheet.kind != model.device["kind"]:
                raise ValueError(f"the law is not of a device of kind {model.device['kind']!r}")
            return model
        except _DAMAGE as error:
            raise damaged(path, error) from error


_DAMAGE = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)


def _fit_kinds(groups: Mapping[str, Sequence[Measurement]], regressor: str) -> dict[str, KindModel]:
    """The layer types that have rows enough for a regressor of their own."""
    if regressor != AUTO:
        make(regressor)  # refuses an unknown name, however few the rows
    kinds = {}
    for key, every in sorted(groups.items()):
        rows = _steady(every)
        if len(rows) >= MIN_ROWS:
            x = features([row.workload for row in rows])
            y = np.array([[row.energy_j, row.time_s] for row in rows])
            kinds[key] = KindModel.fit(x, y, regressor)
    return kinds


def conformal_interval(logs: Array) -> tuple[float, float]:
    """90 % interval of further log ratios (measured over predicted) like these ``n``.

    Split-conformal (Lei et al. 2018, 10.1080/01621459.2017.1307116): the median, plus and minus
    the 90 % quantile of the distances from it, with the correction for a finite ``n``.
    """
    center = float(np.median(logs))
    rank = min(1.0, COVERAGE * (1 + 1 / len(logs)))
    half = float(np.quantile(np.abs(logs - center), rank))
    return center - half, center + half


def profiles() -> list[str]:
    """Names of the profiles that ship with the package, sorted."""
    return sorted(path.stem for path in PROFILES.glob("*.json"))


def load_profile(profile: str | Path | None = None) -> EnergyModel:
    """A profile by name or path, read once as long as its file does not change.

    Raises:
        ProfileError: see :meth:`EnergyModel.load`.
    """
    if profile is None:
        return _of_this_machine()
    if str(profile) in _unmeasured_gpus():
        return EnergyModel.load(profile)
    path = find_profile(profile)
    return _read_once(path, path.stat().st_mtime_ns)


def _of_this_machine() -> EnergyModel:
    """The default profile; a GPU here that has none is said."""
    name, here = default_profile(), local_gpu_name()
    model = load_profile(name)
    if here is None or slugify(here) == name:
        return model
    said = f"the GPU here, {here}, has no profile: priced as on {model.device['name']}"
    return replace(model, assumptions=(said, *model.assumptions))


@functools.lru_cache(maxsize=8)
def _read_once(path: Path, mtime_ns: int) -> EnergyModel:
    return EnergyModel.load(path)


def inferred_profiles() -> list[str]:
    """Names of GPUs in the catalogue that were not measured, sorted."""
    return sorted(_unmeasured_gpus())


def _unmeasured_gpus() -> dict[str, Sheet]:
    """Of the catalogue, by the name that their profile would have."""
    found = {slugify(name): sheet for name, sheet in sheets().items()}
    return {name: sheet for name, sheet in found.items() if name not in profiles()}


def default_profile(kind: str | None = None) -> str:
    """The profile used where none is named.

    That of the GPU that torch sees first, where it was measured or is in the catalogue. Without
    one it is the first data-centre GPU whose layers were measured: its joules come from a counter,
    and people can rent one.

    Args:
        kind: ``"cpu"`` for a CPU's profile, whatever there is.

    Raises:
        InvalidInput: if no such profile ships with this copy.
    """
    shipped = profiles()
    if kind == "cpu":
        shipped = [name for name in shipped if load_profile(name).device["kind"] == "cpu"]
    else:
        here = slugify(local_gpu_name() or "")
        if here in shipped or here in _unmeasured_gpus():
            return here
        shipped.sort(key=lambda name: name != FIRST)
    if not shipped:
        raise InvalidInput(
            "no profile ships with this copy; name one, device='path/to/profile.json', made by "
            "`layer-energy collect` and `layer-energy fit`"
        )
    return shipped[0]


def find_profile(profile: str | Path) -> Path:
    """Path of a profile given by path or by the name of a shipped one.

    Raises:
        ProfileError: if there is none; the message lists the shipped ones.
    """
    if not isinstance(profile, (str, Path)):
        raise ProfileError(
            f"a profile is named by a string or a path, got {profile!r}; shipped ones: "
            f"{', '.join(profiles())}"
        )
    path = Path(profile)
    if path.suffix == ".json" or path.exists():
        if not path.is_file():
            raise ProfileError(
                f"there is no profile file {path}; `layer-energy fit DATASET --out FILE` makes "
                f"one, and shipped ones go by name: {', '.join(profiles())}"
            )
        return path
    shipped = PROFILES / f"{profile}.json"
    if not shipped.is_file():
        raise ProfileError(
            f"no profile is called {str(profile)!r}; shipped ones: {', '.join(profiles())}; "
            f"inferred ones: {', '.join(inferred_profiles())}. A path to a .json file made by "
            "`layer-energy fit` works too"
        )
    return shipped


def _price_by_law(
    law: Law, networks: Sequence[Mapping[Workload, int]]
) -> list[Mapping[Workload, Estimate]]:
    """Intervals: the law knows errors of networks; ``OUTSIDE_FACTOR`` is assumed for layers."""
    distinct = list(dict.fromkeys(chain.from_iterable(networks)))
    row = {workload: i for i, workload in enumerate(distinct)}
    rows = np.array([row[workload] for calls in networks for workload in calls], dtype=np.int64)
    repeats = np.array([n for calls in networks for n in calls.values()], dtype=float)
    sizes = np.array([len(calls) for calls in networks if calls], dtype=np.int64)
    energy_j, time_s = law.price(work(distinct)[rows], repeats, np.arange(len(sizes)).repeat(sizes))
    outside = [law.outside(workload) for workload in distinct]
    factors = [
        math.exp(law.half_width[0] * OUTSIDE_FACTOR * (OUTSIDE_FACTOR if why else 1.0))
        for why in outside
    ]
    prices = zip(rows.tolist(), energy_j.tolist(), time_s.tolist(), strict=True)

    def estimate(i: int, joules: float, seconds: float) -> Estimate:
        factor, why = factors[i], outside[i]
        return Estimate(joules, seconds, joules / factor, joules * factor, not why, True, why)

    return [
        {workload: estimate(*price) for workload, price in zip(calls, prices, strict=False)}
        for calls in networks
    ]


def _origin(dataset: Dataset, regressor: str, rows: int) -> dict[str, Any]:
    """What a profile says of the dataset it was fitted on."""
    provenance, device = dataset.provenance, dataset.device
    qualities = sorted({row.quality for row in dataset.measurements} - {"measured"})
    return {
        "device": {
            "name": device.name, "kind": device.kind, "slug": device.slug,
            "threads": device.threads, "details": dict(device.details),
        },
        "dataset": {
            "name": device.slug,
            "rows": rows,
            "regressor": regressor,
            **{k: provenance[k] for k in ("meter", "seed", "finished", "layer_energy", "allocator",
                                          "idle_power_w", "max_power_w") if k in provenance},
        },
        "quality": qualities[0] if qualities else "measured",
        "relative_uncertainty": float(provenance.get("meter_relative_uncertainty", 0.0)),
        "assumptions": tuple(provenance.get("assumptions", ())),
    }  # fmt: skip


_Priced = tuple[Workload, Workload, int]
"""A workload, the one whose regressor prices it, and how many of that."""


def _steady(rows: Sequence[Measurement]) -> Sequence[Measurement]:
    """Without those measured while references ran slower than usual, where enough are left."""
    steady = [row for row in rows if "drift" not in row.flags]
    return steady if len(steady) >= 2 * MIN_ROWS else rows


def _key(workload: Workload) -> str:
    return f"{workload.kind}/{workload.dtype}/{workload.gradients}"


def _bare(log: float) -> float:
    return float(np.expm1(log))


def _rounded(value: Any) -> Any:
    """Six significant digits everywhere: profiles are read by people and live in git."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(v) for v in value]
    return value
