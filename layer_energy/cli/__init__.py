"""The command line: each command parses, makes one public call, and prints.

One file per group of commands; importing this package registers them all.
"""

from __future__ import annotations

import sys

from rich.markup import escape

from layer_energy.cli import (
    calibrate,
    collect,
    compare,
    evaluate,
    forecast,
    predict,
    profiles,
    project,
    rebuild,
    study,
    verify,
    whatif,
)
from layer_energy.cli.base import app, err
from layer_energy.errors import LayerEnergyError

__all__ = [
    "app",
    "calibrate",
    "collect",
    "compare",
    "evaluate",
    "forecast",
    "main",
    "predict",
    "profiles",
    "project",
    "rebuild",
    "study",
    "verify",
    "whatif",
]


def main() -> None:
    """Entry point: errors of this package become one line and exit code 2."""
    try:
        app()
    except LayerEnergyError as error:
        err.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
        sys.exit(2)
    except KeyboardInterrupt:
        err.print("interrupted")
        sys.exit(130)
