"""Write the tables of the README and the guide from the committed data, or check them.

Every ``<!-- table: NAME -->`` of these documents is filled, up to ``<!-- end -->``.

Run:  python tests/benchmarks/document_tables.py [--check] [TABLE ...]
"""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import gpu_protocol
import h200
import pandas as pd
import rows_curve
import step
import totals

from layer_energy import compare, predict_energy
from layer_energy.dataset import Dataset
from layer_energy.evaluate import (
    Score,
    evaluate_networks,
    evaluate_paper,
    held_out_coverage,
    network_scores,
)
from layer_energy.model import EnergyModel
from layer_energy.models import build_model
from layer_energy.units import si

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs" / "guide").glob("*.md"))]
BLOCK = re.compile(r"(<!-- (table|output): (\w+) -->\n).*?(?=<!-- end -->)", re.DOTALL)
NUMBER = re.compile(r"\d+(?:\.\d+)?")
EXTERNAL = ROOT.parent / "shared" / "external"
PAPER = EXTERNAL / "getzner2023"
DATASET = "amd-epyc-2t"
NAMES = {
    "layer_energy": "layer_energy",
    "floor": "sum of its layers, each measured (floor)",
    "flops+bytes": "FLOPs + bytes, fitted on the same rows",
    "flops": "FLOPs only, fitted on the same rows",
}
MODE_NAMES = {
    "training": "SGD, all layers",
    "training-adamw": "AdamW, all layers",
    "head-training": "SGD, frozen backbone",
}


def networks_table() -> str:
    """Scores of whole networks, as Markdown."""
    dataset = Dataset.load(ROOT / "datasets" / DATASET)
    table = evaluate_networks(dataset.networks, EnergyModel.load(DATASET), dataset)
    scores = network_scores(table)
    named = {name: scores[method] for method, name in NAMES.items()}
    return "\n".join([*_rows(named, "networks × batches"), "", _worst(table)])


def training_table() -> str:
    """Scores of training steps, and of those of every mode, as Markdown."""
    dataset = Dataset.load(ROOT / "datasets" / DATASET)
    model = EnergyModel.load(DATASET)
    table = evaluate_networks(dataset.networks, model, dataset, training=True)
    scores = network_scores(table)
    named = {name: scores[method] for method, name in NAMES.items() if method in scores}
    for mode, rows in table.groupby("mode", sort=False):
        named[f"layer_energy, {MODE_NAMES[str(mode)]}"] = network_scores(rows)["layer_energy"]
    held = held_out_coverage(
        table["measured_energy_j"] / table["layer_energy_energy_j"], table["model"], table["input"]
    )
    share = held["architecture_held_out"]
    intervals = (
        f"A 90 % interval that is calibrated without a network holds {share:.0%} of its steps."
    )
    return "\n".join([*_rows(named, "training steps"), "", f"{_worst(table)} {intervals}"])


def _rows(scores: dict[str, Score], counted: str) -> list[str]:
    return [
        f"| method | {counted} | median error | mean error | within 25 % | R² |",
        "|---|---|---|---|---|---|",
        *(
            f"| {name} | {s.n} | {s.median_error:.1%} | {s.mean_error:.1%} | "
            f"{s.within_25:.0%} | {s.r2:.3f} |"
            for name, s in scores.items()
        ),
    ]


def _worst(table: pd.DataFrame) -> str:
    """Where it fails: the networks with the largest errors."""
    table = table.assign(error=table["layer_energy_energy_j"] / table["measured_energy_j"] - 1)
    rows = table.loc[table["error"].abs().nlargest(3).index].to_dict("records")
    cases = [
        f"`{row['model']}` at batch {row['batch_size']}"
        + (f" ({MODE_NAMES[row['mode']]})" if row["mode"] in MODE_NAMES else "")
        + f" by {row['error']:+.0%}"
        for row in rows
    ]
    return f"Where it fails: {', '.join(cases[:-1])} and {cases[-1]}, predicted against measured."


def vgg16_report() -> str:
    """The first report a newcomer sees, as the terminal prints it."""
    return (
        f"```text\n{predict_energy(build_model('vgg16'), name='vgg16', device='nvidia-h200')}\n```"
    )


