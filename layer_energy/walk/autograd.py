"""What a model asks of autograd during its forward, noticed while nothing is differentiated.

A walk runs in inference mode, where ``torch.no_grad`` changes nothing and
``torch.utils.checkpoint`` does nothing. While :func:`noticed` is open both report to the recorder:
operations under the one have no backward pass, those under the other are computed twice.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch.utils import checkpoint


class Listener(Protocol):
    """Who is told.

    Attributes:
        differentiating: whether operations have a backward pass.
        segment: number of the checkpoint that is open; 0 outside any.
    """

    differentiating: bool
    segment: int


@contextlib.contextmanager
def noticed(listener: Listener) -> Iterator[None]:
    """Tell ``listener`` what this thread's forward asks; other threads are left alone."""
    thread = threading.get_ident()
    numbers = itertools.count(1)

    @contextlib.contextmanager
    def open_segment() -> Iterator[None]:
        outer = listener.segment
        listener.segment = outer or next(numbers)  # one inside another is computed again with it
        try:
            yield
        finally:
            listener.segment = outer

    def ours(original: Any, replacement: Callable[..., Any]) -> Callable[..., Any]:
        def either(*args: Any, **kwargs: Any) -> Any:
            mine = threading.get_ident() == thread
            return (replacement if mine else original)(*args, **kwargs)

        return either

    def entering(enter: Any, value: bool) -> Callable[..., None]:
        def entered(context: Any) -> None:
            context._layer_energy_outer = listener.differentiating
            listener.differentiating = value
            enter(context)

        return entered

    def leaving(leave: Any) -> Callable[..., None]:
        def left(context: Any, *error: Any) -> None:
            listener.differentiating = context._layer_energy_outer
            leave(context, *error)

        return left

    def reentrant(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        with open_segment():
            return function(*args)

    def not_reentrant(*args: Any, **kwargs: Any) -> Iterator[None]:
        with open_segment():
            yield

    enable, disable = torch.enable_grad, torch.no_grad
    changes: list[tuple[Any, str, Callable[..., Any]]] = [
        (disable, "__enter__", entering(disable.__enter__, False)),
        (disable, "__exit__", leaving(disable.__exit__)),
        (enable, "__enter__", entering(enable.__enter__, True)),
        (enable, "__exit__", leaving(enable.__exit__)),
        (checkpoint.CheckpointFunction, "apply", reentrant),
        (checkpoint, "_checkpoint_without_reentrant_generator", not_reentrant),
        (checkpoint, "_checkpoint_without_reentrant_generator_impl", not_reentrant),
    ]
    with contextlib.ExitStack() as stack:
        for owner, name, replacement in changes:
            original = getattr(owner, name, None)
            if original is not None:  # the last two are one, in different versions of torch
                stack.callback(_restore, owner, name, vars(owner).get(name, _INHERITED))
                change = ours(original, replacement)
                method = name == "apply"  # called on the class
                setattr(owner, name, staticmethod(change) if method else change)
        yield


_INHERITED = object()


def _restore(owner: Any, name: str, value: Any) -> None:
    if value is _INHERITED:
        delattr(owner, name)
    else:
        setattr(owner, name, value)
