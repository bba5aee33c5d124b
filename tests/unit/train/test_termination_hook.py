"""The SIGTERM hook takes nothing that is in use and puts back what it took."""

from __future__ import annotations

import functools
import os
import signal
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from tests.support.fake_sidecar import wait_until
from tracecore_train import guard
from tracecore_train.errors import HookUnavailableError
from tracecore_train.guard import Guard
from tracecore_train.hooks import termination
from tracecore_train.hooks.context import HookContext
from tracecore_train.hooks.termination import TerminationHook
from tracecore_train.recorder.page import RankPage, Word
from tracecore_train.recorder.recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def recorder() -> Recorder:
    return Recorder(RankPage.in_memory(), rank=0)


@pytest.fixture
def hook(recorder: Recorder) -> Iterator[TerminationHook]:
    context = HookContext(recorder=recorder, rank=0, socket_path=None)
    made = TerminationHook(context, Guard("sigterm"))
    yield made
    made.uninstall()
    assert signal.set_wakeup_fd(-1) == -1
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    wait_until(lambda: not [t for t in threading.enumerate() if t.name == "tracecore-sigterm"])


def test_a_wakeup_descriptor_in_use_is_left_alone(hook: TerminationHook) -> None:
    """Where asyncio or another library listens already, the hook is not available."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    signal.set_wakeup_fd(ours.fileno())
    try:
        with pytest.raises(HookUnavailableError, match="another library"):
            hook.install()
        assert signal.set_wakeup_fd(-1) == ours.fileno()
    finally:
        signal.set_wakeup_fd(-1)
        ours.close()
        theirs.close()


def test_an_ignored_signal_stays_ignored(hook: TerminationHook) -> None:
    """A process that ignores SIGTERM goes on to, and the hook is not available."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with pytest.raises(HookUnavailableError, match="ignores"):
            hook.install()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_another_thread_cannot_install_it(hook: TerminationHook) -> None:
    """Off the main thread Python allows none of it: not available, with the reason."""
    found: list[str] = []

    def install() -> None:
        try:
            hook.install()
        except HookUnavailableError as error:
            found.append(str(error))

    thread = threading.Thread(target=install)
    thread.start()
    thread.join()
    assert found == ["init() was not called on the main thread"]


def test_a_users_handler_is_called_once_and_nothing_else_happens(
    hook: TerminationHook, recorder: Recorder
) -> None:
    """With a handler of the user's the moment is noted once and the process lives on."""
    seen: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: seen.append(number))
    try:
        hook.install()
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda: recorder.page.words[Word.SIGTERM] > 0)
        first = recorder.page.words[Word.SIGTERM]
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda: len(seen) == 2)
        assert recorder.page.words[Word.SIGTERM] == first
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_forks_leave_the_descriptor_in_place(hook: TerminationHook) -> None:
    """After a fork the parent still listens, and the child listens no more and dies of SIGTERM."""
    hook.install()
    fd = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(fd)
    child = os.fork()
    if child == 0:
        is_clean = signal.set_wakeup_fd(-1) == -1
        is_default = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        os._exit(0 if is_clean and is_default else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert signal.set_wakeup_fd(fd) == fd


def _has(seen: list[int], count: int) -> bool:
    return len(seen) == count


def test_a_note_that_fails_is_contained_and_the_users_handler_still_runs(
    hook: TerminationHook, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An exception of ours while noting is said once; the handler of the user is called."""
    monkeypatch.setattr(guard, "raise_in_tests", False)

    def broken() -> int:
        raise RuntimeError("sabotaged")

    monkeypatch.setattr(termination, "now_ns", broken)
    seen: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: seen.append(number))
    try:
        hook.install()
        for count in (1, 2):
            os.kill(os.getpid(), signal.SIGTERM)
            wait_until(functools.partial(_has, seen, count))
        wait_until(lambda: not hook._guard.is_open)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert capsys.readouterr().err.count("sigterm failed and is switched off") == 1
