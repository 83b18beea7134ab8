"""What if: one model over batch sizes, image sizes, dtypes and devices; the largest in a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layer_energy.errors import InvalidInput, LayerEnergyError, WalkError
from layer_energy.model import EnergyModel
from layer_energy.predict import predict_energy
from layer_energy.report import EnergyReport
from layer_energy.report.text import RUNS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from torch import nn

AXES = ("batch_size", "image_size", "dtype", "device")
IMAGE_STEP = 32
"""Image sizes are searched in steps of what most networks divide theirs by."""

_LARGEST = 1 << 20


def sweep(
    model: nn.Module,
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    batch_size: Sequence[int] | None = None,
    image_size: Sequence[int] | None = None,
    dtype: Sequence[str] | None = None,
    device: Sequence[str | Path | EnergyModel] | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Predict the energy of a model for every combination of what is given.

    Args:
        model: any ``nn.Module``, as in :func:`layer_energy.predict_energy`.
        args: positional inputs of the forward; inferred if there are none.
        kwargs: keyword inputs.
        batch_size: replaces the first dimension of the inputs.
        image_size: replaces height and width of the inputs that have four dimensions or more.
        dtype: as in :func:`layer_energy.predict_energy`.
        device: profiles, likewise.
        options: ``mode``, ``launch``, ``host_speed``, ``strict``, ``name``, likewise.

    Returns:
        One row a combination: ``model``, ``device``, ``quality``, ``dtype``, ``mode``,
        ``batch_size``, ``image_size`` (0 if not varied), ``input``, ``energy_j``,
        ``energy_low_j``, ``energy_high_j``, ``energy_per_sample_j``, ``time_s``, ``coverage``,
        ``in_domain``, and ``error``: why there is no number, where a combination has none.

    Raises:
        InvalidInput: for an empty axis.
        LayerEnergyError: the first combination's error, if none could be predicted.
    """
    import pandas as pd

    axes: dict[str, Sequence[Any]] = {}
    given = zip(AXES, (batch_size, image_size, dtype, device), strict=True)
    for name, values in given:
        if isinstance(values, str) or (values is not None and not len(values)):
            raise InvalidInput(f"{name} must be a list with at least one value, got {values!r}")
        axes[name] = [None] if values is None else values
    rows, errors = [], []
    for values in product(*axes.values()):
        point = dict(zip(AXES, values, strict=True))
        try:
            rows.append(_row(_predict(model, args, kwargs, **point, **options), point))
        except LayerEnergyError as error:
            errors.append(error)
            rows.append({**point, "device": _name(point["device"]), "error": str(error)})
    if len(errors) == len(rows):
        raise errors[0]
    return pd.DataFrame(rows, columns=_COLUMNS)


@dataclass(frozen=True)
class Largest:
    """The largest batch or image within a budget.

    Attributes:
        varied: ``"batch_size"`` or ``"image_size"``.
        value: the largest one whose predicted joules are within the budget.
        report: its prediction; the budget is compared with ``report.energy_j``, not with the end
            of its interval.
        next_value, next_energy_j: the next larger one that was tried, and its joules.
    """

    varied: str
    value: int
    report: EnergyReport
    next_value: int
    next_energy_j: float


