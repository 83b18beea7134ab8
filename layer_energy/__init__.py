"""How many joules a neural network will use, layer by layer, before it runs.

>>> import torchvision
>>> from layer_energy import predict_energy
>>> report = predict_energy(torchvision.models.vgg16())  # doctest: +SKIP

Names are imported when first used: ``import layer_energy`` itself imports neither torch nor
anything else that is slow.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from layer_energy.version import __version__

if TYPE_CHECKING:
    from layer_energy.comparison import compare
    from layer_energy.dataset import Dataset
    from layer_energy.model import EnergyModel, profiles
    from layer_energy.predict import predict_energy
    from layer_energy.report import EnergyReport
    from layer_energy.report.difference import diff
    from layer_energy.scoring import score
    from layer_energy.training.forecast import TrainingForecast
    from layer_energy.training.predict import predict_training
    from layer_energy.verification import Verification, verify
    from layer_energy.walk import Trace, walk
    from layer_energy.whatif import largest_within, plot_sweep, sweep
    from layer_energy.workload import Cost, Device, Measurement, Workload

_HOMES = {
    "Cost": "workload",
    "Dataset": "dataset",
    "Device": "workload",
    "EnergyModel": "model",
    "EnergyReport": "report",
    "Measurement": "workload",
    "Trace": "walk",
    "TrainingForecast": "training.forecast",
    "Verification": "verification",
    "Workload": "workload",
    "compare": "comparison",
    "diff": "report.difference",
    "largest_within": "whatif",
    "plot_sweep": "whatif",
    "predict_energy": "predict",
    "predict_training": "training.predict",
    "profiles": "model",
    "score": "scoring",
    "sweep": "whatif",
    "verify": "verification",
    "walk": "walk",
}

__all__ = [
    "Cost",
    "Dataset",
    "Device",
    "EnergyModel",
    "EnergyReport",
    "Measurement",
    "Trace",
    "TrainingForecast",
    "Verification",
    "Workload",
    "__version__",
    "compare",
    "diff",
    "largest_within",
    "plot_sweep",
    "predict_energy",
    "predict_training",
    "profiles",
    "score",
    "sweep",
    "verify",
    "walk",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'layer_energy' has no attribute {name!r}")
    return getattr(import_module(f"layer_energy.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
