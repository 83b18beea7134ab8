"""The report as one self-contained HTML file: no network, light and dark, any width."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layer_energy.carbon import Intensity
from layer_energy.errors import InvalidInput, MissingPackage
from layer_energy.files import write_text_atomically
from layer_energy.report.text import ORIGINS, RUNS, interval, notes
from layer_energy.report.tree import costliest_parts, module_tree
from layer_energy.units import si
from layer_energy.version import __version__

if TYPE_CHECKING:
    from layer_energy.report.report import EnergyReport, LayerEstimate

_HERE = Path(__file__).parent


def write_html(
    report: EnergyReport,
    path: str | Path,
    intensity: Intensity,
    price_per_kwh: float,
    currency: str,
) -> Path:
    """Write the page; see :meth:`EnergyReport.to_html`."""
    if not 0 <= price_per_kwh < float("inf"):
        raise InvalidInput(f"the price per kWh must be a number from 0 up, got {price_per_kwh}")
    rates = {
        "intensity_g_per_kwh": intensity.g_per_kwh,
        "price_per_kwh": price_per_kwh,
        "currency": currency,
    }
    path = Path(path)
    write_text_atomically(path, _page(report, rates, intensity.source))
    return path


def _page(report: EnergyReport, rates: Mapping[str, Any], intensity_source: str) -> str:
    parts = {
        "title": escape(report.model),
        "style": (_HERE / "page.css").read_text(encoding="utf-8"),
        "head": _head(report),
        "notes": "".join(f"<li>{escape(note)}</li>" for note in notes(report)),
        "assumptions": "".join(f"<li>{escape(text)}</li>" for text in report.assumptions),
        "provenance": "".join(
            f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>"
            for name, value in _provenance(report).items()
        ),
        "intensity_source": escape(f" ({intensity_source})"),
        "plotly": _plotly_js(),
        "data": _script_json({**_data(report), "rates": rates}),
        "script": (_HERE / "page.js").read_text(encoding="utf-8"),
    }
    template = (_HERE / "page.html").read_text(encoding="utf-8")
    # one pass: a model that is called {{data}} stays a name
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _plotly_js() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise MissingPackage("the HTML report needs plotly: pip install plotly") from None
    return str(get_plotlyjs())


def _head(report: EnergyReport) -> str:
    facts = f"{report.mode}, {report.dtype}, batch {report.batch_size}, input {report.input}"
    per = si(report.energy_j / max(report.batch_size, 1), "J")
    return (
        f'<p class="badge">Predicted, not measured</p><h1>{escape(report.model)}</h1>'
        f'<p class="facts">{escape(facts)}</p>'
        f'<p class="total"><strong>{escape(si(report.energy_j, "J"))}</strong> '
        f"for one {RUNS[report.mode]}</p>"
        f'<p class="facts">90 % interval {escape(interval(*report.interval_j))} · '
        f"{escape(per)} per sample · {escape(si(report.time_s, 's'))}</p>"
        f"<p>Predicted for {escape(report.device_name)} (profile {escape(report.device)}), whose "
        f"joules were {escape(ORIGINS.get(report.quality, report.quality.upper()))}, "
        f"±{report.relative_uncertainty:.0%}.</p>"
    )


def _provenance(report: EnergyReport) -> dict[str, str]:
    origin = ORIGINS.get(report.quality, report.quality.upper())
    return {
        "Device": report.device_name,
        "Profile": report.device,
        "Joules of the profile": f"{origin}, ±{report.relative_uncertainty:.0%}",
        "Fitted on": report.source,
        "Interval of the total": f"from {report.networks} measured networks"
        if report.network_ratio
        else "sum of the layers' intervals",
        "Made by": f"layer_energy {__version__}",
    }


def _data(report: EnergyReport) -> dict[str, Any]:
    """What the page's script draws; its names are those of :meth:`EnergyReport.to_dict`."""
    nodes = costliest_parts(module_tree(report))
    low, high = report.interval_j
    return {
        "batch_size": report.batch_size,
        "energy_j": report.energy_j,
        "energy_low_j": low,
        "energy_high_j": high,
        "time_s": report.time_s,
        "kinds": [
            {
                "name": share.name,
                "calls": share.calls,
                "energy_j": share.energy_j,
                "energy_low_j": share.energy_low_j,
                "energy_high_j": share.energy_high_j,
                "time_s": share.time_s,
            }
            for share in report.by_kind()
        ],
        "tree": {
            "parents": [parent for parent, _ in nodes],
            "labels": [node.name for _, node in nodes],
            "kinds": [node.kind for _, node in nodes],
            "energy_j": [_short(node.energy_j) for _, node in nodes],
            "calls": [node.calls for _, node in nodes],
        },
        "layers": [_row(report, layer) for layer in report.layers],
    }


def _row(report: EnergyReport, layer: LayerEstimate) -> dict[str, Any]:
    row = report.row(layer)
    low_j, high_j = row["energy_low_j"], row["energy_high_j"]
    return {
        "path": row["path"],
        "op": row["op"],
        "kind": row["kind"],
        "params": ", ".join(f"{name} {value}" for name, value in row["params"].items()),
        "macs": row["macs"],
        "bytes": row["bytes"],
        "energy_j": _short(row["energy_j"]),
        "energy_low_j": _short(low_j),
        "energy_high_j": _short(high_j),
        "time_s": _short(row["time_s"]),
        "modelled": row["modelled"],
        "outside": row["outside"],
    }


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _script_json(value: Any) -> str:
    """JSON that no string in it can end the surrounding script element with."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
