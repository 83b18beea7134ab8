"""Time, coverage and memory of predicting the whole torchvision zoo.

Run:  python tests/benchmarks/zoo.py [--fvcore]

Ratios are within one process: warm ``predict_energy`` against ``FlopCounterMode`` on meta tensors
and (``--fvcore``, slow) against fvcore on the real model.
"""

from __future__ import annotations

import argparse
import logging
import resource
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from layer_energy import predict_energy
from layer_energy.models import build_model
from layer_energy.walk import infer

ZERO = ("vgg16", "resnet50", "vit_b_16", "swin_t", "convnext_tiny", "mobilenet_v3_large")


def seconds(run: Callable[[], object], repeats: int = 3) -> float:
    """The quickest of ``repeats`` warm runs."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def flop_counter(model: torch.nn.Module, args: tuple[object, ...]) -> None:
    with torch.no_grad(), FlopCounterMode(display=False):
        model(*args)


def fvcore_time(name: str, args: tuple[torch.Tensor, ...]) -> float:
    from fvcore.nn import FlopCountAnalysis

    logging.disable(logging.WARNING)
    model = models.get_model(name, weights=None).eval()
    real = tuple(torch.randn(a.shape) for a in args)

    def count() -> None:
        analysis = FlopCountAnalysis(model, real)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        analysis.total()

    with torch.no_grad():
        return seconds(count, repeats=1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fvcore", action="store_true", help="also time fvcore on classifiers")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    classifiers = set(models.list_models(module=models))
    rows = []
    for name in models.list_models():
        model = build_model(name).to("meta").eval()
        inputs = infer(model)
        report = predict_energy(model, *inputs.args)
        ours = seconds(lambda m=model, i=inputs: predict_energy(m, *i.args))
        try:
            counter = seconds(lambda m=model, i=inputs: flop_counter(m, i.args))
        except Exception:  # detection models and the like depend on values
            counter = None
        fvcore = None
        if options.fvcore and name in classifiers:
            fvcore = fvcore_time(name, inputs.args)
        rows.append((name, name in classifiers, ours, counter, fvcore, 1 - report.coverage))
    table = Table("model", "predict ms", "FlopCounterMode ms", "fvcore ms", "unclaimed joules")
    for name, _, ours, counter, fvcore, unclaimed in rows:
        shown = [f"{1e3 * t:.0f}" if t else "-" for t in (counter, fvcore)]
        table.add_row(name, f"{1e3 * ours:.0f}", *shown, f"{unclaimed:.2%}")
    console = Console(width=110)
    console.print(table)
    both = [(ours, counter) for _, _, ours, counter, _, _ in rows if counter]
    console.print(
        f"{len(rows)} models walked; FlopCounterMode walks {len(both)}. Median over those: "
        f"predict {1e3 * statistics.median(o for o, _ in both):.0f} ms, "
        f"FlopCounterMode {1e3 * statistics.median(c for _, c in both):.0f} ms"
    )
    timed = {name: fvcore / ours for name, _, ours, _, fvcore, _ in rows if fvcore}
    if timed:
        console.print(
            f"faster than fvcore: median {statistics.median(timed.values()):.1f} x over "
            f"{len(timed)} classifiers, vgg16 {timed['vgg16']:.0f} x"
        )
    unclaimed = {name: share for name, c, *_, share in rows if c}
    worst = max(unclaimed, key=lambda name: unclaimed[name])
    console.print(
        f"unclaimed joules: {', '.join(f'{n} {unclaimed[n]:.2%}' for n in ZERO)}; worst "
        f"classifier {worst} {unclaimed[worst]:.2%}"
    )
    console.print(
        f"peak resident set {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MB"
    )


if __name__ == "__main__":
    main()
