"""Stacks that the real py-spy takes of real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tracecore_sidecar.sources.process import read_process
from tracecore_sidecar.sources.stacks import dump_stacks, find_py_spy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tracecore_train.wire.records import StackRecord

pytestmark = pytest.mark.skipif(find_py_spy() is None, reason="py-spy is not installed")

PROGRAM = """
import sys, threading, time

def load_batch():
    time.sleep(600)

def watch():
    threading.Event().wait()

def spin():
    while True:
        pass

threading.Thread(target=watch, name="watcher", daemon=True).start()
print("ready", flush=True)
load_batch() if sys.argv[1] == "sleep" else spin()
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text(PROGRAM)
    return path


def start(program: Path, what: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, str(program), what], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.fixture
def sleeper(program: Path) -> Iterator[subprocess.Popen[str]]:
    with start(program, "sleep") as process:
        yield process
        process.kill()


def dump_until(pid: int, function: str) -> list[StackRecord]:
    """Dump until the main thread is in ``function``; processes take a moment to get there."""
    deadline = time.monotonic() + 60
    while True:
        records = asyncio.run(dump_stacks(1, pid, 99, timeout_s=30.0))
        if any(frame.startswith(function) for frame in records[0].frames):
            return records
        assert time.monotonic() < deadline, records


def test_a_sleeping_process_shows_where(sleeper: subprocess.Popen[str]) -> None:
    """The main thread comes first, its innermost frame names function, file and line."""
    records = dump_until(sleeper.pid, "load_batch")
    main, *others = records
    assert main.thread == "MainThread"
    assert main.frames[0] == "load_batch (train.py:5)"
    assert main.frames[-1].startswith("<module> (train.py:")
    assert (main.rank, main.pid, main.error, main.holds_gil) == (1, sleeper.pid, "", False)
    assert [record.thread for record in others] == ["watcher"]


def test_a_spinning_process_holds_the_gil(program: Path) -> None:
    """A busy main thread is active, and most looks find it holding the GIL."""
    with start(program, "spin") as process:
        deadline = time.monotonic() + 60
        main = dump_until(process.pid, "spin")[0]
        while not main.holds_gil:
            assert time.monotonic() < deadline
            main = dump_until(process.pid, "spin")[0]
        assert main.is_active
        process.kill()


def test_a_stopped_process_can_be_read(sleeper: subprocess.Popen[str]) -> None:
    """SIGSTOP keeps nobody from reading the stack."""
    dump_until(sleeper.pid, "load_batch")
    sleeper.send_signal(signal.SIGSTOP)
    deadline = time.monotonic() + 60
    while read_process(1, sleeper.pid, 0).state != "T":
        assert time.monotonic() < deadline
    (main, *_) = asyncio.run(dump_stacks(1, sleeper.pid, 99, timeout_s=30.0))
    assert main.frames[0] == "load_batch (train.py:5)"


def test_looking_does_not_stop_the_process(sleeper: subprocess.Popen[str]) -> None:
    """The process goes on as it was."""
    dump_until(sleeper.pid, "load_batch")
    assert read_process(1, sleeper.pid, 0).state == "S"
    assert sleeper.poll() is None


def test_a_process_without_python_is_said() -> None:
    """A program that is no Python gives a record that says so."""
    with subprocess.Popen(["sleep", "600"]) as process:
        # Until exec, the child is still a copy of this Python.
        deadline = time.monotonic() + 60
        while "sleep" not in Path(f"/proc/{process.pid}/comm").read_text():
            assert time.monotonic() < deadline
        (record,) = asyncio.run(dump_stacks(1, process.pid, 99, timeout_s=30.0))
        process.kill()
    assert "runs no Python" in record.error


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_a_process_of_somebody_else_names_the_way_out(
    sleeper: subprocess.Popen[str], tmp_path: Path
) -> None:
    """py-spy without the right to look gives a record that says what to allow."""
    py_spy = find_py_spy()
    assert py_spy is not None
    shared = tmp_path / "py-spy"
    shared.write_text(
        f"#!{sys.executable}\n"
        "import os, sys\n"
        f"program = os.open({py_spy!r}, os.O_RDONLY)\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "os.set_inheritable(program, True)\n"
        "os.execve(program, sys.argv, os.environ)\n"
    )
    shared.chmod(0o755)
    (record,) = asyncio.run(dump_stacks(1, sleeper.pid, 99, program=str(shared), timeout_s=30.0))
    assert "SYS_PTRACE" in record.error
