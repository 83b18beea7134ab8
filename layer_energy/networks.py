"""Whole networks, measured: the judge of every prediction."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch

from layer_energy.errors import InvalidInput, MeasureError
from layer_energy.measure import Bench, CpuBench, Protocol
from layer_energy.meters.base import Meter
from layer_energy.models import build_model, default_input
from layer_energy.optimization import FOREACH_DEVICES, MODES, freeze_backbone
from layer_energy.plan import NetworkJob
from layer_energy.walk import AMP, Trace, parse_shape, walk
from layer_energy.workload import Device, NetworkMeasurement, Workload

NETWORKS = (
    "alexnet", "vgg11", "vgg13", "resnet18", "resnet50", "resnext50_32x4d", "densenet121",
    "googlenet", "inception_v3", "squeezenet1_1", "mobilenet_v2", "mobilenet_v3_large",
    "mnasnet1_0", "shufflenet_v2_x1_0", "efficientnet_b0", "regnet_y_400mf", "convnext_tiny",
    "vit_b_16", "swin_t",
)  # fmt: skip
"""One or two of each family of torchvision's classifiers."""

LAYER_PROTOCOL = Protocol(dwell_s=0.06, attempts=2, time_cap_s=5.0, bytes_cap=4 << 30)


def build(job: NetworkJob) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    """Make a network with random weights and its input, on torch's default device.

    Raises:
        InvalidInput: if the name leads nowhere or a package it needs is missing.
    """
    device = torch.get_default_device()
    return build_model(job.model, real=device.type != "meta"), (_input(job, device),)


def _input(job: NetworkJob, device: torch.device) -> torch.Tensor:
    shape = job.input or ",".join(map(str, default_input(job.model) or (3, 224, 224)))
    like = parse_shape(f"{job.batch_size},{shape}")
    if like.is_floating_point():
        return torch.randn(like.shape, dtype=like.dtype, device=device)
    return torch.randint(0, 1000, like.shape, dtype=like.dtype, device=device)


def measure_network(job: NetworkJob, bench: Bench) -> NetworkMeasurement:
    """Measure one network.

    Raises:
        MeasureError: if it cannot be built or run.
    """
    try:
        return bench.measure_model(job.model, lambda: build(job), job.dtype, job.mode)
    except InvalidInput as error:
        raise MeasureError(str(error)) from error


def layers(
    model: torch.nn.Module,
    inputs: tuple[Any, ...],
    mode: str = "inference",
    dtype: str = "float32",
) -> Iterable[tuple[Workload, int]]:
    """The workloads of a model as :func:`traced`, and how often each occurs."""
    return traced(model, inputs, mode, dtype).workloads().items()


def traced(
    model: torch.nn.Module,
    inputs: tuple[Any, ...],
    mode: str,
    dtype: str = "float32",
    device_kind: str = "cpu",
) -> Trace:
    """A model walked as it is measured in a mode and dtype, on a device of a kind.

    For a training step its backbone may be frozen for good; in half precision that is a step under
    autocast, while an inference is walked in the model's own dtype.
    """
    if MODES[mode].frozen_backbone:
        freeze_backbone(model)
    half = mode != "inference" and dtype in AMP.values()
    step = MODES[mode].step
    if step is not None:
        step = replace(step, foreach=device_kind in FOREACH_DEVICES)
    return walk(model, *inputs, step=step, autocast=dtype if half else None)


def in_dtype(work: Workload, dtype: str, mode: str) -> Workload:
    """A workload of a network traced so, in the dtype the network runs in."""
    mixed = mode != "inference" and dtype in AMP.values()
    return replace(work, dtype=dtype) if work.dtype == "float32" and not mixed else work


def build_on_meta(job: NetworkJob) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    """Like :func:`build`, without memory."""
    with torch.device("meta"):
        return build(job)


def layers_of(job: NetworkJob, model: torch.nn.Module | None = None) -> dict[Workload, int]:
    """The workloads of a network in its dtype, and how often each occurs.

    Args:
        job: the network.
        model: it, if it was built before.
    """
    if model is None:
        model, inputs = build_on_meta(job)
    else:
        inputs = (_input(job, torch.device("meta")),)
    return {
        in_dtype(work, job.dtype, job.mode): times
        for work, times in layers(model, inputs, job.mode, job.dtype)
    }


def measure_networks(
    names: Iterable[str],
    batches: Sequence[int],
    device: Device,
    meter: Meter,
    on_failure: Callable[[NetworkJob, MeasureError], None],
    exact_layers: bool = False,
    on_network: Callable[[NetworkMeasurement], None] = lambda network: None,
    modes: Sequence[str] = ("inference",),
) -> list[NetworkMeasurement]:
    """Measure forward passes or training steps of networks on the CPU.

    Args:
        names: see :func:`layer_energy.models.build_model`.
        batches: batch sizes.
        device: the CPU.
        meter: the source of joules.
        on_failure: called with each network that cannot be built or run; the others follow.
        exact_layers: also measure each distinct layer exactly: the sum is the additivity floor of
            any layer-wise method.
        on_network: called after each.
        modes: some of :data:`layer_energy.optimization.MODES`.
    """
    bench = CpuBench(device, meter, LAYER_PROTOCOL)
    measured = []
    for name in names:
        known: dict[Workload, tuple[float, float]] = {}
        for batch_size, mode in itertools.product(batches, modes):
            job = NetworkJob(name, "", batch_size, mode=mode)
            try:
                network = measure_network(job, bench)
            except MeasureError as error:
                on_failure(job, error)
                continue
            if exact_layers:
                network = _with_exact_layers(network, job, bench, known)
            on_network(network)
            measured.append(network)
    return measured


def _with_exact_layers(
    network: NetworkMeasurement,
    job: NetworkJob,
    bench: Bench,
    known: dict[Workload, tuple[float, float]],
) -> NetworkMeasurement:
    """Add the sum of all layers, each distinct one measured by itself; not if one cannot be."""
    needed = layers_of(job)
    for workload in needed:
        if workload not in known:
            try:
                row = bench.measure(workload)
            except (MeasureError, NotImplementedError):
                return network
            known[workload] = (row.time_s, row.energy_j)
    return with_floor(network, needed, known)


def with_floor(
    network: NetworkMeasurement,
    needed: dict[Workload, int],
    known: dict[Workload, tuple[float, float]],
) -> NetworkMeasurement:
    """Add the sum of a network's layers, if every one is among the ``(time_s, energy_j)`` known."""
    if not needed or not needed.keys() <= known.keys():
        return network
    return replace(
        network,
        layers_time_s=sum(times * known[w][0] for w, times in needed.items()),
        layers_energy_j=sum(times * known[w][1] for w, times in needed.items()),
    )
