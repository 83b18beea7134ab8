"""Candidates a second: ``score`` beside fvcore and ``FlopCounterMode``, on the same networks.

Run:  python -m tests.benchmarks.search [--candidates 10000]

The candidates are random cells of convolutions, pooling and linear layers (``tests/search_space``)
on the CPU, built and freed while ``score`` takes them from a generator, which leaves out the time
for that.
In between, the other tools count a sample of the same candidates, so that all ratios are of one run
under the same load. Seconds are processor time of one thread.
"""

from __future__ import annotations

import argparse
import logging
import random
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from layer_energy import predict_energy, score
from layer_energy.walk import walk
from tests.search_space import INPUT, random_network

SAMPLE = 200


def with_fvcore(model: nn.Module) -> float:
    from fvcore.nn import FlopCountAnalysis

    analysis = FlopCountAnalysis(model, torch.empty(INPUT))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return float(analysis.total())


def with_flop_counter(model: nn.Module) -> float:
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(torch.empty(INPUT))
    return float(counter.get_total_flops())


class Candidates:
    """Builds networks one by one; every so often the tools count one of them, too.

    Attributes:
        spent_s: tool, or ``"building"``, → processor time.
    """

    def __init__(self, n: int, seed: int, tools: dict[str, Callable[[nn.Module], object]]) -> None:
        self._n, self._seed, self._tools = n, seed, tools
        self.spent_s = dict.fromkeys((*tools, "building"), 0.0)

    def __iter__(self) -> Iterator[nn.Module]:
        rng = random.Random(self._seed)
        model = nn.Module()

        def build() -> None:
            nonlocal model
            model = random_network(rng).eval()  # and free the one before

        for i in range(self._n):
            self._timed("building", build)
            if i % max(1, self._n // SAMPLE) == 0:
                for name, count in self._tools.items():
                    self._timed(name, lambda count=count, model=model: count(model))
            yield model

    def _timed(self, what: str, run: Callable[[], Any]) -> Any:
        start = time.process_time()
        result = run()
        self.spent_s[what] += time.process_time() - start
        return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--candidates", type=int, default=10_000)
    n = parser.parse_args().candidates
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    tools = {
        "fvcore": with_fvcore,
        "FlopCounterMode": with_flop_counter,
        "predict_energy": lambda model: predict_energy(model, INPUT),
    }
    score(Candidates(2, 1, tools), INPUT)  # imports, kernels, the profile
    candidates = Candidates(n, 2, tools)
    start = time.process_time()
    score(candidates, INPUT)
    total_s = time.process_time() - start
    sample = len(range(0, n, max(1, n // SAMPLE)))
    each_s = {name: candidates.spent_s[name] / sample for name in tools}
    each_s["score"] = (total_s - sum(candidates.spent_s.values())) / n

    table = Table("tool", "candidates", "candidates/s", "ms each", "times fvcore")
    for name, spent_s in each_s.items():
        table.add_row(
            name, str(sample if name in tools else n), f"{1 / spent_s:.0f}",
            f"{1e3 * spent_s:.2f}", f"{each_s['fvcore'] / spent_s:.1f}",
        )  # fmt: skip
    console = Console(width=100)
    console.print(table)
    operations = [len(walk(model, INPUT).calls) for model in Candidates(50, 3, {})]
    console.print(
        f"{sum(operations) / len(operations):.0f} operations a candidate; building one on the CPU "
        f"takes {1e3 * candidates.spent_s['building'] / n:.1f} ms more, whatever the tool"
    )


if __name__ == "__main__":
    main()
