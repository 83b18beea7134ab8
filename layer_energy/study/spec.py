"""``Study``: what is to be trained, how often and in which order; read from TOML."""

from __future__ import annotations

import math
import random
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from layer_energy.errors import InvalidInput

SCHEMA_VERSION = 1
SOURCES = ("digits", "generated", "folder")
OPTIMIZERS = ("sgd", "adam", "adamw")


@dataclass(frozen=True, slots=True)
class Data:
    """Section ``[data]``: the images.

    Attributes:
        source: ``digits``, scikit-learn's 1797 handwritten digits; ``generated``, random pixels
            and labels; ``folder``, one sub-folder of images a class.
        images: for training and validation together; all there are if not given.
        validation_share: of them, used for validation; the paper's is 0.3.
        classes: of ``generated`` images.
        path: of the ``folder``, seen from the study file.
    """

    source: str
    images: int | None = None
    validation_share: float = 0.3
    classes: int | None = None
    path: str | None = None

    def __post_init__(self) -> None:
        _one_of("data.source", self.source, SOURCES)
        _check(0 < self.validation_share < 1, "data.validation_share", "above 0 and below 1", self)
        _check(self.images is None or self.images >= 2, "data.images", "2 or more", self)
        _check(self.classes is None or self.classes >= 2, "data.classes", "2 or more", self)
        for key, source in (("classes", "generated"), ("path", "folder")):
            if (getattr(self, key) is None) == (self.source == source):
                need = "needs" if self.source == source else "does not take"
                raise InvalidInput(f'data.source = "{self.source}" {need} data.{key}')
        if self.source == "generated" and self.images is None:
            raise InvalidInput('data.source = "generated" needs data.images, how many to generate')


@dataclass(frozen=True, slots=True)
class Training:
    """Section ``[training]``: what one run does.

    Attributes:
        epochs: passes over the training images, each followed by one over the validation images.
        frozen_epochs: of them, the first ones, in which only the head is trained.
        optimizer: ``sgd``, ``adam`` or ``adamw``.
        learning_rate: of the optimizer.
    """

    epochs: int
    frozen_epochs: int = 0
    optimizer: str = "adam"
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        _one_of("training.optimizer", self.optimizer, OPTIMIZERS)
        _check(self.epochs >= 1, "training.epochs", "1 or more", self)
        _check(
            0 <= self.frozen_epochs <= self.epochs,
            "training.frozen_epochs", f"from 0 to training.epochs, {self.epochs}", self,
        )  # fmt: skip
        _check(0 < self.learning_rate < math.inf, "training.learning_rate", "above 0, finite", self)


