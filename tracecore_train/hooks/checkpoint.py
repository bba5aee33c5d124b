"""Checkpoint time: how long ``torch.save`` takes, and since when it runs.

A call on the training thread stands on the rank page while it lasts and in the step record after
it; a call on another thread (asynchronous checkpointing) gives a record only. A call inside a
call counts once.
"""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Any

from tracecore_train.errors import HookUnavailableError
from tracecore_train.hooks.patch import Patch
from tracecore_train.recorder.clock import now_ns
from tracecore_train.recorder.page import Word
from tracecore_train.wire.records import RecordKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracecore_train.guard import Guard
    from tracecore_train.hooks.context import HookContext

_CHECKPOINT_SINCE = int(Word.CHECKPOINT_SINCE)


class CheckpointHook:
    """Times ``torch.save`` under both names it is called by."""

    name = "checkpoint"

    def __init__(self, context: HookContext, guard: Guard) -> None:
        """Prepare; nothing is installed yet."""
        self._recorder = context.recorder
        self._guard = guard
        self._inside = threading.local()
        self._patches: list[Patch] = []

    def install(self) -> None:
        """Patch ``torch.save`` and ``torch.serialization.save``, which are one function."""
        try:
            import torch
            import torch.serialization
        except ImportError as error:
            raise HookUnavailableError(f"checkpoint: no torch.save ({error})") from None
        wrap = functools.cache(self._wrap_save)
        self._patches = [
            Patch(torch, "save", wrap),
            Patch(torch.serialization, "save", wrap),
        ]
        for patch in self._patches:
            patch.install()

    def uninstall(self) -> None:
        """Put the originals back."""
        for patch in self._patches:
            patch.uninstall()
        self._patches = []

    def blind(self) -> list[str]:
        """Give what this hook cannot see."""
        return []

    def _wrap_save(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def save(*args: Any, **kwargs: Any) -> Any:
            if not self._guard.is_open or getattr(self._inside, "flag", False):
                return original(*args, **kwargs)
            began, is_training = 0, False
            try:
                with self._guard:
                    is_training = self._recorder.claim_training_thread()
                    began = self._enter(is_training)
                return original(*args, **kwargs)
            finally:
                if began and self._guard.is_open:
                    with self._guard:
                        self._leave(began, is_training)

        return save

    def _enter(self, is_training: bool) -> int:
        self._inside.flag = True
        began = now_ns()
        if is_training:
            self._recorder.page.words[_CHECKPOINT_SINCE] = began
        return began

    def _leave(self, began: int, is_training: bool) -> None:
        self._inside.flag = False
        now = now_ns()
        if is_training:
            self._recorder.page.words[_CHECKPOINT_SINCE] = 0
            self._recorder.add_checkpoint(now - began)
        self._recorder.append((RecordKind.CHECKPOINT, now, "torch.save", now - began))
