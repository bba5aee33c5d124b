"""Stacks by py-spy: what it prints, and the ways in which it fails."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from tracecore_sidecar.sources import stacks
from tracecore_sidecar.sources.stacks import (
    MAX_CHARS,
    MAX_FRAMES,
    MAX_THREADS,
    dump_stacks,
    parse_dump,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tracecore_train.wire.records import StackRecord


def thread(name: str | None, *frames: dict[str, Any], **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "pid": 7,
        "thread_id": 1,
        "thread_name": name,
        "os_thread_id": 8,
        "active": False,
        "owns_gil": False,
        "frames": list(frames),
    }
    return values | changes


def frame(name: str, line: int = 1, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "name": name,
        "filename": "/home/me/train.py",
        "short_filename": "train.py",
        "line": line,
    }
    return values | changes


def parse(*threads: object) -> list[StackRecord]:
    return parse_dump(json.dumps(threads).encode(), 1, 7, 99)


def program(directory: Path, code: str) -> str:
    """A stand-in for py-spy."""
    path = directory / "py-spy"
    path.write_text(f"#!{sys.executable}\n{code}\n")
    path.chmod(0o755)
    return str(path)


def dump_with(path: str, pid: int | None = None, timeout_s: float = 60.0) -> StackRecord:
    """The one record of a dump that fails."""
    target = os.getpid() if pid is None else pid
    (record,) = asyncio.run(dump_stacks(1, target, 99, program=path, timeout_s=timeout_s))
    return record


def test_frames_are_innermost_first() -> None:
    """A thread keeps the order of py-spy; a frame names function, file and line."""
    (record,) = parse(thread("MainThread", frame("inner", 2), frame("<module>", 9)))
    assert record.frames == ("inner (train.py:2)", "<module> (train.py:9)")
    assert (record.time_ns, record.rank, record.pid, record.error) == (99, 1, 7, "")


def test_the_main_thread_comes_first() -> None:
    """MainThread, then who holds the GIL, then who is active."""
    found = parse(
        thread("idle"),
        thread("busy", active=True),
        thread("holder", active=True, owns_gil=True),
        thread("MainThread"),
    )
    assert [record.thread for record in found] == ["MainThread", "holder", "busy", "idle"]
    assert [record.holds_gil for record in found] == [False, True, False, False]


def test_a_thread_without_name_gets_one() -> None:
    """A thread Python gave no name is called by its number."""
    assert parse(thread(None))[0].thread == "thread 8"


def test_a_frame_without_short_name_shows_its_file() -> None:
    """Where py-spy does not shorten the file name, the long one is shown."""
    (record,) = parse(thread("MainThread", frame("f", short_filename=None)))
    assert record.frames == ("f (/home/me/train.py:1)",)


def test_a_dump_is_bounded() -> None:
    """Many threads, deep stacks and long names are cut, and MainThread stays."""
    deep = [frame("f" * 10_000, n) for n in range(500)]
    found = parse(*[thread(f"t{n}") for n in range(100)], thread("MainThread", *deep))
    assert len(found) == MAX_THREADS
    assert found[0].thread == "MainThread"
    assert len(found[0].frames) == MAX_FRAMES
    assert max(map(len, found[0].frames)) <= MAX_CHARS


@pytest.mark.parametrize(
    "raw", [b"", b"{}", b"[]", b"[1]", b'[{"frames": 1}]', b'[{"frames": [1]}]', b"\xff"]
)
def test_other_output_is_refused(raw: bytes) -> None:
    """What is no dump is a ValueError."""
    with pytest.raises(ValueError, match=r"."):
        parse_dump(raw, 1, 7, 99)


def test_py_spy_beside_python_is_found_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The py-spy of our own environment wins over one on PATH, which is used otherwise."""
    for name in ("own", "path", "empty"):
        (tmp_path / name).mkdir()
    own, on_path = program(tmp_path / "own", ""), program(tmp_path / "path", "")
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "own" / "python"))
    assert stacks.find_py_spy() == own
    monkeypatch.setattr(sys, "executable", str(tmp_path / "empty" / "python"))
    assert stacks.find_py_spy() == on_path


