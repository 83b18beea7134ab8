"""Models by name: ``vgg16``, ``timm:NAME``, ``hf:PATH-OR-CONFIG``, ``package.module:factory``."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from layer_energy.errors import InvalidInput, WalkError

if TYPE_CHECKING:
    from torch import nn

    from layer_energy.optimization import TrainingStep
    from layer_energy.walk import Trace

T = TypeVar("T")

_SLOW_INITIALISATION = ("googlenet", "inception_v3")
"""Draw truncated normals through scipy, which takes long, and warn about it."""


def build_model(name: str, real: bool = False) -> nn.Module:
    """Build a model by name, on the meta device where its construction allows that.

    Args:
        name: a torchvision model; ``timm:`` and a timm model; ``hf:`` and a folder or file with a
            Hugging Face ``config.json``, whose ``architectures`` say which heads it has, or a model
            type such as ``hf:bert``, without a head; or ``package.module:factory``, a callable
            without required arguments that makes a module or an ``ExportedProgram``.
        real: give it memory and random weights all the same, on torch's default device.

    Raises:
        InvalidInput: if the name leads nowhere; the message suggests near ones.
    """
    if name.endswith(".pt2"):
        raise InvalidInput(
            f"{name} is not loaded: torch.export.load runs pickles, which may hold any program. If "
            "you trust the file, do it in Python: predict_energy(torch.export.load(path)), or name "
            "a function that does as package.module:factory"
        )
    if name.startswith("timm:"):
        factory = _timm(name.removeprefix("timm:"))
    elif name.startswith("hf:"):
        factory = _huggingface(name.removeprefix("hf:"))
    elif ":" in name:
        factory = _imported(name)
    else:
        factory = _torchvision(name)
    import torch
    from torch import nn

    from layer_energy.walk.exported import is_program

    model: Any = None
    if not real:
        # constructors that compute with values fail on meta: those then run for real
        with contextlib.suppress(Exception), torch.device("meta"):
            model = factory()
    try:
        if model is None:
            with torch.get_default_device() if real else torch.device("cpu"):
                model = factory()
    except Exception as error:  # whatever a stranger's constructor raises
        reason = f"{type(error).__name__}: {str(error)[:400]}"
        raise InvalidInput(f"{name} could not be built: {reason}") from error
    if is_program(model):
        return model.module()
    if not isinstance(model, nn.Module):
        raise InvalidInput(f"{name} made a {type(model).__name__}, not a torch.nn.Module")
    return model


def walk_model(
    name: str,
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    step: TrainingStep | None = None,
    autocast: str | None = None,
    frozen_backbone: bool = False,
) -> Trace:
    """Build a model by name and walk it; for the arguments see :func:`layer_energy.walk.walk`.

    With no input given, a torchvision classifier takes that of its best weights; with
    ``frozen_backbone`` only the last layer is trained.

    Raises:
        InvalidInput: if the name leads nowhere, or the input cannot be understood.
        WalkError: if the model cannot be walked.
    """
    from layer_energy.walk import walk
    from layer_energy.walk.inputs import check_batch_size

    check_batch_size(batch_size)
    assumed = ["all layers but the last are frozen"] if frozen_backbone else []
    if not args and not kwargs and (size := default_input(name)):
        args, batch_size = ((1 if batch_size is None else batch_size, *size),), None
        shape = "x".join(map(str, args[0]))
        assumed.append(f"input {shape} from the transforms of {name}'s weights")

    def walked(model: nn.Module) -> Trace:
        return walk(
            model, *args, kwargs=kwargs, batch_size=batch_size, step=step, autocast=autocast
        )

    trace = on_model(name, walked, frozen_backbone)
    trace.notes[:0] = assumed
    return trace


def on_model(name: str, use: Callable[[nn.Module], T], frozen_backbone: bool = False) -> T:
    """Build a model by name and use it, with real weights if it cannot be walked without.

    Args:
        name: see :func:`build_model`.
        use: what to do with the model; called a second time where the first raises a ``WalkError``
            and the model had no weights.
        frozen_backbone: only the last layer is trained.

    Raises:
        InvalidInput: if the name leads nowhere.
        WalkError: if ``use`` raises one with weights, too.
    """
    from layer_energy.optimization import freeze_backbone

    def built(real: bool) -> nn.Module:
        model = build_model(name, real)
        return freeze_backbone(model) if frozen_backbone else model

    model = built(real=False)
    try:
        return use(model)
    except WalkError:
        if not any(parameter.is_meta for parameter in model.parameters()):
            raise
        # a forward that computes with values needs weights
        return use(built(real=True))


def classifiers() -> list[str]:
    """Names of all ImageNet classifiers of torchvision.

    Raises:
        InvalidInput: if torchvision is not installed.
    """
    try:
        from torchvision import models
    except ModuleNotFoundError:
        raise InvalidInput("torchvision is not installed: pip install torchvision") from None
    return list(models.list_models(module=models))


def default_input(name: str) -> tuple[int, ...] | None:
    """``(channels, height, width)`` of a torchvision classifier's best weights, else ``None``."""
    try:
        crop = _best_weights(name).transforms().crop_size
    except (AttributeError, TypeError):
        return None
    size = crop[0] if isinstance(crop, (list, tuple)) and len(crop) == 1 else crop
    return (3, size, size) if isinstance(size, int) else None


