"""Device time of steps and their parts on CUDA, and since when a CUDA graph is captured.

Where CUDA is never initialised this hook does nothing. It never initialises it either: the export
thread looks once per hand-over whether somebody did.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from tracecore_train.errors import HookUnavailableError
from tracecore_train.hooks.cuda import NO_CUDA, cuda_in_use
from tracecore_train.hooks.device_marks import DeviceMarks
from tracecore_train.hooks.patch import Patch
from tracecore_train.recorder.clock import now_ns
from tracecore_train.recorder.page import Word

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracecore_train.guard import Guard
    from tracecore_train.hooks.context import HookContext
    from tracecore_train.wire.records import Record

_CAPTURE_SINCE = int(Word.CAPTURE_SINCE)


class DeviceTimeHook:
    """Marks steps on the device once there is one in use."""

    name = "device_time"

    def __init__(self, context: HookContext, guard: Guard) -> None:
        """Prepare; nothing is installed yet."""
        self._recorder = context.recorder
        self._guard = guard
        self._patches: list[Patch] = []
        self._marks: DeviceMarks | None = None
        self._num_captures = 0

    def install(self) -> None:
        """Patch begin and end of a graph capture, where torch is built for it."""
        try:
            import torch
            import torch.cuda
        except ImportError as error:
            raise HookUnavailableError(f"no torch ({error})") from None
        graph = getattr(torch.cuda, "CUDAGraph", None)
        is_built = torch.version.cuda or getattr(torch.version, "hip", None)
        if is_built and hasattr(graph, "capture_begin") and hasattr(graph, "capture_end"):
            self._patches = [
                Patch(graph, "capture_begin", self._wrap_begin),
                Patch(graph, "capture_end", self._wrap_end),
            ]
            for patch in self._patches:
                patch.install()

    def uninstall(self) -> None:
        """Put the originals back and mark no more steps."""
        for patch in self._patches:
            patch.uninstall()
        self._patches = []
        self._recorder.on_step = self._recorder.parts.marks = self._marks = None

    def blind(self) -> list[str]:
        """Give what this hook cannot see."""
        if self._marks is None:
            return [f"device_time: {NO_CUDA}"]
        if self._marks.ends_inside_backward:
            return ["device_time: steps end inside backward (optimizer in backward)"]
        return []

    def poll(self, is_full: bool) -> list[Record]:
        """Begin to mark steps once somebody has initialised CUDA."""
        cuda = cuda_in_use() if self._marks is None else None
        if cuda is not None:
            self._marks = DeviceMarks(
                cuda, self._recorder, self._guard, lambda: self._num_captures > 0
            )
            self._recorder.on_step = self._marks.on_step
        return []

    def _wrap_begin(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def capture_begin(*args: Any, **kwargs: Any) -> Any:
            if not self._guard.is_open:
                return original(*args, **kwargs)
            with self._guard:
                self._enter()
            try:
                return original(*args, **kwargs)
            except BaseException:
                with self._guard:
                    self._leave()
                raise

        return capture_begin

    def _wrap_end(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def capture_end(*args: Any, **kwargs: Any) -> Any:
            try:
                return original(*args, **kwargs)
            finally:
                # Also when the hook was switched off meanwhile: a capture must not seem to last.
                if self._num_captures:
                    with self._guard:
                        self._leave()

        return capture_end

    def _enter(self) -> None:
        self._num_captures += 1
        self._recorder.page.words[_CAPTURE_SINCE] = now_ns()

    def _leave(self) -> None:
        self._num_captures = max(0, self._num_captures - 1)
        if not self._num_captures:
            self._recorder.page.words[_CAPTURE_SINCE] = 0
