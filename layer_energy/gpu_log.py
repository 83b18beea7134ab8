"""Raw logs of a GPU campaign → a dataset; the rule can be applied again, and replaced by a better.

A log is JSON lines, compressed with gzip, in the order of their moments ``at``. The lines read here
have, under ``what``:

- ``device``, ``sensor``: the board, and its power limit in watts;
- ``idle``: ``power_w`` without work, last measured;
- ``row``, ``network``: a measurement as :mod:`layer_energy.records` writes it, and ``raw``: what
  the sensor said meanwhile;
- ``drift``: the ids of ``rows`` that were measured beside a slow reference;
- ``dropped``: a row of the plan that the campaign gave up, its number ``id``, and ``raw``.

Other lines (experiments, references, every update of the counter) are for people.

**The power of a row.** An H200 shows an energy counter and instant power, each updated every 0.1 s.
On a steady load both agree to 0.3 %, and instant power needs no edges: it is taken. Where the power
limit lowers the clocks, instant power wavers, and only the counter holds all of it. A network loads
the GPU unevenly, so its power is the counter's as well. Both powers are kept, and rows in which
they differ by more than ``AGREEMENT`` are flagged ``meters_disagree``.

**Host times.** Logs with a ``calibration`` of a ``board`` but without a line ``format`` timed eager
calls right after waiting for the device, when the first takes longer: their ``host_time_s`` is left
out.

**Dropped rows.** Where the host paused and left the GPU without work, the counter shows too little.
The median time between submissions and instant power at both ends hold all the same
(``tests/test_gpu_log.py`` compares them with rows that were measured again). They are flagged
``host_paused``. Those at the power limit stay dropped.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import re
import statistics
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from layer_energy.dataset import Dataset
from layer_energy.device import slugify
from layer_energy.errors import DatasetError
from layer_energy.measure.calibration import AGREEMENT, Calibration
from layer_energy.meters.nvml import ASSUMED_POWER, AVERAGE_POWER, COUNTER, INSTANT_POWER
from layer_energy.raw_log import LOG, RAW, logs
from layer_energy.records import measurement_from_dict, network_from_dict, number, text
from layer_energy.workload import LAUNCHES, Device, Launch, Measurement, NetworkMeasurement

PLAN = ".plan.json.gz"
DISAGREE = "meters_disagree"
METER_UNCERTAINTY = 0.05
"""NVIDIA's figure for the sensor: ±5 %."""

_EDGES = ("before", "after")
_RENAMED = re.compile("^decoder:")
"""The script of the first contact had its decoder in a module of that name."""

_GZIP = 16 + zlib.MAX_WBITS
_MEDIAN, _QUARTILES = 3, (2, 4)
"""Where they stand in ``gaps_s``: minimum, 5 %, 25 %, 50 %, 75 %, 95 %, maximum."""

_Measured = TypeVar("_Measured", Measurement, NetworkMeasurement)


@dataclass
class Run:
    """What one log holds.

    Attributes:
        name: of the log, without ``.jsonl.gz``; it names the board too.
        facts: the values of ``device`` and ``sensor``.
        rows, networks: what was measured.
        given_up: row id → what can be made of a row that the campaign dropped.
        salvaged: how many of the rows were.
        sha256: of the file.
        cut: whether the file ends in the middle of a line; the lines before it were read.
    """

    name: str
    facts: dict[str, Any] = field(default_factory=dict)
    rows: list[Measurement] = field(default_factory=list)
    networks: list[NetworkMeasurement] = field(default_factory=list)
    given_up: dict[int, Measurement] = field(default_factory=dict)
    salvaged: int = 0
    sha256: str = ""
    cut: bool = False


def dataset_from_logs(folder: str | Path) -> tuple[Dataset, list[Run]]:
    """Make a dataset of the logs in ``folder/raw``.

    A log ``NAME.PART.jsonl.gz`` belongs to the plan ``NAME.plan.json.gz``, where there is one:
    without it, dropped rows stay dropped. Logs without rows and networks are left alone.

    Returns:
        the dataset, and what came of each log.

    Raises:
        DatasetError: if there is no log, one is damaged, or they are of different devices.
    """
    raw, found = Path(folder) / RAW, logs(folder)
    if not found:
        raise DatasetError(f"{raw} holds no *{LOG}; put the raw logs of a campaign there")
    runs = [_read(log) for log in found]
    _salvage(runs)
    runs = [run for run in runs if run.rows or run.networks]
    if not runs:
        raise DatasetError(f"no log in {raw} holds a row or a network")
    names = sorted({str(run.facts.get("name")) for run in runs})
    if len(names) > 1:
        raise DatasetError(
            f"the logs in {raw} are of different devices, {', '.join(names)}; keep one folder per "
            "device"
        )
    return Dataset(
        [row for run in runs for row in run.rows],
        _device(runs[0].facts),
        _provenance(runs),
        [network for run in runs for network in run.networks],
    ), runs


