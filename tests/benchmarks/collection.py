"""Rows a minute and repeat spread of a short real collection on this machine.

Run:  python tests/benchmarks/collection.py
"""

from __future__ import annotations

import statistics
import tempfile

from layer_energy.collect import collect
from layer_energy.dataset import Dataset
from layer_energy.device import local_cpu
from layer_energy.measure import CpuBench
from layer_energy.meters import open_meter
from layer_energy.plan import default_rows, make_plan


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(dict.fromkeys(default_rows(), 3), seed=1)
        summary = collect(folder, CpuBench(local_cpu(), open_meter()), plan)
        spreads = [row.spread for row in Dataset.load(folder).measurements]
    rate = f"{summary.rows_per_minute:.0f} a minute"
    print(f"{summary.measured} rows in {summary.seconds:.0f} s: {rate}")
    print(f"median repeat spread {statistics.median(spreads):.2%}")


if __name__ == "__main__":
    main()
