"""Layer types: what can be sampled, built, recognised and counted. Importing this registers all.

Other distributions add their own through the entry-point group ``layer_energy.layers``: each
entry point names a module whose import registers its types.
"""

from importlib.metadata import entry_points

from layer_energy.layers import (  # noqa: F401  # importing a family registers its types
    activation,
    attention,
    convolution,
    elementwise,
    embedding,
    interpolation,
    linear,
    loss,
    memory,
    normalization,
    optimizer,
    pooling,
    recurrent,
    reduction,
)
from layer_energy.layers.base import (
    Call,
    LayerType,
    count,
    kinds,
    layer_type,
    register,
    workload,
)

for _entry_point in entry_points(group="layer_energy.layers"):
    _entry_point.load()

__all__ = ["Call", "LayerType", "count", "kinds", "layer_type", "register", "workload"]
