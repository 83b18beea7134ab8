"""A plan → a measured dataset: order, drift, faults, resume, budget.

Every finished row is appended to a journal at once, so a kill loses at most the row in flight.
Between blocks of rows reference layers are measured; a block beside which they ran slower than
usual (another process, a hot machine) is measured again, and flagged if it stays so. Whole networks
come between the blocks, so that they are measured under the same conditions; where the plan leaves
time for it, they wait until the references are as fast as usual.
"""

from __future__ import annotations

import contextlib
import gc
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from layer_energy.datapackage import PACKAGE
from layer_energy.dataset import Dataset
from layer_energy.errors import (
    DatasetError,
    DeviceLost,
    DroppedInterval,
    LayerEnergyError,
    MeasureError,
    MeterError,
)
from layer_energy.journal import JOURNAL_NAME, Journal
from layer_energy.measure import Bench
from layer_energy.networks import layers_of, measure_network, with_floor
from layer_energy.plan import Job, NetworkJob, Plan
from layer_energy.raw_log import Tell, unheard
from layer_energy.records import measurement_to_dict, network_to_dict
from layer_energy.version import __version__
from layer_energy.workload import Measurement, NetworkMeasurement, Workload

BLOCK_ROWS = 25
NETWORK_S = 10.0
"""A network is not begun with less time than this left."""

NETWORK_SHARE = 0.25
"""Networks take no more than this share of a budget."""

SUSPECT_ROUNDS = 2
"""How often suspect blocks are measured again before they stay flagged; once in plans that fill a
budget."""

TRIES = 3
"""Of a row that fails a health check."""

NETWORK_STARTS = 2
"""A network begun this often without a result is not tried again."""

FATAL_STARTS = 3
"""A row during which the process died this often is not tried again; once in plans that fill a
budget."""

CLOSING_S = 20.0
"""Kept free at the end of a budget; a twentieth of it, if that is less."""


@dataclass
class Summary:
    """What a collection did.

    Attributes:
        planned: rows of the plan.
        measured: rows measured by this run.
        resumed: rows found in the journal.
        networks: whole networks measured by this run.
        failed: why rows could not be measured.
        dropped: intervals that failed a health check and were measured again.
        suspect_blocks: blocks measured again beside a drifted reference.
        lost_lines: damaged lines of the journal.
        seconds: of this run.
        complete: nothing of the plan is left.
        saved: the dataset was written.
    """

    planned: int
    measured: int = 0
    resumed: int = 0
    networks: int = 0
    failed: list[str] = field(default_factory=list)
    dropped: int = 0
    suspect_blocks: int = 0
    lost_lines: int = 0
    seconds: float = 0.0
    complete: bool = False
    saved: bool = False

    @property
    def rows_per_minute(self) -> float:
        """Rows measured by this run, a minute of this run."""
        return 60 * self.measured / self.seconds if self.seconds else 0.0


