"""What every command shares: the application, the consoles, JSON, Ctrl-C and progress."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from layer_energy.errors import InvalidInput
from layer_energy.supervisor import ENDINGS
from layer_energy.version import __version__

app = typer.Typer(
    help="How many joules a neural network will use, layer by layer, before it runs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
evaluate_app = typer.Typer(help="Predictions beside measurements.", no_args_is_help=True)
app.add_typer(evaluate_app, name="evaluate")
out, err = Console(), Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
DatasetFolder = Annotated[Path, typer.Argument(help="A dataset folder, such as datasets/NAME.")]

Country = Annotated[
    str | None,
    typer.Option(help="Carbon at this country's intensity, such as DEU; needs CodeCarbon."),
]
CarbonIntensity = Annotated[
    float | None, typer.Option(help="Carbon at this intensity: g CO2e per kWh of electricity.")
]


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def _version(wanted: bool) -> None:
    if wanted:
        out.print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def check_writable(folder: Path) -> None:
    parent = folder
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InvalidInput(f"cannot write to {folder}: {parent} is not a writable folder")


def parse_device(text: str) -> tuple[str, int]:
    """``"cuda:1"`` → ``("cuda", 1)``; also ``cpu`` and ``virtual``, a simulated GPU."""
    match = re.fullmatch(r"(cpu|virtual|cuda)(?::(\d+))?", text)
    if not match or (match[2] and match[1] != "cuda"):
        raise InvalidInput(f"--device must be cpu, cuda, cuda:N or virtual, got {text!r}")
    return match[1], int(match[2] or 0)


def parse_inputs(texts: list[str]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """``["1,3,224,224", "mask=1,128:int64"]`` → positional and keyword inputs."""
    from layer_energy.walk import parse_shape

    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for text in texts:
        name, equals, shape = text.partition("=")
        if equals:
            kwargs[name] = parse_shape(shape)
        else:
            args.append(parse_shape(text))
    return tuple(args), kwargs


@contextmanager
def stopping(notice: str = "stopping after this row") -> Iterator[list[int]]:
    """A list that the first Ctrl-C fills; the second one ends the program at once."""
    signals: list[int] = []

    def stop(number: int, frame: Any) -> None:
        if signals:
            raise KeyboardInterrupt
        signals.append(number)
        err.print(f"{notice}; press Ctrl-C again to stop at once")

    previous = {number: signal.signal(number, stop) for number in ENDINGS}
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Bar:
    """A progress bar whose length is known only once the work begins."""

    def __init__(self, progress: Any) -> None:
        self.progress = progress
        self._task = progress.add_task("rows", total=None, note="")
        self._started_s = time.monotonic()

    def start(self, total: int | None) -> None:
        self.progress.update(self._task, total=total)

    def advance(self, energy_j: float | None = None) -> None:
        """One row more.

        Args:
            energy_j: that the campaign took so far, where it is counted.
        """
        rows = self.progress.tasks[self._task].completed + 1
        note = f"{60 * rows / (time.monotonic() - self._started_s):.0f} rows a minute"
        if energy_j is not None:
            note += f", {energy_j / 1e3:.1f} kJ"
        self.progress.update(self._task, advance=1, note=note)


@contextmanager
def progress(quiet: bool, seconds: float | None = None) -> Iterator[Bar]:
    """Show how work goes on.

    Args:
        quiet: show nothing.
        seconds: that it will take; if not given, an estimate by rows is shown.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    end_s = time.monotonic() + (seconds or 0.0)

    class Left(ProgressColumn):
        def render(self, task: Any) -> Text:
            left = max(0, round(end_s - time.monotonic()))
            return Text(f"{left // 60}:{left % 60:02d} left")

    rows: tuple[Any, ...] = (BarColumn(), MofNCompleteColumn(), "ETA", TimeRemainingColumn())
    if seconds is not None:
        rows = (TextColumn("{task.completed} rows"), Left())
    columns = ("measuring", *rows, TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=err, disable=quiet) as shown:
        yield Bar(shown)
