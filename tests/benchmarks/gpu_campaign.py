"""A whole campaign on a virtual GPU: three shards collected, merged, fitted, and judged.

The joules of every operation of that GPU are known, so predicted totals can be held against the
truth. A test does the same with fewer rows; this is the command a user would run.

Run:  python tests/benchmarks/gpu_campaign.py [--minutes 9]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from layer_energy.collect import collect
from layer_energy.dataset import Dataset, merge
from layer_energy.gpu_plan import gpu_plan
from layer_energy.measure import GpuBench, open_gpu
from layer_energy.measure.virtual import Truth
from layer_energy.model import EnergyModel
from layer_energy.networks import layers, layers_of


def main() -> None:
    minutes = float(sys.argv[sys.argv.index("--minutes") + 1]) if "--minutes" in sys.argv else 9.0
    with tempfile.TemporaryDirectory() as folder:
        shards = []
        for k in (1, 2, 3):
            plan = gpu_plan((k, 3), "inference")
            bench = GpuBench(*open_gpu("virtual", layers=layers))
            out = Path(folder) / str(k)
            summary = collect(out, bench, plan, 60 * minutes - bench.clock(), clock=bench.clock)
            print(
                f"shard {k}: {summary.measured} rows and {summary.networks} networks in "
                f"{summary.seconds:.0f} s, {summary.rows_per_minute:.0f} rows a minute, "
                f"{summary.dropped} intervals dropped, {len(summary.failed)} failed"
            )
            shards.append(Dataset.load(out))
    joined = merge(shards)
    print(
        f"together {len(joined.measurements)} rows of {len(joined.kinds)} layer types, "
        f"{len({n.model for n in joined.networks})} networks, test-retest CV "
        f"{joined.test_retest_cv():.2%}"
    )
    model, truth = EnergyModel.fit(joined), Truth()
    errors = []
    for job in gpu_plan(mode="inference").networks:
        needed = layers_of(job)
        prices = model.price(list(needed))
        true_j = sum(times * truth.of(work)[1] for work, times in needed.items())
        joules = sum(times * prices[work].energy_j for work, times in needed.items())
        errors.append(joules / true_j - 1)
        print(f"{job.model:<48}{job.batch_size:>5}{true_j:>12.3g} J{errors[-1]:>+9.2%}")
    off = np.abs(errors)
    print(f"median error {np.median(off):.2%}, largest {off.max():.2%}")


if __name__ == "__main__":
    main()
