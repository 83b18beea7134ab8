"""The images of a study, split into those to train on and those to validate on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch.nn import functional
from torch.utils.data import Dataset, Subset, TensorDataset

from layer_energy.errors import InvalidInput
from layer_energy.study.spec import Data

Pairs = Dataset[Any]


@dataclass(frozen=True, slots=True)
class Images:
    """Pairs of a ``(3, size, size)`` image and its class, a number below ``classes``.

    Attributes:
        training: what to train on.
        validation: what to judge by.
        truth: classes of the validation images, in order.
        classes: how many there are.
    """

    training: Subset[Any]
    validation: Subset[Any]
    truth: list[int]
    classes: int


def load_images(data: Data, size: int, seed: int) -> Images:
    """Read or generate the images of one size; the split is stratified by class.

    Digits and generated images are held in memory, those of a folder are read when asked for.

    Raises:
        InvalidInput: if the folder holds no images by class, or there are fewer than asked for.
    """
    pairs, labels = _folder(data, size) if data.source == "folder" else _in_memory(data, size, seed)
    chosen = np.arange(len(labels))
    try:
        if data.images is not None and data.images != len(labels):
            chosen, _ = train_test_split(
                chosen, train_size=data.images, stratify=labels, random_state=seed
            )
        training, validation = train_test_split(
            chosen, test_size=data.validation_share, stratify=labels[chosen], random_state=seed
        )
    except ValueError as error:
        raise InvalidInput(
            f"{data.images or len(labels)} images of {len(labels)} in {len(set(labels))} classes "
            f"cannot be split: {error}. Change data.images or data.validation_share"
        ) from error
    return Images(
        training=Subset(pairs, training.tolist()),
        validation=Subset(pairs, validation.tolist()),
        truth=labels[validation].tolist(),
        classes=int(labels.max()) + 1,
    )


def _in_memory(data: Data, size: int, seed: int) -> tuple[Pairs, Any]:
    if data.source == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        grey = torch.from_numpy(digits.images / 16).float()[:, None]
        pixels = functional.interpolate(grey, (size, size), mode="bilinear").repeat(1, 3, 1, 1)
        labels = torch.from_numpy(digits.target)
    else:
        assert data.images is not None
        assert data.classes is not None
        drawn = torch.Generator().manual_seed(seed)
        pixels = torch.rand(data.images, 3, size, size, generator=drawn)
        labels = torch.arange(data.images) % data.classes
    pairs: Pairs = TensorDataset(pixels, labels)
    return pairs, labels.numpy()


def _folder(data: Data, size: int) -> tuple[Pairs, Any]:
    from torchvision import datasets, transforms

    assert data.path is not None
    transform = transforms.Compose(
        [transforms.Resize(size), transforms.CenterCrop(size), transforms.ToTensor()]
    )
    try:
        found = datasets.ImageFolder(data.path, transform)
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"data.path {data.path} does not hold images by class ({error}); expected a sub-folder "
            "for each class, with its images in it"
        ) from error
    return found, np.asarray(found.targets)
