"""Raw CodeCarbon files of dl-energy-estimator, the repository of Getzner et al. 2023.

One row is one repetition. Its ``project_name`` holds the configuration as ``key:value`` pairs,
such as ``module:Conv2d,rep_no:1,macs:99,batch_size:4,...,freeText:architecture=vgg16;layer_idx=3,
forward_passes:6``; ``cpu_energy`` is in kWh and ``duration`` in seconds, over all forward passes.
The log beside a file tells which repetitions the energy counter failed in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean

from layer_energy.errors import DatasetError
from layer_energy.external.mapping import cell, number, read_rows

_JOULES_PER_KWH = 3.6e6
_CONFIGURATION = re.compile(r"(?:\d+/(\d+) \(config_no/rep_no\) |current config:)\[(.*?)\]")
_ERROR = "[codecarbon ERROR"

Run = tuple[str, str]
"""A configuration and the number of a repetition, ``""`` for all of them."""


def read_codecarbon(
    path: str | Path, log: str | Path | None = None
) -> list[tuple[str, dict[str, str]]]:
    """Read one file: the mean over the repetitions of each configuration, in file order.

    Args:
        path: the CSV file.
        log: the log of the same collection; repetitions in which CodeCarbon reported an error are
            left out, as are those without positive energy.

    Returns:
        (place, row) pairs: the row holds the keys of ``project_name`` and of ``freeText``,
        ``duration_s`` and ``energy_j`` per forward pass, and ``repeats``.

    Raises:
        DatasetError: if a file is unreadable or a row is not as described above.
    """
    failed = failed_runs(log) if log else set()
    groups: dict[str, list[tuple[str, dict[str, str]]]] = {}
    for place, row in read_rows(path):
        keys = _keys(cell(row, "project_name", place), place)
        configuration = keys.pop("configuration")
        passes = number(keys, "forward_passes", place)
        energy_j = number(row, "cpu_energy", place) * _JOULES_PER_KWH
        runs = {(configuration, keys.get("rep_no", "")), (configuration, "")}
        if runs & failed or energy_j <= 0 or passes <= 0:
            continue
        keys |= {
            "energy_j": repr(energy_j / passes),
            "duration_s": repr(number(row, "duration", place) / passes),
        }
        groups.setdefault(keys["module"] + configuration, []).append((place, keys))
    return [(repeats[0][0], _mean([row for _, row in repeats])) for repeats in groups.values()]


def failed_runs(log: str | Path) -> set[Run]:
    """Runs during which CodeCarbon reported an error, from either of the two kinds of log.

    One kind names configuration and repetition on a line of its own, the other shows a progress
    bar with the configuration alone: all its repetitions fail then.

    Raises:
        DatasetError: if the log is unreadable.
    """
    failed: set[Run] = set()
    current: Run | None = None
    try:
        with Path(log).open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if found := _CONFIGURATION.search(line):
                    current = (found[2], found[1] or "")
                if _ERROR in line and current:
                    failed.add(current)
    except OSError as error:
        raise DatasetError(f"{log} cannot be read: {error}") from error
    return failed


def _keys(project_name: str, place: str) -> dict[str, str]:
    """Keys of a ``project_name``; ``configuration`` is the part of it that the logs show."""
    pairs = [part.partition(":") for part in project_name.split(",")]
    keys = {key: value for key, _, value in pairs}
    missing = {"module", "macs", "freeText", "forward_passes"} - keys.keys()
    if missing:
        raise DatasetError(
            f"{place}: project_name lacks {', '.join(sorted(missing))}: {project_name!r}"
        )
    for part in filter(None, keys["freeText"].split(";")):
        key, _, value = part.partition("=")
        keys[key] = value
    known = ("module", "rep_no", "macs", "forward_passes")
    keys["configuration"] = ",".join(f"{k}:{v}" for k, _, v in pairs if k not in known)
    return keys


def _mean(repeats: Iterable[dict[str, str]]) -> dict[str, str]:
    rows = list(repeats)
    means = {key: repr(fmean(float(r[key]) for r in rows)) for key in ("energy_j", "duration_s")}
    return {**rows[0], **means, "repeats": str(len(rows))}