def published_accuracy(name: str) -> float | None:
    """Top-1 accuracy on ImageNet-1K, 0 to 1, that torchvision publishes for a model's best weights.

    ``None`` for models from elsewhere, for other tasks, and for quantised models, which are built
    in floating point here.
    """
    weights = None if name.startswith("quantized_") else _best_weights(name)
    metrics = weights.meta["_metrics"] if weights else {}
    percent = metrics.get("ImageNet-1K", {}).get("acc@1")
    return None if percent is None else percent / 100


def _best_weights(name: str) -> Any:
    """torchvision's default weights of a model, ``None`` where there are none."""
    if ":" in name:
        return None
    try:
        from torchvision import models
    except ModuleNotFoundError:
        return None
    try:
        return getattr(models.get_model_weights(name), "DEFAULT", None)
    except ValueError:
        return None


def _torchvision(name: str) -> Callable[[], Any]:
    try:
        from torchvision import models
    except ModuleNotFoundError:
        raise InvalidInput(
            f"{name} is looked for in torchvision, which is not installed: pip install torchvision"
        ) from None

    if name not in models.list_models():
        near = difflib.get_close_matches(name, models.list_models(), 3, 0.5)
        hint = f"; did you mean {', '.join(near)}?" if near else "."
        raise InvalidInput(
            f"torchvision has no model {name!r}{hint} Other sources: timm:NAME, hf:PATH, "
            "package.module:factory"
        )
    extra: dict[str, Any] = {}
    if _takes_backbone(models.get_model_builder(name)):
        extra["weights_backbone"] = None
    if name in _SLOW_INITIALISATION:
        extra["init_weights"] = False
    if name.startswith("vit_") and (size := default_input(name)):
        extra["image_size"] = size[-1]  # they take one size only
    return lambda: models.get_model(name, weights=None, **extra)


def _takes_backbone(builder: Callable[..., Any]) -> bool:
    import inspect

    return "weights_backbone" in inspect.signature(builder).parameters


def _timm(name: str) -> Callable[[], Any]:
    try:
        import timm
    except ImportError:
        raise InvalidInput("timm is not installed: pip install timm") from None
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 3, 0.5)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise InvalidInput(f"timm has no model {name!r}{hint}")
    return lambda: timm.create_model(name)


def _huggingface(name: str) -> Callable[[], Any]:
    try:
        import transformers
        from transformers import AutoConfig, AutoModel
    except ImportError:
        raise InvalidInput("transformers is not installed: pip install transformers") from None
    path = Path(name)
    try:
        config = (
            AutoConfig.from_pretrained(name, local_files_only=True)
            if path.exists()
            else AutoConfig.for_model(name)
        )
    except (OSError, ValueError, KeyError) as error:
        raise InvalidInput(
            f"hf:{name} is neither a folder or file with a config.json nor a model type of "
            f"transformers such as bert or gpt2 ({type(error).__name__})"
        ) from error
    named = (getattr(transformers, a, None) for a in config.architectures or ())
    architecture = next(filter(None, named), None)
    return lambda: architecture(config) if architecture else AutoModel.from_config(config)


def _imported(name: str) -> Callable[[], Any]:
    module_name, _, attribute = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # a console script does not look into the current folder
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidInput(
            f"{name}: {error}; expected package.module:factory, importable from here"
        ) from error
    if not callable(factory):
        raise InvalidInput(f"{name} is not callable; expected a function or class making a model")
    return factory  # type: ignore[no-any-return]  # checked to be callable
