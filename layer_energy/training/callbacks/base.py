"""What the callbacks share: a meter that fails must not end a training run."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable

from layer_energy.errors import LayerEnergyError
from layer_energy.meters import READ_EVERY_S, Meter, open_meter
from layer_energy.training.projection import Projection
from layer_energy.training.projector import EnergyProjector


class EnergyHooks:
    """Drives an :class:`EnergyProjector`; after a failure it warns once and does nothing more.

    Args:
        meter: the source of joules; the best this machine can read if not given.
        form: ``"epoch"`` or ``"power"``.
        show: called with every projection; ``print`` by default.
    """

    def __init__(
        self,
        meter: Meter | None = None,
        form: str = "epoch",
        show: Callable[[Projection], object] = print,
    ) -> None:
        self.projector = EnergyProjector(meter or open_meter(), epochs=1, form=form)
        self._show = show
        self._failed = False
        self._running = False
        self._read_s = 0.0

    @property
    def projection(self) -> Projection | None:
        """The last one made."""
        return self.projector.projection

    def begin(self, model: object, epochs: float) -> None:
        """The first epoch begins; ``model`` is the ``nn.Module`` that is trained."""
        self.projector.model = model  # type: ignore[assignment]  # the frameworks' own types
        self._guarded(lambda: setattr(self.projector, "epochs", epochs))
        self._guarded(self.projector.start)
        self._running, self._read_s = True, time.monotonic()

    def tick(self) -> None:
        """A step of training or validation has ended; counters wrap within long epochs."""
        if self._running and time.monotonic() - self._read_s >= READ_EVERY_S:
            self._read_s = time.monotonic()
            self._guarded(self.projector.so_far_j)

    def epoch_ends(self, epochs: float, may_stop_in: int | None) -> None:
        """An epoch has ended; the whole run is now to have ``epochs``."""

        def project() -> None:
            self.projector.epochs = epochs
            self._show(self.projector.end_epoch(may_stop_in))

        self._guarded(project)

    def end(self) -> None:
        """The run has ended, early or not."""
        self._guarded(lambda: self._show(self.projector.finish()))
        self._running = False

    def _guarded(self, act: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            act()
        except LayerEnergyError as error:
            self._failed = True
            warnings.warn(f"energy is no longer projected: {error}", stacklevel=2)
