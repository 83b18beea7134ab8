"""``diff(report_a, report_b)``: where two versions of a model differ, module by module."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from layer_energy.report.report import WAITING, EnergyReport, LayerEstimate
from layer_energy.report.text import ORIGINS, WIDTH, interval
from layer_energy.units import si

if TYPE_CHECKING:
    import pandas as pd

MODULES_SHOWN = 20
WORDS_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Change:
    """A module whose joules differ.

    Attributes:
        path: of the module; ``""`` is the model itself. ``WAITING`` is none: what a GPU draws while
            it waits for its host.
        energy_a_j, energy_b_j: predicted joules in either report, 0 where the module is missing.
        energy_j: the second less the first.
        energy_low_j, energy_high_j: 90 % interval of that difference.
        what: what changed, in words.
    """

    path: str
    energy_a_j: float
    energy_b_j: float
    energy_j: float
    energy_low_j: float
    energy_high_j: float
    what: str


@dataclass(frozen=True)
class ReportDifference:
    """How a report differs from another.

    Attributes:
        a, b: the two reports.
        changes: modules with a difference, the largest first.
        unchanged: how many modules cost the same in both.
    """

    a: EnergyReport
    b: EnergyReport
    changes: list[Change]
    unchanged: int

    @property
    def energy_j(self) -> float:
        """Joules of the second report less those of the first."""
        return self.b.energy_j - self.a.energy_j

    @property
    def interval_j(self) -> tuple[float, float]:
        """90 % interval of ``energy_j``: the sum of the modules', as if they erred together."""
        return (
            sum(change.energy_low_j for change in self.changes),
            sum(change.energy_high_j for change in self.changes),
        )

    def to_frame(self) -> pd.DataFrame:
        """One row a changed module, with the attributes of :class:`Change` as columns."""
        import pandas as pd

        return pd.DataFrame(
            [asdict(change) for change in self.changes], columns=list(Change.__dataclass_fields__)
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain JSON values."""
        low, high = self.interval_j
        return {
            "a": _summary(self.a),
            "b": _summary(self.b),
            "energy_j": self.energy_j,
            "energy_low_j": low,
            "energy_high_j": high,
            "unchanged": self.unchanged,
            "changes": [asdict(change) for change in self.changes],
        }

    def __rich__(self) -> RenderableType:
        heads = [
            f"{name}  {r.model}  {r.mode}, {r.dtype}, batch {r.batch_size}, input {r.input}, "
            f"predicted for {r.device_name} (profile {r.device}), joules "
            f"{ORIGINS.get(r.quality, r.quality.upper())}, ±{r.relative_uncertainty:.0%}"
            + (f", launched as {r.launch}" if r.launch else "")
            for name, r in (("A", self.a), ("B", self.b))
        ]
        table = Table(box=box.SIMPLE, pad_edge=False, show_edge=False)
        table.add_column("module", overflow="fold")
        for column in ("A", "B", "B - A", "90 % interval"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("what changed", overflow="fold")
        for c in self.changes[:MODULES_SHOWN]:
            _add(table, c.path or "(model itself)", c)
        rest = self.changes[MODULES_SHOWN:]
        if rest:
            _add(table, f"{len(rest)} more", _sum(rest))
        table.add_section()
        low, high = self.interval_j
        total = Change("", self.a.energy_j, self.b.energy_j, self.energy_j, low, high, "")
        _add(table, "total", total, "bold")
        note = f"· {self.unchanged} modules cost the same in both"
        return Group(*map(Text, heads), Text(), table, Text(), Text(note, style="dim"))

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=WIDTH, color_system=None)
        console.print(self)
        text = console.file.getvalue()  # type: ignore[attr-defined]  # the StringIO from above
        return "\n".join(line.rstrip() for line in text.splitlines())


def diff(a: EnergyReport, b: EnergyReport, depth: int | None = None) -> ReportDifference:
    """Where ``b`` differs from ``a``, by module.

    Modules are matched by their path. Operations priced alike in both cancel and add nothing to
    the interval; those of the others are taken at their worst. Where both reports are of one
    profile, the systematic error of its joules scales the difference, so it cannot turn its sign.

    Args:
        a: report of a model.
        b: report of another version of it, or of it on another device.
        depth: dots of the module paths to keep, as in :meth:`EnergyReport.by_module`; all if not
            given.
    """
    ours, theirs = _modules(a, depth), _modules(b, depth)
    paths = list(dict.fromkeys([*ours, *theirs]))
    same_gain = (a.device, a.source) == (b.device, b.source)
    changes = []
    for path in paths:
        before, after = ours.get(path, []), theirs.get(path, [])
        if _priced(before) != _priced(after):
            changes.append(_change(path, before, after, a, b, same_gain))
    changed = len(changes)
    if a.waiting_j != b.waiting_j:
        changes.append(_waiting(a, b, same_gain))
    changes.sort(key=lambda change: -abs(change.energy_j))
    return ReportDifference(a, b, changes, len(paths) - changed)


def _waiting(a: EnergyReport, b: EnergyReport, same_gain: bool) -> Change:
    """One host is as much faster or slower than expected in both reports."""
    (low_a, high_a), (low_b, high_b) = a.waiting_interval_j, b.waiting_interval_j
    ends = (low_b - low_a, high_b - high_a) if same_gain else (low_b - high_a, high_b - low_a)
    energy_j = b.waiting_j - a.waiting_j
    what = f"launch {a.launch} → {b.launch}" if a.launch != b.launch else "other kernels to launch"
    return Change(WAITING, a.waiting_j, b.waiting_j, energy_j, min(ends), max(ends), what)


def _modules(report: EnergyReport, depth: int | None) -> dict[str, list[LayerEstimate]]:
    groups: dict[str, list[LayerEstimate]] = {}
    for layer in report.layers:
        path = ".".join(layer.call.path.split(".")[:depth])
        groups.setdefault(path, []).append(layer)
    return groups


def _priced(layers: Iterable[LayerEstimate]) -> Counter[Any]:
    return Counter((layer.call.workload, layer.estimate) for layer in layers)


def _change(
    path: str,
    before: list[LayerEstimate],
    after: list[LayerEstimate],
    a: EnergyReport,
    b: EnergyReport,
    same_gain: bool,
) -> Change:
    gone, come = _priced(before) - _priced(after), _priced(after) - _priced(before)
    if not same_gain:
        gone, come = _priced(before), _priced(after)
    gain_a, gain_b = a.relative_uncertainty, b.relative_uncertainty
    if same_gain:
        low = _sum_of(come, "energy_low_j") - _sum_of(gone, "energy_high_j")
        high = _sum_of(come, "energy_high_j") - _sum_of(gone, "energy_low_j")
        low, high = (
            min(low * (1 - gain_a), low * (1 + gain_a)),
            max(high * (1 - gain_a), high * (1 + gain_a)),
        )
    else:
        low = _sum_of(come, "energy_low_j") * (1 - gain_b)
        low -= _sum_of(gone, "energy_high_j") * (1 + gain_a)
        high = _sum_of(come, "energy_high_j") * (1 + gain_b)
        high -= _sum_of(gone, "energy_low_j") * (1 - gain_a)
    energy_a_j = sum(layer.estimate.energy_j for layer in before)
    energy_b_j = sum(layer.estimate.energy_j for layer in after)
    energy_j = _sum_of(come, "energy_j") - _sum_of(gone, "energy_j")
    return Change(path, energy_a_j, energy_b_j, energy_j, low, high, _in_words(before, after))


def _sum_of(priced: Counter[Any], name: str) -> float:
    return float(sum(getattr(estimate, name) * n for (_, estimate), n in priced.items()))


def _in_words(before: list[LayerEstimate], after: list[LayerEstimate]) -> str:
    """``"conv2d out_channels 64 → 128; - relu; + gelu"``; empty if only the prices differ."""
    workloads = [[layer.call.workload for layer in layers] for layers in (before, after)]
    counts = Counter(workloads[0]), Counter(workloads[1])
    gone = list((counts[0] - counts[1]).elements())
    come = list((counts[1] - counts[0]).elements())
    if not before or not after:
        kinds = Counter(workload.kind for workload in gone or come)
        what = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
        return f"{'new' if after else 'removed'}: {what}"
    words = []
    for workload in gone:
        other = next((w for w in come if w.kind == workload.kind), None)
        if other is None:
            words.append(f"- {workload.kind}")
            continue
        come.remove(other)
        pairs = {**workload.params, "dtype": workload.dtype}
        changed = [
            f"{name} {value} → {now}"
            for name, value in pairs.items()
            if (now := {**other.params, "dtype": other.dtype}.get(name)) != value
        ]
        words.append(f"{workload.kind} {', '.join(changed)}")
    words += [f"+ {workload.kind}" for workload in come]
    words = list(dict.fromkeys(words))
    if len(words) > WORDS_SHOWN:
        words[WORDS_SHOWN - 1 :] = [f"{len(words) - WORDS_SHOWN + 1} more"]
    return "; ".join(words) or "priced differently"


def _sum(changes: list[Change]) -> Change:
    def total(name: str) -> float:
        return float(sum(getattr(change, name) for change in changes))

    return Change(
        path="",
        energy_a_j=total("energy_a_j"),
        energy_b_j=total("energy_b_j"),
        energy_j=total("energy_j"),
        energy_low_j=total("energy_low_j"),
        energy_high_j=total("energy_high_j"),
        what="",
    )


def _add(table: Table, name: str, change: Change, style: str = "") -> None:
    table.add_row(
        Text(name),
        si(change.energy_a_j, "J") if change.energy_a_j else "-",
        si(change.energy_b_j, "J") if change.energy_b_j else "-",
        ("+" if change.energy_j > 0 else "") + si(change.energy_j, "J"),
        interval(change.energy_low_j, change.energy_high_j),
        Text(change.what),
        style=style,
    )


def _summary(report: EnergyReport) -> dict[str, Any]:
    """The report without its layers."""
    return {key: value for key, value in report.to_dict().items() if key != "layers"}
