"""The terminal sink: pinned row, plain lines, silence, and terminals that do not answer."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import select
import struct
import termios
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.support.screen import Screen
from tests.support.verdicts import hang
from tracecore_sidecar.sinks.terminal import STATUS_INTERVAL_S, Terminal, format_status
from tracecore_sidecar.state.view import JobView, RankColumns, StepWindow
from tracecore_sidecar.verdicts import JobInfo, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

COLUMNS, ROWS = 60, 10


class Clock:
    """Time that only a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Tty:
    """A real pseudo terminal with a screen behind it."""

    def __init__(self) -> None:
        self.master, slave = pty.openpty()
        self.stream = os.fdopen(slave, "w")
        self.screen = Screen(COLUMNS, ROWS)
        self.resize(COLUMNS, ROWS)

    def resize(self, columns: int, rows: int) -> None:
        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, size)

    def other_writes(self, text: str) -> None:
        """Another process writes to the same terminal."""
        self.show()
        os.write(self.stream.fileno(), text.encode())
        self.show()

    def show(self) -> Screen:
        self.screen.feed(self.read().replace("\r\n", "\n"))
        return self.screen

    def read(self) -> str:
        data = b""
        while select.select([self.master], [], [], 0.05)[0]:
            data += os.read(self.master, 65536)
        return data.decode()

    def close(self) -> None:
        self.stream.close()
        os.close(self.master)


@pytest.fixture
def tty(monkeypatch: pytest.MonkeyPatch) -> Iterator[Tty]:
    monkeypatch.setenv("TERM", "xterm")
    opened = Tty()
    yield opened
    opened.close()


def test_the_status_stands_on_the_last_row(tty: Tty) -> None:
    """A live status is on the last row, the newest replacing the one before."""
    terminal = Terminal(tty.stream, "live")
    terminal.status("step 1 of many")
    terminal.status("step 2")
    assert tty.show().lines[-1] == "step 2"
    terminal.close()


def test_lines_of_others_stay_whole(tty: Tty) -> None:
    """What other processes write scrolls above the status, every line in order and untouched."""
    terminal = Terminal(tty.stream, "live")
    written = [f"loss {number}" for number in range(40)]
    for number, line in enumerate(written):
        tty.other_writes(f"{line}\n")
        terminal.status(f"step {number}")
    screen = tty.show()
    assert screen.lines[-1] == "step 39"
    seen = [line for line in screen.scrolled + screen.lines[:-1] if line]
    assert seen == written
    terminal.close()


def test_a_line_in_the_making_is_continued(tty: Tty) -> None:
    """A status between two halves of somebody's line does not split it."""
    terminal = Terminal(tty.stream, "live")
    for number in range(ROWS + 3):
        tty.other_writes(f"first {number}, ")
        terminal.status(f"step {number}")
        tty.other_writes("second\n")
    screen = tty.show()
    seen = [line for line in screen.scrolled + screen.lines[:-1] if line]
    assert seen == [f"first {number}, second" for number in range(ROWS + 3)]
    terminal.close()


def test_a_verdict_is_a_block_above_the_status(tty: Tty) -> None:
    """A verdict scrolls with the output and leaves the status where it is."""
    terminal = Terminal(tty.stream, "live")
    terminal.status("step 7")
    terminal.verdict("HANG  rank 1\nSuspect  rank 1")
    screen = tty.show()
    assert screen.lines[-1] == "step 7"
    position = screen.lines.index("HANG  rank 1")
    assert screen.lines[position + 1] == "Suspect  rank 1"
    terminal.close()


def test_closing_gives_the_row_back(tty: Tty) -> None:
    """After close() the last row is empty and everything scrolls again."""
    terminal = Terminal(tty.stream, "live")
    tty.other_writes("before\n")
    terminal.status("step 7")
    terminal.close()
    tty.other_writes("".join(f"after {number}\n" for number in range(ROWS)))
    screen = tty.show()
    assert "step 7" not in screen.lines + screen.scrolled
    assert screen.lines[-2] == f"after {ROWS - 1}"
    assert "before" in screen.scrolled


def test_the_summary_takes_the_place_of_the_status(tty: Tty) -> None:
    """The summary ends the pinned row."""
    terminal = Terminal(tty.stream, "live")
    terminal.status("step 7")
    terminal.summary("rank     steps\n   0        40")
    screen = tty.show()
    assert "step 7" not in screen.lines
    assert "   0        40" in screen.lines
    terminal.close()


