"""Joules so far and joules to come, shown while a run goes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from layer_energy.errors import LayerEnergyError
from layer_energy.meters import READ_EVERY_S
from layer_energy.training.projection import Projection
from layer_energy.training.projector import EnergyProjector
from layer_energy.units import si


class EnergyProgress:
    """A progress bar over epochs with joules so far, joules to come and their interval.

    Args:
        epochs: of the whole run.
        console: where; standard error if not given, so that results can be piped.
    """

    def __init__(self, epochs: float, console: Console | None = None) -> None:
        self._progress = Progress(
            "epochs", BarColumn(bar_width=20), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[joules]}"), console=console or Console(stderr=True),
        )  # fmt: skip
        self._task = self._progress.add_task("run", total=epochs, joules="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def show(self, projection: Projection) -> None:
        """Show the latest projection."""
        joules = f"{si(projection.energy_so_far_j, 'J')} so far ({projection.quality})"
        if projection.epochs_done < projection.epochs:
            low_j, high_j = (
                bound - projection.energy_so_far_j
                for bound in (projection.low_j, projection.high_j)
            )
            joules += (
                f", {si(projection.energy_to_come_j, 'J')} to come (projected, "
                f"{si(low_j, 'J')} – {si(high_j, 'J')})"
            )
        self._progress.update(
            self._task,
            total=projection.epochs,
            completed=projection.epochs_done,
            joules=joules,
        )


def track(projector: EnergyProjector, console: Console | None = None) -> Iterator[int]:
    """Epoch numbers 0 to N − 1 for a plain loop, each epoch measured and projected, with a display.

    Leaving the loop early ends the run: ``projector.projection`` then holds what it used. During an
    epoch a thread reads the meter now and then, as some counters wrap.

    >>> for epoch in track(EnergyProjector(open_meter(), epochs=90)):  # doctest: +SKIP
    ...     train_one_epoch()
    """
    projector.start()
    with EnergyProgress(projector.epochs, console) as progress:
        try:
            while (epoch := projector.epochs_done) < projector.epochs:
                with _read_now_and_then(projector):
                    yield epoch
                progress.show(projector.end_epoch())
        finally:
            progress.show(projector.finish())


@contextmanager
def _read_now_and_then(projector: EnergyProjector) -> Iterator[None]:
    ended = threading.Event()

    def read() -> None:
        while not ended.wait(READ_EVERY_S):
            with suppress(LayerEnergyError):  # the end of the epoch reads again, and raises it
                projector.so_far_j()

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
