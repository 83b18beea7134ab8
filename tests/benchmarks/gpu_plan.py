"""Draw the plan of a collection on a GPU, and say how many of the joules of networks it covers.

Run:  python tests/benchmarks/gpu_plan.py [--dataset FOLDER]     (two minutes)

Without a dataset it writes `layer_energy/gpu_plan.jsonl.gz`; with one it writes nothing and prints
what the dataset covers, and its rows.
"""

from __future__ import annotations

import csv
import itertools
import sys
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
from popular import TIME_S, Popular, measurable, popular
from rich.console import Console
from rich.table import Table

from layer_energy import gpu_plan
from layer_energy.coverage import cover, covered, gains, without_tf32
from layer_energy.dataset import Dataset
from layer_energy.layers.base import kinds, layer_type
from layer_energy.layers.optimizer import OPTIMIZER_STEPS
from layer_energy.model import EnergyModel
from layer_energy.networks import layers_of
from layer_energy.plan import GPU_LIMITS, Job, NetworkJob, sample, with_gradients
from layer_energy.workload import Workload

NETWORKS = Path(__file__).with_name("campaign_networks.csv")

ROWS, BLOCK_ROWS, RANDOM_EVERY, VALIDATION_BLOCKS = 5000, 150, 5, 2
REPEAT_SHARE = 0.03
TEST_MODULUS = 10
"""One random workload in this many is for testing only, always the same ones."""

ROWS_PER_KIND = 6
"""Random rows that each layer type gets at least; the others go where the joules are."""

SPARE = 1.3
"""Random rows drawn for one that is kept: some take too long."""


def random_jobs(found: Popular, rows: int, taken: Iterable[Workload]) -> list[Job]:
    """Random rows of every layer type, in an order balanced at every prefix."""
    placed: list[tuple[float, Job]] = []
    taken = set(taken)
    for kind, wanted in _quotas(found, rows).items():
        rng = Random(f"random/{kind}")
        works = [
            work for work in _random_works(found.model, kind, wanted, rng) if work not in taken
        ]
        for i, work in enumerate(works[:wanted]):
            flags = ("test",) if _of_the_test_set(work) else ()
            place = (i + rng.random()) / wanted if i else rng.random() - 1  # each type once first
            placed.append((place, Job(work, flags)))
    placed.sort(key=lambda at: at[0])
    return [job for _, job in placed]


def _quotas(found: Popular, rows: int) -> dict[str, int]:
    """Random rows per layer type: some of each, the others by the square root of the joules."""
    joules = Counter[str]()
    for work, share in found.shares.items():
        joules[work.kind] += share
    every = [kind for kind in kinds() if kind != "generic"]
    weight = np.sqrt([joules[kind] for kind in every])
    free = rows - ROWS_PER_KIND * len(every)
    extra = np.ceil(free * weight / weight.sum())
    return {kind: ROWS_PER_KIND + int(n) for kind, n in zip(every, extra, strict=True)}


def _random_works(model: EnergyModel, kind: str, wanted: int, rng: Random) -> list[Workload]:
    """Workloads of a layer type, its dtypes and passes in turn."""
    cells = [(dtype, passes) for dtype in _dtypes(kind) for passes in _passes(kind)]
    rng.shuffle(cells)
    rows = round(SPARE * wanted / len(cells)) + 2
    drawn = [_of_a_cell(model, kind, dtype, passes, rows) for dtype, passes in cells]
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*drawn))
    return [work for work in in_turn if work is not None]


def _of_a_cell(model: EnergyModel, kind: str, dtype: str, passes: str, rows: int) -> list[Workload]:
    rng = Random(f"{kind}/{dtype}/{passes}")
    works = sample(kind, rows, rng, GPU_LIMITS, dtype, keep=measurable)
    rng.shuffle(works)
    if passes == "training":
        numbered = enumerate(works)
        works = list(dict.fromkeys(with_gradients(i, work, rng) for i, work in numbered))
    prices = model.price(works)
    return [work for work in works if prices[work].time_s < TIME_S]


def _dtypes(kind: str) -> Sequence[str]:
    if kind in OPTIMIZER_STEPS:
        return ("float32",)
    if kind in ("conv2d", "linear", "matmul"):
        return ("float32", "tf32", "bfloat16", "float16")
    if kind.startswith("conv") or kind in ("lstm", "gru", "rnn"):
        return ("float32", "tf32", "bfloat16")
    return ("float32", "bfloat16")


def _passes(kind: str) -> Sequence[str]:
    return ("inference", "training") if layer_type(kind).differentiable else ("inference",)


def _of_the_test_set(work: Workload) -> bool:
    return zlib.crc32(f"test/{work.kind}/{work.params!r}".encode()) % TEST_MODULUS == 0


