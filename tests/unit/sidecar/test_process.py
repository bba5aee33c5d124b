"""A process as /proc shows it, from prepared files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tracecore_sidecar.sources.process import read_process

if TYPE_CHECKING:
    from pathlib import Path

TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


def fake_proc(root: Path, comm: str = "python", state: str = "S", wchan: str = "0") -> Path:
    tail = "1 7 7 0 -1 4194304 900 0 0 0 250 50 0 0 20 0 12 0 123456 1000000 5000 18446744073709"
    (root / "7").mkdir()
    (root / "7" / "stat").write_text(f"7 ({comm}) {state} {tail}\n")
    (root / "7" / "wchan").write_text(wchan)
    return root


def test_numbers_are_converted(tmp_path: Path) -> None:
    """Ticks become nanoseconds and pages become bytes."""
    record = read_process(3, 7, 99, fake_proc(tmp_path, wchan="futex_do_wait"))
    assert (record.time_ns, record.rank, record.pid) == (99, 3, 7)
    assert record.state == "S"
    assert record.start_ticks == 123456
    assert record.cpu_ns == 300 * TICK_NS
    assert record.rss_bytes == 5000 * PAGE
    assert record.wchan == "futex_do_wait"


@pytest.mark.parametrize(
    "comm", ["pt main (x)", ") R 1 1 1", "a b c", "((((", "", "pt\nmain", "\udce4"]
)
def test_the_command_name_is_free_text(tmp_path: Path, comm: str) -> None:
    """Spaces, parentheses and line ends in the name shift no field."""
    proc = fake_proc(tmp_path)
    stat = (proc / "7" / "stat").read_text().replace("(python)", f"({comm})")
    (proc / "7" / "stat").write_bytes(stat.encode("utf-8", "surrogateescape"))
    record = read_process(3, 7, 99, proc)
    assert (record.state, record.start_ticks) == ("S", 123456)


def test_a_process_that_runs_sleeps_nowhere(tmp_path: Path) -> None:
    """A wchan of 0 is no function name."""
    assert read_process(0, 7, 1, fake_proc(tmp_path, state="R")).wchan == ""


def test_a_process_that_is_gone_says_so(tmp_path: Path) -> None:
    """No directory in /proc is state -, with nothing measured."""
    record = read_process(0, 7, 1, tmp_path)
    assert (record.state, record.start_ticks, record.cpu_ns, record.rss_bytes) == ("-", 0, 0, 0)


@pytest.mark.parametrize("text", ["", "7 (python", "7 (python) S", "7 (python) ? " + "1 " * 40])
def test_a_line_that_is_none_is_not_taken_for_gone(tmp_path: Path, text: str) -> None:
    """A stat file that cannot be read leaves the state unknown."""
    proc = fake_proc(tmp_path)
    (proc / "7" / "stat").write_text(text)
    assert read_process(0, 7, 1, proc).state == "?"


def test_our_own_process_runs() -> None:
    """The real /proc shows this process, which has used time and memory."""
    record = read_process(0, os.getpid(), 1)
    assert record.state in {"R", "S"}
    assert record.start_ticks > 0
    assert record.cpu_ns > 0
    assert record.rss_bytes > 1 << 20
