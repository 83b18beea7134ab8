"""Errors on the H200's networks against the number of rows that the law is fitted on.

The rows are the first of a random order, ten orders each; 0 rows are the data sheet alone.

Run:  python tests/benchmarks/rows_curve.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from layer_energy.dataset import Dataset
from layer_energy.gpu_law import GpuLaw, waiting_s
from layer_energy.gpu_sheet import sheet_of
from layer_energy.models import build_model
from layer_energy.networks import in_dtype, traced
from layer_energy.walk import parse_shape

ROOT = Path(__file__).parents[2]
ROWS = (0, 50, 100, 200, 500, None)
ORDERS = 10


def main() -> None:
    """Print the curve."""
    dataset = Dataset.load(ROOT / "datasets" / "nvidia-h200")
    sheet = sheet_of(dataset.device.name)
    usable = [m for m in dataset.measurements if m.usable and "test" not in m.flags]
    networks = []
    for n in dataset.networks:
        if n.mode == "inference":
            trace = traced(build_model(n.model), (parse_shape(n.input),), n.mode, n.dtype, "cuda")
            calls = {in_dtype(w, n.dtype, n.mode): c for w, c in trace.workloads().items()}
            networks.append((n, list(calls), np.array([*calls.values()], dtype=float)))

    def errors(law: GpuLaw) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {"eager": [], "graph": []}
        for n, works, calls in networks:
            prices = law.price(works, cached=True)
            energy_j, device_s = calls @ prices.energy_j, calls @ prices.time_s
            if n.launch == "eager":
                energy_j += sheet.idle_w * waiting_s(device_s, calls @ prices.host_s)
            found[str(n.launch)].append(abs(energy_j / n.energy_j - 1))
        return found

    print("rows   eager joules, median   graph joules, median (middle of ten orders)")
    for rows in ROWS:
        medians = []
        for order in range(1 if rows in (0, None) else ORDERS):
            shuffled = np.random.default_rng(order).permutation(len(usable))
            chosen = [usable[i] for i in shuffled[:rows]]
            found = errors(GpuLaw.fit(chosen, sheet))
            medians.append([np.median(found[launch]) for launch in ("eager", "graph")])
        eager, graph = np.median(medians, axis=0)
        said = len(usable) if rows is None else rows
        print(f"{said:4}   {eager:20.1%}   {graph:20.1%}")


if __name__ == "__main__":
    main()
