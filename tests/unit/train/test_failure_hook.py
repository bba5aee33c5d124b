"""The failure hook stands in a chain of hooks and leaves it as it was; its words are bounded."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from tracecore_train.guard import Guard
from tracecore_train.hooks.context import HookContext
from tracecore_train.hooks.exception_text import describe, innermost_frame, message_of
from tracecore_train.hooks.failure import MAX_ERRORS, FailureHook
from tracecore_train.recorder.page import RankPage, Word, parse_page
from tracecore_train.recorder.recorder import Recorder
from tracecore_train.wire.records import ExceptionRecord, GapRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

torch = pytest.importorskip("torch")
import torch.distributed as dist  # noqa: E402
from torch.distributed import distributed_c10d  # noqa: E402
from torch.distributed.c10d_logger import _c10d_logger  # noqa: E402


class Rank:
    """A hook with its guard and what it recorded."""

    def __init__(self) -> None:
        self.recorder = Recorder(RankPage.in_memory(), rank=0)
        self.guard = Guard("failure")
        context = HookContext(recorder=self.recorder, rank=0, socket_path=None)
        self.hook = FailureHook(context, self.guard)

    def leave(self) -> None:
        self.guard.close()
        self.hook.uninstall()

    def told(self) -> list[ExceptionRecord]:
        return [r for r in self.recorder.drain() if isinstance(r, ExceptionRecord)]


@pytest.fixture
def rank() -> Iterator[Rank]:
    before = _points()
    made = Rank()
    yield made
    made.leave()
    assert _points() == before


def _points() -> tuple[Any, ...]:
    hooks = (sys.excepthook, threading.excepthook)
    return (*hooks, dist.new_group, distributed_c10d.new_group, tuple(_c10d_logger.handlers))


def ended_by(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do what the interpreter does with an uncaught exception."""
    monkeypatch.setattr(sys, "last_value", error, raising=False)
    sys.excepthook(type(error), error, error.__traceback__)


