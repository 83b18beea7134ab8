"""Which module is running: a stack of paths kept by global forward hooks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from torch import nn
from torch.nn.modules import module as hooks


class Scope:
    """While entered, ``current`` is the (path, type name, call index) of the innermost module.

    Global hooks leave the model's own hooks alone; calls from other threads are ignored. A module
    registered under several paths is named by the one below its caller.
    """

    def __init__(self, model: nn.Module) -> None:
        self._paths: dict[int, list[str]] = {}
        for path, module in model.named_modules(remove_duplicate=False):
            self._paths.setdefault(id(module), []).append(path)
        self._root = ("", type(model).__name__, 0)
        self._stack: list[tuple[tuple[str, str, int], nn.Module]] = []
        self._calls: dict[str, int] = {}
        self._thread = threading.get_ident()
        self.last = self._root

    @property
    def current(self) -> tuple[str, str, int]:
        """Path from the root, class name, and how often that path ran before this call."""
        return self._stack[-1][0] if self._stack else self._root

    @contextmanager
    def inside(self, path: str, name: str) -> Iterator[None]:
        """Let ``current`` be a place that is no module, such as the loss."""
        outer, self._root, self._stack = (self._root, self._stack), (path, name, 0), []
        self.last = self._root
        try:
            yield
        finally:
            self._root, self._stack = outer

    def _path_of(self, module: nn.Module) -> str:
        caller = self.current[0]
        paths = self._paths.get(id(module))
        if paths is None:  # made during the forward
            name = f"<{type(module).__name__}>"
            return f"{caller}.{name}" if caller else name
        return next((path for path in paths if path.startswith(f"{caller}.")), paths[0])

    def move_to(self, path: str, kind: str, call: int) -> None:
        """Say that what runs now is of another module: for graphs, which call no modules."""
        if self._stack:
            self.last = (path, kind, call)
            self._stack[-1] = (self.last, self._stack[-1][1])

    def _enter_module(self, module: nn.Module, args: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        path = self._path_of(module)
        call = self._calls.get(path, 0)
        self._calls[path] = call + 1
        self.last = (path, type(module).__name__, call)
        self._stack.append((self.last, module))

    def _leave_module(self, module: nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        while self._stack and self._stack.pop()[1] is not module:
            pass

    def __enter__(self) -> Scope:
        self._handles = (
            hooks.register_module_forward_pre_hook(self._enter_module),
            hooks.register_module_forward_hook(self._leave_module, always_call=True),
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
