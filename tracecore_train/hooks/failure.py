"""Exceptions: what ended the main thread or another one, and what torch.distributed reported.

The last word is on the rank page before anything that can block: before the message is put into
words, before the traceback is printed, before threads are waited for. Whoever hooks
``sys.excepthook`` beside us is called as without us. A tool that replaces it without calling on
cuts us off; then the exception is found at the end, where the interpreter leaves it.

Errors of ``torch.distributed`` come from torch's own logger of failed calls, which costs nothing
while none fails; ``new_group`` is not in it and is wrapped. The watchdog of NCCL speaks from C++
and then aborts the process: Python sees neither.
"""

from __future__ import annotations

import functools
import logging
import sys
import threading
from typing import TYPE_CHECKING, Any

from tracecore_train.hooks.exception_text import MAX_FRAMES, describe, type_name
from tracecore_train.hooks.patch import Patch
from tracecore_train.recorder.clock import now_ns
from tracecore_train.recorder.page import Text, Word
from tracecore_train.wire.records import GapRecord, RecordKind

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from tracecore_train.guard import Guard
    from tracecore_train.hooks.context import HookContext
    from tracecore_train.wire.records import Record

EXCEPTION_WORD = "exception"
"""Last word of a rank whose main thread an exception ended."""
MAX_ERRORS = 100
"""Errors that end no process and are told one by one; a job that retries for ever has more."""
MAX_NAME = 80
_EXCEPTION_TIME = int(Word.EXCEPTION_TIME)


