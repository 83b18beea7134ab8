"""Walking: a model and its inputs → the workloads of one forward pass."""

from layer_energy.walk.autocast import AMP
from layer_energy.walk.inputs import Inputs, infer, parse_shape
from layer_energy.walk.many import Walked, Walks
from layer_energy.walk.trace import LayerCall, Trace
from layer_energy.walk.walker import walk

__all__ = [
    "AMP",
    "Inputs",
    "LayerCall",
    "Trace",
    "Walked",
    "Walks",
    "infer",
    "parse_shape",
    "walk",
]
