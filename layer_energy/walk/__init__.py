"""Walking: a model and its inputs → the workloads of one forward pass.

``layer_energy.walk`` is the function and, once something has imported it, this package: calling the
package walks, too, so that ``from layer_energy import walk`` gives what it promises at all times.
"""

import sys
from types import ModuleType
from typing import Any

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


class _Package(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Trace:
        return walk(*args, **kwargs)


sys.modules[__name__].__class__ = _Package
