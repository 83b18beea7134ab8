"""Networks measured on an H200 beside the law fitted on its rows, and beside simpler methods.

The networks are never fitted on by the law, nor are rows flagged ``test`` or ``validation``. FLOPs
and FLOPs + bytes are fitted on the networks themselves, each left out in turn; the data sheet is
the law without any row.

Run:  python tests/benchmarks/h200.py
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from layer_energy.dataset import Dataset
from layer_energy.evaluate import evaluate_networks
from layer_energy.layers.base import count
from layer_energy.model import PASSES, EnergyModel
from layer_energy.models import build_model
from layer_energy.networks import in_dtype, traced
from layer_energy.pooled_law import PooledLaw
from layer_energy.walk import parse_shape
from layer_energy.workload import NetworkMeasurement

ROOT = Path(__file__).parents[2]
NAME = "nvidia-h200"
GROUPS = {"eager": "eager", "graph": "as CUDA graphs", "training": "training steps, eager"}
METHODS = {
    "layer_energy": "layer_energy",
    "sheet": "its data sheet alone, no row",
    "flops+bytes": "FLOPs + bytes, fitted on the other networks",
    "flops": "FLOPs, fitted on the other networks",
}


def table() -> pd.DataFrame:
    """A row a network and launch: measured, and predicted by each of ``METHODS``."""
    dataset, model = Dataset.load(ROOT / "datasets" / NAME), EnergyModel.load(NAME)
    assert model.pooled is not None
    sheet = replace(model, pooled=PooledLaw.fit([], model.pooled.sheet))
    parts = []
    for training in (False, True):
        rows = evaluate_networks(dataset.networks, model, training=training)
        alone = evaluate_networks(dataset.networks, sheet, training=training)
        networks = [n for n in dataset.networks if (n.mode != "inference") == training]
        for target in ("energy_j", "time_s"):
            rows[f"sheet_{target}"] = alone[f"layer_energy_{target}"]
        rows["flops"], rows["bytes"] = zip(*map(_work, networks), strict=True)
        rows["group"] = "training" if training else rows["launch"]
        parts.append(rows)
    found = pd.concat(parts, ignore_index=True)
    for name, columns in (("flops", ["flops"]), ("flops+bytes", ["flops", "bytes"])):
        for target in ("energy_j", "time_s"):
            found[f"{name}_{target}"] = 0.0
            for _, group in found.groupby("group"):
                for i, row in group.iterrows():
                    others = group[group["model"] != row["model"]]
                    y = others[f"measured_{target}"].to_numpy()
                    prices, _ = nnls(others[columns].to_numpy() / y[:, None], np.ones(len(y)))
                    found.loc[i, f"{name}_{target}"] = row[columns].to_numpy(float) @ prices
    return found


def _work(network: NetworkMeasurement) -> tuple[float, float]:
    """FLOPs and bytes of a network; a gradient counts as one more pass."""
    inputs = (parse_shape(network.input),)
    trace = traced(build_model(network.model), inputs, network.mode, network.dtype, "cuda")
    works = [in_dtype(w, network.dtype, network.mode) for w in trace.workloads().elements()]
    costs = [count(w)[0] * PASSES[w.gradients] for w in works]
    return 2.0 * sum(c.macs for c in costs), float(sum(c.bytes for c in costs))


def errors(found: pd.DataFrame, group: str, method: str, target: str) -> pd.Series:
    """Predicted over measured, less one."""
    rows = found[found["group"] == group]
    return rows[f"{method}_{target}"] / rows[f"measured_{target}"] - 1


def _spread(values: pd.Series) -> str:
    return "{:.1%} / {:.1%}".format(*np.quantile(np.abs(values), (0.5, 0.9)))


def markdown() -> str:
    """Median and 90th percentile of absolute errors, as Markdown."""
    found = table()
    lines = [
        "| networks | n | method | joules: median / 90th percentile | time |",
        "|---|---|---|---|---|",
    ]
    for group, said in GROUPS.items():
        n = int((found["group"] == group).sum())
        for method, name in METHODS.items():
            cells = [_spread(errors(found, group, method, t)) for t in ("energy_j", "time_s")]
            lines.append(f"| {said} | {n} | {name} | {cells[0]} | {cells[1]} |")
    worst = errors(found, "graph", "layer_energy", "energy_j")
    named = [
        f"`{found.loc[i, 'model'].split(':')[-1]}` by {worst[i]:+.0%}"
        for i in worst.abs().nlargest(3).index
    ]
    lines += ["", f"Where it fails: {', '.join(named[:-1])} and {named[-1]}, as CUDA graphs."]
    return "\n".join(lines)


def main() -> None:
    """Print every network, rows flagged ``test``, and the table."""
    dataset, model = Dataset.load(ROOT / "datasets" / NAME), EnergyModel.load(NAME)
    judged = [m for m in dataset.measurements if m.usable and "test" in m.flags]
    assert model.pooled is not None
    prices = model.pooled.price([m.workload for m in judged], cached=False)
    measured = np.array([[m.energy_j, m.time_s] for m in judged])
    apart = np.stack([prices.energy_j, prices.time_s], axis=1) / measured - 1
    joules, seconds = (_spread(pd.Series(apart[:, i])) for i in (0, 1))
    print(f"{len(judged)} rows flagged test: joules {joules}, time {seconds}\n")
    for row in table().to_dict("records"):
        ratios = [
            row[f"layer_energy_{t}"] / row[f"measured_{t}"] - 1 for t in ("energy_j", "time_s")
        ]
        print(
            f"{row['model'].split(':')[-1]:24} {row['batch_size']:4} {row['dtype']:9}"
            f"{row['mode']:15}{row['launch']:6} joules {ratios[0]:+7.1%}  time {ratios[1]:+7.1%}"
        )
    print("\n" + markdown())


if __name__ == "__main__":
    main()
