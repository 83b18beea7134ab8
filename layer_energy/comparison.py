"""Which network on which device: joules, seconds and accuracy side by side, and the Pareto front.

The paper's question (Getzner, Charpentier & Günnemann 2023, arXiv 2304.00897: accuracy is not the
only metric that matters), asked of any networks and any profiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from layer_energy.carbon import Intensity
from layer_energy.errors import InvalidInput
from layer_energy.model import EnergyModel, profiles
from layer_energy.models import published_accuracy, walk_model
from layer_energy.predict import predict_energy
from layer_energy.report import EnergyReport
from layer_energy.units import carbon_g
from layer_energy.walk import walk

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

Profile = str | Path | EnergyModel


def compare(
    models: str | nn.Module | Iterable[str | nn.Module],
    devices: Profile | Iterable[Profile] | None = None,
    *,
    batch_size: int = 1,
    dtype: str | None = None,
    launch: str | None = None,
    host_speed: float = 1.0,
    intensity: Intensity | None = None,
    on_model: Callable[[str], None] = lambda name: None,
) -> pd.DataFrame:
    """Price every model on every device.

    Args:
        models: names (see :func:`layer_energy.models.build_model`) or modules.
        devices: profiles, as in :func:`layer_energy.predict_energy`; all shipped ones if not given,
            with ``launch="graph"`` or a ``host_speed`` those of GPUs whose launches were measured.
        batch_size: samples per forward pass.
        dtype: compute dtype; each model's own if not given.
        launch: as in :func:`layer_energy.predict_energy`, for all devices.
        host_speed: likewise.
        intensity: of the grid, from :func:`layer_energy.carbon.grid_intensity`; adds the column
            ``carbon_per_sample_kg``.
        on_model: called with the name of each model before it is walked.

    Returns:
        One row a model and device, in the order given, with the columns ``model``, ``device``,
        ``dtype``, ``batch_size``, ``input``, ``accuracy`` (top-1 on ImageNet-1K, 0 to 1, of
        torchvision's best weights, whose input is used; ``NaN`` where none is published),
        ``energy_per_sample_j`` with its 90 % interval ``energy_per_sample_low_j`` to
        ``energy_per_sample_high_j``, ``time_s`` (of the whole pass), ``coverage``, ``in_domain``,
        ``quality`` (of the profile's joules), ``pareto`` and ``pareto_on_device``: whether no other
        row, or none of the same device, is at least as accurate for as few joules per sample and
        better in one of them.
        ``attrs["profiles"]`` says of each device where its numbers come from.

    Raises:
        InvalidInput: for arguments out of their range, such as a model that does not exist.
        ProfileError: if a profile is missing, damaged, or lacks the dtype.
        WalkError: if a model cannot be walked.
    """
    import pandas as pd

    prices = _profiles(profiles() if devices is None else devices)
    if devices is None and (launch == "graph" or host_speed != 1):
        prices = {name: profile for name, profile in prices.items() if profile.knows_launches}
    rows = []
    for model in (
        [models] if isinstance(models, str) or not isinstance(models, Iterable) else models
    ):
        name = model if isinstance(model, str) else type(model).__name__
        on_model(name)
        if isinstance(model, str):
            trace, accuracy = walk_model(model, batch_size=batch_size), published_accuracy(model)
        else:
            trace, accuracy = walk(model, batch_size=batch_size), None
        for device, profile in prices.items():
            report = predict_energy(
                trace, device=profile, dtype=dtype, launch=launch, host_speed=host_speed, name=name
            )
            rows.append(_row(report, device, accuracy))
    if not rows:
        raise InvalidInput("nothing to compare: give at least one model, such as 'resnet50'")
    table = pd.DataFrame(rows)
    table["pareto_on_device"] = False
    for _, part in table.groupby("device"):
        table.loc[part.index, "pareto_on_device"] = _front(part)
    table["pareto"] = _front(table)
    if intensity is not None:
        kg_per_j = carbon_g(1.0, intensity.g_per_kwh) / 1e3
        table["carbon_per_sample_kg"] = kg_per_j * table["energy_per_sample_j"]
    table.attrs["profiles"] = {device: _origin(profile) for device, profile in prices.items()}
    return table


def pareto_front(gain: ArrayLike, cost: ArrayLike) -> NDArray[np.bool_]:
    """Which of ``n`` choices no other one beats.

    Args:
        gain: ``(n,)``, the more the better; a choice where it is ``NaN`` is on no front.
        cost: ``(n,)``, the less the better.

    Returns:
        ``(n,)``: whether no other choice is at least as good in both and better in one.
    """
    g, c = np.asarray(gain, dtype=float), np.asarray(cost, dtype=float)
    no_worse = (g[:, None] >= g) & (c[:, None] <= c)
    better = (g[:, None] > g) | (c[:, None] < c)
    return np.asarray(~(no_worse & better).any(axis=0) & ~np.isnan(g))


def _front(table: pd.DataFrame) -> NDArray[np.bool_]:
    return pareto_front(table["accuracy"].to_numpy(), table["energy_per_sample_j"].to_numpy())


def _profiles(devices: Profile | Iterable[Profile]) -> dict[str, EnergyModel]:
    """Loaded profiles, by the name of their file or, where they have none, of their device."""
    if isinstance(devices, (str, Path, EnergyModel)):
        devices = [devices]
    found: dict[str, EnergyModel] = {}
    for device in devices:
        model = device if isinstance(device, EnergyModel) else EnergyModel.load(device)
        name = model.device["slug"] if isinstance(device, EnergyModel) else Path(device).stem
        if name in found:
            raise InvalidInput(
                f"two profiles are called {name}; give each once, under its own name"
            )
        found[name] = model
    return found


def _row(report: EnergyReport, device: str, accuracy: float | None) -> dict[str, Any]:
    low_j, high_j = report.interval_j
    return {
        "model": report.model,
        "device": device,
        "dtype": report.dtype,
        "batch_size": report.batch_size,
        "input": report.input,
        "accuracy": float("nan") if accuracy is None else accuracy,
        "energy_per_sample_j": report.energy_j / report.batch_size,
        "energy_per_sample_low_j": low_j / report.batch_size,
        "energy_per_sample_high_j": high_j / report.batch_size,
        "time_s": report.time_s,
        "coverage": report.coverage,
        "in_domain": report.in_domain,
        "quality": report.quality,
    }


def _origin(profile: EnergyModel) -> dict[str, Any]:
    return {
        "name": profile.device["name"],
        "quality": profile.quality,
        "relative_uncertainty": profile.relative_uncertainty,
        "dataset": profile.dataset.get("name"),
        "assumptions": list(profile.assumptions),
    }