def largest_within(
    model: nn.Module,
    budget_j: float,
    *args: Any,
    varied: str = "batch_size",
    kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> Largest:
    """The largest batch size, or image size in steps of 32, predicted within a budget.

    The joules are taken to grow with the size: it is doubled until they exceed the budget, and
    then bisected.

    Args:
        model: any ``nn.Module``.
        budget_j: joules of one forward pass, or of one training step with ``mode="training"``.
        args: positional inputs of the forward; inferred if there are none.
        kwargs: keyword inputs.
        varied: what to enlarge.
        options: ``batch_size``, ``image_size``, ``dtype``, ``device``, ``mode`` ... held fixed.

    Raises:
        InvalidInput: if the smallest already exceeds the budget, or none ever does.
    """
    if varied not in ("batch_size", "image_size"):
        raise InvalidInput(f"varied must be batch_size or image_size, got {varied!r}")
    if not 0 < budget_j < float("inf"):
        raise InvalidInput(f"budget_j must be a number of joules above 0, got {budget_j}")
    step = 1 if varied == "batch_size" else IMAGE_STEP

    def at(n: int) -> EnergyReport:
        return _predict(model, args, kwargs, **{**options, varied: n * step})

    return _search(at, budget_j, varied, step)


def plot_sweep(frame: pd.DataFrame, x: str | None = None, ax: Axes | None = None) -> Axes:
    """Draw predicted joules over one column of a sweep, a line for each of the others' values.

    Args:
        frame: from :func:`sweep`.
        x: column to draw over; the first of batch size, image size, dtype and device that varies.
        ax: axes to draw into; new ones if not given.

    Raises:
        MissingPackage: without matplotlib.
    """
    from layer_energy.report.plot import new_axes

    ax = new_axes() if ax is None else ax
    good = frame[frame["energy_j"].notna()]
    varying = [name for name in AXES if good[name].nunique() > 1]
    x = x or next(iter(varying), "batch_size")
    others = [name for name in varying if name != x]
    groups = good.groupby(others) if others else [((), good)]
    for key, group in groups:
        label = ", ".join(f"{n} {v}" for n, v in zip(others, key, strict=True))
        (line,) = ax.plot(group[x], group["energy_j"], marker="o", label=label)
        ax.fill_between(
            group[x], group["energy_low_j"], group["energy_high_j"], color=line.get_color(),
            alpha=0.15, linewidth=0,
        )  # fmt: skip
    ax.set_xlabel(x.replace("_", " "))
    ax.set_ylabel(f"predicted J per {RUNS[good['mode'].iloc[0]]}, 90 % interval")
    sources = good[["device", "quality"]].drop_duplicates()
    ax.set_title(
        f"{good['model'].iloc[0]}, predicted for "
        + ", ".join(f"{s.device} ({s.quality} joules)" for s in sources.itertuples())
    )
    if others:
        ax.legend()
    return ax


_COLUMNS = [
    "model", "device", "quality", "dtype", "mode", "batch_size", "image_size", "input", "energy_j",
    "energy_low_j", "energy_high_j", "energy_per_sample_j", "time_s", "coverage", "in_domain",
    "error",
]  # fmt: skip


def _row(report: EnergyReport, point: Mapping[str, Any]) -> dict[str, Any]:
    low, high = report.interval_j
    same = ("model", "device", "quality", "dtype", "mode", "input", "energy_j", "time_s",
            "coverage", "in_domain")  # fmt: skip
    return {
        **{name: getattr(report, name) for name in same},
        "batch_size": point["batch_size"] or report.batch_size,
        "image_size": point["image_size"] or 0,
        "energy_low_j": low,
        "energy_high_j": high,
        "energy_per_sample_j": report.energy_j / report.batch_size,
        "error": "",
    }


def _name(device: Any) -> str:
    return str(device.device["slug"]) if isinstance(device, EnergyModel) else str(device or "")


def _predict(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    batch_size: int | None = None,
    image_size: int | None = None,
    **options: Any,
) -> EnergyReport:
    """One prediction, its inputs resized."""
    for name, value in (("batch_size", batch_size), ("image_size", image_size)):
        if value is not None and value < 1:
            raise InvalidInput(f"{name} must be at least 1, got {value}")
    if image_size is None and not args and not kwargs:
        return predict_energy(model, batch_size=batch_size, **options)
    from layer_energy.walk.inputs import given, infer

    if args or kwargs:
        inputs = given(args, kwargs)
    else:
        inputs, batch_size = infer(model, batch_size or 1), None
    args, kwargs = _resized((inputs.args, inputs.kwargs), batch_size, image_size)
    return predict_energy(model, *args, kwargs=kwargs, **options)


def _resized(inputs: Any, batch_size: int | None, image_size: int | None) -> Any:
    import torch
    from torch.utils._pytree import tree_leaves, tree_map_only

    tensors = [x for x in tree_leaves(inputs) if isinstance(x, torch.Tensor)]
    if image_size is not None and not any(x.dim() >= 4 for x in tensors):
        raise InvalidInput(
            "image_size needs an input of four dimensions or more, got "
            + (", ".join("x".join(map(str, x.shape)) for x in tensors) or "no tensors")
        )

    def resized(x: torch.Tensor) -> torch.Tensor:
        shape = list(x.shape)
        if batch_size is not None and shape:
            shape[0] = batch_size
        if image_size is not None and len(shape) >= 4:
            shape[-2:] = [image_size, image_size]
        return torch.empty(shape, dtype=x.dtype, device="meta")

    return tree_map_only(torch.Tensor, resized, inputs)


def _search(at: Callable[[int], EnergyReport], budget_j: float, varied: str, step: int) -> Largest:
    fits, report = _smallest(at)
    if report.energy_j > budget_j:
        raise InvalidInput(
            f"even {varied} {fits * step} is predicted to take {report.energy_j:.4g} J, more than "
            f"the budget of {budget_j:.4g} J"
        )
    above = 2 * fits
    while (over := at(above)).energy_j <= budget_j:
        fits, report, above = above, over, 2 * above
        if above * step > _LARGEST:
            raise InvalidInput(
                f"{varied} {fits * step} still takes only {report.energy_j:.4g} J of the budget of "
                f"{budget_j:.4g} J; is the model's input what is varied?"
            )
    while above - fits > 1:
        middle = (above + fits) // 2
        tried = at(middle)
        if tried.energy_j <= budget_j:
            fits, report = middle, tried
        else:
            above, over = middle, tried
    return Largest(varied, fits * step, report, above * step, over.energy_j)


def _smallest(at: Callable[[int], EnergyReport]) -> tuple[int, EnergyReport]:
    """The first that the model takes: some networks refuse small images."""
    for n in (1, 2, 4):
        try:
            return n, at(n)
        except WalkError:
            continue
    return 8, at(8)
