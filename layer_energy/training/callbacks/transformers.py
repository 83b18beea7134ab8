"""A callback for Hugging Face's ``Trainer``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from layer_energy.errors import MissingPackage
from layer_energy.meters import Meter
from layer_energy.training.callbacks.base import EnergyHooks
from layer_energy.training.projection import Projection

try:
    from transformers import EarlyStoppingCallback, TrainerCallback
except ImportError:
    raise MissingPackage(
        "the Trainer callback needs transformers: pip install transformers accelerate"
    ) from None


class EnergyCallback(TrainerCallback):
    """Projects the joules of the run at every epoch's end.

    Epochs are counted from where this call of ``train`` began, so that a run resumed from a
    checkpoint is projected for the part that is left.

    Args:
        meter: the source of joules; the best this machine can read if not given.
        form: ``"epoch"`` or ``"power"``.
        show: called with every projection.
        early_stopping: the run's ``EarlyStoppingCallback``, to project its earliest end too.
    """

    def __init__(
        self,
        meter: Meter | None = None,
        form: str = "epoch",
        show: Callable[[Projection], object] = print,
        early_stopping: EarlyStoppingCallback | None = None,
    ) -> None:
        self.hooks = EnergyHooks(meter, form, show)
        self.early_stopping = early_stopping
        self._first_step = 0

    @property
    def projection(self) -> Projection | None:
        """The last one made."""
        return self.hooks.projection

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._first_step = state.global_step
        self.hooks.begin(kwargs.get("model"), max(state.num_train_epochs, 1))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.hooks.tick()

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.hooks.tick()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        done = self.hooks.projector.epochs_done + 1
        steps = max(state.global_step - self._first_step, 1)
        epochs = done * (state.max_steps - self._first_step) / steps
        self.hooks.epoch_ends(max(epochs, done), self._may_stop_in())

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.hooks.end()

    def _may_stop_in(self) -> int | None:
        if self.early_stopping is None:
            return None
        patience_left: int = (
            self.early_stopping.early_stopping_patience
            - self.early_stopping.early_stopping_patience_counter
        )
        return max(patience_left - 1, 0)  # this epoch's evaluation is yet to come
