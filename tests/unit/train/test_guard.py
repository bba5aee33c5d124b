"""The guard contains our failures and nobody else's."""

from __future__ import annotations

import io
import sys

import pytest

from tracecore_train import guard as guard_module
from tracecore_train.guard import Guard, say


@pytest.fixture
def contain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard_module, "raise_in_tests", False)


@pytest.mark.usefixtures("contain")
def test_failure_is_contained_and_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Two failures give one line that names the hook, and the guard is closed."""
    guard = Guard("dataloader")
    for _ in range(2):
        with guard:
            raise ValueError("bad\nnews")
    assert capsys.readouterr().err == (
        "tracecore: dataloader failed and is switched off; the job goes on (ValueError: bad news)\n"
    )
    assert (guard.is_open, guard.num_failures) == (False, 2)


@pytest.mark.usefixtures("contain")
def test_interrupt_is_the_users() -> None:
    """Ctrl-C inside our code reaches the user and closes nothing."""
    guard = Guard("optimizer")
    with pytest.raises(KeyboardInterrupt), guard:
        raise KeyboardInterrupt
    assert guard.is_open


def test_tests_see_contained_failures() -> None:
    """Under test the exception comes through."""
    with pytest.raises(ValueError, match="news"), Guard("optimizer"):
        raise ValueError("news")


@pytest.mark.parametrize("stream", [None, "closed"])
def test_saying_survives_a_missing_stderr(
    stream: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line to a stderr that is gone or closed is dropped without an exception."""
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", None if stream is None else closed)
    say("anything")


class Unusable:
    """A stderr of somebody's that cannot be written to just now."""

    def write(self, text: str) -> int:
        raise RuntimeError("reentrant call")


@pytest.mark.usefixtures("contain")
def test_a_stderr_that_raises_lets_nothing_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure is contained also where saying so fails, as inside a write of the job's own."""
    monkeypatch.setattr(sys, "stderr", Unusable())
    guard = Guard("gc")
    with guard:
        raise ValueError("news")
    assert (guard.is_open, guard.reason) == (False, "ValueError: news")


@pytest.mark.usefixtures("contain")
def test_an_exception_without_text_is_contained() -> None:
    """An exception class whose text cannot be made is told by its name."""

    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    guard = Guard("log()")
    with guard:
        raise MuteError
    assert guard.reason == "MuteError"