def test_no_py_spy_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without py-spy the record says so."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    (record,) = asyncio.run(dump_stacks(1, os.getpid(), 99))
    assert "pip install py-spy" in record.error
    assert record.frames == ()


def test_denied_ptrace_names_the_way_out(tmp_path: Path) -> None:
    """What py-spy prints without rights becomes an error that says what to give."""
    complaint = "Permission Denied: Try running again with elevated permissions"
    path = program(tmp_path, f"import sys; sys.exit({complaint!r})")
    assert "SYS_PTRACE" in dump_with(path).error


def test_a_process_that_is_gone_is_told_apart() -> None:
    """The dump of a pid without process says that it is gone."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    py_spy = stacks.find_py_spy()
    assert py_spy is not None
    assert dump_with(py_spy, process.pid).error == f"process {process.pid} is gone"


def test_a_passing_failure_is_tried_again(tmp_path: Path) -> None:
    """A stack in motion fails once and works the next time."""
    dump = json.dumps([thread("MainThread", frame("f"))])
    mark = tmp_path / "tried"
    path = program(
        tmp_path,
        f"import pathlib, sys\nmark = pathlib.Path({str(mark)!r})\n"
        "if not mark.exists():\n    mark.touch()\n    sys.exit('Error: Failed to copy memory')\n"
        f"print({dump!r})",
    )
    assert dump_with(path).frames == ("f (train.py:1)",)


def test_a_lasting_failure_is_quoted(tmp_path: Path) -> None:
    """The first line of what py-spy says stands in the error."""
    path = program(tmp_path, "import sys; sys.exit('Error: strange thing\\nStack backtrace:')")
    assert dump_with(path).error == "py-spy: Error: strange thing"


def test_output_that_is_no_dump_is_an_error(tmp_path: Path) -> None:
    """A py-spy that prints something else gives a record, not an exception."""
    assert dump_with(program(tmp_path, "print('hello')")).error.startswith("py-spy did not work")


@pytest.mark.parametrize("code", ["import time; time.sleep(600)", "while True: pass"])
def test_a_py_spy_that_hangs_is_killed(tmp_path: Path, code: str) -> None:
    """After the deadline the record says so and no process is left."""
    mark = tmp_path / "pid"
    path = program(
        tmp_path,
        f"import os, pathlib\npathlib.Path({str(mark)!r}).write_text(str(os.getpid()))\n{code}",
    )
    started = time.monotonic()
    record = dump_with(path, timeout_s=2.0)
    assert "no answer" in record.error
    assert time.monotonic() - started < 30
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_endless_output_is_bounded(tmp_path: Path, stream: str) -> None:
    """A py-spy that prints for ever is killed long before its deadline and costs a record."""
    path = program(tmp_path, f"import sys\nwhile True:\n    sys.{stream}.write('x' * 65536)")
    started = time.monotonic()
    assert dump_with(path, timeout_s=60.0).error
    assert time.monotonic() - started < 50


def test_a_py_spy_that_cannot_start_is_an_error(tmp_path: Path) -> None:
    """A file that is no program gives a record."""
    path = tmp_path / "py-spy"
    path.write_text("")
    assert dump_with(str(path)).error.startswith("py-spy did not work")


def test_the_loop_goes_on_meanwhile(tmp_path: Path) -> None:
    """While py-spy hangs, other tasks run."""
    path = program(tmp_path, "import time; time.sleep(600)")

    async def both() -> int:
        num_beats = 0
        dump = asyncio.ensure_future(dump_stacks(1, os.getpid(), 99, program=path, timeout_s=1.0))
        while not dump.done():
            await asyncio.sleep(0.01)
            num_beats += 1
        await dump
        return num_beats

    assert asyncio.run(both()) > 20


@pytest.fixture(autouse=True)
def _no_child_is_left() -> Iterator[None]:
    yield
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