def test_a_new_size_moves_the_row(tty: Tty) -> None:
    """After a change of size the status is on the new last row only."""
    terminal = Terminal(tty.stream, "live")
    terminal.status("old size")
    tty.show()
    tty.resize(40, ROWS - 3)
    terminal.status("x" * 100)
    text = tty.read()
    assert f"\x1b[{ROWS};1H\x1b[2K" in text, "the old row is not cleared"
    assert f"\x1b[1;{ROWS - 4}r" in text
    assert f"\x1b[{ROWS - 3};1H" in text
    assert "x" * 39 in text
    assert "x" * 40 not in text
    terminal.close()


def test_each_status_is_one_write(tty: Tty, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of others can come between the parts of an update."""
    terminal = Terminal(tty.stream, "live")
    writes: list[bytes] = []
    write = os.write

    def counted(fd: int, data: bytes) -> int:
        writes.append(bytes(data))
        return write(fd, data)

    monkeypatch.setattr(os, "write", counted)
    terminal.status("step 1")
    terminal.status("step 2")
    monkeypatch.undo()
    assert len(writes) == 2
    terminal.close()


def test_a_low_terminal_gets_plain_lines(tty: Tty) -> None:
    """A terminal with no row to spare is not divided."""
    tty.resize(COLUMNS, 2)
    terminal = Terminal(tty.stream, "live")
    terminal.status("step 1")
    assert tty.read() == "step 1\r\n"
    terminal.close()


@pytest.mark.parametrize("term", ["dumb", ""])
def test_a_dumb_terminal_gets_plain_lines(
    tty: Tty, monkeypatch: pytest.MonkeyPatch, term: str
) -> None:
    """Without a terminal that knows rows there are no escape sequences."""
    monkeypatch.setenv("TERM", term)
    terminal = Terminal(tty.stream, "live")
    terminal.status("step 1")
    terminal.close()
    assert tty.read() == "step 1\r\n"


def test_live_without_a_terminal_is_plain() -> None:
    """A live display into a file writes no escape sequences."""
    stream = io.StringIO()
    terminal = Terminal(stream, "live", clock=Clock())
    terminal.start_line("start")
    terminal.status("step 1")
    terminal.verdict("HANG")
    terminal.summary("end")
    terminal.close()
    assert "\x1b" not in stream.getvalue()
    assert stream.getvalue() == "start\nstep 1\n\nHANG\n\nend\n"


def test_plain_status_lines_are_rare() -> None:
    """Plain mode writes a status at once and then at most one in thirty seconds."""
    stream, clock = io.StringIO(), Clock()
    terminal = Terminal(stream, "plain", clock=clock)
    for number in range(61):
        terminal.status(f"step {number}")
        clock.now += STATUS_INTERVAL_S / 30
    assert stream.getvalue().splitlines() == ["step 0", "step 30", "step 60"]


def test_quiet_has_no_status_but_speaks_of_trouble() -> None:
    """Quiet mode keeps the start line, verdicts and the summary."""
    stream = io.StringIO()
    terminal = Terminal(stream, "quiet", clock=Clock())
    terminal.start_line("start")
    terminal.status("step 1")
    terminal.verdict("HANG")
    terminal.summary("end")
    assert stream.getvalue() == "start\n\nHANG\n\nend\n"


def test_nothing_from_outside_steers_the_terminal(tty: Tty) -> None:
    """Control characters in any text come out as question marks."""
    bad = "a\x1b[2Jb\rc\x07"
    terminal = Terminal(tty.stream, "plain")
    terminal.start_line(bad)
    terminal.status(bad)
    terminal.verdict(bad)
    terminal.summary(bad)
    terminal.close()
    text = tty.read().replace("\r\n", "\n")
    assert text.count("a?[2Jb?c?") == 4
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", text)


def test_a_closed_pipe_never_raises() -> None:
    """A reader that is gone silences the terminal for good."""
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w")
    terminal = Terminal(stream, "plain")
    os.close(reader)
    terminal.start_line("start")
    terminal.verdict("HANG")
    terminal.summary("end")
    terminal.close()
    stream.close()


def test_a_terminal_that_hung_up_never_raises(tty: Tty) -> None:
    """EIO of a vanished terminal is swallowed."""
    slave = os.dup(tty.stream.fileno())
    stream = os.fdopen(slave, "w")
    terminal = Terminal(stream, "live")
    terminal.status("step 1")
    os.close(tty.master)
    terminal.status("step 2")
    terminal.verdict("HANG")
    terminal.close()
    stream.close()
    tty.master = os.open(os.devnull, os.O_RDONLY)


def test_a_closed_stream_never_raises() -> None:
    """A stream somebody closed is as good as none."""
    stream = io.StringIO()
    terminal = Terminal(stream, "plain")
    stream.close()
    terminal.start_line("start")
    terminal.close()


def test_a_pipe_nobody_reads_is_not_waited_for() -> None:
    """Texts that a full pipe does not take are dropped and counted, in bounded time."""
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w")
    terminal = Terminal(stream, "plain")
    started = time.monotonic()
    for number in range(40):
        terminal.verdict(f"{number} " + "x" * 900 + "\n" + "y" * 900)
    assert terminal.num_dropped > 0
    assert time.monotonic() - started < 60
    terminal.close()
    os.close(reader)
    stream.close()


def test_a_stopped_terminal_is_not_waited_for(tty: Tty) -> None:
    """A live status on a terminal whose reader stopped returns at once."""
    terminal = Terminal(tty.stream, "live")
    started = time.monotonic()
    for number in range(3_000):
        terminal.status(f"{number} " + "x" * 50)
    assert terminal.num_dropped > 0
    assert time.monotonic() - started < 60
    terminal.close()


def test_the_shared_file_keeps_blocking(tty: Tty) -> None:
    """The open file that other processes share is not made non-blocking."""
    terminal = Terminal(tty.stream, "live")
    terminal.status("step 1")
    assert os.get_blocking(tty.stream.fileno())
    terminal.close()


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def view(world_size: int = 2, num_seen: int = 2, **changes: object) -> JobView:
    """Two ranks at step 120, 100 ms a step, 3 ms of it input."""
    zeros = ints(*[0] * world_size)
    seen = np.arange(world_size) < num_seen
    columns: dict[str, object] = {
        name: zeros for name in RankColumns.__dataclass_fields__ if not name.startswith("is_")
    }
    nobody = np.zeros(world_size, dtype=bool)
    columns |= {"is_seen": seen, "is_ended": nobody}
    columns |= {"is_active_only": nobody, "is_truncated": nobody}
    columns |= {"num_steps": np.where(seen, 120, 0)}
    columns |= {key: value for key, value in changes.items() if key in columns}
    table = np.zeros((4, world_size), dtype=np.int64)
    steps = StepWindow(
        numbers=ints(118, 119, -1, -1),
        end_ns=table,
        duration_ns=np.where(ints(1, 1, 0, 0)[:, None] > 0, 100_000_000 * seen, 0),
        input_ns=np.where(ints(1, 1, 0, 0)[:, None] > 0, 3_000_000 * seen, 0),
        checkpoint_ns=table,
        num_batches=table,
        flags=table,
    )
    if "num_steps" in changes:
        steps = StepWindow(
            numbers=ints(-1, -1, -1, -1),
            end_ns=table,
            duration_ns=table,
            input_ns=table,
            checkpoint_ns=table,
            num_batches=table,
            flags=table,
        )
    return JobView(
        job=JobInfo(job_id="job", attempt=0, world_size=world_size, node_rank=0, host="a07"),
        ranks=RankColumns(**columns),  # type: ignore[arg-type]
        groups={},
        steps=steps,
        hosts=(),
        identities={},
        phases={},
        stacks={},
        processes={},
        blind={},
        num_lost={},
    )


def test_the_status_line_is_one_quiet_line() -> None:
    """Ranks, step, step time, input share and state stand on one line."""
    expected = "tracecore  2/2 ranks · step 120 · 100 ms a step · input 3% · training"
    assert format_status(view(), ()) == expected


def test_ranks_that_differ_are_shown() -> None:
    """Ranks at different steps show the range."""
    line = format_status(view(num_steps=ints(110, 1200)), ())
    assert "step 110 to 1,200" in line


def test_a_job_that_starts_says_so() -> None:
    """Without a step there is no step time."""
    line = format_status(view(num_steps=ints(0, 0)), ())
    assert line == "tracecore  2/2 ranks · starting"


def test_missing_ranks_are_waited_for() -> None:
    """Ranks nobody has seen are counted."""
    assert format_status(view(num_seen=1), ()).endswith("waiting for 1 rank")
    assert format_status(view(4, 2), ()).endswith("waiting for 2 ranks")


def test_a_checkpoint_is_named() -> None:
    """A rank inside a checkpoint call is shown."""
    line = format_status(view(checkpoint_since_ns=ints(5, 0)), ())
    assert line.endswith("checkpoint on rank 0")


def test_ended_ranks_are_counted() -> None:
    """A rank that ended while others run is shown; a job that ended is ended."""
    assert format_status(view(is_ended=np.array([True, False])), ()).endswith("1 ended")
    assert format_status(view(is_ended=np.array([True, True])), ()).endswith("· ended")


def test_the_worst_verdict_is_the_state() -> None:
    """Of several verdicts the most severe is named, with its suspects, the others counted."""
    slow = hang(0, pattern="straggler", severity=Severity.WARNING)
    assert format_status(view(), (slow, hang(1))).endswith("HANG rank 1 and 1 more")
    assert format_status(view(), (hang(),)).endswith("· HANG")
