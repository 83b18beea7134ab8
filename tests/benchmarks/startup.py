"""Cold start of the command line, and the memory a 632 M-parameter model adds.

Run:  python tests/benchmarks/startup.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

_MEMORY = """
import resource, torch, torchvision
from layer_energy import predict_energy
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
predict_energy(torch.nn.Linear(3, 3))
model = torchvision.models.vit_h_14()
before = peak()
predict_energy(model)
print(peak() - before)
"""


def seconds(command: list[str], repeats: int = 5) -> float:
    """Median wall time of a fresh process, the first (cold disk) left out."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main() -> None:
    imports = seconds([sys.executable, "-c", "import torch, torchvision"])
    predict = seconds([sys.executable, "-m", "layer_energy", "predict", "vgg16"])
    print(f"import torch, torchvision   {imports:.2f} s")
    print(f"layer-energy predict vgg16  {predict:.2f} s  (+{predict - imports:.2f} s)")
    added = subprocess.run([sys.executable, "-c", _MEMORY], check=True, capture_output=True,
                           text=True).stdout  # fmt: skip
    print(f"memory added for ViT-H/14   {float(added):.0f} MB")


if __name__ == "__main__":
    main()