class FailureHook:
    """Notes exceptions on their way; each goes on as it came."""

    name = "failure"

    def __init__(self, context: HookContext, guard: Guard) -> None:
        """Prepare; nothing is installed yet."""
        self._recorder = context.recorder
        self._rank = context.rank
        self._guard = guard
        self._patches: list[Patch] = []
        self._blind = ""
        self._logger: logging.Logger | None = None
        self._handler = _Handler(self._on_torch_error)
        self._before: BaseException | None = None
        self._num_errors = 0
        self._num_told = 0

    def install(self) -> None:
        """Chain the interpreter's two hooks and listen to torch's logger."""
        self._before = _left_by_interpreter()
        self._patches = [
            Patch(sys, "excepthook", self._wrap_excepthook),
            Patch(threading, "excepthook", self._wrap_thread_excepthook),
        ]
        self._listen_to_torch()
        for patch in self._patches:
            patch.install()

    def uninstall(self) -> None:
        """Put back what was there."""
        for patch in reversed(self._patches):
            patch.uninstall()
        self._patches = []
        if self._logger is not None:
            self._logger.removeHandler(self._handler)
        self._logger = self._before = None

    def blind(self) -> list[str]:
        """Give what this hook cannot see."""
        return [self._blind] if self._blind else []

    def poll(self, is_full: bool) -> list[Record]:
        """Count the errors that were not told one by one."""
        num_untold = max(0, self._num_errors - MAX_ERRORS)
        num_new, self._num_told = num_untold - self._num_told, num_untold
        if not num_new:
            return []
        return [
            GapRecord(
                time_ns=now_ns(),
                rank=self._rank,
                where=self.name,
                num_lost=num_new,
                reason=f"more than {MAX_ERRORS} errors that ended no process",
            )
        ]

    def before_last_word(self) -> None:
        """Note an exception that ends the script and did not come by our hook.

        It is on its way while ``shutdown()`` is called in a ``finally``, or the interpreter left
        it before the callbacks at exit.
        """
        if self._recorder.page.words[_EXCEPTION_TIME]:
            return
        if threading.current_thread() is not threading.main_thread():
            return
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, (SystemExit, GeneratorExit)):
            self._note_end(error, error.__traceback__, is_fatal=False)
            return
        left = _left_by_interpreter()
        if left is not None and left is not self._before and not _is_interactive():
            self._note_end(left, left.__traceback__, is_fatal=True)

    def _wrap_excepthook(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def excepthook(
            kind: type[BaseException], error: BaseException, traceback: TracebackType | None
        ) -> Any:
            if self._guard.is_open:
                with self._guard:
                    # Scripts call the hook to print an exception they survive.
                    if error is _left_by_interpreter() and not _is_interactive():
                        self._note_end(error, traceback, is_fatal=True)
            return original(kind, error, traceback)

        return excepthook

    def _wrap_thread_excepthook(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def excepthook(args: Any) -> Any:
            if self._guard.is_open:
                with self._guard:
                    name = getattr(args.thread, "name", None) or "unknown"
                    if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
                        self._note(f"thread {name}"[:MAX_NAME], args.exc_value, args.exc_traceback)
            return original(args)

        return excepthook

    def _wrap_new_group(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def new_group(*args: Any, **kwargs: Any) -> Any:
            num_before = self._num_errors
            try:
                return original(*args, **kwargs)
            except Exception as error:
                if self._guard.is_open:
                    with self._guard:
                        # Older torch logs it too, and so does a logged call inside.
                        if self._num_errors == num_before:
                            self._note("new_group", error, error.__traceback__)
                raise

        return new_group

    def _listen_to_torch(self) -> None:
        try:
            import torch.distributed as dist
            from torch.distributed import distributed_c10d
            from torch.distributed.c10d_logger import _c10d_logger as logger
        except ImportError as error:
            self._blind = f"exceptions.distributed: this torch does not log them ({error})"
            return
        logger.addHandler(self._handler)
        self._logger = logger
        wrap = functools.cache(self._wrap_new_group)
        self._patches += [
            Patch(dist, "new_group", wrap),
            Patch(distributed_c10d, "new_group", wrap),
        ]

    def _on_torch_error(self, message: object) -> None:
        if not self._guard.is_open or not isinstance(message, dict) or "error" not in message:
            return
        with self._guard:
            where = str(message.get("func_name", "torch.distributed"))[:MAX_NAME]
            error = sys.exc_info()[1]
            # A logged call inside a logged call: the inner one has told it.
            if error is not None and _num_loggers(error.__traceback__) <= 1:
                self._note(where, error, error.__traceback__)

    def _note(self, where: str, error: BaseException, traceback: TracebackType | None) -> None:
        """Note an error that ends no process."""
        self._num_errors += 1
        if self._num_errors > MAX_ERRORS:
            return
        told = describe(error, traceback)
        self._append(where, told.type_name, told.message, told.frame, is_fatal=False)

    def _note_end(
        self, error: BaseException, traceback: TracebackType | None, *, is_fatal: bool
    ) -> None:
        """Leave the last word of the main thread, in the order of what could be lost."""
        page = self._recorder.page
        page.words[_EXCEPTION_TIME] = now_ns()
        page.write_text(Text.LAST_WORD, EXCEPTION_WORD)
        page.write_text(Text.EXCEPTION, type_name(type(error)))
        told = describe(error, traceback)
        page.write_text(Text.EXCEPTION, told.summary)
        self._append("main", told.type_name, told.message, told.frame, is_fatal=is_fatal)

    def _append(
        self, where: str, type_name: str, message: str, frame: str, *, is_fatal: bool
    ) -> None:
        self._recorder.append(
            (RecordKind.EXCEPTION, now_ns(), where, type_name, message, frame, is_fatal)
        )


class _Handler(logging.Handler):
    """Hands over what is logged, without the lock a handler usually takes."""

    def __init__(self, listener: Callable[[object], None]) -> None:
        super().__init__()
        self._listener = listener

    def handle(self, record: logging.LogRecord) -> bool:
        """Hand over the message."""
        self._listener(record.msg)
        return True


def _num_loggers(traceback: TracebackType | None) -> int:
    """Count the logged calls an error came through so far; one may have wrappers in a row."""
    count, is_inside = 0, False
    for _ in range(MAX_FRAMES):
        if traceback is None:
            break
        was_inside = is_inside
        is_inside = traceback.tb_frame.f_code.co_filename.endswith("c10d_logger.py")
        count += is_inside and not was_inside
        traceback = traceback.tb_next
    return count


def _left_by_interpreter() -> BaseException | None:
    """Give the exception that ended the script, which the interpreter keeps from then on."""
    found: BaseException | None = getattr(sys, "last_value", None)
    return found


def _is_interactive() -> bool:
    return hasattr(sys, "ps1") or bool(sys.flags.interactive)
