"""Training and validation of a classifier, head first if asked for: what the joules are of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from layer_energy.errors import InvalidInput
from layer_energy.models import build_model
from layer_energy.study.images import Images
from layer_energy.study.spec import Training

_OPTIMIZERS: dict[str, Any] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


@dataclass(frozen=True, slots=True)
class Classifier:
    """A network and its head, the layer that gives the classes."""

    network: nn.Module
    head: nn.Module


def build_classifier(name: str, classes: int) -> Classifier:
    """A network by name with a fresh head.

    The head is the last module with weights of its own, as in all classifiers of torchvision.

    Raises:
        InvalidInput: if the name leads nowhere, or that module is no ``Linear`` or ``Conv2d``.
    """
    network = build_model(name, real=True)
    weighted = [
        path
        for path, module in network.named_modules()
        if next(module.parameters(False), None) is not None
    ]
    old: Any = network.get_submodule(weighted[-1]) if weighted else None
    bias = getattr(old, "bias", None) is not None
    head: nn.Module
    if isinstance(old, nn.Linear):
        head = nn.Linear(old.in_features, classes, bias)
    elif isinstance(old, nn.Conv2d) and old.kernel_size == (1, 1):
        head = nn.Conv2d(old.in_channels, classes, 1, bias=bias)
    else:
        raise InvalidInput(
            f"{name} ends in {type(old).__name__}; a study needs a classifier whose last module "
            "with weights is a Linear or a 1×1 Conv2d, to give it one output a class"
        )
    if not weighted[-1]:
        return Classifier(head, head)
    network.set_submodule(weighted[-1], head)
    return Classifier(network, head)


def fit(
    classifier: Classifier,
    images: Images,
    batch_size: int,
    training: Training,
    device: torch.device,
    seed: int,
    on_step: Callable[[], None],
) -> tuple[int, list[int]]:
    """Train for all epochs, each followed by a pass over the validation images.

    Only whole batches are trained on. While all but the head is frozen it is in evaluation mode,
    so that its normalisation layers stay as they are. Auxiliary classifiers are not trained.

    Args:
        classifier: on the device.
        images: what to train on and to judge by.
        batch_size: images per step, at most as many as there are to train on.
        training: epochs, of which how many with all but the head frozen, and optimizer.
        device: where to.
        seed: of the order of the images.
        on_step: called after every batch.

    Returns:
        The number of images seen, in training and in validation, and the class predicted last for
        each validation image.
    """
    network, head = classifier.network, classifier.head
    shuffled = DataLoader(
        images.training, batch_size, shuffle=True, drop_last=True,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    in_order = DataLoader(images.validation, batch_size)
    seen = 0
    predicted: list[int] = []
    optimizer: Any = None
    for epoch in range(training.epochs):
        frozen = epoch < training.frozen_epochs
        if epoch in (0, training.frozen_epochs):
            network.requires_grad_(not frozen)
            head.requires_grad_(True)
            trained = [p for p in network.parameters() if p.requires_grad]
            optimizer = _OPTIMIZERS[training.optimizer](trained, lr=training.learning_rate)
        network.train(not frozen)
        head.train()
        for pixels, labels in shuffled:
            optimizer.zero_grad()
            scores = _scores(network, pixels.to(device))
            functional.cross_entropy(scores, labels.to(device)).backward()
            optimizer.step()
            seen += len(labels)
            on_step()
        network.eval()
        predicted = []
        with torch.inference_mode():
            for pixels, labels in in_order:
                predicted += _scores(network, pixels.to(device)).argmax(1).tolist()
                seen += len(labels)
                on_step()
    return seen, predicted


def _scores(network: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """``(n, classes)``; of networks with auxiliary classifiers those of the last one."""
    output = network(pixels)
    scores: torch.Tensor = getattr(output, "logits", output)
    return scores