def comparison_table() -> str:
    """Three networks on two GPUs, as Markdown."""
    table = compare(["vgg16", "resnet50", "mobilenet_v2"], ["nvidia-a100", "nvidia-a10"])
    lines = [
        "| model | device | accuracy | joules | 90 % interval | time | front |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in table.to_dict("records"):
        front = "of all" if row["pareto"] else "of device" if row["pareto_on_device"] else ""
        low, high = (si(row[f"energy_per_sample_{end}_j"], "J") for end in ("low", "high"))
        lines.append(
            f"| {row['model']} | {row['device']} | {row['accuracy']:.1%} | "
            f"{si(row['energy_per_sample_j'], 'J')} | {low} – {high} | {si(row['time_s'], 's')} | "
            f"{front} |"
        )
    return "\n".join(lines)


def paper_table() -> str | None:
    """The paper's regressors and ours on the paper's data; ``None`` where those are not at hand."""
    if not PAPER.is_dir():
        return None
    table = evaluate_paper(PAPER)
    rows = {
        f"{kind}, {'random, held out' if on == 'random' else 'of real networks'}": (theirs, ours)
        for kind in ("conv2d", "maxpool2d", "linear", "relu")
        for on, theirs in table.paper[kind].items()
        for ours in [table.ours[kind][on]]
    }
    rows["whole networks"] = table.networks["paper"], table.networks["ours"]
    lines = [
        "| tested on | n | paper: R² | median | mean error | ours: R² | median | mean error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, (theirs, ours) in rows.items():
        lines.append(f"| {name} | {ours.n} | {_cells(theirs)} | {_cells(ours)} |")
    held = table.coverage["whole_networks"]["held_out"]
    lines += ["", f"Our 90 % intervals hold {held:.0%} of the networks, each left out in turn. "]
    lines[-1] += f"Additivity floor: {table.floor:.2%}."
    return "\n".join(lines)


def _cells(s: Score) -> str:
    return f"{s.r2:.3f} | {s.median_error:.1%} | {s.mean_error:.1%}"


def _same(made: str, written: str) -> bool:
    """Whether two documents differ by no more than fits do from one processor to another.

    Numbers may differ by 5 % or by 3 units of what is written, such as points of per cent.
    """
    numbers = [[float(n) for n in NUMBER.findall(text)] for text in (made, written)]
    return NUMBER.sub("#", made) == NUMBER.sub("#", written) and all(
        math.isclose(a, b, rel_tol=0.05, abs_tol=3.0 if abs(a) > 1 else 0.02)
        for a, b in zip(*numbers, strict=True)
    )


BLOCKS = {
    "h200": h200.markdown,
    "networks": networks_table,
    "training": training_table,
    "totals": lambda: totals.markdown(EXTERNAL / "energaizer2026"),
    "step": lambda: step.markdown(EXTERNAL / "delrey2024"),
    "protocol": gpu_protocol.markdown,
    "vgg16": vgg16_report,
    "compare": comparison_table,
    "paper": paper_table,
    "rows": lambda: rows_curve.markdown(PAPER) if PAPER.is_dir() else None,
}
SLOW = {"rows"}
"""Takes a quarter of an hour: made only if it is named."""


def main() -> None:
    wanted = {argument for argument in sys.argv[1:] if not argument.startswith("-")}
    texts = {path: path.read_text(encoding="utf-8") for path in DOCUMENTS}
    named = {name for text in texts.values() for _, _, name in BLOCK.findall(text)}
    unknown = (named | wanted) - BLOCKS.keys()
    if unknown:
        sys.exit(f"nothing makes {', '.join(sorted(unknown))}; there are {', '.join(BLOCKS)}")
    made = {name: BLOCKS[name]() for name in BLOCKS if name in (wanted or named - SLOW)}
    for name in (name for name, block in made.items() if block is None):
        print(f"{name}: left as it is, its data are not beside this checkout")
    stale = []
    for path, text in texts.items():
        current = BLOCK.sub(lambda m: m[1] + made[m[3]] + "\n" if made.get(m[3]) else m[0], text)
        if not _same(current, text) if "--check" in sys.argv else current != text:
            stale.append(str(path.relative_to(ROOT)))
            if "--check" not in sys.argv:
                path.write_text(current, encoding="utf-8")
    if stale and "--check" in sys.argv:
        sys.exit(f"not those of the data: tables in {', '.join(stale)}; run {sys.argv[0]}")
    print(f"{len(made)} tables are current; written anew in: {', '.join(stale) or 'nothing'}")


if __name__ == "__main__":
    main()
