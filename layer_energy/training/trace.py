"""Recorded power traces: reading, checking, and joules by the trapezoidal rule."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from layer_energy.errors import InvalidInput

Array = NDArray[np.float64]

COLUMNS = ("t_s", "power_w")
_GAP_PERIODS = 5
"""An interval longer than this many sampling periods is a gap."""


@dataclass(frozen=True)
class PowerTrace:
    """Power over time, of one device.

    Attributes:
        t_s: ``(n,)`` seconds, strictly ascending, any origin.
        power_w: ``(n,)`` watts at those moments; linear in between.
    """

    t_s: Array
    power_w: Array

    @classmethod
    def of(
        cls, t_s: Sequence[float] | Array, power_w: Sequence[float] | Array, name: str = "the trace"
    ) -> PowerTrace:
        """Check samples; those of one and the same moment become their mean.

        Args:
            t_s: ``(n,)`` seconds, never descending.
            power_w: ``(n,)`` watts, none negative.
            name: what to call it in errors.

        Raises:
            InvalidInput: naming the first sample at fault, or if fewer than two moments remain.
        """
        t, p = np.asarray(t_s, dtype=float), np.asarray(power_w, dtype=float)
        if t.ndim != 1 or t.shape != p.shape:
            raise InvalidInput(f"{name}: {t.shape} times do not match {p.shape} powers")
        for at in np.flatnonzero(~np.isfinite(t) | ~(p >= 0) | np.isinf(p))[:1]:
            raise InvalidInput(
                f"{name}: sample {at + 1} is {t[at]} s, {p[at]} W; times must be finite and power "
                "0 or more and finite; drop such samples, a gap is bridged"
            )
        for at in np.flatnonzero(np.diff(t) < 0)[:1]:
            raise InvalidInput(
                f"{name}: the clock goes backwards from sample {at + 1} ({t[at]} s) to sample "
                f"{at + 2} ({t[at + 1]} s); is this one run, in order?"
            )
        moments, which = np.unique(t, return_inverse=True)
        if len(moments) < 2:
            raise InvalidInput(
                f"{name} has {len(t)} samples at {len(moments)} moments; energy needs two moments "
                "at least"
            )
        return cls(moments, np.bincount(which, weights=p) / np.bincount(which))

    @classmethod
    def from_csv(cls, path: str | Path) -> PowerTrace:
        """Read a CSV file with a header and the columns ``t_s`` and ``power_w`` among others.

        Raises:
            InvalidInput: if the file is missing or is not such a table; names the line at fault.
        """
        t, p = [], []
        try:
            with Path(path).open(encoding="utf-8-sig", newline="") as file:
                table = csv.DictReader(file, skipinitialspace=True)
                missing = [c for c in COLUMNS if c not in (table.fieldnames or ())]
                if missing:
                    raise InvalidInput(
                        f"{path} lacks the column {' and '.join(missing)}; it has "
                        f"{', '.join(table.fieldnames or ()) or 'no header'}"
                    )
                for row in table:
                    now_s, now_w = (_number(row[c], c, f"{path} line {table.line_num}")
                                    for c in COLUMNS)  # fmt: skip
                    t.append(now_s)
                    p.append(now_w)
        except OSError as error:
            raise InvalidInput(f"the trace cannot be read: {error}") from error
        except (csv.Error, UnicodeDecodeError) as error:
            raise InvalidInput(f"{path} is not a text table: {error}") from error
        if not t:
            raise InvalidInput(f"{path} is empty: a header but no samples")
        return cls.of(t, p, str(path))

    @property
    def duration_s(self) -> float:
        """Seconds from the first sample to the last."""
        return float(self.t_s[-1] - self.t_s[0])

    @property
    def period_s(self) -> float:
        """Median seconds between samples."""
        return float(np.median(np.diff(self.t_s)))

    @property
    def energy_j(self) -> float:
        """Joules of the whole trace."""
        return float(self._cumulative_j[-1])

    @property
    def gaps_s(self) -> float:
        """Seconds inside intervals longer than five sampling periods."""
        steps = np.diff(self.t_s)
        return float(steps[steps > _GAP_PERIODS * self.period_s].sum())

    @cached_property
    def _cumulative_j(self) -> Array:
        steps = np.diff(self.t_s) * (self.power_w[1:] + self.power_w[:-1]) / 2
        return np.concatenate([[0.0], np.cumsum(steps)])

    def slices_j(self, edges_s: Array) -> Array:
        """Joules between consecutive ``edges_s``, seconds after the first sample; ``(k - 1,)``."""
        return np.diff(np.interp(edges_s + self.t_s[0], self.t_s, self._cumulative_j))

    def until(self, share: float) -> PowerTrace:
        """The first ``share`` of the duration; nothing after it has any influence.

        The last power seen is held to the end of that share, since the sample beyond is not known.

        Raises:
            InvalidInput: if ``share`` is not in (0, 1] or the part holds fewer than two samples.
        """
        if not 0 < share <= 1:
            raise InvalidInput(f"the share observed must be above 0 and at most 1, got {share}")
        if share == 1:
            return self
        end_s = self.t_s[0] + share * self.duration_s
        n = int(np.searchsorted(self.t_s, end_s, side="right"))
        if n < 2:
            raise InvalidInput(
                f"the first {share:.2%} of the trace holds {n} sample; observe more of it"
            )
        t, p = self.t_s[:n], self.power_w[:n]
        if t[-1] < end_s:
            t, p = np.append(t, end_s), np.append(p, p[-1])
        return PowerTrace(t, p)


def _number(text: str | None, column: str, place: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        raise InvalidInput(f"{place}: {column} is {text!r}, not a number") from None
    if not math.isfinite(value):
        raise InvalidInput(f"{place}: {column} is {value}, not a finite number; drop the row")
    return value
