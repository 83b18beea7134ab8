"""The report in a notebook: static HTML in the notebook's own colours, no script."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from layer_energy.report.text import ORIGINS, interval, notes
from layer_energy.units import si

if TYPE_CHECKING:
    from layer_energy.report.report import EnergyReport, Share

_BAR = "display:inline-block;height:.7em;background:#0072b2;vertical-align:middle"
MODULES_SHOWN = 30


def to_fragment(report: EnergyReport) -> str:
    """Tables by layer type and by module, and where the numbers come from."""
    facts = f"{report.mode}, {report.dtype}, batch {report.batch_size}, input {report.input}"
    origin = ORIGINS.get(report.quality, report.quality.upper())
    modules = sorted(report.by_module(), key=lambda share: -share.energy_j)
    lines = "".join(f"<li>{escape(line)}</li>" for line in [*notes(report), *report.assumptions])
    return (
        f"<div><p><b>{escape(report.model)}</b> {escape(facts)}<br>"
        f"<b>{si(report.energy_j, 'J')}</b> predicted, not measured; 90 % interval "
        f"{interval(*report.interval_j)}; {si(report.time_s, 's')}<br>"
        f"for {escape(report.device_name)} (profile {escape(report.device)}), joules {origin}, "
        f"±{report.relative_uncertainty:.0%}</p>"
        f"{_table('layer type', report.by_kind())}"
        f"<details><summary>by module</summary>{_table('module', modules)}</details>"
        f"<details><summary>where the numbers come from, and what was assumed</summary>"
        f"<ul>{lines}</ul></details></div>"
    )


def _table(name: str, shares: list[Share]) -> str:
    rows = "".join(
        f"<tr><td>{escape(share.name)}</td><td>{share.calls}</td><td>{si(share.energy_j, 'J')}</td>"
        f"<td>{interval(share.energy_low_j, share.energy_high_j)}</td>"
        f"<td>{si(share.time_s, 's')}</td><td>{share.share:.1%} "
        f'<span style="{_BAR};width:{8 * share.share:.2f}em"></span></td></tr>'
        for share in shares[:MODULES_SHOWN]
    )
    rest = shares[MODULES_SHOWN:]
    if rest:
        energy_j = sum(share.energy_j for share in rest)
        rows += f"<tr><td>{len(rest)} more</td><td></td><td>{si(energy_j, 'J')}</td></tr>"
    heads = (name, "calls", "energy", "90 % interval", "time", "share")
    return f"<table><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>{rows}</table>"