def theirs(seen: list[str], name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def hook(*args: Any) -> Any:
        seen.append(name)
        return original(*args)

    return hook


@pytest.mark.parametrize("order", ["ours theirs theirs", "ours theirs ours", "theirs ours theirs"])
def test_foreign_hooks_are_called_whoever_leaves_first(
    rank: Rank, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    """Every hook of the chain is called once while it is there; once ours is gone it records
    nothing, and the last to leave leaves what was there first, or a wrapper that passes through.
    """
    first, _, leaver = order.split()
    seen: list[str] = []
    bottom = theirs(seen, "bottom", lambda *_: None)
    monkeypatch.setattr(sys, "excepthook", bottom)
    if first == "theirs":
        below = theirs(seen, "theirs", bottom)
        monkeypatch.setattr(sys, "excepthook", below)
        rank.hook.install()
    else:
        rank.hook.install()
        below = sys.excepthook
        monkeypatch.setattr(sys, "excepthook", theirs(seen, "theirs", below))
    ended_by(ValueError("x"), monkeypatch)
    assert sorted(seen) == ["bottom", "theirs"]
    assert len(rank.told()) == 1
    seen.clear()
    if leaver == "ours":
        rank.leave()
        ended_by(ValueError("y"), monkeypatch)
        assert sorted(seen) == ["bottom", "theirs"]
        assert rank.told() == []
    else:
        # They put back what they found, as most tools do.
        monkeypatch.setattr(sys, "excepthook", below if first == "ours" else bottom)
        rank.leave()
        ended_by(ValueError("y"), monkeypatch)
        assert seen == ["bottom"]
        assert rank.told() == []
    monkeypatch.undo()


def test_a_thread_that_raises_is_told_by_name(rank: Rank, monkeypatch: pytest.MonkeyPatch) -> None:
    """One record with the thread's name; SystemExit of a thread is its normal end."""
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    rank.hook.install()
    for error in (KeyError("shard"), SystemExit(1)):

        def run(error: BaseException = error) -> None:
            raise error

        thread = threading.Thread(target=run, name="prefetch")
        thread.start()
        thread.join()
    (told,) = rank.told()
    assert (told.where, told.type_name, told.message) == ("thread prefetch", "KeyError", "'shard'")
    assert not told.is_fatal
    rank.leave()
    monkeypatch.undo()


def test_an_error_inside_a_logged_call_is_told_once(rank: Rank) -> None:
    """A collective made of collectives reports one error, that of the innermost."""
    rank.hook.install()
    with pytest.raises(ValueError, match="process group"):
        dist.all_gather_object([None], "x")
    assert len(rank.told()) == 1


def test_errors_that_end_nothing_are_bounded_and_counted(rank: Rank) -> None:
    """A job that retries for ever gives a hundred records and one count of the rest."""
    rank.hook.install()
    for _ in range(MAX_ERRORS + 7):
        with pytest.raises(ValueError, match="process group"):
            dist.new_group([0])
    assert {told.where for told in rank.told()} == {"new_group"}
    (gap,) = rank.hook.poll(False)
    assert isinstance(gap, GapRecord)
    assert gap.num_lost == 7
    assert rank.hook.poll(False) == []


def test_an_exception_on_its_way_at_shutdown_is_noted(rank: Rank) -> None:
    """In a ``finally`` the exception is found; a SystemExit is none."""
    rank.hook.install()

    def leave_by(error: BaseException) -> None:
        try:
            raise error
        finally:
            rank.hook.before_last_word()

    with pytest.raises(SystemExit):
        leave_by(SystemExit(3))
    with pytest.raises(RuntimeError):
        leave_by(RuntimeError("boom"))
    (told,) = rank.told()
    assert (told.type_name, told.is_fatal) == ("RuntimeError", False)
    assert rank.recorder.page.words[Word.EXCEPTION_TIME] > 0


def test_the_page_holds_type_frame_and_message(rank: Rank, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text of the page begins with what is most telling, so that the cut loses least."""
    monkeypatch.setattr(sys, "excepthook", lambda *_: None)
    rank.hook.install()
    error = ValueError("m" * 10_000)
    ended_by(error, monkeypatch)
    page = rank.recorder.page
    page.words[Word.MAGIC] = int.from_bytes(b"TCPAGE\r\n", "little")
    page.words[Word.VERSION] = 1
    read = parse_page(bytes(page._data), 1)
    assert read.last_word == "exception"
    assert read.exception.startswith("ValueError: mmm")
    rank.leave()
    monkeypatch.undo()


class Device:
    """Waits for a device when its text is asked for."""

    def __str__(self) -> str:
        raise AssertionError("read")

    __repr__ = __str__


class TalkativeError(ValueError):
    def __str__(self) -> str:
        raise AssertionError("called")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("a\n  b"), "a b"),
        (ValueError("bad", Device()), "bad, <Device>"),
        (KeyError("k"), "'k'"),
        (OSError(2, "No such file", "x"), "[Errno 2] No such file: 'x'"),
        (TalkativeError("plain", 3), "plain, 3"),
        (ValueError(), ""),
        (ValueError("b" * 600 + "end"), "b" * 347 + "..." + "b" * 147 + "end"),
    ],
)
def test_messages_are_made_of_plain_arguments_alone(error: Exception, message: str) -> None:
    """Builtin texts of plain arguments are kept, cut in the middle; nothing else is called."""
    assert message_of(error) == message


def test_the_frame_is_the_innermost_of_the_users_code() -> None:
    """Frames of torch and of the standard library are passed over."""
    try:
        torch.nn.Linear(2, 2)(torch.ones(3))
    except RuntimeError as error:
        told = describe(error, error.__traceback__)
    assert told.type_name == "RuntimeError"
    assert told.frame.startswith("test_the_frame_is_the_innermost_of_the_users_code (test_fail")
    assert innermost_frame(None) == ""
