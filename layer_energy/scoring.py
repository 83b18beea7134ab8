"""``score(candidates)``: the joules of thousands of networks, as a search over them needs it.

The prices are those of :func:`layer_energy.predict_energy`, one network at a time; what differs is
the work. Layers that candidates have in common are walked and priced a single time, and the
regressors run once per layer type over all candidates together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layer_energy.errors import InvalidInput, LayerEnergyError, ProfileError
from layer_energy.layers.base import count, layer_type
from layer_energy.layers.memory import GENERIC
from layer_energy.model import EnergyModel, Estimate
from layer_energy.predict import in_dtype, main_dtype, profile_for, source_of, unmeasured
from layer_energy.report.total import Totals, total
from layer_energy.walk import AMP, Trace, Walked, Walks
from layer_energy.workload import Workload

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    Candidate = nn.Module | Trace | Sequence[Workload]

_COLUMNS = {
    "model": "object", "device": "object", "quality": "object", "dtype": "object",
    "batch_size": "Int64", "input": "object", "energy_j": "float64", "energy_low_j": "float64",
    "energy_high_j": "float64", "time_s": "float64", "macs": "Int64", "parameters": "Int64",
    "coverage": "float64", "in_domain": "float64", "notes": "object", "error": "object",
}  # fmt: skip


def score(
    candidates: Iterable[Candidate],
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    device: str | Path | EnergyModel | None = None,
    dtype: str | None = None,
    launch: str | None = None,
    host_speed: float = 1.0,
    errors: str = "raise",
) -> pd.DataFrame:
    """Predict the energy of one forward pass of each of many networks.

    Nothing is run, except as the last resort of :func:`layer_energy.predict_energy`, which
    ``notes`` then name.

    Args:
        candidates: modules, traces, or lists of workloads. Taken one by one, so that a generator
            can build thousands of which none is kept.
        args: inputs of the modules, as in :func:`layer_energy.predict_energy`, the same for all;
            inferred if there are none.
        kwargs: likewise.
        batch_size: likewise.
        device: as in :func:`layer_energy.predict_energy`.
        dtype: likewise; no mixed precision.
        launch: likewise.
        host_speed: likewise.
        errors: ``"raise"``, or ``"coerce"``: a candidate that cannot be scored gets a row without
            numbers that says why.

    Returns:
        A row a candidate, in order: ``model``, ``device``, ``quality`` (of the profile's joules),
        ``dtype``, ``batch_size``, ``input``, ``energy_j`` with its 90 % interval
        ``energy_low_j`` to ``energy_high_j``, ``time_s``, ``macs``, ``parameters``; ``coverage``
        and ``in_domain``, the shares of the joules that come from layer types with a model of
        their own, and from inside its fitted range; ``notes``: what was assumed; ``error``: why
        there are no numbers. What a candidate cannot tell is missing, such as the parameters of a
        trace. ``attrs`` holds the ``source`` of the prices and the profile's ``assumptions``.

    Raises:
        InvalidInput: for arguments out of their range, and for what is no candidate.
        WalkError: if a candidate cannot be walked. This and other errors of a candidate start with
            its number, counted from 0.
        ProfileError: if the profile is missing, damaged or lacks what was asked.
    """
    import pandas as pd

    if errors not in ("raise", "coerce"):
        raise InvalidInput(f"errors must be 'raise' or 'coerce', got {errors!r}")
    if dtype in AMP:
        raise InvalidInput(f"score prices one dtype, not mixed precision, got {dtype!r}")
    prices = profile_for(device, dtype).on_host(host_speed)
    walks = Walks(args, kwargs, batch_size)
    distinct = _Distinct(dtype)
    rows: list[dict[str, Any]] = []
    networks: dict[int, Counter[_Item]] = {}

    def failed(i: int, error: LayerEnergyError) -> None:
        if errors == "raise":
            raise type(error)(f"candidate {i}: {error}") from error
        rows[i]["error"] = str(error)

    for candidate in _several(candidates):
        i = len(rows)
        rows.append({"device": prices.device["slug"], "quality": prices.quality, "error": ""})
        try:
            walked = _walked(candidate, walks)
        except LayerEnergyError as error:
            failed(i, error)
            continue
        finally:
            del candidate  # whoever builds the next one need not keep two
        networks[i] = calls = Counter(map(distinct.item, walked.workloads))
        borrowed = unmeasured((item.workload.dtype for item in calls), prices)
        rows[i] |= {
            "model": walked.model,
            "dtype": dtype or main_dtype(walked.workloads),
            "batch_size": walked.batch_size,
            "input": walked.inputs,
            "macs": sum(n * item.macs for item, n in calls.items()),
            "parameters": walked.parameters,
            "notes": "; ".join([*borrowed, *walked.notes]),
        }
    ratio, idle_w = prices.totals_of("inference").ratio, prices.waits_at_w(launch)
    for i, estimates in _priced(networks, prices, failed):
        priced = ((item.workload, n, estimates[item.workload]) for item, n in networks[i].items())
        parts = ((e, w.kind != GENERIC and e.own_law, n) for w, n, e in priced)
        rows[i] |= _numbers(total(parts, ratio, prices.relative_uncertainty, idle_power_w=idle_w))
    frame = pd.DataFrame(rows, columns=list(_COLUMNS)).astype(_COLUMNS)
    frame.attrs = {"source": source_of(prices), "assumptions": list(prices.assumptions)}
    return frame


def _numbers(totals: Totals) -> dict[str, float]:
    return {name: value for name, value in totals._asdict().items() if name in _COLUMNS}


@dataclass(eq=False, slots=True)
class _Item:
    """A workload as it is priced, and what it multiplies; told by identity, which is quick."""

    workload: Workload
    macs: int


class _Distinct:
    """Gives equal workloads, in the dtype to price, one item."""

    def __init__(self, dtype: str | None) -> None:
        self._dtype = dtype
        self._items: dict[Workload, _Item] = {}
        self._kept: dict[Workload, Workload] = {}
        self._by_id: dict[int, _Item] = {}

    def item(self, workload: Workload) -> _Item:
        """The one of a workload; walks return the very same object for most."""
        return self._by_id.get(id(workload)) or self._found(workload)

    def _found(self, workload: Workload) -> _Item:
        priced = in_dtype(workload, self._dtype)
        item = self._items.get(priced)
        if item is None:
            item = self._items[priced] = _Item(priced, count(priced)[0].macs)
        if self._kept.setdefault(workload, workload) is workload:  # else its id may be reused
            self._by_id[id(workload)] = item
        return item


def _several(candidates: Iterable[Candidate]) -> Iterable[Candidate]:
    from torch import nn

    if isinstance(candidates, str):
        remedy = "score([layer_energy.models.build_model(name)]) scores a model by its name"
    elif isinstance(candidates, (Mapping, nn.ModuleDict)):
        remedy = "score(candidates.values()) scores its values"
    elif isinstance(candidates, nn.ModuleList):
        remedy = "score(list(candidates)) scores each module in it"
    elif isinstance(candidates, (nn.Module, Trace)) or not isinstance(candidates, Iterable):
        remedy = "score([model]) scores a single one"
    else:
        return candidates
    raise InvalidInput(
        f"candidates must be several models, got one {type(candidates).__name__}; {remedy}"
    )


def _walked(candidate: Candidate, walks: Walks) -> Walked:
    if isinstance(candidate, Trace):
        if candidate.mode != "inference":
            raise InvalidInput("score prices forward passes, not a trace of a training step")
        if candidate.autocast is not None:
            raise InvalidInput(
                f"score prices one dtype; the trace was walked with autocast={candidate.autocast!r}"
                "; give it to predict_energy, or walk it without"
            )
        _check(call.workload for call in candidate.calls)
        return Walked.from_trace(candidate)
    if isinstance(candidate, (list, tuple)) and all(isinstance(w, Workload) for w in candidate):
        _check(candidate)
        return Walked("", candidate, "", None, ())
    return walks.walk(candidate)  # type: ignore[arg-type]  # which says what is no module


def _check(workloads: Iterable[Workload]) -> None:
    """Refuse workloads, made by hand, that are none of their layer type."""
    for workload in set(workloads):
        kind, params = workload.kind, workload.params
        expected = list(layer_type(kind).space)
        if list(params) != expected or not all(isinstance(n, Integral) for n in params.values()):
            raise InvalidInput(f"{kind} takes whole numbers for {expected}, in order; got {params}")
        try:
            count(workload)
        except ArithmeticError as error:
            raise InvalidInput(f"{kind} cannot be counted with {params}: {error}") from error


def _priced(
    networks: Mapping[int, Counter[_Item]],
    prices: EnergyModel,
    failed: Callable[[int, LayerEnergyError], None],
) -> Iterator[tuple[int, Mapping[Workload, Estimate]]]:
    workloads = {
        i: {item.workload: n for item, n in calls.items()} for i, calls in networks.items()
    }
    try:
        yield from zip(workloads, prices.price_networks(list(workloads.values())), strict=True)
    except ProfileError:  # for the sake of one candidate, or some
        for i, calls in workloads.items():
            try:
                yield i, prices.price_networks([calls])[0]
            except ProfileError as error:
                failed(i, error)
