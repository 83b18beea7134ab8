"""What machine this is: the facts that a dataset and a profile are labelled with."""

from __future__ import annotations

import functools
import os
import platform
import re
from pathlib import Path
from typing import Any

from layer_energy.errors import InvalidInput
from layer_energy.workload import Device

_CPUINFO = Path("/proc/cpuinfo")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNKNOWN_CACHE_BYTES = 32 << 20


def local_cpu(threads: int | None = None) -> Device:
    """Describe this machine's CPU as torch would use it.

    Args:
        threads: compute threads; torch's own choice if not given.
    """
    import torch

    name = _cpu_name()
    threads = threads or torch.get_num_threads()
    return Device(
        name=name,
        kind="cpu",
        slug=f"{slugify(name)}-{threads}t",
        threads=threads,
        cache_bytes=_last_level_cache_bytes(),
        details={
            "torch": torch.__version__,
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "cores": os.cpu_count() or 1,
            "dtypes": ["float32"],
        },
    )


@functools.cache
def local_gpu_name() -> str | None:
    """Name of the GPU that torch sees first; ``None`` without one, or if it cannot be asked."""
    import torch

    try:
        return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    except (RuntimeError, AssertionError):  # in a forked process, or without a working driver
        return None


def slugify(name: str) -> str:
    """A device name as a file name: ``"NVIDIA H200"`` → ``"nvidia-h200"``."""
    plain = re.sub(r"\((r|tm|c)\)|\bcpu\b|\bprocessor\b|@.*", " ", name.lower())
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-") or "unknown"


def _cpu_name() -> str:
    if _CPUINFO.exists():
        match = re.search(r"^model name\s*:\s*(.+)$", _CPUINFO.read_text(), re.MULTILINE)
        if match:
            return match[1].strip()
    return platform.processor() or platform.machine()


def _last_level_cache_bytes() -> int:
    units = {"K": 1 << 10, "M": 1 << 20}
    sizes = [path.read_text().strip() for path in _CACHES.glob("index*/size")]
    known = [int(size[:-1]) * units[size[-1]] for size in sizes if size[-1:] in units]
    return max(known, default=_UNKNOWN_CACHE_BYTES)


def local_gpu(index: int = 0, runtime: Any = None) -> Device:
    """Describe one of this machine's NVIDIA GPUs as torch sees it.

    Args:
        index: torch's index of it.
        runtime: ``torch.cuda``, or a stand-in for tests.

    Raises:
        InvalidInput: if torch sees no such GPU.
    """
    import torch

    runtime = torch.cuda if runtime is None else runtime
    found = runtime.device_count() if runtime.is_available() else 0
    if not 0 <= index < found:
        raise InvalidInput(
            f"torch sees {found} CUDA devices and was asked for number {index}; "
            "torch.version.cuda is None where this torch was built without CUDA, and "
            "`nvidia-smi -L` lists what the driver sees"
        )
    properties = runtime.get_device_properties(index)
    return Device(
        name=properties.name,
        kind="cuda",
        slug=slugify(properties.name),
        threads=1,
        cache_bytes=getattr(properties, "L2_cache_size", 0) or _UNKNOWN_CACHE_BYTES,
        details={
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else 0,
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            "uuid": f"GPU-{properties.uuid}",
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
        },
    )
