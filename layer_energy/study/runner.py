"""The runs of a study, one after the other, resumable."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from layer_energy.errors import DatasetError, DeviceLost, MeterError
from layer_energy.study.log import RunLog
from layer_energy.study.spec import Configuration, PlannedRun, Study
from layer_energy.study.table import TABLE, Run, write_runs

LOG_NAME = "runs.jsonl"
_NAP_S = 0.2
_LAST = (MeterError, DeviceLost)
"""Errors after which this process can do no further run."""


class Trainer(Protocol):
    """What does the runs; see :class:`layer_energy.study.trainer.TorchTrainer`."""

    def identity(self) -> Mapping[str, Any]:
        """Machine, devices and meters, as plain JSON values: what must not change midway."""

    def facts(self) -> Mapping[str, Any]:
        """What else to write beside the table, such as the meters' ``assumptions``."""

    def warm_up(self, configuration: Configuration) -> None:
        """Do the first training step of a configuration, and record nothing."""

    def train(self, planned: PlannedRun, should_stop: Callable[[], bool]) -> Run | None:
        """Do one run; ``None`` if it was told to stop."""


@dataclass
class StudySummary:
    """What one call of :func:`run_study` did.

    Attributes:
        planned: runs of the whole study.
        done: of them, finished by now.
        resumed: of those, finished before this call.
        failed: run, or warm-up of a configuration → what went wrong; calling again tries it again.
        dropped: damaged lines of the log.
        table: the file of the runs that are done, if there are any.
    """

    planned: int
    resumed: int
    dropped: int
    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    table: Path | None = None

    @property
    def complete(self) -> bool:
        """Whether every run is done."""
        return self.done == self.planned


def run_study(
    study: Study,
    out: str | Path,
    trainer: Trainer | None = None,
    *,
    on_start: Callable[[int], None] = lambda left: None,
    on_run: Callable[[PlannedRun, Run | None], None] = lambda planned, run: None,
    should_stop: Callable[[], bool] = lambda: False,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> StudySummary:
    """Do the runs of a study that are not done yet, and write their table.

    Every finished run is on the disk before the next one begins: after a kill, the same call goes
    on with the run that was in flight.

    Args:
        study: what to do.
        out: folder for ``runs.csv``, its ``datapackage.json`` and, until all is done,
            ``runs.jsonl``; made if it is missing.
        trainer: what does the runs; torch on this machine if not given.
        on_start: called with the number of runs to do.
        on_run: called with each run that ended; ``None`` for one that failed.
        should_stop: asked often; once it is true, the run in flight is given up.
        sleep: waits that many seconds.
        clock: seconds, of the warm-up.

    Raises:
        DatasetError: if the folder holds a finished study, or a begun one of another study file.
        InvalidInput: if a network or the images cannot be had.
        MeterError: if the joules cannot be read, or no longer; the runs until then are kept.
        DeviceLost: if a device cannot be used any more; the runs until then are kept.
    """
    out = Path(out)
    log_path = out / LOG_NAME
    if (out / f"{TABLE}.csv").exists() and not log_path.exists():
        raise DatasetError(
            f"{out} already holds a finished study; choose another folder, or delete its "
            f"{TABLE}.csv to do it again"
        )
    if trainer is None:
        from layer_energy.study.trainer import TorchTrainer

        trainer = TorchTrainer(study)
    out.mkdir(parents=True, exist_ok=True)
    log = RunLog(log_path, {"study": study.to_dict(), **trainer.identity()})
    try:
        order = study.order()
        summary = StudySummary(len(order), resumed=len(log.runs), dropped=log.dropped)
        left = [planned for planned in order if planned.run_id not in log.runs]
        on_start(len(left))
        try:
            if left:
                _warm_up(study, trainer, summary, should_stop, clock)
            _do(left, study, trainer, log, summary, on_run, should_stop, sleep)
        finally:
            summary.done = len(log.runs)
            if log.runs:
                summary.table = out / f"{TABLE}.csv"
                facts = {"study": study.to_dict(), **trainer.identity(), **trainer.facts()}
                write_runs(out, log.runs.values(), {**facts, "planned_runs": len(order)})
    finally:
        log.close()
    if summary.complete:
        log_path.unlink()
    return summary


def _warm_up(
    study: Study,
    trainer: Trainer,
    summary: StudySummary,
    should_stop: Callable[[], bool],
    clock: Callable[[], float],
) -> None:
    """Each configuration in turn, until the time is over; one that fails is not warmed up again."""
    deadline_s = clock() + study.protocol.warm_up_s
    able = study.configurations()
    while able and clock() < deadline_s:
        for configuration in tuple(able):
            if should_stop():
                return
            try:
                trainer.warm_up(configuration)
            except _LAST:
                raise
            except Exception as error:  # its runs are tried all the same
                able.remove(configuration)
                summary.failed[f"warm-up of {configuration}"] = _reason(error)


def _do(
    left: list[PlannedRun],
    study: Study,
    trainer: Trainer,
    log: RunLog,
    summary: StudySummary,
    on_run: Callable[[PlannedRun, Run | None], None],
    should_stop: Callable[[], bool],
    sleep: Callable[[float], None],
) -> None:
    for planned in left:
        _pause(study.protocol.pause_s, should_stop, sleep)
        if should_stop():
            return
        try:
            run = trainer.train(planned, should_stop)
        except _LAST:
            raise
        except Exception as error:  # one bad run must not cost the night
            summary.failed[str(planned)] = _reason(error)
            on_run(planned, None)
            continue
        if run is None:
            return
        log.append(run)
        on_run(planned, run)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _pause(
    duration_s: float, should_stop: Callable[[], bool], sleep: Callable[[float], None]
) -> None:
    naps = max(1, round(duration_s / _NAP_S)) if duration_s else 0
    for _ in range(naps):
        if should_stop():
            return
        sleep(duration_s / naps)
