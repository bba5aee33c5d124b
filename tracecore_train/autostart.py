"""Start recording in an unchanged script, at the moment it has imported torch.

``tracecore run`` puts the bootstrap directory on PYTHONPATH; its ``sitecustomize`` calls
:func:`arm` in processes that may be ranks. Only a rank that imports torch starts anything: shells,
helper programs and loader workers either never import it or find the rank claimed.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from tracecore_train.guard import Guard, say

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_WORKER_MARKS = (
    "--multiprocessing-fork",
    "multiprocessing.spawn",
    "multiprocessing.forkserver",
    "multiprocessing.resource_tracker",
)


def arm() -> None:
    """Begin to wait for torch, unless this is a child of Python's multiprocessing."""
    with Guard("start-up"):
        if any(mark in argument for argument in sys.orig_argv for mark in _WORKER_MARKS):
            return
        sys.meta_path.insert(0, _TorchFinder())


class _TorchFinder:
    """Finds torch like everybody else, and notices when it has been executed."""

    def __init__(self) -> None:
        self._is_looking = False

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Give torch's own spec, with a loader that tells us when it is done."""
        if name != "torch" or self._is_looking:
            return None
        self._is_looking = True
        try:
            spec = _find(name, path, target)
        finally:
            self._is_looking = False
        if spec is not None and spec.loader is not None:
            with Guard("start-up"):
                self._watch(spec.loader)
        return spec

    def _watch(self, loader: Any) -> None:
        # The loader is an object of its own for every spec, so that the module keeps its
        # genuine loader when the instance attribute is gone again.
        original = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            del loader.exec_module
            original(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                _start()

        loader.exec_module = exec_module


def _find(name: str, path: Sequence[str] | None, target: ModuleType | None) -> ModuleSpec | None:
    for finder in list(sys.meta_path):
        find_spec = getattr(finder, "find_spec", None)
        spec: ModuleSpec | None = find_spec(name, path, target) if find_spec is not None else None
        if spec is not None:
            return spec
    return None


def _start() -> None:
    with Guard("start-up"):
        from tracecore_train.errors import ConfigError
        from tracecore_train.session import open_session

        try:
            open_session({}, is_quiet=True)
        except ConfigError as error:
            say(f"not recording: {error}")
