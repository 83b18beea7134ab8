"""Whole networks, measured: the judge of every prediction."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import torch

from layer_energy.dataset import NetworkMeasurement
from layer_energy.errors import MeasureError
from layer_energy.measure import Protocol, dwell, measure, steady_allocator
from layer_energy.meters.base import Meter
from layer_energy.models import build_model, default_input
from layer_energy.walk import walk
from layer_energy.workload import Device, Workload

NETWORKS = (
    "alexnet", "vgg11", "vgg13", "resnet18", "resnet50", "resnext50_32x4d", "densenet121",
    "googlenet", "inception_v3", "squeezenet1_1", "mobilenet_v2", "mobilenet_v3_large",
    "mnasnet1_0", "shufflenet_v2_x1_0", "efficientnet_b0", "regnet_y_400mf", "convnext_tiny",
    "vit_b_16", "swin_t",
)  # fmt: skip
"""One or two of each family of torchvision's classifiers."""

NETWORK_PROTOCOL = Protocol(dwell_s=1.0, repeats=9, time_cap_s=30.0, noisy_spread=0.03)
LAYER_PROTOCOL = Protocol(dwell_s=0.06, attempts=2, time_cap_s=5.0, bytes_cap=4 << 30)


def measure_network(
    name: str,
    batch_size: int,
    device: Device,
    meter: Meter,
    protocol: Protocol = NETWORK_PROTOCOL,
    layer_times: dict[Workload, tuple[float, float]] | None = None,
) -> NetworkMeasurement:
    """Measure one torchvision network's forward pass with random weights.

    Args:
        name: torchvision's name of it.
        batch_size: samples of a pass.
        device: where.
        meter: the source of joules.
        protocol: of the network.
        layer_times: give a dict to also measure each distinct layer exactly: the sum is the
            additivity floor of any layer-wise method. Known workloads in it are not measured again.

    Raises:
        MeasureError: if the network cannot be run.
    """
    steady_allocator()
    shape = (batch_size, *(default_input(name) or (3, 224, 224)))
    try:
        model = build_model(name, real=True).eval()
        inputs = itertools.cycle([torch.randn(shape) for _ in range(4)])
        with torch.inference_mode():

            def execute(times: int) -> None:
                for _ in range(times):
                    model(next(inputs))

            timing = dwell(execute, meter, protocol)
    except (RuntimeError, MemoryError) as error:
        raise MeasureError(f"{name} at batch {batch_size}: {error}") from error
    sums: tuple[float | None, float | None] = (None, None)
    if layer_times is not None:
        sums = _exact_layers(model, shape, device, meter, layer_times)
    return NetworkMeasurement(
        model=name,
        batch_size=batch_size,
        input="x".join(map(str, shape)),
        dtype="float32",
        mode="inference",
        time_s=timing.time_s,
        energy_j=timing.power_w * timing.time_s,
        power_w=timing.power_w,
        spread=timing.spread,
        repeats=timing.repeats,
        quality=meter.quality,
        meter=meter.name,
        flags=("noisy",) if timing.spread > protocol.noisy_spread else (),
        layers_time_s=sums[0],
        layers_energy_j=sums[1],
    )


def _exact_layers(
    model: torch.nn.Module,
    shape: tuple[int, ...],
    device: Device,
    meter: Meter,
    known: dict[Workload, tuple[float, float]],
) -> tuple[float | None, float | None]:
    """Sum of all layers, each distinct one measured by itself; ``None`` if one cannot be."""
    time_s = energy_j = 0.0
    for workload, times in walk(model, shape).workloads().items():
        if workload not in known:
            try:
                row = measure(workload, device, meter, LAYER_PROTOCOL)
            except (MeasureError, NotImplementedError):
                return None, None
            known[workload] = (row.time_s, row.energy_j)
        time_s += times * known[workload][0]
        energy_j += times * known[workload][1]
    return time_s, energy_j


def measure_networks(
    names: Iterable[str],
    batches: Iterable[int],
    device: Device,
    meter: Meter,
    exact_layers: bool = False,
    on_network: Callable[[NetworkMeasurement], None] = lambda network: None,
) -> list[NetworkMeasurement]:
    """Measure networks at several batch sizes; see :func:`measure_network`."""
    measured = []
    for name in names:
        known: dict[Workload, tuple[float, float]] = {}
        for batch_size in batches:
            network = measure_network(
                name, batch_size, device, meter, layer_times=known if exact_layers else None
            )
            on_network(network)
            measured.append(network)
    return measured
