"""Meters: what a joule is, one file per source. Importing this registers all."""

from layer_energy.meters.base import (
    READ_EVERY_S,
    Meter,
    Reading,
    average_power_w,
    check_meter,
    meters,
    open_meter,
    register,
)
from layer_energy.meters.estimated import EstimatedMeter
from layer_energy.meters.nvml import NvmlMeter, NvmlSensor
from layer_energy.meters.rapl import RaplMeter
from layer_energy.meters.replay import ReplayMeter
from layer_energy.meters.simulated import SimulatedMeter, VirtualClock
from layer_energy.meters.zeus import ZeusMeter

__all__ = [
    "READ_EVERY_S",
    "EstimatedMeter",
    "Meter",
    "NvmlMeter",
    "NvmlSensor",
    "RaplMeter",
    "Reading",
    "ReplayMeter",
    "SimulatedMeter",
    "VirtualClock",
    "ZeusMeter",
    "average_power_w",
    "check_meter",
    "meters",
    "open_meter",
    "register",
]
