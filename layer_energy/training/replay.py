"""A recorded run, projected as if only its beginning were known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from layer_energy.errors import InvalidInput
from layer_energy.training.projection import Projection
from layer_energy.training.step import Blocks, project
from layer_energy.training.trace import PowerTrace

MIN_SAMPLES = 4
"""Epochs with fewer samples are joined, until a block has this many."""

MAX_BLOCKS = 500


def block_epochs(epochs_done: float, epoch_s: float, period_s: float) -> int:
    """How many epochs to take as one, so that a block is resolved by the sampling."""
    return max(
        1,
        math.ceil(MIN_SAMPLES * period_s / epoch_s - 1e-9),
        math.ceil(epochs_done / MAX_BLOCKS),
    )


def project_trace(
    trace: PowerTrace, epochs: float, observed: float = 1.0, form: str = "epoch"
) -> Projection:
    """Project a recorded run from its first part.

    A power trace holds no epoch marks and a live tool does not know how long a run will take. So
    ``observed`` is the statement of how far the run has come, epochs done ÷ epochs: the duration
    of the observed part ÷ ``observed`` is the projected duration, and each epoch is taken to last
    as long as any other. Nothing after that part has any influence on the answer.

    Args:
        trace: power from the start of the run to its end.
        epochs: of the whole run.
        observed: share of the run that is known, above 0; with 1 the answer is its trapezoid.
        form: ``"epoch"`` or ``"power"``; see :class:`Projection`.

    Raises:
        InvalidInput: for epochs or a share out of range, and parts of less than two samples.
    """
    if not 0 < epochs < math.inf:
        raise InvalidInput(f"epochs must be a positive number, got {epochs}")
    part = trace.until(observed)
    period_s, done = part.period_s, observed * epochs
    epoch_s = part.duration_s / done
    each = block_epochs(done, epoch_s, period_s)
    count = math.floor(done / each + 1e-9)
    notes = []
    if count < 1:
        each_or_less, count = done, 1
        notes.append(f"{done:.3g} epochs observed, less than can be told apart: taken as they are")
    else:
        each_or_less = float(each)
        if MIN_SAMPLES * period_s > epoch_s:
            notes.append(
                f"epochs of {epoch_s:.3g} s are not resolved by samples {period_s:.3g} s apart: "
                f"{each} epochs are taken as one"
            )
    if part.gaps_s:
        notes.append(f"{part.gaps_s:.3g} s lie in gaps of the trace and are bridged linearly")
    if observed < 1:
        notes.append("the share observed is taken as epochs done, all epochs as equally long")
    edges_s = np.arange(count + 1, dtype=np.float64) * (each_or_less * epoch_s)
    blocks = Blocks(
        energy_j=part.slices_j(edges_s),
        time_s=np.diff(edges_s),
        epochs_each=each_or_less,
        first=0.0,
        elapsed_s=part.duration_s,
        so_far_j=part.energy_j,
        done=done,
    )
    projection = project(blocks, epochs, form, timed=False, notes=notes)
    return replace(projection, quality="replayed")
