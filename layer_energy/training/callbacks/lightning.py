"""A callback for Lightning's ``Trainer``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from layer_energy.errors import MissingPackage
from layer_energy.meters import Meter
from layer_energy.training.callbacks.base import EnergyHooks
from layer_energy.training.projection import Projection

try:
    from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback
    except ImportError:
        raise MissingPackage("this callback needs Lightning: pip install lightning") from None


class EnergyCallback(Callback):
    """Projects the joules of the run at every training epoch's end, validation included.

    With an ``EarlyStopping`` callback its earliest end is projected too.

    Args:
        meter: the source of joules; the best this machine can read if not given.
        form: ``"epoch"`` or ``"power"``.
        show: called with every projection.
    """

    def __init__(
        self,
        meter: Meter | None = None,
        form: str = "epoch",
        show: Callable[[Projection], object] = print,
    ) -> None:
        self.hooks = EnergyHooks(meter, form, show)

    @property
    def projection(self) -> Projection | None:
        """The last one made."""
        return self.hooks.projection

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._first_epoch, self._first_step = trainer.current_epoch, trainer.global_step
        self.hooks.begin(pl_module, self._epochs(trainer))

    def on_train_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        self.hooks.tick()

    def on_validation_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        self.hooks.tick()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.hooks.epoch_ends(self._epochs(trainer), _may_stop_in(trainer.early_stopping_callback))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.hooks.end()

    def _epochs(self, trainer: Any) -> float:
        """Epochs from where ``fit`` began, by the nearer of ``max_epochs`` and ``max_steps``."""
        done = self.hooks.projector.epochs_done + 1
        limits = []
        if trainer.max_epochs not in (None, -1):
            limits.append(trainer.max_epochs - self._first_epoch)
        if trainer.max_steps not in (None, -1):
            steps = trainer.global_step - self._first_step
            limits.append(done * (trainer.max_steps - self._first_step) / steps if steps else 1)
        return float(max(min(limits, default=math.nan), done)) if limits else math.nan


def _may_stop_in(stopping: Any) -> int | None:
    if stopping is None:
        return None
    # told by validation, it has judged this epoch already; at the end of training epochs not yet
    pending = bool(getattr(stopping, "_check_on_train_epoch_end", False))
    return int(max(stopping.patience - stopping.wait_count - pending, 0))
