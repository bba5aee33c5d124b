"""Each way a rank can end leaves the words that tell it from the others, and its own exit."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.fake_sidecar import FakeSidecar, wait_until
from tracecore_train.recorder.page import read_page
from tracecore_train.runtime import rank_page
from tracecore_train.wire.records import ExceptionRecord, LastWordRecord, StepRecord

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tracecore_train.wire.records import RankPageRecord

pytest.importorskip("torch")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

PROGRAM = Path(__file__).resolve().parents[1] / "support" / "programs" / "ends.py"


@pytest.fixture
def sidecar(tmp_path: Path) -> Iterator[FakeSidecar]:
    with FakeSidecar(tmp_path / "j") as started:
        yield started


def start(sidecar: FakeSidecar, program: Path, *words: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(program), *words],
        env={**os.environ, "TRACECORE_ENDPOINT": sidecar.endpoint, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(sidecar: FakeSidecar, how: str) -> subprocess.CompletedProcess[str]:
    with start(sidecar, PROGRAM, how) as process:
        out, err = process.communicate(timeout=90)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def end_and_tell(sidecar: FakeSidecar, how: str) -> subprocess.CompletedProcess[str]:
    """End so that the last word arrives: what is not taken within half a second at the exit is
    given up, and on a crowded machine that happens.
    """
    for _ in range(3):
        sidecar.batches.clear()
        ended = end(sidecar, how)
        with contextlib.suppress(AssertionError):
            wait_until(lambda: sidecar.records(LastWordRecord), 5)
            break
    return ended


def page_of(sidecar: FakeSidecar) -> RankPageRecord:
    return read_page(rank_page(sidecar.path.parent, 0, 0), 1)


@pytest.mark.parametrize("how", ["above", "below", "replaced", "recorded", "finally"])
def test_an_uncaught_exception_is_told_whoever_hooks_beside_us(
    sidecar: FakeSidecar, how: str
) -> None:
    """A foreign hook above, below or instead of ours, torchrun's @record, and a ``finally`` that
    shuts us down: traceback and exit code are the script's own, and type, message and the user's
    frame stand on the page and in one record.
    """
    ended = end_and_tell(sidecar, how)
    assert ended.returncode == 1
    assert ended.stderr.count("foreign saw ValueError") == (how in {"above", "below", "replaced"})
    assert ended.stderr.count("ValueError: boom\n") == (how != "replaced")
    assert "tracecore" not in ended.stderr.replace("tracecore_train.shutdown", "")
    page = page_of(sidecar)
    assert page.last_word == "exception"
    assert page.exception_ns > 0
    assert page.exception.startswith("ValueError in fail (ends.py:")
    assert page.exception.endswith("): boom")
    (record,) = sidecar.records(ExceptionRecord)
    assert (record.where, record.type_name, record.message) == ("main", "ValueError", "boom")
    assert record.frame.startswith("fail (ends.py:")
    assert record.is_fatal == (how != "finally")
    assert [word.word for word in sidecar.records(LastWordRecord)] == ["exception"]


@pytest.mark.parametrize(("how", "message"), [("tensor", "<Tensor>"), ("untellable", "")])
def test_the_text_of_an_exception_runs_no_code_of_others(
    sidecar: FakeSidecar, how: str, message: str
) -> None:
    """A tensor in a message is named, not read, and a ``__str__`` of the user's is not called by
    us: our word is on the page before the interpreter calls it.
    """
    ended = end(sidecar, how)
    assert ended.returncode == (1 if how == "tensor" else 99)
    page = page_of(sidecar)
    assert page.last_word == "exception"
    assert page.exception.endswith(f": {message}")


def test_the_word_is_there_while_the_process_cannot_leave(sidecar: FakeSidecar) -> None:
    """A rank whose main thread raised, kept alive by another thread, has said so already."""
    with start(sidecar, PROGRAM, "blocked") as process:
        wait_until(lambda: sidecar.records(ExceptionRecord))
        assert process.poll() is None
        assert page_of(sidecar).last_word == "exception"
        process.kill()


@pytest.mark.parametrize("how", ["thread", "printed", "distributed", "forked"])
def test_what_a_rank_survives_is_not_its_end(sidecar: FakeSidecar, how: str) -> None:
    """An exception in another thread, one that is only printed, errors of torch.distributed that
    are caught, and one in a forked child leave exit code 0 and the last word ``exit``.
    """
    ended = end_and_tell(sidecar, how)
    assert ended.returncode == 0
    page = page_of(sidecar)
    assert (page.last_word, page.exception_ns, page.exception) == ("exit", 0, "")
    told = [(record.where, record.is_fatal) for record in sidecar.records(ExceptionRecord)]
    expected = {
        "thread": ["thread helper"],
        "distributed": ["init_process_group", "all_reduce", "new_group"],
    }
    assert told == [(where, False) for where in expected.get(how, [])]


def test_ctrl_c_is_an_exception_and_still_a_signal(sidecar: FakeSidecar) -> None:
    """KeyboardInterrupt ends the process by SIGINT as without us, and is told."""
    assert end(sidecar, "interrupt").returncode == -signal.SIGINT
    assert page_of(sidecar).exception.startswith("KeyboardInterrupt in ")


def test_os_exit_says_nothing(sidecar: FakeSidecar) -> None:
    """``os._exit`` leaves its code and no word."""
    assert end(sidecar, "os_exit").returncode == 5
    assert page_of(sidecar).last_word == ""


SIGTERM_PROGRAM = """
import os, signal, sys, threading, time, torch, tracecore_train
HOW = sys.argv[1]
seen = []
def theirs(number, frame):
    print("theirs", flush=True)
    if HOW == "calls_on":
        before(number, frame)
    sys.exit(143)
