"""A plan → a measured dataset: order, drift, resume, budget.

Every finished row is appended to a journal at once, so a kill loses at most the row in flight.
Between blocks of rows two reference layers are timed; a block beside which they ran slower than
usual (another process, a hot machine) is flagged and measured again at the end.
"""

from __future__ import annotations

import math
import statistics
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from layer_energy.datapackage import PACKAGE
from layer_energy.dataset import Dataset
from layer_energy.errors import DatasetError, MeasureError
from layer_energy.journal import Journal
from layer_energy.layers.base import workload
from layer_energy.measure import Protocol, measure, release_memory, steady_allocator
from layer_energy.meters.base import Meter
from layer_energy.plan import make_plan
from layer_energy.version import __version__
from layer_energy.workload import Device, Measurement, Workload

BLOCK_ROWS = 25
SUSPECT_ROUNDS = 2
"""How often suspect blocks are measured again before they stay flagged."""

DRIFT_LIMIT = 0.10
"""A reference this much slower than usual, three times in a row, makes the block suspect."""

JOURNAL_NAME = "journal.jsonl"


@dataclass
class Summary:
    """What a collection did."""

    planned: int
    measured: int = 0
    resumed: int = 0
    failed: list[str] = field(default_factory=list)
    suspect_blocks: int = 0
    seconds: float = 0.0
    complete: bool = False

    @property
    def rows_per_minute(self) -> float:
        """Rows measured by this run, a minute of this run."""
        return 60 * self.measured / self.seconds if self.seconds else 0.0


def collect(
    out: str | Path,
    device: Device,
    meter: Meter,
    rows: Mapping[str, int],
    seed: int = 0,
    protocol: Protocol | None = None,
    budget_s: float | None = None,
    on_start: Callable[[int], None] = lambda rows: None,
    on_row: Callable[[Measurement], None] = lambda row: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Summary:
    """Measure a plan of random layers and write it as a dataset.

    Args:
        out: the dataset's folder; an interrupted collection in it is resumed.
        device: what is being measured, see :func:`layer_energy.device.local_cpu`.
        meter: the source of joules.
        rows: rows per layer type.
        seed: of the plan.
        protocol: of each measurement.
        budget_s: stop cleanly after this many seconds; the next call resumes.
        on_start: called once with the number of rows left to measure.
        on_row: called after each row of these; failed ones are flagged.
        should_stop: asked before each row.

    Raises:
        DatasetError: if ``out`` holds a finished dataset, or an interrupted one of another plan.
    """
    protocol = protocol or Protocol()
    out = Path(out)
    if (out / PACKAGE).exists() and not (out / JOURNAL_NAME).exists():
        raise DatasetError(f"{out} already holds a finished dataset; choose another folder")
    plan = make_plan(rows, seed)
    allocator = steady_allocator()
    summary = Summary(planned=len(plan))
    started = time.perf_counter()
    identity = {
        "device": device.slug,
        "seed": seed,
        "rows": dict(sorted(rows.items())),
        "plan_crc": zlib.crc32(repr(plan).encode()),
        "protocol": asdict(protocol),
        "meter": meter.name,
    }
    with Journal(out / JOURNAL_NAME, identity) as journal:
        done = {i for i, row in journal.rows.items() if "drift" not in row.flags}
        summary.resumed = len(done)
        references = _References(device, meter)
        todo = [i for i in range(len(plan)) if i not in done]
        on_start(len(todo))
        for attempt in range(1 + SUSPECT_ROUNDS):
            suspects: list[int] = []
            for block in _blocks(todo):
                measured = []
                for row_id in block:
                    release_memory()
                    late = budget_s is not None and time.perf_counter() - started > budget_s
                    if late or should_stop():
                        summary.seconds = time.perf_counter() - started
                        return summary
                    row = _measure_row(plan[row_id], row_id, device, meter, protocol, summary)
                    measured.append(row)
                    journal.append(row)
                    if attempt == 0:
                        on_row(row)
                if references.drifted():
                    summary.suspect_blocks += 1
                    suspects += block
                    for row in measured:
                        journal.append(replace(row, flags=(*row.flags, "drift")))
            todo = suspects
        provenance = {
            **identity,
            "layer_energy": __version__,
            "allocator": allocator,
            "meter_quality": meter.quality,
            "meter_relative_uncertainty": meter.relative_uncertainty,
            "assumptions": list(meter.assumptions),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "planned": len(plan),
            "failed": len(summary.failed),
            "suspect_blocks": summary.suspect_blocks,
        }
        Dataset([journal.rows[i] for i in sorted(journal.rows)], device, provenance).save(out)
    (out / JOURNAL_NAME).unlink()
    summary.complete = True
    summary.seconds = time.perf_counter() - started
    return summary


def _blocks(todo: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(todo), BLOCK_ROWS):
        yield todo[start : start + BLOCK_ROWS]


def _measure_row(
    work: Workload,
    row_id: int,
    device: Device,
    meter: Meter,
    protocol: Protocol,
    summary: Summary,
) -> Measurement:
    try:
        row = measure(work, device, meter, protocol, row_id)
    except MeasureError as error:
        summary.failed.append(str(error))
        nothing = dict.fromkeys(("time_s", "energy_j", "power_w", "spread"), 0.0)
        return Measurement(
            work, **nothing, repeats=0, executions=0, quality=meter.quality, meter=meter.name,
            flags=("failed",), row_id=row_id,
        )  # fmt: skip
    summary.measured += 1
    return row


class _References:
    """A compute-bound and a memory-bound layer, timed again and again."""

    def __init__(self, device: Device, meter: Meter) -> None:
        self._workloads = (
            workload("linear", tokens=256, in_features=1024, out_features=1024, bias=1),
            workload("copy", elements=1 << 22, run=1 << 22),
        )
        quick = Protocol(dwell_s=0.05, attempts=1)
        self._measure = lambda w: measure(w, device, meter, quick).time_s
        self._times: list[list[float]] = [[], []]
        self.drifted()

    def drifted(self) -> bool:
        """Time both; whether either is slower than its median so far by ``DRIFT_LIMIT``."""
        slow = False
        for work, times in zip(self._workloads, self._times, strict=True):
            usual = statistics.median(times) if times else math.inf
            time_s = self._measure(work)
            for _ in range(2):
                if time_s <= usual * (1 + DRIFT_LIMIT):
                    break
                time_s = min(time_s, self._measure(work))
            slow |= time_s > usual * (1 + DRIFT_LIMIT)
            times.append(time_s)
        return slow
