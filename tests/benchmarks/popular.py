"""Workloads of popular networks, and their shares of the joules.

Networks of `popular_networks.csv` are walked and priced with the profile of an H200, and so are
blocks of large language models. Each network counts as 1, in each batch size, dtype and pass.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from layer_energy.coverage import without_tf32
from layer_energy.gpu_plan import DTYPES
from layer_energy.layers.base import count, differentiated, workload
from layer_energy.model import EnergyModel, load_profile
from layer_energy.networks import build_on_meta, in_dtype, layers_of, traced
from layer_energy.plan import GPU_LIMITS, NetworkJob
from layer_energy.workload import Params, Workload

POPULAR = Path(__file__).with_name("popular_networks.csv")

TIME_S = 12e-3
"""What takes longer is not measured."""

CHANNELS_LAST_SHARE = 0.25
"""Of the joules of convolutions in bfloat16."""

MEASURED_IN_PLACE = ("relu", "relu6", "leaky_relu", "add", "compare")
"""Repeated thousands of times, others turn their input into a constant."""

Calls = Mapping[Workload, float]


@dataclass(frozen=True)
class LanguageModel:
    """A decoder of today's kind: grouped keys, a gated product, root-mean-square norms."""

    width: int
    inner: int
    heads: int
    kv_heads: int
    words: int
    blocks: int

    def calls(self, batch: int, new: int, known: int) -> dict[Workload, float]:
        """What runs when ``new`` tokens of each request are read after ``known`` others."""
        tokens, size = batch * new, self.width // self.heads

        def linear(inputs: int, outputs: int, tokens: int = tokens) -> Workload:
            sizes = {"tokens": tokens, "in_features": inputs, "out_features": outputs}
            return workload("linear", "bfloat16", **sizes, bias=0)

        def elementwise(kind: str, elements: int, **more: int) -> Workload:
            return workload(kind, "bfloat16", elements=elements, **more, in_place=0)

        attention = workload(
            "attention", "bfloat16", batch=batch, heads=self.heads, kv_heads=self.kv_heads,
            q_length=new, k_length=known + new, head_dim=size, causal=int(new > 1), mask=0,
        )  # fmt: skip
        hidden, inner = tokens * self.width, tokens * self.inner
        found: Counter[Workload] = Counter()
        for work, times in (
            (linear(self.width, self.width), 2),
            (linear(self.width, self.kv_heads * size), 2),
            (linear(self.width, self.inner), 2),
            (linear(self.inner, self.width), 1),
            (attention, 1),
            (workload("rms_norm", "bfloat16", rows=tokens, dim=self.width, affine=1), 2),
            (elementwise("silu", inner), 1),
            (elementwise("mul", inner, other=inner), 1),
            (elementwise("add", hidden, other=hidden), 2),
        ):
            found[work] += times * self.blocks
        found[linear(self.width, self.words, batch)] += 1
        return dict(found)


LANGUAGE_MODELS = (
    LanguageModel(2048, 8192, 32, 8, 128_256, 16),
    LanguageModel(4096, 14_336, 32, 8, 128_256, 32),
    LanguageModel(5120, 25_600, 40, 8, 151_936, 64),
    LanguageModel(8192, 28_672, 64, 8, 128_256, 80),
)
"""Of 1, 8, 32 and 70 thousand million parameters."""

REQUESTS = (
    (1, 1, 1023), (1, 1, 8191), (4, 1, 2047), (16, 1, 2047), (64, 1, 2047), (256, 1, 1023),
    (1, 256, 0), (1, 512, 0), (1, 2048, 0), (8, 512, 0), (8, 2048, 0), (1, 8192, 0),
)  # fmt: skip
"""Requests, their new tokens, and those read before."""

TRAINED = ((1, 2048, 0), (8, 512, 0))


@dataclass
class Popular:
    """Workloads of popular networks.

    Attributes:
        shares: workload → sum over the networks of its share of their joules.
        time_s: workload → its predicted time.
    """

    model: EnergyModel
    shares: dict[Workload, float] = field(default_factory=dict)
    time_s: dict[Workload, float] = field(default_factory=dict)

    def add(self, calls: Calls) -> None:
        """Count one network in, as 1."""
        prices = self.model.price(list(calls))
        total = sum(times * prices[work].energy_j for work, times in calls.items())
        for work, times in calls.items():
            share = times * prices[work].energy_j / total
            for alike, part in _layouts(without_tf32(work)):
                self.shares[alike] = self.shares.get(alike, 0.0) + part * share
                self.time_s[alike] = prices[work].time_s

    def measurable(self, work: Workload) -> bool:
        """Whether a GPU can measure it within reasonable time."""
        return measurable(work) and self.time_s[work] < TIME_S


def popular() -> Popular:
    """Walk and price everything."""
    found = Popular(load_profile("nvidia-h200"))
    with POPULAR.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            for calls in _settings(row):
                found.add(calls)
    for model in LANGUAGE_MODELS:
        for request in REQUESTS:
            found.add(model.calls(*request))
        for request in TRAINED:
            calls = model.calls(*request)
            found.add({differentiated(work, "both"): times for work, times in calls.items()})
    return found


def _settings(row: Mapping[str, str]) -> Iterator[Calls]:
    """A network in each batch size, dtype and pass; not trained in float32."""
    model, _ = build_on_meta(NetworkJob(row["model"], row["input"], 1))
    dtypes = row["dtypes"].split()
    for batch_size in row["batch_sizes"].split():
        job = NetworkJob(row["model"], row["input"], int(batch_size))
        calls = layers_of(job, model)
        for dtype in dtypes:
            yield {in_dtype(work, dtype, job.mode): times for work, times in calls.items()}
    for batch_size in row["training_batch_sizes"].split():
        job = NetworkJob(row["model"], row["input"], int(batch_size), mode="training")
        for dtype in dtypes:
            if dtype != "float32":
                yield _of_a_step(replace(job, dtype=dtype))


def _of_a_step(job: NetworkJob) -> Calls:
    model, inputs = build_on_meta(job)
    trace = traced(model, inputs, job.mode, job.dtype, "cuda")
    return {in_dtype(w, job.dtype, job.mode): times for w, times in trace.workloads().items()}


def _layouts(work: Workload) -> list[tuple[Workload, float]]:
    if work.dtype != "bfloat16" or work.params.get("channels_last") != 0:
        return [(work, 1.0)]
    last = replace(work, params=Params({**work.params, "channels_last": 1}))
    return [(work, 1 - CHANNELS_LAST_SHARE), (last, CHANNELS_LAST_SHARE)]


def measurable(work: Workload) -> bool:
    """Whether a GPU can measure it at all."""
    in_place = work.params.get("in_place") and work.kind not in MEASURED_IN_PLACE
    known = work.kind != "generic" and work.dtype in DTYPES
    return known and not in_place and GPU_LIMITS.allow(count(work)[0])
