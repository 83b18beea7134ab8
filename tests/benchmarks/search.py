"""Candidates a second: ``score`` beside fvcore and ``FlopCounterMode``, on the same networks.

Run:  python tests/benchmarks/search.py [--candidates 10000]

The candidates are random cells of convolutions, pooling and linear layers (``tests/search_space``)
on the CPU; building them is left out for all tools. Each tool takes a sample of them in turns with
the others, so that all ratios are of one run on one machine; then ``score`` takes all candidates in
one call, as a search would. Seconds are processor time of one thread.
"""

from __future__ import annotations

import argparse
import gc
import logging
import random
import time
import warnings
from collections.abc import Callable, Iterator

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from layer_energy import predict_energy, score
from tests.search_space import INPUT, random_network

SAMPLE = 200
TURNS = 5


def with_fvcore(model: nn.Module) -> float:
    from fvcore.nn import FlopCountAnalysis

    analysis = FlopCountAnalysis(model, torch.empty(INPUT))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return float(analysis.total())


def with_flop_counter(model: nn.Module) -> float:
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(torch.empty(INPUT))
    return float(counter.get_total_flops())


def one_by_one(count: Callable[[nn.Module], object]) -> Callable[[list[nn.Module]], None]:
    def run(models: list[nn.Module]) -> None:
        for model in models:
            count(model)

    return run


class Candidates:
    """Builds networks one by one, and knows how long that took."""

    def __init__(self, n: int, seed: int) -> None:
        self._n, self._seed = n, seed
        self.build_s = 0.0

    def __iter__(self) -> Iterator[nn.Module]:
        rng = random.Random(self._seed)
        for _ in range(self._n):
            start = time.process_time()
            model = random_network(rng).eval()
            self.build_s += time.process_time() - start
            yield model


def seconds(run: Callable[[], object]) -> float:
    gc.collect()
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--candidates", type=int, default=10_000)
    options = parser.parse_args()
    n = options.candidates
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)

    sample = list(Candidates(SAMPLE, seed=1))
    tools: dict[str, Callable[[list[nn.Module]], object]] = {
        "fvcore": one_by_one(with_fvcore),
        "FlopCounterMode": one_by_one(with_flop_counter),
        "predict_energy": one_by_one(lambda model: predict_energy(model, INPUT)),
        "score": lambda models: score(models, INPUT),
    }
    spent = dict.fromkeys(tools, 0.0)
    for run in tools.values():
        run(sample[:2])
    for turn in range(TURNS):
        part = sample[turn::TURNS]
        for name, run in tools.items():
            spent[name] += seconds(lambda run=run, part=part: run(part))
    rate = {name: SAMPLE / spent_s for name, spent_s in spent.items()}

    many = Candidates(n, seed=2)
    spent_s = seconds(lambda: score(many, INPUT))
    rate[f"score, {n} at once"] = n / (spent_s - many.build_s)
    table = Table("tool", "candidates", "candidates/s", "ms each", "times fvcore")
    for name, each in rate.items():
        count = n if "at once" in name else SAMPLE
        faster = f"{each / rate['fvcore']:.1f}"
        table.add_row(name, str(count), f"{each:.0f}", f"{1e3 / each:.2f}", faster)
    console = Console(width=100)
    console.print(table)
    operations = [len(predict_energy(model, INPUT).layers) for model in sample[:50]]
    console.print(
        f"{sum(operations) / len(operations):.0f} operations a candidate; building one on the CPU "
        f"takes {1e3 * many.build_s / n:.1f} ms more, whatever the tool"
    )


if __name__ == "__main__":
    main()