@dataclass(frozen=True, slots=True)
class Protocol:
    """Section ``[protocol]``: how it is measured; the defaults are the paper's.

    Attributes:
        warm_up_s: of training that is not recorded, before the first run of each start.
        pause_s: before each run, so that the machine cools down.
        meter: of a CPU, ``auto`` or a name; a GPU is read through NVML.
        max_power_w: of the CPU at full load, for where its joules are estimated.
    """

    warm_up_s: float = 600.0
    pause_s: float = 300.0
    meter: str = "auto"
    max_power_w: float | None = None

    def __post_init__(self) -> None:
        for name in ("warm_up_s", "pause_s"):
            seconds = getattr(self, name)
            _check(0 <= seconds < math.inf, f"protocol.{name}", "0 or more seconds, finite", self)
        _check(
            self.max_power_w is None or 0 < self.max_power_w < math.inf,
            "protocol.max_power_w", "above 0 W, finite", self,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Configuration:
    """What differs between runs: network, images per step, their height and width, device."""

    network: str
    batch_size: int
    image_size: int
    device: str

    def __str__(self) -> str:
        size = f"{self.image_size}x{self.image_size}"
        return f"{self.network}, batch {self.batch_size}, {size}, {self.device}"


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run of the order; ``run_id`` counts from 0, ``repetition`` from 1."""

    run_id: int
    repetition: int
    configuration: Configuration

    def __str__(self) -> str:
        return f"run {self.run_id}, {self.configuration}, repetition {self.repetition}"


@dataclass(frozen=True, slots=True)
class Study:
    """Networks × batch sizes × image sizes × devices, each repeated.

    Attributes:
        networks: names; see :func:`layer_energy.models.build_model`.
        batch_sizes: images per training step.
        image_sizes: height and width of the images.
        devices: ``cpu``, ``cuda`` (which is ``cuda:0``) or ``cuda:N``.
        repetitions: runs of each configuration; the paper's are 30.
        data, training, protocol: the sections of these names.
        seed: of the order, the split of the images and, with the repetition, initial weights.
        schema_version: of the study file.

    Raises:
        InvalidInput: if a value is out of its range.
    """

    networks: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    image_sizes: tuple[int, ...]
    repetitions: int
    data: Data
    training: Training
    protocol: Protocol = field(default_factory=Protocol)
    devices: tuple[str, ...] = ("cpu",)
    seed: int = 0
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            raise InvalidInput(
                f"schema_version is {self.schema_version} and this layer_energy reads "
                f"{SCHEMA_VERSION}; write the study for it, or use another version"
            )
        _check(self.repetitions >= 1, "repetitions", "1 or more", self)
        for name in ("networks", "batch_sizes", "image_sizes", "devices"):
            values = getattr(self, name)
            distinct = {"cuda:0" if each == "cuda" else each for each in values}
            if not values or len(distinct) < len(values):
                raise InvalidInput(f"{name} must name one or more, each once, got {list(values)}")
        for name in ("batch_sizes", "image_sizes"):
            if min(getattr(self, name)) < 1:
                raise InvalidInput(f"{name} must be 1 or more, got {list(getattr(self, name))}")

    def configurations(self) -> list[Configuration]:
        """All of them, in the order of the file."""
        axes = (self.networks, self.batch_sizes, self.image_sizes, self.devices)
        return [Configuration(*values) for values in product(*axes)]

    def order(self) -> list[PlannedRun]:
        """All runs, in the order to do them.

        Every repetition is a block with each configuration once, shuffled anew: a drift of the
        machine falls on all configurations alike, and a study that is cut short is balanced.
        """
        shuffled = random.Random(self.seed)
        runs: list[PlannedRun] = []
        for repetition in range(1, self.repetitions + 1):
            block = self.configurations()
            shuffled.shuffle(block)
            runs += [PlannedRun(len(runs) + i, repetition, each) for i, each in enumerate(block)]
        return runs

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def load_study(path: str | Path) -> Study:
    """Read a study file.

    Args:
        path: TOML; its keys are the attributes of :class:`Study` and of its sections.

    Raises:
        InvalidInput: naming the key that is missing, unknown, of another type or out of range.
    """
    path = Path(path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} is not TOML: {error}") from error
    try:
        sections = {
            name: _section(cls, values.pop(name, {}), f"{name}.")
            for name, cls in (("data", Data), ("training", Training), ("protocol", Protocol))
        }
        study = _section(Study, {**values, **sections}, "")
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from error
    if study.data.path is None:
        return study
    folder = (path.parent / study.data.path).resolve()  # however the study file was named
    return replace(study, data=replace(study.data, path=str(folder)))


T = TypeVar("T")

_EXPECTED: dict[Any, tuple[str, Any]] = {
    str: ("a text", lambda x: isinstance(x, str)),
    int: ("a whole number", lambda x: type(x) is int),
    float: ("a number", lambda x: type(x) in (int, float)),
    tuple[str, ...]: ("a list of texts", lambda x: _all(x, str)),
    tuple[int, ...]: ("a list of whole numbers", lambda x: _all(x, int)),
}


def _all(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(type(each) is kind for each in value)


def _section(cls: type[T], values: Any, prefix: str) -> T:
    """A dataclass of the values of one section, their names and types checked."""
    if not isinstance(values, Mapping):
        raise InvalidInput(f"{prefix[:-1]} must be a section, [{prefix[:-1]}], got {values!r}")
    hints = get_type_hints(cls)
    if unknown := sorted(values.keys() - hints.keys()):
        keys = ", ".join(prefix + name for name in hints)
        raise InvalidInput(f"{prefix}{unknown[0]} is not known; the keys are {keys}")
    for each in fields(cls):  # type: ignore[arg-type]  # a dataclass
        needed = each.default is MISSING and each.default_factory is MISSING
        if needed and each.name not in values:
            raise InvalidInput(f"{prefix}{each.name} is missing")
    return cls(**{name: _typed(prefix + name, values[name], hints[name]) for name in values})


def _typed(name: str, value: Any, hint: Any) -> Any:
    options = [hint, *getattr(hint, "__args__", ())]  # of `int | None`: int
    for option in options:
        if option in _EXPECTED:
            expected, holds = _EXPECTED[option]
            if not holds(value):
                raise InvalidInput(f"{name} must be {expected}, got {value!r}")
            return tuple(value) if isinstance(value, list) else value
    return value


def _check(holds: bool, name: str, expected: str, owner: object) -> None:
    if not holds:
        value = getattr(owner, name.rpartition(".")[2])
        raise InvalidInput(f"{name} must be {expected}, got {value!r}")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidInput(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