if HOW == "before":
    signal.signal(signal.SIGTERM, theirs)
session = tracecore_train.init(flush_interval=0.1, hooks="+sigterm")
assert session.is_active
if HOW in ("after", "calls_on"):
    before = signal.signal(signal.SIGTERM, theirs)
tracecore_train.step()
if HOW == "shut_down":
    tracecore_train.shutdown()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.set_wakeup_fd(-1) == -1
if HOW == "fork":
    child = os.fork()
    if child == 0:
        time.sleep(60)
    time.sleep(0.5)
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -15
    time.sleep(0.5)
    tracecore_train.step()
    os._exit(7)
print("ready", flush=True)
if HOW == "blocked":
    import ctypes
    # Like a wait in a collective: in C, without the GIL, and no signal ends it.
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("how", "code", "is_noted"),
    [
        ("alone", -15, True),
        ("blocked", -15, True),
        ("before", 143, True),
        ("after", 143, True),
        ("calls_on", -15, True),
        ("shut_down", -15, False),
    ],
)
def test_sigterm_is_noted_and_ends_the_rank_as_without_us(
    sidecar: FakeSidecar, tmp_path: Path, how: str, code: int, is_noted: bool
) -> None:
    """With the opt-in hook the page tells SIGTERM's moment, also while the main thread is in C;
    the exit status is that of the default action, or of the user's handler, set before or after.
    """
    program = tmp_path / "sigterm.py"
    program.write_text(SIGTERM_PROGRAM)
    with start(sidecar, program, how) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.2)
        sent_ns = time.monotonic_ns()
        process.terminate()
        out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert out.count("theirs") == (how in {"before", "after", "calls_on"})
    noted_ns = page_of(sidecar).sigterm_ns
    assert (noted_ns >= sent_ns) == is_noted
    assert page_of(sidecar).last_word == ("exit" if code == 143 or how == "shut_down" else "")


def test_sigterm_to_a_child_is_not_one_to_the_rank(sidecar: FakeSidecar, tmp_path: Path) -> None:
    """A forked child dies of its SIGTERM; the rank lives on, notes none, and still would."""
    program = tmp_path / "sigterm.py"
    program.write_text(SIGTERM_PROGRAM)
    with start(sidecar, program, "fork") as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 7, err
    assert page_of(sidecar).sigterm_ns == 0
    assert page_of(sidecar).step == 2
    assert sidecar.records(StepRecord)
