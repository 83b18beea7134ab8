"""``EnergyReport``: what a prediction says, as totals, by layer type, by module, and as a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layer_energy.carbon import Carbon, carbon_of, grid_intensity
from layer_energy.model import Estimate
from layer_energy.report.total import Totals, total, widened
from layer_energy.walk.trace import LayerCall
from layer_energy.workload import Cost

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


WAITING = "waiting for the host"
"""Name of the share of what a GPU draws while it waits."""


@dataclass(frozen=True, slots=True)
class LayerEstimate:
    """One layer call of the model and its price."""

    call: LayerCall
    cost: Cost
    estimate: Estimate

    @property
    def modelled(self) -> bool:
        """Whether a layer type claims the operation and the profile has a regressor for it."""
        return self.call.modelled and self.estimate.own_law


@dataclass(frozen=True, slots=True)
class Share:
    """A part of the model: a layer type or a module.

    Attributes:
        name: of the layer type, or path of the module.
        calls: operations in it.
        macs: multiply-accumulates, as of :attr:`EnergyReport.macs`.
        energy_j, energy_low_j, energy_high_j: joules, with the sum of the layers' intervals.
        time_s: seconds.
        share: of the model's joules.
    """

    name: str
    calls: int
    macs: int
    energy_j: float
    energy_low_j: float
    energy_high_j: float
    time_s: float
    share: float


@dataclass(frozen=True)
class EnergyReport:
    """The predicted energy of one forward pass of a model, or of one training step.

    Attributes:
        model: its class name, or the name it was asked for by.
        device: profile the prices come from, and its full name.
        dtype: compute dtype that was priced.
        mode: ``"inference"`` for a forward pass, ``"training"`` for a whole training step.
        batch_size: samples of the pass, or of all micro-batches of the step.
        input: shapes it was walked with.
        layers: every operation, in order.
        quality: ``"measured"`` if the profile was fitted on a counter's joules, ``"estimated"`` if
            on time × an assumed power, ``"inferred"`` if another GPU was measured. The report
            itself is a prediction either way.
        relative_uncertainty: systematic half-width of the joules of the profile's device.
        network_ratio: quantiles of measured over predicted whole networks; empty if none.
        networks: how many networks those are from.
        assumptions: sentences about everything that was assumed.
        source: the dataset behind the profile, in words.
        launch: how a GPU gets its kernels: ``"eager"`` or ``"graph"``; empty where the profile
            does not tell them apart.
        idle_power_w: power while a GPU waits for its host; ``None`` if it need not.
    """

    model: str
    device: str
    device_name: str
    dtype: str
    mode: str
    batch_size: int
    input: str
    layers: list[LayerEstimate]
    quality: str
    relative_uncertainty: float
    network_ratio: dict[str, tuple[float, float]]
    networks: int
    assumptions: list[str]
    source: str
    launch: str = ""
    idle_power_w: float | None = None

    @cached_property
    def _totals(self) -> Totals:
        parts = ((layer.estimate, layer.modelled, 1) for layer in self.layers)
        return total(
            parts, self.network_ratio, self.relative_uncertainty, idle_power_w=self.idle_power_w
        )

    @property
    def energy_j(self) -> float:
        """Joules of the forward pass or training step."""
        return self._totals.energy_j

    @property
    def time_s(self) -> float:
        """Seconds of the forward pass or training step."""
        return self._totals.time_s

    @property
    def waiting_s(self) -> float:
        """Seconds of ``time_s`` in which a GPU waits for its host to launch kernels."""
        return self._totals.waiting_s

    @property
    def waiting_j(self) -> float:
        """Joules of ``energy_j`` that it draws meanwhile, at idle power."""
        return self._totals.waiting_j

    @property
    def waiting_interval_j(self) -> tuple[float, float]:
        """90 % interval of ``waiting_j``."""
        return self._totals.waiting_low_j, self._totals.waiting_high_j

    @property
    def interval_j(self) -> tuple[float, float]:
        """90 % interval of ``energy_j``, the systematic error of the device's joules included.

        Calibrated on whole measured networks where the profile has them, as far as layers lie in
        the fitted range; the intervals of all others are summed, as if they erred together.
        """
        return self._totals.energy_low_j, self._totals.energy_high_j

    @property
    def coverage(self) -> float:
        """Share of the joules that come from operations with a model of their own (1.0 = all)."""
        return self._totals.coverage

    @property
    def in_domain(self) -> float:
        """Share of the joules priced inside the fitted range of every feature."""
        return self._totals.in_domain

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the forward passes: one, or those of a training step.

        Those are of every micro-batch, recomputed activations included; backward passes are not.
        """
        return sum(layer.cost.macs for layer in self.layers)

    def carbon(
        self, *, country: str | None = None, intensity_g_per_kwh: float | None = None
    ) -> Carbon:
        """CO2-equivalent of ``energy_j``, with its interval and where the intensity is from.

        For the arguments and errors see :func:`layer_energy.carbon.grid_intensity`; with neither
        given, it is at the world's mean intensity.
        """
        intensity = grid_intensity(country, intensity_g_per_kwh)
        return carbon_of(self.energy_j, self.interval_j, intensity)

    def carbon_kg(
        self, *, country: str | None = None, intensity_g_per_kwh: float | None = None
    ) -> float:
        """Kilograms alone; :meth:`carbon` says where they come from."""
        return self.carbon(country=country, intensity_g_per_kwh=intensity_g_per_kwh).kg

    def by_kind(self) -> list[Share]:
        """Per layer type, the costliest first; unclaimed operations are ``generic``."""
        return sorted(
            self._grouped(lambda layer: layer.call.workload.kind), key=lambda s: -s.energy_j
        )

    def by_module(self, depth: int = 1) -> list[Share]:
        """Per module, its sub-modules included, in the order they first run.

        Args:
            depth: dots to keep: 1 groups by top-level children, 2 by their children.
        """
        return list(
            self._grouped(
                lambda layer: ".".join(layer.call.path.split(".")[:depth]) or "(model itself)"
            )
        )

    def _grouped(self, name_of: Callable[[LayerEstimate], str]) -> Iterable[Share]:
        groups: dict[str, list[LayerEstimate]] = {}
        for layer in self.layers:
            groups.setdefault(name_of(layer), []).append(layer)
        for name, layers in groups.items():
            energy_j = sum(layer.estimate.energy_j for layer in layers)
            low, high = widened(
                sum(layer.estimate.energy_low_j for layer in layers),
                sum(layer.estimate.energy_high_j for layer in layers),
                self.relative_uncertainty,
            )
            yield Share(
                name,
                len(layers),
                sum(layer.cost.macs for layer in layers),
                energy_j,
                low,
                high,
                sum(layer.estimate.time_s for layer in layers),
                energy_j / self.energy_j if self.energy_j else 0.0,
            )
        if self.waiting_s:
            share = self.waiting_j / self.energy_j
            interval = self.waiting_interval_j
            yield Share(WAITING, 0, 0, self.waiting_j, *interval, self.waiting_s, share)

    def to_frame(self) -> pd.DataFrame:
        """One row an operation: where it is, what it is, what it costs.

        What a GPU draws while it waits for its host is no operation: the rows sum to ``energy_j``
        less ``waiting_j``.
        """
        import pandas as pd

        return pd.DataFrame([self.row(layer) for layer in self.layers])

    def row(self, layer: LayerEstimate) -> dict[str, Any]:
        """One of ``layers`` as plain values."""
        call, estimate = layer.call, layer.estimate
        low, high = widened(
            estimate.energy_low_j, estimate.energy_high_j, self.relative_uncertainty
        )
        return {
            "path": call.path,
            "kind": call.workload.kind,
            "op": call.op,
            "dtype": call.workload.dtype,
            "params": dict(call.workload.params),
            "macs": layer.cost.macs,
            "bytes": layer.cost.bytes,
            "energy_j": estimate.energy_j,
            "energy_low_j": low,
            "energy_high_j": high,
            "time_s": estimate.time_s,
            "modelled": layer.modelled,
            "in_domain": estimate.in_domain,
            "outside": estimate.outside,
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain JSON values."""
        low, high = self.interval_j
        return {
            "model": self.model,
            "device": self.device,
            "device_name": self.device_name,
            "dtype": self.dtype,
            "mode": self.mode,
            "batch_size": self.batch_size,
            "input": self.input,
            "energy_j": self.energy_j,
            "energy_low_j": low,
            "energy_high_j": high,
            "time_s": self.time_s,
            "launch": self.launch,
            "waiting_s": self.waiting_s,
            "waiting_j": self.waiting_j,
            "macs": self.macs,
            "coverage": self.coverage,
            "in_domain": self.in_domain,
            "quality": self.quality,
            "source": self.source,
            "assumptions": self.assumptions,
            "layers": [self.row(layer) for layer in self.layers],
        }

    def unmodelled(self) -> list[str]:
        """Names of the operations without a model of their own."""
        return sorted({layer.call.op for layer in self.layers if not layer.modelled})

    def to_html(
        self,
        path: str | Path,
        *,
        country: str | None = None,
        intensity_g_per_kwh: float | None = None,
        price_per_kwh: float = 0.25,
        currency: str = "EUR",
    ) -> Path:
        """Write one self-contained HTML file: charts, a sortable table, provenance, footprint.

        It carries plotly.js (MIT licence, 5 MB) and loads nothing from the network.

        Args:
            path: file to write, replaced as a whole or not at all.
            country, intensity_g_per_kwh: as in :meth:`carbon`; a reader can change it in the page.
            price_per_kwh: price of electricity; the default is an assumption, not a statistic.
            currency: of that price.

        Returns:
            ``path``.

        Raises:
            MissingPackage: without plotly (the extra ``report``), or, for a country, without
                CodeCarbon (the extra ``carbon``).
            InvalidInput: if the intensity or the price is negative or not a finite number.
        """
        from layer_energy.report.html import write_html

        intensity = grid_intensity(country, intensity_g_per_kwh)
        return write_html(self, path, intensity, price_per_kwh, currency)

    def to_folded(self) -> str:
        """Folded stacks for flame-graph tools: ``model;module;operation nanojoules`` a line."""
        from layer_energy.report.tree import folded_stacks

        return folded_stacks(self)

    def plot(self, by: str = "kind", *, depth: int = 1, ax: Axes | None = None) -> Axes:
        """Bars of the joules with 90 % intervals, the costliest 15 first.

        Args:
            by: ``"kind"``, by layer type, or ``"module"``.
            depth: of the modules, as in :meth:`by_module`.
            ax: axes to draw into; new ones if not given.

        Raises:
            MissingPackage: without matplotlib (the extra ``report``).
        """
        from layer_energy.report.plot import plot

        return plot(self, by, depth, ax)

    def _repr_html_(self) -> str:
        from layer_energy.report.notebook import to_fragment

        return to_fragment(self)

    def __str__(self) -> str:
        from layer_energy.report.text import to_text

        return to_text(self)

    def __repr__(self) -> str:
        low, high = self.interval_j
        return (
            f"<EnergyReport {self.model}: predicted for {self.device} ({self.quality} joules) "
            f"{self.energy_j:.4g} J, 90 % interval {low:.4g} to {high:.4g} J>"
        )
