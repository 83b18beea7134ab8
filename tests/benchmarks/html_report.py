"""Seconds a browser takes to open HTML reports, and their size: up to 10 000 layers.

Run:  python -m tests.benchmarks.html_report
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from torch import nn

from layer_energy import predict_energy
from layer_energy.models import build_model
from tests.browser import chromium


def flat(n: int) -> nn.Module:
    return nn.Sequential(*[nn.Linear(8 + i % 500, 8 + (i + 1) % 500) for i in range(n)])


def nested(n: int) -> nn.Module:
    if n == 1:
        return nn.Linear(16, 16)
    return nn.Sequential(*[nested(n // 10) for _ in range(10)])


def main() -> None:
    models = {
        "vgg16": build_model("vgg16"),
        "resnet50": build_model("resnet50"),
        "10 000 layers in a row": flat(10_000),
        "10 000 layers, four levels": nested(10_000),
    }
    print(f"{'model':28s} {'write':>7s} {'size':>8s} {'open, median of 5':>18s} {'worst':>7s}")
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        for name, model in models.items():
            report = predict_energy(model)
            start = time.perf_counter()
            path = report.to_html(Path(folder) / "r.html")
            written = time.perf_counter() - start
            opened = [seconds_to_open(browser, path) for _ in range(5)]
            print(
                f"{name:28s} {written:5.2f} s {path.stat().st_size / 1e6:5.1f} MB "
                f"{statistics.median(opened):16.2f} s {max(opened):5.2f} s"
            )


def seconds_to_open(browser: object, path: Path) -> float:
    """From the request to the first frame in which everything is drawn."""
    page = browser.new_page()  # type: ignore[attr-defined]  # playwright's
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-drawn]")
    frame = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
    page.evaluate(frame)
    taken = page.evaluate("performance.now()") / 1000
    page.close()
    return float(taken)


if __name__ == "__main__":
    main()
