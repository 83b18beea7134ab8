"""One training run of a study with torch, measured."""

from __future__ import annotations

import itertools
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from types import TracebackType
from typing import Any, Self

import torch
from sklearn.metrics import accuracy_score, f1_score

from layer_energy.device import local_cpu, local_gpu
from layer_energy.errors import DeviceLost, InvalidInput, MeasureError
from layer_energy.meters import READ_EVERY_S, Meter, Reading, average_power_w, open_meter
from layer_energy.study.images import load_images
from layer_energy.study.loop import build_classifier, fit
from layer_energy.study.spec import Configuration, PlannedRun, Study, Training
from layer_energy.study.table import Run
from layer_energy.workload import Device

_SAMPLE_S = 0.5

Stop = Callable[[], bool]


class _Stopped(Exception):
    """A run is given up."""


class TorchTrainer:
    """Trains on this machine's devices.

    What a run's joules, seconds and images hold: every epoch's training and validation, the loading
    of images included; not the building of the network.

    Raises:
        InvalidInput: if a device, a network or the images cannot be had; each network sees two
            images of each size first.
        MeterError: if a device's joules cannot be read.
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        self._devices = {name: _device(name) for name in study.devices}
        self._meters = {name: _meter(study, at) for name, at in self._devices.items()}
        self._images = cache(lambda size: load_images(study.data, size, study.seed))
        for configuration in study.configurations():
            self._check(configuration)

    def identity(self) -> Mapping[str, Any]:
        """Devices and the names of their meters."""
        return {
            "devices": {
                name: {"name": at.name, "threads": at.threads, **at.details}
                for name, at in self._devices.items()
            },
            "meters": {name: meter.name for name, meter in self._meters.items()},
        }

    def facts(self) -> Mapping[str, Any]:
        """What the meters assume."""
        sentences = itertools.chain(*(meter.assumptions for meter in self._meters.values()))
        return {"assumptions": list(dict.fromkeys(sentences))}

    def warm_up(self, configuration: Configuration) -> None:
        """The first training step of one configuration."""
        once = replace(self._study.training, epochs=1, frozen_epochs=0)

        def stop() -> None:
            raise _Stopped

        with suppress(_Stopped):
            self._fit(configuration, once, self._study.seed, on_step=stop)

    def train(self, planned: PlannedRun, should_stop: Stop) -> Run | None:
        """Do one run; ``None`` if it was told to stop.

        Raises:
            MeasureError: if the meter counted nothing in it.
            MeterError: if the meter cannot be read any more.
            DeviceLost: if the GPU cannot be used any more.
        """
        configuration, training = planned.configuration, self._study.training
        meter = self._meters[configuration.device]
        started = datetime.now(UTC).isoformat(timespec="seconds")

        def stop() -> None:
            if should_stop():
                raise _Stopped

        try:
            before, after, utilisation, images, predicted = self._fit(
                configuration, training, self._study.seed + planned.repetition, on_step=stop
            )
        except _Stopped:
            return None
        average_power_w(before, after)  # raises where the readings make no sense
        time_s, energy_j = after.time_s - before.time_s, after.energy_j - before.energy_j
        if energy_j == 0:
            raise MeasureError(
                f"the run is too short for the meter: {meter.name} counted no joules in "
                f"{time_s:.3g} s; raise training.epochs or data.images"
            )
        truth = self._images(configuration.image_size).truth
        return Run(
            run_id=planned.run_id,
            repetition=planned.repetition,
            configuration=configuration,
            epochs=training.epochs,
            frozen_epochs=training.frozen_epochs,
            images=images,
            time_s=time_s,
            energy_j=energy_j,
            utilisation=utilisation,
            accuracy=float(accuracy_score(truth, predicted)),
            f1=float(f1_score(truth, predicted, average="macro", zero_division=0)),
            quality=meter.quality,
            relative_uncertainty=meter.relative_uncertainty,
            meter=meter.name,
            started=started,
        )

    def _fit(
        self,
        configuration: Configuration,
        training: Training,
        seed: int,
        on_step: Callable[[], None],
    ) -> tuple[Reading, Reading, float | None, int, list[int]]:
        """Readings before and after, utilisation between them, images seen, classes predicted."""
        device = torch.device(configuration.device)
        images = self._images(configuration.image_size)
        meter = self._meters[configuration.device]
        read_s = time.monotonic()

        def step() -> None:
            nonlocal read_s
            on_step()
            if time.monotonic() - read_s >= READ_EVERY_S:  # of two wraps of a counter, it sees one
                read_s = time.monotonic()
                meter.read()

        forked = torch.random.fork_rng([device] if device.type == "cuda" else [])
        with _device_errors(device), forked:
            torch.manual_seed(seed)
            classifier = build_classifier(configuration.network, images.classes)
            classifier.network.to(device)
            _synchronize(device)
            with _Utilisation(device) as utilisation:
                before = meter.read()
                seen, predicted = fit(
                    classifier, images, configuration.batch_size, training, device, seed, step
                )
                _synchronize(device)
                after = meter.read()
        return before, after, utilisation.share, seen, predicted

    def _check(self, configuration: Configuration) -> None:
        """Find mistakes before the first hour, not after it."""
        images = self._images(configuration.image_size)
        if configuration.batch_size > len(images.training):
            raise InvalidInput(
                f"a batch of {configuration.batch_size} is more than the {len(images.training)} "
                "training images; take fewer in batch_sizes, or more data.images"
            )
        with torch.random.fork_rng([]), torch.inference_mode():
            network = build_classifier(configuration.network, images.classes).network.eval()
            size = configuration.image_size
            try:
                output = network(torch.zeros(2, 3, size, size))
            except Exception as error:  # whatever a stranger's forward raises
                raise InvalidInput(
                    f"{configuration.network} does not take images of {size}x{size} "
                    f"({type(error).__name__}: {error}); change image_sizes or networks"
                ) from error
        if getattr(output, "shape", None) != (2, images.classes):
            shape = getattr(output, "shape", None)
            raise InvalidInput(
                f"{configuration.network} gives {shape and tuple(shape)} for two images of "
                f"{images.classes} classes; a study needs one score a class, "
                f"{(2, images.classes)}"
            )


class _Utilisation:
    """Share of a device that was busy inside the ``with`` block.

    Of a CPU: processor time of this process over the time of all its hardware threads. Of a GPU:
    mean of the driver's own figure, sampled twice a second; ``None`` where it cannot be read.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._ended = threading.Event()
        self._samples: list[float] = []
        self.share: float | None = None

    def __enter__(self) -> Self:
        self._start_s, self._start_cpu_s = time.perf_counter(), time.process_time()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        if self._device.type == "cuda":
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._device.type == "cuda":
            self._ended.set()
            self._thread.join()
            if self._samples:
                self.share = math.fsum(self._samples) / len(self._samples)
            return
        busy_s = time.process_time() - self._start_cpu_s
        self.share = busy_s / ((time.perf_counter() - self._start_s) * (os.cpu_count() or 1))

    def _sample(self) -> None:
        with suppress(Exception):  # the driver may hide it: a study does without
            while not self._ended.wait(_SAMPLE_S):
                self._samples.append(torch.cuda.utilization(self._device) / 100)


def _device(name: str) -> Device:
    match = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
    if not match:
        raise InvalidInput(f"devices must be cpu, cuda or cuda:N, got {name!r}")
    return local_cpu() if name == "cpu" else local_gpu(int(match[1] or 0))


def _meter(study: Study, device: Device) -> Meter:
    if device.kind == "cuda":
        return open_meter("nvml", device=device.details["uuid"])
    options: dict[str, Any] = {}
    if study.protocol.max_power_w is not None:
        options["max_power_w"] = study.protocol.max_power_w
    return open_meter(study.protocol.meter, **options)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _device_errors(device: torch.device) -> Iterator[None]:
    """An error after which the device does not answer any more becomes ``DeviceLost``."""
    try:
        yield
    except Exception as error:  # torch and the networks of strangers raise anything
        try:
            _synchronize(device)
        except RuntimeError as lost:
            raise DeviceLost(
                f"{device} cannot be used any more ({lost}); the runs until now are kept: begin "
                "again with the same study and folder, in a new process"
            ) from error
        raise
