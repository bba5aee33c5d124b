"""Checkpoints: how long a saving call takes, since when it runs, its size and its failure.

A call on the training thread stands on the rank page while it lasts and in the step record after
it; a call on another thread gives a record that says training did not wait. A call inside a call
counts once, as the outermost: ``torch.distributed.checkpoint`` saves its parts with ``torch.save``,
also in threads of its own. An asynchronous save gives two records: what training waited for
(staging), and the whole when its future is done. Of a checkpoint nothing is kept, and of files
only the size of the one that a path named is looked up, by the thread that has just written it.
"""

from __future__ import annotations

import functools
import os
import stat
import sys
import threading
from typing import TYPE_CHECKING, Any

from tracecore_train.errors import HookUnavailableError
from tracecore_train.hooks.patch import Patch
from tracecore_train.hooks.savers import SAVERS, target_of
from tracecore_train.recorder.clock import now_ns
from tracecore_train.recorder.page import Word
from tracecore_train.wire.records import NOT_MEASURED, RecordKind

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from tracecore_train.guard import Guard
    from tracecore_train.hooks.context import HookContext
    from tracecore_train.hooks.savers import Saver
    from tracecore_train.wire.records import Record

_CHECKPOINT_SINCE = int(Word.CHECKPOINT_SINCE)


class CheckpointHook:
    """Times the calls of :data:`~tracecore_train.hooks.savers.SAVERS`."""

    name = "checkpoint"

    def __init__(self, context: HookContext, guard: Guard) -> None:
        """Prepare; nothing is installed yet."""
        self._recorder = context.recorder
        self._guard = guard
        self._inside = threading.local()
        self._distributed: set[int] = set()
        """Beginnings of the distributed saves that run; calls of their threads are their parts."""
        self._patches: dict[Saver, Patch] = {}
        self._patching = threading.Lock()
        """Between install and uninstall on one thread and :meth:`poll` on another."""
        self._is_installed = False
        self._wrap_torch_save = functools.cache(lambda original: self._wrap(SAVERS[0], original))

    def install(self) -> None:
        """Patch what is there: ``torch.save`` at least."""
        try:
            import torch.serialization  # noqa: F401
        except ImportError as error:
            raise HookUnavailableError(f"no torch.save ({error})") from None
        with self._patching:
            self._is_installed = True
            self._patch_what_is_there()

    def uninstall(self) -> None:
        """Put the originals back."""
        with self._patching:
            self._is_installed = False
            for patch in reversed(self._patches.values()):
                patch.uninstall()
            self._patches = {}

    def blind(self) -> list[str]:
        """Give which of its signals it cannot give at the moment."""
        return []

    def poll(self, is_full: bool) -> list[Record]:
        """Patch what the script has imported since."""
        with self._patching:
            if self._is_installed:
                self._patch_what_is_there()
        return []

    def _patch_what_is_there(self) -> None:
        for saver in SAVERS:
            if saver not in self._patches and (target := target_of(saver)) is not None:
                # One wrapper for the two names of one function.
                is_torch_save = saver.call == SAVERS[0].call
                wrap = (
                    self._wrap_torch_save if is_torch_save else functools.partial(self._wrap, saver)
                )
                patch = Patch(*target, wrap)
                patch.install()
                self._patches[saver] = patch

    def _wrap(self, saver: Saver, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def save(*args: Any, **kwargs: Any) -> Any:
            if not self._guard.is_open or getattr(self._inside, "flag", False):
                return original(*args, **kwargs)
            call: _Call | None = None
            error, result = "", None
            try:
                with self._guard:
                    call = self._enter(saver)
                result = original(*args, **kwargs)
                return result
            except BaseException as raised:
                error = type(raised).__name__
                raise
            finally:
                if call is not None:
                    # Also in a forked child, which may return from here: its own flag only.
                    self._inside.flag = False
                    if self._guard.is_open:
                        with self._guard:
                            self._leave(call, error, result, args, kwargs)
                    elif call.is_training:
                        self._recorder.page.words[_CHECKPOINT_SINCE] = 0
                result = None

        return save

    def _enter(self, saver: Saver) -> _Call | None:
        is_training = self._recorder.claim_training_thread()
        if not is_training and self._distributed:
            return None
        self._inside.flag = True
        began = now_ns()
        if is_training:
            self._recorder.page.words[_CHECKPOINT_SINCE] = began
        if saver.is_distributed:
            self._distributed.add(began)
        return _Call(saver, began, is_training)

    def _leave(
        self,
        call: _Call,
        error: str,
        result: object,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        now = now_ns()
        if call.is_training:
            self._recorder.page.words[_CHECKPOINT_SINCE] = 0
            self._recorder.add_checkpoint(now - call.began)
        num_bytes = NOT_MEASURED if error else _file_size(call.saver, args, kwargs)
        self._record(call, now, num_bytes, call.is_training, error)
        future: Any = getattr(result, "upload_completion", result) if call.saver.is_async else None
        if _is_future(future):
            future.add_done_callback(functools.partial(self._on_done, call))
        else:
            self._distributed.discard(call.began)

    def _on_done(self, call: _Call, future: Future[Any]) -> None:
        """Note the end of an asynchronous save, in the thread that ends it."""
        self._distributed.discard(call.began)
        if self._guard.is_open:
            with self._guard:
                if future.cancelled():
                    error = "CancelledError"
                else:
                    raised = future.exception()
                    error = "" if raised is None else type(raised).__name__
                self._record(call, now_ns(), NOT_MEASURED, False, error)

    def _record(self, call: _Call, now: int, num_bytes: int, is_blocking: bool, error: str) -> None:
        self._recorder.append(
            (
                RecordKind.CHECKPOINT,
                now,
                call.saver.call,
                now - call.began,
                num_bytes,
                is_blocking,
                error[:200],
            )
        )


class _Call:
    """A saving call that runs."""

    __slots__ = ("began", "is_training", "saver")

    def __init__(self, saver: Saver, began: int, is_training: bool) -> None:
        self.saver = saver
        self.began = began
        self.is_training = is_training


def _is_future(value: object) -> bool:
    # Who gives one has imported the module; it takes milliseconds, so we do not.
    futures = sys.modules.get("concurrent.futures")
    return futures is not None and isinstance(value, futures.Future)


def _file_size(saver: Saver, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    index, name = saver.path
    path = args[index] if 0 <= index < len(args) else kwargs.get(name)
    if not isinstance(path, (str, os.PathLike)):
        return NOT_MEASURED
    try:
        found = os.stat(path)
    except (OSError, ValueError, TypeError, NotImplementedError):
        # A name in an object store, in the coat of a path.
        return NOT_MEASURED
    return found.st_size if stat.S_ISREG(found.st_mode) else NOT_MEASURED