def draw(found: Popular) -> gpu_plan.Drawn:
    """Rows in their order, what each adds, and networks."""
    networks = _networks()
    judged = dict.fromkeys(work for job in networks if job.exact for work in layers_of(job))
    kept = judged.keys() | {without_tf32(work) for work in judged}  # only for those that judge
    chosen = cover(found.shares, lambda w: found.measurable(w) and w not in kept)
    real = [Job(work) for work, _ in itertools.islice(chosen, ROWS)]
    others = random_jobs(found, ROWS // RANDOM_EVERY, [*kept, *(job.workload for job in real)])
    jobs = in_order(real, others, [Job(work, ("validation",)) for work in judged])
    return gpu_plan.Drawn(tuple(jobs), tuple(_gains(found, jobs)), tuple(networks))


def _networks() -> list[NetworkJob]:
    with NETWORKS.open(encoding="utf-8", newline="") as file:
        return [
            NetworkJob(
                row["model"],
                row["input"],
                int(row["batch_size"]),
                row["dtype"],
                row["mode"],
                exact=row["exact"] == "yes",
            )
            for row in csv.DictReader(file)
        ]


def in_order(real: Sequence[Job], random: Sequence[Job], judges: Sequence[Job]) -> list[Job]:
    """Blocks of real rows by what they cover, each with its share of random ones and repeats.

    Within a block the order is random: sorted by size, thermal drift would look like a size effect.
    """
    rng = Random("order")
    reals, others = iter(real), iter(random)
    jobs: list[Job] = []
    repeated: set[Workload] = set()
    for number in range(-(-ROWS // BLOCK_ROWS)):
        block = list(judges[number::VALIDATION_BLOCKS]) if number < VALIDATION_BLOCKS else []
        if number:
            wanted = round(REPEAT_SHARE * BLOCK_ROWS * (number + 1)) - len(repeated)
            block += _repeats(jobs, repeated, wanted, rng)
        drawn = BLOCK_ROWS // RANDOM_EVERY
        block += itertools.islice(reals, BLOCK_ROWS - drawn - len(block))
        rng.shuffle(block)
        for start in range(0, BLOCK_ROWS, RANDOM_EVERY):
            if (job := next(others, None)) is not None:
                block.insert(start + rng.randrange(RANDOM_EVERY), job)
        jobs += block
    return jobs[:ROWS]


def _repeats(jobs: Sequence[Job], repeated: set[Workload], wanted: int, rng: Random) -> list[Job]:
    """Blind repeats of rows that came before, each once."""
    fresh = [
        job
        for job in jobs
        if job.workload not in repeated and not {"validation", "repeat"} & set(job.flags)
    ]
    chosen = rng.sample(fresh, wanted)
    repeated.update(job.workload for job in chosen)
    return [replace(job, flags=(*job.flags, "repeat")) for job in chosen]


def _gains(found: Popular, jobs: Sequence[Job]) -> list[float]:
    """What each row adds; rows that only judge add nothing."""
    fitted = [job for job in jobs if not {"validation", "test"} & set(job.flags)]
    added = iter(gains(found.shares, [job.workload for job in fitted]))
    usable = set(map(id, fitted))
    return [float(f"{next(added):.6g}") if id(job) in usable else 0.0 for job in jobs]


def _print_dataset(found: Popular, folder: Path) -> None:
    dataset = Dataset.load(folder)
    rows = [m.workload for m in dataset.measurements if m.usable and "test" not in m.flags]
    print(f"{folder}: {len(rows)} rows to fit on; {covered(found.shares, rows):.1%} of all joules")
    _print_rows(rows)


def _print_rows(works: Iterable[Workload]) -> None:
    rows: defaultdict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    for work in works:
        rows[work.kind][work.dtype, gpu_plan.mode_of(work)] += 1
    columns = [(d, p) for p in ("inference", "training") for d in gpu_plan.DTYPES]
    table = Table("layer type", *(f"{dtype}\n{passes}" for dtype, passes in columns), "rows")
    for kind, cells in sorted(rows.items(), key=lambda at: -at[1].total()):
        table.add_row(kind, *(str(cells[c] or "") for c in columns), str(cells.total()))
    Console(width=120).print(table)


def _print_plan(drawn: gpu_plan.Drawn) -> None:
    _print_rows(job.workload for job in drawn.jobs)
    print("flags:", dict(Counter(flag for job in drawn.jobs for flag in job.flags)))
    sums = np.cumsum(drawn.gains)
    for share in (0.5, 0.8, 0.9, 0.95):
        if sums[-1] >= share:
            print(f"{share:.0%} of all joules after {int(np.searchsorted(sums, share)) + 1} rows")
    print(f"{sums[-1]:.1%} after all {len(sums)} rows; {len(drawn.networks)} networks")


def main() -> None:
    found = popular()
    print(
        f"{len(found.shares)} workloads of {sum(found.shares.values()):.0f} networks and settings"
    )
    if "--dataset" in sys.argv:
        _print_dataset(found, Path(sys.argv[sys.argv.index("--dataset") + 1]))
        return
    drawn = draw(found)
    gpu_plan.PLAN_FILE.write_bytes(gpu_plan.encode(drawn))
    _print_plan(drawn)


if __name__ == "__main__":
    main()
