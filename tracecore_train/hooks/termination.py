"""SIGTERM: its arrival, noted on the rank page at once. Opt-in, because it changes something.

Python runs signal handlers when the main thread comes back to the interpreter, and a rank that
waits in a collective does not. The C part of a handler however writes to a wake-up descriptor at
once, and a daemon thread of ours reads it. Where the user has a handler, that is all we do. Where
SIGTERM has its default action, it gets a handler of ours, because without one nothing is
written; the thread then gives the process the end it would have had: default action, same
signal, so the same exit status, no callbacks at exit.

What differs from a rank without this hook: while something holds the GIL and never lets go,
SIGTERM ends the process only when it does (the launcher's SIGKILL comes after 30 s).

A child made by ``fork`` shares the descriptor, and a signal to the child must not count as one to
the rank: the descriptor is taken out around every fork, and the child gets its default back.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import threading
from typing import TYPE_CHECKING, Any

from tracecore_train.errors import HookUnavailableError
from tracecore_train.recorder.clock import now_ns
from tracecore_train.recorder.page import Word

if TYPE_CHECKING:
    from tracecore_train.guard import Guard
    from tracecore_train.hooks.context import HookContext

_SIGTERM_WORD = int(Word.SIGTERM)
_armed: TerminationHook | None = None
"""The hook of this process whose descriptor is in use."""


class TerminationHook:
    """Notes the first SIGTERM."""

    name = "sigterm"

    def __init__(self, context: HookContext, guard: Guard) -> None:
        """Prepare; nothing is installed yet."""
        self._recorder = context.recorder
        self._guard = guard
        self._reader: socket.socket | None = None
        self._writer: socket.socket | None = None
        self._is_default_replaced = False

    def install(self) -> None:
        """Take the wake-up descriptor, if nobody has it; give SIGTERM a handler, if it has none."""
        global _armed
        if threading.current_thread() is not threading.main_thread():
            raise HookUnavailableError("init() was not called on the main thread")
        handler = signal.getsignal(signal.SIGTERM)
        if handler is signal.SIG_IGN or handler is None:
            raise HookUnavailableError("this process ignores it, or handles it in C")
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        other = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        if other != -1:
            signal.set_wakeup_fd(other)
            self._close()
            raise HookUnavailableError("another library uses the wake-up descriptor")
        _register_fork_callbacks()
        _armed = self
        if handler is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _end_by_default)
            self._is_default_replaced = True
        threading.Thread(
            target=self._watch, args=(self._reader,), name="tracecore-sigterm", daemon=True
        ).start()

    def uninstall(self) -> None:
        """Put descriptor and handler back, which Python allows on the main thread only.

        Elsewhere both stay: closing a descriptor that a signal handler writes to would be worse,
        and the thread goes on to end the process at SIGTERM.
        """
        global _armed
        if self._writer is None:
            return
        if threading.current_thread() is not threading.main_thread():
            return
        self._take_out()
        _armed = None
        self._restore_default()
        self._writer.shutdown(socket.SHUT_WR)

    def blind(self) -> list[str]:
        """Give what this hook cannot see."""
        return []

    def take_out(self) -> None:
        """Before a fork: let no signal write to what the child will share."""
        if threading.current_thread() is threading.main_thread():
            self._take_out()

    def put_in(self) -> None:
        """After a fork, in the parent: write again, unless somebody came first."""
        if self._writer is None or threading.current_thread() is not threading.main_thread():
            return
        other = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        if other != -1:
            signal.set_wakeup_fd(other)

    def leave_child(self) -> None:
        """After a fork, in the child: SIGTERM acts there as it did before us."""
        with self._guard:
            self._take_out()
            self._restore_default()
            self._close()

    def _take_out(self) -> None:
        if self._writer is None:
            return
        current = signal.set_wakeup_fd(-1)
        if current not in (-1, self._writer.fileno()):
            signal.set_wakeup_fd(current)

    def _restore_default(self) -> None:
        if self._is_default_replaced and signal.getsignal(signal.SIGTERM) is _end_by_default:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._is_default_replaced = False

    def _watch(self, reader: socket.socket) -> None:
        while data := reader.recv(64):
            if signal.SIGTERM not in data:
                continue
            self.note()
            if signal.getsignal(signal.SIGTERM) is _end_by_default:
                _end_now()
        self._close()

    def note(self) -> None:
        """Note that SIGTERM came, the first time it does."""
        if self._guard.is_open:
            with self._guard:
                words = self._recorder.page.words
                if not words[_SIGTERM_WORD]:
                    words[_SIGTERM_WORD] = now_ns()

    def _close(self) -> None:
        for end in (self._reader, self._writer):
            if end is not None:
                end.close()
        self._reader = self._writer = None


def _end_by_default(_number: int, _frame: Any) -> None:
    """Give SIGTERM its default action; also for a handler of the user's that calls on to us."""
    if _armed is not None:
        _armed.note()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)


def _end_now() -> None:
    """Do the same from another thread, where Python's own call is not allowed."""
    set_handler = ctypes.CDLL(None).signal
    set_handler.argtypes, set_handler.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    set_handler(signal.SIGTERM, None)
    os.kill(os.getpid(), signal.SIGTERM)


_is_registered = False


def _register_fork_callbacks() -> None:
    global _is_registered
    if not _is_registered:
        _is_registered = True
        os.register_at_fork(
            before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_after_in_child
        )


def _before_fork() -> None:
    if _armed is not None:
        _armed.take_out()


def _after_in_parent() -> None:
    if _armed is not None:
        _armed.put_in()


def _after_in_child() -> None:
    global _armed
    hook, _armed = _armed, None
    if hook is not None:
        hook.leave_child()