def last_calibration(folder: str | Path, board: str, driver: str) -> Calibration | None:
    """How a board's sensor was found to behave, if that is in a log of the folder."""
    for path in reversed(logs(folder)):
        with contextlib.suppress(DatasetError, KeyError, TypeError):
            facts = lines(path)[0]
            drivers = [line["driver"] for line in facts if line["what"] == "sensor"]
            found = [line for line in facts if line["what"] == "calibration"]
            if found and drivers == [driver] and found[-1]["board"] == board:
                return Calibration.from_dict(found[-1]["found"])
    return None


def _salvage(runs: Sequence[Run]) -> None:
    """Add the rows that the campaign dropped, but for those that any log of its plan measured."""
    measured = {(_plan_name(run.name), row.row_id) for run in runs for row in run.rows}
    for run in runs:
        for row_id, row in sorted(run.given_up.items()):
            key = _plan_name(run.name), row_id
            if key not in measured:
                measured.add(key)
                run.rows.append(row)
                run.salvaged += 1


def lines(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """The lines of a log, and whether the file ends in the middle of one.

    Raises:
        DatasetError: if it is no gzip file, or a line before the last is no JSON object.
    """
    content, whole = _unpacked(path)
    texts = content.split(b"\n")
    found: list[dict[str, Any]] = []
    for n, line in enumerate(texts, 1):
        try:
            value = json.loads(line) if line.strip() else None
            if value is not None and not isinstance(value, dict):
                raise ValueError("not an object")
        except (ValueError, RecursionError) as error:
            if n == len(texts):
                return found, True
            raise DatasetError(f"{path}, line {n} is no JSON object: {error}") from error
        if value is not None:
            found.append(value)
    return found, not whole


def _unpacked(path: Path) -> tuple[bytes, bool]:
    """All that can be read, and whether that is everything."""
    packed, parts = path.read_bytes(), []
    while packed:
        member = zlib.decompressobj(_GZIP)
        try:
            parts.append(member.decompress(packed))
        except zlib.error as error:
            raise DatasetError(f"{path} is not a gzip file, or is damaged: {error}") from error
        if not member.eof:
            return b"".join(parts), False
        packed = member.unused_data
    return b"".join(parts), True


def _read(path: Path) -> Run:
    found, cut = lines(path)
    run = Run(path.name.removesuffix(LOG), sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    run.cut = cut
    plan = _plan(path)
    rows: dict[int, Measurement] = {}
    idle_w = 0.0
    for n, line in enumerate(found, 1):
        try:
            what = line.get("what")
            if what in ("device", "sensor"):
                run.facts |= {k: v for k, v in line.items() if k not in ("what", "at", "source")}
            elif what in ("bench", "idle"):
                idle_w = number(line, "idle" if what == "bench" else "power_w", positive=True)
            elif what == "row":
                row = _row(line, run.name)
                rows[row.row_id] = row
            elif what == "drift":
                for row_id in line["rows"]:
                    rows[row_id] = replace(rows[row_id], flags=(*rows[row_id].flags, "drift"))
            elif what == "network":
                run.networks.append(_network(line, run.name))
            elif what == "dropped":
                given_up = _dropped(line, plan, idle_w, run.name)
                if given_up is not None:
                    run.given_up[given_up.row_id] = given_up
        except _DAMAGE as error:
            raise DatasetError(
                f"{path}, line {n} ({line.get('what')}): {_said(error)}; take the line out, or "
                "restore the log"
            ) from error
    if _host_times_wrong(found):
        for row_id, row in rows.items():
            conditions = row.conditions and replace(row.conditions, host_time_s=None)
            rows[row_id] = replace(row, conditions=conditions)
    run.rows = [*rows.values()]
    return run


def _host_times_wrong(found: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a log's times of the host cannot be used; see the module's text."""
    told = {line.get("what") for line in found}
    return "format" not in told and any("board" in line for line in found)


_DAMAGE = (DatasetError, KeyError, TypeError, IndexError, AttributeError, ArithmeticError)


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, DatasetError) else f"{type(error).__name__}: {error}"


def _plan(log: Path) -> Sequence[Mapping[str, Any]]:
    path = log.with_name(_plan_name(log.name) + PLAN)
    if not path.exists():
        return ()
    try:
        with gzip.open(path, "rt") as file:
            return cast("Sequence[Mapping[str, Any]]", json.load(file)["rows"])
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path} is no plan of a campaign: {_said(error)}") from error


def _plan_name(log: str) -> str:
    return log.partition(".")[0]


def _row(line: Mapping[str, Any], board: str) -> Measurement:
    measured = measurement_from_dict(line["row"])
    capped = "power_capped" in measured.flags
    return _with_power(measured, line["raw"], board, by_counter=capped)


def _network(line: Mapping[str, Any], board: str) -> NetworkMeasurement:
    measured = network_from_dict(line["row"])
    launch: Launch | None = measured.launch
    if launch is None:  # the first logs had it among the flags
        launch = "graph" if "graph" in measured.flags else "eager"
    flags = tuple(flag for flag in measured.flags if flag not in LAUNCHES)
    model = _RENAMED.sub("layer_energy.reference_networks:decoder_", measured.model)
    measured = replace(measured, model=model, launch=launch, flags=flags)
    return _with_power(measured, line["raw"], board, by_counter=True)


def _with_power(
    measured: _Measured, raw: Mapping[str, Any], board: str, *, by_counter: bool
) -> _Measured:
    """Logs of the first protocol have no ``counter_w``; some hold instant power at edges only."""
    if measured.conditions is None:
        raise DatasetError("a row of a GPU must have conditions, got none")
    counter_w, instant_w = _powers(raw)
    if counter_w is None or instant_w is None:
        by_counter = instant_w is None
    power_w = counter_w if by_counter else instant_w
    if power_w is None:
        raise DatasetError("raw holds neither counter_w nor instant_w")
    source = _source(measured.conditions.energy_source, by_counter)
    flags: tuple[str, ...] = tuple(flag for flag in measured.flags if flag != DISAGREE)
    if counter_w and instant_w and abs(counter_w / instant_w - 1) > AGREEMENT:
        flags = (*flags, DISAGREE)
    return replace(
        measured,
        power_w=power_w,
        energy_j=power_w * measured.time_s,
        flags=flags,
        conditions=replace(
            measured.conditions,
            energy_source=source,
            counter_power_w=counter_w,
            instant_power_w=None if source in (AVERAGE_POWER, ASSUMED_POWER) else instant_w,
            board=measured.conditions.board or board,
        ),
    )


def _source(noted: str, by_counter: bool) -> str:
    """Where the power came from; a board without instant power shows some other."""
    if by_counter:
        return COUNTER
    return INSTANT_POWER if noted == COUNTER else noted


def _powers(raw: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """What counter and instant power gave; the first logs have no ``counter_w``."""
    if "counter_w" not in raw:
        return number(raw, "power_w", positive=True), _instant(raw)
    counter_w = None if raw["counter_w"] is None else number(raw, "counter_w", positive=True)
    return counter_w, _instant(raw)


def _instant(raw: Mapping[str, Any]) -> float | None:
    if "instant_w" not in raw:
        return _at_edges(raw)
    return None if raw["instant_w"] is None else number(raw, "instant_w", positive=True)


def _at_edges(raw: Mapping[str, Any]) -> float:
    return statistics.fmean(number(raw[edge], "power_w", positive=True) for edge in _EDGES)


def _dropped(
    line: Mapping[str, Any], plan: Sequence[Mapping[str, Any]], idle_w: float, board: str
) -> Measurement | None:
    """A row given up because the host paused; ``None`` if nothing can be made of it."""
    raw = line["raw"]
    if not plan or not raw.get("copies"):  # networks are numbered as well, and are not copied
        return None
    before, after = (raw[edge] for edge in _EDGES)
    if number(after, "power_cap_s") > number(before, "power_cap_s"):
        return None
    planned = plan[line["id"]]
    gaps, executions, inside = raw["gaps_s"], raw["executions"], raw["inside"]
    time_s, power_w = gaps[_MEDIAN] / executions, _at_edges(raw)
    low, high = (gaps[i] for i in _QUARTILES)
    return measurement_from_dict(
        {
            "row_id": line["id"],
            **{key: planned[key] for key in ("kind", "params", "dtype", "gradients")},
            "time_s": time_s,
            "energy_j": power_w * time_s,
            "power_w": power_w,
            "spread": (high - low) / 2 / gaps[_MEDIAN],
            "repeats": inside,
            "executions": inside * executions,
            "quality": "measured",
            "meter": "nvml",
            "flags": [*planned["flags"], "host_paused"],
            "conditions": {
                "energy_source": "instant power",
                "burst_time_s": raw["burst_time_s"],
                "host_time_s": None,
                "idle_power_w": idle_w,
                "temperature_c": None,
                "sm_clock_mhz": None,
                "memory_clock_mhz": None,
                "power_cap_s": 0.0,
                "counter_power_w": raw["power_w"],
                "instant_power_w": power_w,
                "board": board,
            },
        }
    )


def _device(facts: Mapping[str, Any]) -> Device:
    known = ("name", "slug", "cache", "uuid", "limit", "processes", "answered")
    try:
        cache_bytes = int(number(facts, "cache"))
        details = {key: value for key, value in facts.items() if key not in known}
        name = text(facts, "name")
        return Device(name, "cuda", slugify(name), 1, cache_bytes, details)
    except DatasetError as error:
        raise DatasetError(f"the log does not say which GPU it is of: {error}") from error


def _provenance(runs: Sequence[Run]) -> dict[str, Any]:
    idle = [m.conditions.idle_power_w for run in runs for m in run.rows if m.conditions]
    limits = [number(run.facts, "limit", positive=True) for run in runs if "limit" in run.facts]
    return {
        "meter": "nvml",
        "meter_relative_uncertainty": METER_UNCERTAINTY,
        **({"idle_power_w": statistics.median(idle)} if idle else {}),
        **({"max_power_w": statistics.median(limits)} if limits else {}),
        "assumptions": [],
        "runs": list(_told(runs)),
    }


def _told(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    for run in runs:
        yield {
            "name": run.name,
            "sha256": run.sha256,
            "rows": len(run.rows),
            "salvaged": run.salvaged,
            "networks": len(run.networks),
            "cut": run.cut,
        }
