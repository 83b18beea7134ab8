"""The report as a table for terminals."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from layer_energy.profile_format import INFERRED
from layer_energy.units import energy_wh, si

if TYPE_CHECKING:
    from layer_energy.report.report import EnergyReport, Share

WIDTH = 96
KINDS_SHOWN = 12
ORIGINS = {
    "measured": "measured by an energy counter",
    "estimated": "ESTIMATED, time × assumed power",
    "inferred": "INFERRED, from a data sheet and another GPU's measured layers",
}
"""What the joules of a profile are, by its quality."""

RUNS = {"inference": "forward pass", "training": "training step"}
"""What a report is of, by its mode."""


def to_text(report: EnergyReport, width: int = WIDTH) -> str:
    """The report without colours, ``width`` columns wide."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(render(report))
    text = console.file.getvalue()  # type: ignore[attr-defined]  # the StringIO from above
    return "\n".join(line.rstrip() for line in text.splitlines())


def render(report: EnergyReport) -> RenderableType:
    """The report for a rich console."""
    batch = f"batch {report.batch_size}"
    head = Text.assemble(
        (f"{report.model}", "bold"), f"  {report.mode}, {report.dtype}, {batch}\n",
        f"predicted for {report.device_name} (profile {report.device})",
    )  # fmt: skip
    table = Table(box=box.SIMPLE, pad_edge=False, show_edge=False, collapse_padding=True)
    table.add_column("layer type", no_wrap=True)
    for name in ("calls", "MACs", "energy", "90 % interval", "time", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    shares = report.by_kind()
    for share in shares[:KINDS_SHOWN]:
        _add(table, share)
    rest = shares[KINDS_SHOWN:]
    if rest:
        energy_j = sum(s.energy_j for s in rest)
        table.add_row(
            f"{len(rest)} more",
            f"{sum(s.calls for s in rest)}",
            _count(sum(s.macs for s in rest)),
            si(energy_j, "J"),
            interval(sum(s.energy_low_j for s in rest), sum(s.energy_high_j for s in rest)),
            si(sum(s.time_s for s in rest), "s"),
            f"{sum(s.share for s in rest):.1%}",
        )
    table.add_section()
    table.add_row(
        "total",
        f"{len(report.layers)}",
        _count(report.macs),
        si(report.energy_j, "J"),
        interval(*report.interval_j),
        si(report.time_s, "s"),
        "100.0%",
        style="bold",
    )
    return Group(head, Text(), table, Text(), *_footnotes(report))


def _add(table: Table, share: Share) -> None:
    table.add_row(
        share.name,
        str(share.calls),
        _count(share.macs),
        si(share.energy_j, "J"),
        interval(share.energy_low_j, share.energy_high_j),
        si(share.time_s, "s"),
        f"{share.share:.1%}",
    )


def _count(n: int) -> str:
    return si(n, "").strip() if n else "-"


def interval(low_j: float, high_j: float) -> str:
    """``"324 mJ – 2.47 J"``."""
    return f"{si(low_j, 'J')} – {si(high_j, 'J')}"


def _costliest_outside(report: EnergyReport) -> str:
    """Which layer outside the fitted range costs most, and why it is outside."""
    outside = [layer for layer in report.layers if not layer.estimate.in_domain]
    if not outside:
        return ""
    layer = max(outside, key=lambda layer: layer.estimate.energy_j)
    reason = layer.estimate.outside.split("; ")[0]
    return f"; of the rest, {layer.call.path or layer.call.op} costs most: {reason}"


def notes(report: EnergyReport) -> list[str]:
    """Where the numbers come from and how far they go, in sentences; assumptions apart."""
    per_sample = report.energy_j / max(report.batch_size, 1)
    unmodelled = 1 - report.coverage
    return [
        *_launched(report),
        f"{si(per_sample, 'J')} per sample, {si(energy_wh(report.energy_j), 'Wh')} in all; "
        f"mean power {si(report.energy_j / report.time_s if report.time_s else 0.0, 'W')}",
        origin(report),
        f"{unmodelled:.1%} of the joules come from operations without a model of their own"
        + (f": {', '.join(report.unmodelled())}" if report.unmodelled() else ""),
        f"{report.in_domain:.1%} of the joules lie inside the fitted range"
        + _costliest_outside(report),
        (
            f"interval of the total: from {report.networks} measured networks"
            + (" of another GPU, widened" if report.quality == INFERRED else "")
            if report.network_ratio
            else "interval of the total: sum of the layers' intervals"
        ),
        fitted_on(report),
    ]


def _launched(report: EnergyReport) -> list[str]:
    """How the kernels are launched, and what that costs."""
    if not report.launch:
        return []
    if report.launch == "graph":
        return ["launched as a CUDA graph: the GPU does not wait for its host"]
    share = report.waiting_s / report.time_s if report.time_s else 0.0
    if share < 0.005:
        return ["launched eagerly: the GPU hardly waits for its host"]
    return [
        f"launched eagerly: the GPU waits for its host {share:.0%} of the time; CUDA graphs, "
        "torch.compile(mode='reduce-overhead') or a larger batch would save "
        f"{si(report.waiting_j, 'J')} and {si(report.waiting_s, 's')}"
    ]


def origin(report: EnergyReport) -> str:
    """What the joules of the profile are."""
    kind = ORIGINS.get(report.quality, report.quality.upper())
    return f"joules of the profile: {kind}, ±{report.relative_uncertainty:.0%}"


def fitted_on(report: EnergyReport) -> str:
    """The dataset behind the profile."""
    return f"fitted on: {report.source}"


def _footnotes(report: EnergyReport) -> list[Text]:
    return [Text("· " + line, style="dim") for line in [*notes(report), *report.assumptions]]
