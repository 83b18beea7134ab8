"""A training run before it starts: what its network, data and device are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from layer_energy.errors import InvalidInput
from layer_energy.model import PASSES
from layer_energy.walk import walk

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class NetworkCost:
    """What the walked network costs per image, forward and in a training step.

    Attributes:
        macs, bytes: multiply-accumulates and bytes of activations of the forward pass.
        training_macs, training_bytes: of forward and backward: what is frozen costs no gradients.
        layers, training_layers: operations that move bytes.
    """

    macs: float
    bytes: float
    layers: int
    training_macs: float
    training_bytes: float
    training_layers: int

    @classmethod
    def of(cls, model: nn.Module, *args: Any) -> NetworkCost:
        """Walk ``model`` in training mode; inputs as of :func:`layer_energy.walk.walk`.

        Raises:
            WalkError: if it cannot be walked; names module and operation.
        """
        trace = walk(model, *args, training=True)
        rows = np.array(
            [
                (c.macs, c.bytes_in + c.bytes_out, 1.0, PASSES[call.gradients])
                for call in trace.calls
                if (c := call.cost).bytes
            ]
        ).reshape(-1, 4)
        forward = rows[:, :3].sum(axis=0)
        training = (rows[:, :3] * rows[:, 3:]).sum(axis=0)
        images = trace.batch_size
        return cls(
            forward[0] / images, forward[1] / images, int(forward[2]),
            training[0] / images, training[1] / images, int(training[2]),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class DeviceFigures:
    """What the data sheet says.

    Attributes:
        name: runs of one name share what is learnt of that device.
        peak_flops: floating-point operations per second.
        bandwidth_bytes: bytes per second of its memory.
        max_power_w: its power limit.
    """

    name: str
    peak_flops: float
    bandwidth_bytes: float
    max_power_w: float


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """A run before it starts: network, data and device.

    Attributes:
        network: cost per image at the size of the images.
        device: where.
        batch_size: images of a step.
        training_images, validation_images: of an epoch.

    Raises:
        InvalidInput: for a batch or an epoch without images.
    """

    network: NetworkCost
    device: DeviceFigures
    batch_size: int
    training_images: int
    validation_images: int

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.training_images < 1 or self.validation_images < 0:
            raise InvalidInput(
                f"a run needs batches and training images, got {self.batch_size=}, "
                f"{self.training_images=}, {self.validation_images=}"
            )
