"""Make the README's picture: the HTML report of a real network, as Chromium draws it.

Run:  python -m tests.benchmarks.report_picture
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from layer_energy import predict_energy
from layer_energy.models import build_model
from tests.browser import chromium

PICTURE = Path(__file__).parents[2] / "docs" / "images" / "report.png"
MODEL, PROFILE = "resnet50", "nvidia-a100"
SIZE = {"width": 1100, "height": 1265}


def main() -> None:
    report = predict_energy(build_model(MODEL), name=MODEL, device=PROFILE)
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        path = report.to_html(Path(folder) / "r.html")
        page = browser.new_page(viewport=SIZE, color_scheme="light")
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-drawn]")
        PICTURE.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=PICTURE)
    print(f"{PICTURE}: {PICTURE.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
