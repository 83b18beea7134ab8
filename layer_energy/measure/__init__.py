"""One workload on one device → one ``Measurement``.

A bench measures on one device: ``CpuBench`` (protocol in ``cpu``), ``GpuBench`` (protocol in
``gpu_bench``). ``layer`` builds what they execute; ``cuda`` and ``virtual`` are the GPUs that the
second one drives: a real one, and one whose truth is known.
"""

from layer_energy.measure.bench import Bench, CpuBench
from layer_energy.measure.cpu import Protocol, dwell, measure, release_memory, steady_allocator
from layer_energy.measure.gpu_bench import GpuBench, GpuProtocol
from layer_energy.measure.layer import rotation
from layer_energy.measure.open import open_gpu

__all__ = [
    "Bench",
    "CpuBench",
    "GpuBench",
    "GpuProtocol",
    "Protocol",
    "dwell",
    "measure",
    "open_gpu",
    "release_memory",
    "rotation",
    "steady_allocator",
]
