"""Pauses of Python's garbage collector, through ``gc.callbacks``.

A collection runs in whichever thread happened to trigger it, and with a GIL nobody else runs
Python meanwhile. So "inside since" stands on the rank page whatever the thread; the step is
charged with what ran on the training thread; and a pause worth telling singly says which it was.
There is one collection at a time, so one slot is enough. What is made here is plain tuples and
numbers: nothing for the collector to find.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from threading import get_ident
from typing import TYPE_CHECKING

from tracecore_train.recorder.clock import now_ns
from tracecore_train.recorder.pace import Pace
from tracecore_train.recorder.page import Word
from tracecore_train.wire.records import RecordKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracecore_train.guard import Guard
    from tracecore_train.hooks.context import HookContext

TELL_FROM_NS = 10_000_000
"""A pause from this length on is a record of its own; shorter ones are in the step's sum only."""
MAX_TOLD_PER_S = 10
"""Records a second; a collector that runs more often shows in the steps' sums."""
_GC_SINCE = int(Word.GC_SINCE)


class GarbageHook:
    """Times every collection."""

    name = "gc"

    def __init__(self, context: HookContext, guard: Guard) -> None:
        """Prepare; nothing is installed yet."""
        self._recorder = context.recorder
        self._guard = guard
        self._main_thread = threading.main_thread().ident
        self._callback: Callable[[str, dict[str, int]], None] | None = None
        self._pace = Pace(MAX_TOLD_PER_S)

    def install(self) -> None:
        """Append our callback."""
        self._recorder.parts.is_gc_timed = True
        self._callback = self._make_callback()
        gc.callbacks.append(self._callback)

    def uninstall(self) -> None:
        """Take exactly ours out again; who emptied the list took it out before."""
        with contextlib.suppress(ValueError):
            gc.callbacks.remove(self._callback)  # type: ignore[arg-type]
        self._callback = None
        self._recorder.parts.is_gc_timed = False
        self._recorder.page.words[_GC_SINCE] = 0

    def blind(self) -> list[str]:
        """Give which of its signals it cannot give at the moment."""
        if self._callback is not None and self._callback not in gc.callbacks:
            return ["gc: somebody emptied gc.callbacks; add theirs to the list instead"]
        return []

    def _make_callback(self) -> Callable[[str, dict[str, int]], None]:
        recorder, guard, main_thread = self._recorder, self._guard, self._main_thread
        page = recorder.page
        began = num_steps = 0

        def on_collection(phase: str, info: dict[str, int]) -> None:
            nonlocal began, num_steps
            if not guard.is_open:
                page.words[_GC_SINCE] = 0
                return
            if phase == "start":
                num_steps = recorder.num_steps
                began = page.words[_GC_SINCE] = now_ns()
            elif began:
                with guard:
                    page.words[_GC_SINCE] = 0
                    now = now_ns()
                    duration = now - began
                    is_training = get_ident() == (recorder.training_thread or main_thread)
                    if is_training:
                        recorder.add_gc(duration)
                    if duration >= TELL_FROM_NS:
                        self._tell(now, duration, info, num_steps, is_training)

        return on_collection

    def _tell(
        self, now: int, duration: int, info: dict[str, int], num_steps: int, is_training: bool
    ) -> None:
        if not self._pace.allows(now):
            return
        generation, num_collected = int(info["generation"]), int(info["collected"])
        self._recorder.append(
            (RecordKind.GC, now, generation, duration, num_collected, num_steps, is_training)
        )
