"""A GPU and its sensor, by name."""

from __future__ import annotations

from layer_energy.errors import InvalidInput, MeterError
from layer_energy.measure.gpu import Gpu
from layer_energy.measure.virtual import Layers, VirtualGpu
from layer_energy.meters.nvml import AssumedSensor, NvmlSensor, Sensor


def open_gpu(
    kind: str,
    index: int = 0,
    layers: Layers | None = None,
    power_limit_w: float | None = None,
) -> tuple[Gpu, Sensor]:
    """Open a GPU together with the sensor of the very same board.

    Args:
        kind: ``"cuda"``, or ``"virtual"`` for a simulated one.
        index: torch's index of it; the sensor is found by UUID, since NVML counts differently.
        layers: how a virtual GPU takes a model apart, which it cannot execute.
        power_limit_w: of the board; where its sensor cannot be read, joules are estimated from it.

    Raises:
        InvalidInput: if there is no such GPU.
        MeterError: if its sensor cannot be read and no limit is given.
    """
    if kind == "virtual":
        virtual = VirtualGpu(layers=layers)
        return virtual, NvmlSensor(library=virtual.nvml, clock=virtual.clock)
    if kind != "cuda":
        raise InvalidInput(f"a GPU is cuda or virtual, got {kind!r}")
    from layer_energy.measure.cuda import CudaGpu

    gpu = CudaGpu(index)
    try:
        return gpu, NvmlSensor(gpu.device.details["uuid"], clock=gpu.clock)
    except MeterError as error:
        if power_limit_w is None:
            raise MeterError(
                f"{error}. Give --max-power-w, the board's power limit, to measure time and "
                "estimate joules from it"
            ) from error
        return gpu, AssumedSensor(power_limit_w, str(error), gpu.clock)