def collect(
    out: str | Path,
    bench: Bench,
    plan: Plan,
    budget_s: float | None = None,
    on_start: Callable[[int], None] = lambda rows: None,
    on_row: Callable[[Measurement], None] = lambda row: None,
    should_stop: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.perf_counter,
    tell: Tell = unheard,
    save: Callable[[Dataset], None] | None = None,
) -> Summary:
    """Measure a plan and write it as a dataset.

    Args:
        out: the dataset's folder; an interrupted collection in it is resumed.
        bench: the device, and how it is measured.
        plan: what to measure.
        budget_s: stop cleanly before this many seconds are over and write what there is as a
            dataset; the next call resumes.
        on_start: called once with the number of rows left to measure.
        on_row: called after each row of these; failed ones are flagged.
        should_stop: asked before each row and each network.
        clock: seconds of the budget.
        tell: ``tell(what, **facts)`` writes a line of a raw log; rows and networks are told.
        save: writes what was measured into ``out``; where that holds a finished dataset, adds it
            to that.

    Raises:
        DatasetError: if ``out`` holds a finished dataset or an interrupted one of another plan, or
            the disk is full; what was measured is then in a folder that the message names.
        MeterError: if the source of joules is gone.
        DeviceLost: if this process can no longer use the device; a new one may go on.
    """
    out = Path(out)
    if save is None and is_finished(out):
        raise DatasetError(f"{out} already holds a finished dataset; choose another folder")
    identity = {
        **plan.identity,
        "device": bench.device.slug,
        "meter": bench.meter,
        "protocol": dict(bench.protocol()),
    }
    with Journal(out / JOURNAL_NAME, identity) as journal:
        run = _Run(bench, plan, journal, budget_s, should_stop, clock, tell)
        on_start(len(run.queue))
        try:
            with _collected_by_hand() if plan.fills_budget else contextlib.nullcontext():
                run.rows_and_networks(on_row)
        except OSError as error:
            raise _rescued(error, run, identity) from error
        finally:  # time on a GPU is dear: whatever there is becomes a dataset, however it ended
            ended = run.summary.complete or run.out_of_time
            found = bool(journal.rows or journal.networks)
            if found and (ended or plan.fills_budget):
                dataset = run.dataset(identity)
                dataset.save(out) if save is None else save(dataset)
        summary = run.summary
        summary.saved = ended and found
    if summary.complete:
        (out / JOURNAL_NAME).unlink()
    summary.seconds = clock() - run.started_s
    return summary


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a dataset of which no collection is under way."""
    return (folder / PACKAGE).exists() and not (folder / JOURNAL_NAME).exists()


class _Run:
    def __init__(
        self,
        bench: Bench,
        plan: Plan,
        journal: Journal,
        budget_s: float | None,
        should_stop: Callable[[], bool],
        clock: Callable[[], float],
        tell: Tell,
    ) -> None:
        self._bench, self._plan, self._journal, self._tell = bench, plan, journal, tell
        self._should_stop, self._clock = should_stop, clock
        self.started_s = clock()
        reserve_s = 0.0 if budget_s is None else min(CLOSING_S, budget_s / 20)
        self._budget_s = None if budget_s is None else budget_s - reserve_s
        done = {i for i, row in journal.rows.items() if "drift" not in row.flags}
        self.summary = Summary(len(plan.jobs), resumed=len(done), lost_lines=journal.dropped)
        self.queue = deque(i for i in range(len(plan.jobs)) if i not in done)
        measured = {_network_key(n) for n in journal.networks}
        begun = journal.networks_begun
        self._networks = deque(
            job
            for job in plan.networks
            if (key := _job_key(job)) not in measured and begun[key] < NETWORK_STARTS
        )
        self._tries: Counter[int] = Counter()
        self._suspected: Counter[int] = Counter()
        self._networks_s = 0.0
        self.out_of_time = False

    def rows_and_networks(self, on_row: Callable[[Measurement], None]) -> None:
        """Measure until nothing is left, time is up, or someone says stop."""
        while self.queue or self._networks:
            block: list[int] = []
            while self.queue and len(block) < BLOCK_ROWS:
                if self._stop():
                    return
                row_id = self.queue.popleft()
                row = self._row(row_id)
                if row is None:
                    continue
                if "failed" not in row.flags:  # a slow machine is not why a row cannot be measured
                    block.append(row_id)
                if not self._suspected[row_id]:
                    on_row(row)
            if self._plan.fills_budget:
                gc.collect()  # by hand: see _collected_by_hand
            drifted = bool(block) and self._drifted()
            if drifted:
                self._suspect(block)
            self._catch_up(drifted)
            if self._networks and not self.queue:
                self.out_of_time = not self._should_stop()
                return
        self.summary.complete = True

    def _catch_up(self, drifted: bool) -> None:
        """Measure the networks that are due; if they may wait, one, on a steady device only."""
        while self._networks_lag() and not self._should_stop():
            waits = self.queue and not self._plan.fills_budget
            if not (waits and drifted):
                self._next_network()
            if waits:
                return

    def _networks_lag(self) -> bool:
        """Whether the networks have to catch up: with a budget to be filled, else with the rows."""
        if not self._networks or self._left_s() <= NETWORK_S:
            return False
        if not self.queue:
            return True
        done = 1 - len(self._networks) / len(self._plan.networks)
        if self._budget_s is None or not self._plan.fills_budget:
            return done < 1 - len(self.queue) / len(self._plan.jobs)
        elapsed_s = self._clock() - self.started_s
        return done < elapsed_s / self._budget_s and self._networks_s < NETWORK_SHARE * elapsed_s

    def dataset(self, identity: dict[str, Any]) -> Dataset:
        """Everything in the journal."""
        rows = self._journal.rows
        provenance = {
            **identity,
            "layer_energy": __version__,
            "meter_quality": self._bench.quality,
            **self._bench.facts(),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "planned": len(self._plan.jobs),
            "measured": len(rows),
            "failed": len(self.summary.failed),
            "drift_rows": sum("drift" in row.flags for row in rows.values()),
            "suspect_blocks": self.summary.suspect_blocks,
        }
        measurements = [rows[i] for i in sorted(rows)]
        networks = _with_floors(self._journal.networks, measurements, self._plan.networks)
        return Dataset(measurements, self._bench.device, provenance, networks)

    def _left_s(self) -> float:
        if self._budget_s is None:
            return float("inf")
        return self._budget_s - (self._clock() - self.started_s)

    def _stop(self) -> bool:
        self.out_of_time = self._left_s() <= 0
        return self.out_of_time or self._should_stop()

    def _row(self, row_id: int) -> Measurement | None:
        """Measure a row and write it down; ``None`` if it was put back into the queue."""
        job = self._plan.jobs[row_id]
        if self._journal.deaths[row_id] >= (1 if self._plan.fills_budget else FATAL_STARTS):
            return self._failed(row_id, job, "crashed", "the process died while measuring it")
        self._bench.between_rows()
        self._journal.begin(row_id)
        try:
            row = self._bench.measure(job.workload, row_id, job.flags)
        except DroppedInterval as error:
            self.summary.dropped += 1
            self._tries[row_id] += 1
            if self._tries[row_id] < TRIES:
                self.queue.append(row_id)
                return None
            return self._failed(row_id, job, "dropped", str(error))
        except DeviceLost as error:
            self._failed(row_id, job, "device_lost", str(error))
            raise
        except (MeterError, OSError):
            raise
        except Exception as error:  # one bad layer must not end a campaign
            return self._failed(row_id, job, "unmeasurable", _told(error))
        self._journal.append(row)
        self._tell("row", row=measurement_to_dict(row), raw=dict(self._bench.raw))
        self.summary.measured += 1
        return row

    def _failed(self, row_id: int, job: Job, flag: str, reason: str) -> Measurement:
        self.summary.failed.append(reason)
        row = Measurement(
            job.workload, 0.0, 0.0, 0.0, 0.0, repeats=0, executions=0, quality=self._bench.quality,
            meter=self._bench.meter, flags=("failed", flag), row_id=row_id,
        )  # fmt: skip
        self._journal.append(row)
        return row

    def _drifted(self) -> bool:
        try:
            return self._bench.drifted()
        except MeasureError:
            return True  # a reference that fails is no sign of health

    def _suspect(self, block: Sequence[int]) -> None:
        """Flag a block and measure it again: at the end, or at once if there may be no end."""
        self.summary.suspect_blocks += 1
        self._tell("drift", rows=list(block))
        for row_id in block:
            row = self._journal.rows[row_id]
            self._journal.append(replace(row, flags=(*row.flags, "drift")))
        rounds = 1 if self._plan.fills_budget else SUSPECT_ROUNDS
        again = [row_id for row_id in block if self._suspected[row_id] < rounds]
        self._suspected.update(block)
        if self._plan.fills_budget:
            self.queue.extendleft(reversed(again))
        else:
            self.queue.extend(again)

    def _next_network(self) -> None:
        job, started_s = self._networks.popleft(), self._clock()
        self._journal.begin_network(_job_key(job))
        for _ in range(TRIES):
            try:
                self._measured(measure_network(job, self._bench))
            except DroppedInterval as error:
                self.summary.dropped += 1
                reason = str(error)
            except (DeviceLost, MeterError, OSError):
                raise
            except KeyboardInterrupt:
                self._journal.end_network(_job_key(job))
                raise
            except Exception as error:  # nor must one bad network
                self.summary.failed.append(f"{job.model}: {_told(error)}")
                break
            else:
                break
        else:
            self.summary.failed.append(f"{job.model}: {reason}")
        self._networks_s += self._clock() - started_s

    def _measured(self, network: NetworkMeasurement) -> None:
        """Write a network down, and the same as a CUDA graph where that can be."""
        self._add(network)
        self.summary.networks += 1
        try:
            graph = self._bench.measure_as_graph(network)
        except DroppedInterval:
            self.summary.dropped += 1
        else:
            if graph is not None:
                self._add(graph)

    def _add(self, network: NetworkMeasurement) -> None:
        self._journal.append_network(network)
        self._tell("network", row=network_to_dict(network), raw=dict(self._bench.raw))


@contextlib.contextmanager
def _collected_by_hand() -> Iterator[None]:
    """No garbage collection while rows are measured: a large one starves a GPU's queue."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def _rescued(error: OSError, run: _Run, identity: dict[str, Any]) -> DatasetError:
    """The journal cannot be written: bring what is in memory to another folder."""
    other = Path(tempfile.mkdtemp(prefix="layer-energy-rescued-"))
    run.dataset(identity).save(other)
    return DatasetError(
        f"the journal cannot be written ({error}); what was measured so far is in {other}. "
        "Make room, then run the same command to go on from the journal"
    )


def _with_floors(
    networks: Sequence[NetworkMeasurement],
    rows: Sequence[Measurement],
    jobs: Sequence[NetworkJob],
) -> list[NetworkMeasurement]:
    """Add the sum of layers to the networks each of whose layers was measured exactly."""
    known: dict[Workload, tuple[float, float]] = {
        row.workload: (row.time_s, row.energy_j)
        for row in rows
        if "validation" in row.flags and row.time_s > 0
    }
    needed = {}
    measured = {_network_key(network) for network in networks}
    for job in jobs if known else ():
        if job.exact and _job_key(job) in measured:
            with contextlib.suppress(LayerEnergyError):  # it was measured; its floor can be missed
                needed[_job_key(job)] = layers_of(job)
    return [
        with_floor(network, needed.get(_network_key(network), {}), known) for network in networks
    ]


def _told(error: Exception) -> str:
    text = str(error)
    return text if isinstance(error, LayerEnergyError) else f"{type(error).__name__}: {text}"


def _job_key(job: NetworkJob) -> tuple[str, int, str, str]:
    return job.model, job.batch_size, job.dtype, job.mode


def _network_key(network: NetworkMeasurement) -> tuple[str, int, str, str]:
    return network.model, network.batch_size, network.dtype, network.mode
