"""Notices of failed device allocations, on the rank page at the moment they happen.

Torch calls observers when an allocation has failed for good, without its lock, and then raises. A
caught and retried failure is an event, no crash. The notice is written where it is found when the
process dies of it; nothing is sent, and little is allocated: short texts on the host.

An observer cannot be taken out again. So one is attached per process, once CUDA is in use, and
calls whoever listens; after ``shutdown()`` nobody does.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from tracecore_train.guard import MAX_REASON
from tracecore_train.hooks.device_memory import allocator_text
from tracecore_train.hooks.exception_text import frame_text, is_users_file
from tracecore_train.recorder.clock import now_ns
from tracecore_train.recorder.page import Text, Word

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracecore_train.guard import Guard
    from tracecore_train.recorder.recorder import Recorder

MAX_FRAMES = 200
"""Frames looked through for the user's own."""
_NUM_OOMS, _OOM_TIME = int(Word.NUM_OOMS), int(Word.OOM_TIME)

_is_attached = False
_listener: Callable[[int, int, int, int], None] | None = None


class OomNotice:
    """Writes notices to a rank page while it listens."""

    def __init__(self, recorder: Recorder, guard: Guard) -> None:
        """Prepare; nobody listens yet."""
        self._recorder = recorder
        self._guard = guard
        self.reason = ""
        """Why failures are not noticed; empty: they are."""
        self.is_listening = False

    def listen(self) -> None:
        """Begin, where CUDA is in use; attaching would initialise it."""
        global _is_attached, _listener
        self.is_listening = True
        _listener = self._on_failure
        if _is_attached:
            return
        attach = getattr(sys.modules.get("torch._C"), "_cuda_attach_out_of_memory_observer", None)
        if attach is None:
            self.reason = "this torch has no out-of-memory observer"
            return
        try:
            attach(_observe)
        except RuntimeError as error:
            self.reason = f"the allocator in use takes no observer ({error})"[:MAX_REASON]
            return
        _is_attached = True

    def stop(self) -> None:
        """Listen no more; the observer stays attached and does nothing."""
        global _listener
        if _listener == self._on_failure:
            _listener = None
        self.is_listening = False

    def _on_failure(self, device: int, requested: int, total: int, free: int) -> None:
        if not self._guard.is_open:
            return
        with self._guard:
            held = allocator_text(device)
            frame = _innermost_frame(sys._getframe(1))
            page = self._recorder.page
            page.write_text(
                Text.OOM,
                f"cuda:{device} asked for {requested} bytes"
                f"{f' in {frame}' if frame else ''}; free {free} of {total}"
                f"{f', {held}' if held else ''}",
            )
            page.words[_OOM_TIME] = now_ns()
            page.words[_NUM_OOMS] += 1


def _observe(device: int, requested: int, total: int, free: int) -> None:
    # Read once: it may go meanwhile, and what is raised here would replace torch's own error.
    listener = _listener
    if listener is not None:
        listener(device, requested, total, free)


def _innermost_frame(frame: Any) -> str:
    """Name the innermost frame of the user's code; empty on a thread that has none (autograd)."""
    for _ in range(MAX_FRAMES):
        if frame is None:
            break
        if is_users_file(frame.f_code.co_filename):
            return frame_text(frame.f_code, frame.f_lineno)[:100]
        frame = frame.f_back
    return ""
