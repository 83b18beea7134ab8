"""``layer-energy collect`` and ``layer-energy merge``."""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from layer_energy.cli.base import (
    Json,
    app,
    check_writable,
    err,
    out,
    parse_device,
    print_json,
    progress,
    stopping,
)
from layer_energy.errors import DeviceLost, InvalidInput, MeterError

if TYPE_CHECKING:
    from layer_energy.collect import Summary
    from layer_energy.dataset import Dataset
    from layer_energy.measure import Bench
    from layer_energy.plan import Plan
    from layer_energy.raw_log import RawLog
    from layer_energy.workload import Workload

STOPPED = 3
GPU_MINUTES = 9.0


@app.command(epilog="Example: layer-energy collect --device cuda --minutes 9 --out my-gpu")
def collect(
    folder: Annotated[Path, typer.Option("--out", help="The dataset's folder; resumed if begun.")],
    device: Annotated[
        str, typer.Option(help="cpu, cuda, cuda:N, or virtual: a simulated GPU to try things on.")
    ] = "cpu",
    rows: Annotated[
        str,
        typer.Option(help="On a CPU: 'default', a number for every layer type, or KIND=N,KIND=N."),
    ] = "default",
    shard: Annotated[
        str, typer.Option(help="On a GPU: K/N, the K-th of N disjoint parts of the campaign.")
    ] = "1/1",
    mode: Annotated[
        str | None,
        typer.Option(
            help="inference, training (forward and backward passes, optimizers), or all: both, "
            "mixed. By default inference on a CPU, all on a GPU."
        ),
    ] = None,
    networks: Annotated[
        str | None,
        typer.Option(
            help="On a CPU: whole networks to measure between the rows, 'default' or names joined "
            "by commas. A GPU's campaign has its own."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random layers.")] = 0,
    meter: Annotated[str, typer.Option(help="On a CPU: auto, rapl or estimated.")] = "auto",
    max_power_w: Annotated[
        float | None,
        typer.Option(help="Full-load power (TDP) in watts, if joules are estimated."),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Compute threads of torch.")] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0, help="Stop cleanly before this; run again to go on. GPU: 9."),
    ] = None,
    archive: Annotated[
        Path | None,
        typer.Option(help="On a GPU: also pack the folder into this one file, a .tar.gz."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    worker: Annotated[bool, typer.Option("--worker", hidden=True)] = False,
    as_json: Json = False,
) -> None:
    """Measure layers on this machine and write a dataset. Ctrl-C stops after the row.

    On a GPU a finished dataset of the same model is added to.
    """
    started_s = time.perf_counter()
    kind, index = parse_device(device)
    if mode not in (None, "inference", "training", "all"):
        raise InvalidInput(f"--mode must be inference, training or all, got {mode!r}")
    if kind != "cpu":
        minutes = GPU_MINUTES if minutes is None else minutes
    if archive is not None:
        if kind == "cpu":
            raise InvalidInput("--archive is for a GPU")
        check_writable(archive.parent)
    if kind == "cuda" and not worker and not dry_run:
        check_writable(folder)
        code = _supervised(folder, minutes or 0.0, started_s)
        if archive is not None:
            _pack(folder, archive)
        raise typer.Exit(code)
    if kind == "cpu":
        plan = _cpu_plan(rows, mode or "inference", networks, seed)
    else:
        plan = _gpu_plan(folder, rows, shard, mode or "all", networks, seed)
    if dry_run:
        _show_plan(plan, kind, minutes, as_json)
        return
    check_writable(folder)

    budget_s = None if minutes is None else 60 * minutes - (time.perf_counter() - started_s)
    try:
        if kind == "cpu":
            summary = _run(
                folder, lambda: _cpu_bench(meter, max_power_w, threads), plan, budget_s, as_json
            )
        else:
            summary = _on_gpu(folder, kind, index, max_power_w, plan, budget_s, as_json)
    except DeviceLost as error:
        from layer_energy.supervisor import LOST

        err.print(f"device lost: {error}", highlight=False)
        raise typer.Exit(LOST if worker else STOPPED) from error
    except MeterError as error:
        from layer_energy.journal import JOURNAL_NAME

        if not (folder / JOURNAL_NAME).exists():
            raise
        err.print(f"stopped, resumable: {error}", highlight=False)
        raise typer.Exit(STOPPED) from error
    if as_json:
        print_json({**vars(summary), "rows_per_minute": summary.rows_per_minute})
    else:
        _show_summary(folder, summary)
    if archive is not None and not worker:
        _pack(folder, archive)
    if not summary.saved:
        raise typer.Exit(STOPPED)


def _cpu_plan(rows: str, mode: str, networks: str | None, seed: int) -> Plan:
    from layer_energy.campaign import cpu_campaign
    from layer_energy.layers.optimizer import OPTIMIZER_STEPS
    from layer_energy.networks import NETWORKS
    from layer_energy.plan import default_rows, default_training_rows

    trainable = default_training_rows()
    forward = {} if mode == "training" else _rows(rows, default_rows())
    training = {} if mode == "inference" else _rows(rows, trainable)
    if mode == "all":
        forward = {kind: n for kind, n in forward.items() if kind not in OPTIMIZER_STEPS}
        training = {kind: n for kind, n in training.items() if kind in trainable}
    named = dict.fromkeys(name.strip() for name in (networks or "").split(",") if name.strip())
    with err.status("planning"):
        return cpu_campaign(forward, training, NETWORKS if "default" in named else [*named], seed)


def _gpu_plan(
    folder: Path, rows: str, shard: str, mode: str, networks: str | None, seed: int
) -> Plan:
    from layer_energy.gpu_plan import gpu_plan

    if rows != "default" or networks or seed:
        raise InvalidInput(
            "--rows, --networks and --seed are for a CPU; a GPU's plan is drawn, and fills its "
            "--minutes"
        )
    match = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", shard)
    if not match:
        raise InvalidInput(f"--shard must be K/N, such as 1/3, got {shard!r}")
    with err.status("planning"):
        return gpu_plan((int(match[1]), int(match[2])), mode, _measured_before(folder))


def _measured_before(folder: Path) -> list[Workload]:
    """Rows of the finished dataset in a folder; they do not come again."""
    from layer_energy.collect import is_finished
    from layer_energy.dataset import Dataset

    if not is_finished(folder):
        return []
    return [m.workload for m in Dataset.load(folder).measurements if m.time_s > 0]


def _cpu_bench(meter: str, max_power_w: float | None, threads: int | None) -> Bench:
    import torch

    from layer_energy.device import local_cpu
    from layer_energy.measure import CpuBench
    from layer_energy.meters import open_meter

    if threads:
        torch.set_num_threads(threads)
    options = {} if max_power_w is None else {"max_power_w": max_power_w}
    return CpuBench(local_cpu(), open_meter(meter, "cpu", **options))


def _on_gpu(
    folder: Path,
    kind: str,
    index: int,
    max_power_w: float | None,
    plan: Plan,
    budget_s: float | None,
    quiet: bool,
) -> Summary:
    """Measure, keep a raw log, and add to what the folder holds of other boards."""
    from layer_energy.collect import is_finished
    from layer_energy.gpu_log import dataset_from_logs, last_calibration
    from layer_energy.measure import GpuBench, open_gpu
    from layer_energy.networks import layers
    from layer_energy.raw_log import RawLog, logs

    if is_finished(folder) and not logs(folder):
        raise InvalidInput(
            f"{folder} holds a dataset without raw logs, so nothing can be added to it; choose "
            "another folder"
        )
    gpu, sensor = open_gpu(kind, index, layers, max_power_w)
    with closing(RawLog(folder)) as log:

        def bench() -> Bench:
            with err.status("warming up and calibrating the sensor"):
                device = gpu.device
                log.tell(
                    "device", **device.details, name=device.name, slug=device.slug,
                    cache=device.cache_bytes,
                )  # fmt: skip
                known = last_calibration(folder, sensor.uuid, sensor.driver)
                return GpuBench(gpu, sensor, calibration=known, tell=log.tell)

        def save(dataset: Dataset) -> None:
            log.close()
            several = len(logs(folder)) > 1
            (dataset_from_logs(folder)[0] if several else dataset).save(folder)

        return _run(folder, bench, plan, budget_s, quiet, log, save)


def _pack(folder: Path, archive: Path) -> None:
    """Write a folder into one file, beside its name first."""
    import tarfile

    beside = archive.with_name(f".{archive.name}.tmp")
    try:
        with tarfile.open(beside, "w:gz") as file:
            file.add(folder, arcname=folder.resolve().name)
        beside.replace(archive)
    finally:
        beside.unlink(missing_ok=True)
    err.print(f"{archive}: {archive.stat().st_size / 1e6:.1f} MB")


def _supervised(folder: Path, minutes: float, started_s: float) -> int:
    """Run this very command as a worker, again and again if it loses its device."""
    from layer_energy.journal import JOURNAL_NAME
    from layer_energy.supervisor import supervise

    journal = folder / JOURNAL_NAME
    deadline_s = time.monotonic() + 60 * minutes - (time.perf_counter() - started_s)

    def command() -> list[str]:
        left = f"{max(0.0, deadline_s - time.monotonic()) / 60:.4f}"
        worker = ["--worker", "--minutes", left]  # of options given twice the last one counts
        return [sys.executable, "-m", "layer_energy", *sys.argv[1:], *worker]

    def measured() -> int:
        lines = journal.read_bytes().split(b"\n") if journal.exists() else []
        return sum(b'"row":' in line and b'"failed"' not in line for line in lines)

    def silent_s() -> float:
        signs = [path for path in (journal, *folder.glob("raw/*.jsonl")) if path.exists()]
        return time.time() - max((path.stat().st_mtime for path in signs), default=0.0)

    code = supervise(
        command,
        measured,
        deadline_s,
        on_restart=lambda code: err.print(f"the worker ended with {code}; starting a new one"),
        silent_s=silent_s,
    )
    return code if code >= 0 else 128 - code  # as shells tell of a signal


def _run(
    folder: Path,
    bench: Callable[[], Bench],
    plan: Plan,
    budget_s: float | None,
    quiet: bool,
    log: RawLog | None = None,
    save: Callable[[Dataset], None] | None = None,
) -> Summary:
    from layer_energy.collect import collect as run
    from layer_energy.raw_log import unheard

    started_s = time.perf_counter()
    with stopping() as stopped:
        ready = bench()
        left_s = None if budget_s is None else budget_s + started_s - time.perf_counter()
        try:
            with progress(quiet, left_s if plan.fills_budget else None) as bar:
                return run(
                    folder,
                    ready,
                    plan,
                    budget_s=left_s,
                    on_start=lambda n: bar.start(None if plan.fills_budget else n),
                    on_row=lambda row: bar.advance(ready.energy_j()),
                    should_stop=lambda: bool(stopped),
                    clock=ready.clock,
                    tell=unheard if log is None else log.tell,
                    save=save,
                )
        finally:
            ready.close()


def _show_summary(folder: Path, summary: Summary) -> None:
    if summary.complete:
        state = "complete"
    elif summary.saved:
        state = "saved at the end of its time; the same command goes on"
    else:
        state = "stopped; run the same command to go on"
    again = f"{summary.dropped} intervals dropped, {summary.suspect_blocks} blocks measured again"
    out.print(
        f"{folder}: {state}. {summary.measured} rows and {summary.networks} networks measured in "
        f"{summary.seconds:.0f} s ({summary.rows_per_minute:.0f} rows a minute), "
        f"{summary.resumed} rows resumed, {len(summary.failed)} failed, {again}"
    )
    if summary.lost_lines:
        err.print(f"  {summary.lost_lines} damaged lines of the journal were skipped")
    for reason in sorted(set(summary.failed))[:5]:
        err.print(f"  failed: {reason}", highlight=False)


def _rows(text: str, default: dict[str, int]) -> dict[str, int]:
    from layer_energy.layers import layer_type

    if text == "default":
        return default
    try:
        if "=" not in text:
            return dict.fromkeys(default, int(text))
        pairs = [part.partition("=") for part in text.split(",")]
        wanted = {kind.strip(): int(n) for kind, _, n in pairs}
    except ValueError:
        raise InvalidInput(
            f"--rows {text!r} is neither 'default', a number for every layer type, nor "
            "KIND=N,KIND=N"
        ) from None
    return {layer_type(kind).kind: n for kind, n in wanted.items()}


def _show_plan(plan: Plan, kind: str, minutes: float | None, as_json: bool) -> None:
    from layer_energy import plan as plans

    kinds = Counter(job.workload.kind for job in plan.jobs)
    if kind == "cpu":
        per_row, per_network = plans.CPU_SECONDS_PER_ROW, plans.CPU_SECONDS_PER_NETWORK
    else:
        per_row, per_network = plans.GPU_SECONDS_PER_ROW, plans.GPU_SECONDS_PER_NETWORK
    seconds = per_row * len(plan.jobs) + per_network * len(plan.networks)
    facts: dict[str, Any] = {
        "rows": dict(kinds),
        "dtypes": dict(Counter(job.workload.dtype for job in plan.jobs)),
        "flags": dict(Counter(flag for job in plan.jobs for flag in job.flags)),
        "networks": len(plan.networks),
        "estimated_s": seconds,
        "budget_s": None if minutes is None else 60 * minutes,
    }
    if as_json:
        print_json(facts)
        return
    table = Table("layer type", "rows")
    for name, n in kinds.most_common():
        table.add_row(name, str(n))
    out.print(table)
    for what in ("dtypes", "flags"):
        if facts[what]:
            out.print(f"{what}: " + ", ".join(f"{k} {n}" for k, n in facts[what].items()))
    device = "a small CPU" if kind == "cpu" else "a GPU whose counter is updated every 100 ms"
    within = f"; what fits into {minutes:g} minutes is measured" if minutes is not None else ""
    out.print(
        f"{len(plan.jobs)} rows and {len(plan.networks)} networks, about {seconds / 60:.0f} "
        f"minutes on {device}{within}"
    )
    if kind != "cpu":
        from layer_energy.gpu_plan import gpu_plan, joules_covered

        if plan.jobs != gpu_plan().jobs:
            return  # of a part it is not known
        works = [job.workload for job in plan.jobs]
        shares = [f"the first {n} near {joules_covered(works[:n]):.0%}" for n in (200, 800)]
        out.print(
            f"of the joules of popular networks, {', '.join(shares)}, all near "
            f"{joules_covered(works):.0%}"
        )


@app.command(epilog="Example: layer-energy merge shard-1 shard-2 shard-3 --out datasets/my-gpu")
def merge(
    shards: Annotated[list[Path], typer.Argument(help="Dataset folders of one device.")],
    folder: Annotated[Path, typer.Option("--out", help="The folder of the joined dataset.")],
    as_json: Json = False,
) -> None:
    """Join the shards of a campaign into one dataset."""
    from layer_energy.dataset import Dataset
    from layer_energy.dataset import merge as join

    check_writable(folder)
    if folder.exists() and any(folder.glob("datapackage.json")):
        raise InvalidInput(f"{folder} already holds a dataset; choose another folder")
    joined = join([Dataset.load(shard) for shard in shards])
    joined.save(folder)
    facts = {
        "dataset": str(folder),
        "shards": len(shards),
        "rows": len(joined.measurements),
        "networks": len(joined.networks),
        "test_retest_cv": joined.test_retest_cv(),
    }
    if as_json:
        print_json(facts)
        return
    cv = facts["test_retest_cv"]
    out.print(
        f"{folder}: {facts['rows']} rows and {facts['networks']} networks from {len(shards)} shards"
        + (f"; test-retest CV of the joules {cv:.2%}" if cv is not None else "")
    )
