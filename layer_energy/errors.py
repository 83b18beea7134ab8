"""Every exception this package raises on purpose.

Messages say what is wrong, what was expected and what to do next.
"""


class LayerEnergyError(Exception):
    """Base of all errors of this package; catch it to catch them all."""


class InvalidInput(LayerEnergyError, ValueError):
    """An argument is outside what the function accepts."""


class WalkError(LayerEnergyError):
    """A model could not be walked; the message names the module and the operation."""


class UnmodelledOperation(LayerEnergyError):
    """``strict=True`` and the model runs operations that no layer type claims."""


class DatasetError(LayerEnergyError):
    """A dataset on disk is missing, corrupt, or of an unknown schema."""


class ProfileError(LayerEnergyError):
    """A fitted profile is missing, corrupt, of an unknown schema, or lacks what was asked of it."""


class MeterError(LayerEnergyError):
    """An energy source cannot be read on this machine."""


class MeasureError(LayerEnergyError):
    """A workload could not be measured."""


class DroppedInterval(MeasureError):
    """A measured interval failed a health check; the same workload may be measured again."""


class OutOfMemory(MeasureError):
    """The device has too little memory for a workload."""


class DeviceLost(LayerEnergyError):
    """The device or this process's context on it is gone; a new process may go on."""


class MissingPackage(LayerEnergyError, ImportError):
    """An optional package is not installed; the message says which to install."""
