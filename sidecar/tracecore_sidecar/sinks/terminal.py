"""The sidecar's voice on the terminal that the training processes write to as well.

Live, the status stands on the last row, kept out of the scrolling by the terminal itself: all
other lines scroll above it and stay whole, whoever writes them. Elsewhere everything is a plain
line. Each update is one write. A terminal that is stopped or gone is never waited for: what it
does not take at once is dropped.
"""

from __future__ import annotations

import os
import select
import stat
import time
from typing import TYPE_CHECKING, Literal, TextIO, TypeAlias

import numpy as np

from tracecore_sidecar.render import clean_line
from tracecore_sidecar.verdicts import Severity

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tracecore_sidecar.state.view import JobView
    from tracecore_sidecar.verdicts import Verdict

Mode: TypeAlias = Literal["live", "plain", "quiet"]

STATUS_INTERVAL_S = 30.0
"""Between two plain status lines."""
MIN_ROWS = 4
"""A lower terminal has no row to spare."""
PATIENCE_S = 0.2
"""For a block of text to be taken; a status line is not waited for at all."""
_SAVE, _RESTORE = "\x1b7", "\x1b8"
_INDEX, _UP, _CLEAR_ROW = "\x1bD", "\x1b[1A", "\x1b[2K"
"""One row down (scrolling at the end) in the same column; one row up; erase the row."""


class Terminal:
    """Writes to ``stream``; ``live`` falls back to ``plain`` where no row can be pinned."""

    def __init__(
        self, stream: TextIO, mode: Mode, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Write nothing yet."""
        self._out = _Output(stream)
        self._mode = mode
        self._clock = clock
        self._next_status = clock()
        self._size: tuple[int, int] | None = None
        """Columns and rows the pinned row was set up for; None while there is none."""

    @property
    def num_dropped(self) -> int:
        """Writes the terminal did not take."""
        return self._out.num_dropped

    def start_line(self, text: str) -> None:
        """Write the one line of the start."""
        self._out.write(clean_line(text) + "\n", PATIENCE_S)

    def status(self, text: str) -> None:
        """Show how the job is: pinned when live, a line now and then when plain."""
        if self._mode == "quiet":
            return
        size = self._out.size() if self._mode == "live" else None
        if size is not None and size[1] >= MIN_ROWS:
            self._pin(clean_line(text), size)
            return
        self._unpin()
        if self._clock() >= self._next_status:
            self._next_status = self._clock() + STATUS_INTERVAL_S
            self._out.write(clean_line(text) + "\n", PATIENCE_S)

    def verdict(self, text: str) -> None:
        """Write a rendered verdict as a block."""
        # A line end first: somebody else may be in the middle of a line (a progress bar).
        self._out.write(f"\n{_clean_block(text)}\n\n", PATIENCE_S)

    def summary(self, text: str) -> None:
        """Write the block of the end; the pinned row goes before it."""
        self._unpin()
        self._out.write(_clean_block(text) + "\n", PATIENCE_S)

    def close(self) -> None:
        """Give the terminal back as it was; later writes go nowhere."""
        self._unpin()
        self._out.close()

    def _pin(self, text: str, size: tuple[int, int]) -> None:
        columns, rows = size
        setup = ""
        if self._size != size:
            # Make sure that the cursor is above the last row before that row is taken out of the
            # scrolling. Setting the region moves the cursor, so save it.
            region = f"\x1b[1;{rows - 1}r"
            setup = f"{self._unpinning()}{_INDEX}{_SAVE}{region}{_RESTORE}{_UP}"
        row = f"{_SAVE}\x1b[{rows};1H{_CLEAR_ROW}{text[: columns - 1]}{_RESTORE}"
        if self._out.write(setup + row, 0.0):
            self._size = size

    def _unpin(self) -> None:
        if self._size is not None:
            self._out.write(self._unpinning(), PATIENCE_S)
            self._size = None

    def _unpinning(self) -> str:
        if self._size is None:
            return ""
        return f"{_SAVE}\x1b[r\x1b[{self._size[1]};1H{_CLEAR_ROW}{_RESTORE}"


class _Output:
    """A stream that is never waited for longer than asked, and never raises."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_closed = False
        self._own_fd = -1
        self._fd = -1
        self.num_dropped = 0
        try:
            self._fd = stream.fileno()
            mode = os.fstat(self._fd).st_mode
            if stat.S_ISCHR(mode) or stat.S_ISFIFO(mode):
                # Not waiting is a property of an open file, which the ranks share: open our own.
                flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
                self._fd = self._own_fd = os.open(f"/proc/self/fd/{self._fd}", flags)
        except (OSError, ValueError):
            pass  # no file at all (a test's StringIO), or not ours to open again: use it as it is

    def size(self) -> tuple[int, int] | None:
        """Give columns and rows; None where this is no terminal that can pin a row."""
        if self._fd < 0 or os.environ.get("TERM", "") in {"", "dumb"}:
            return None
        try:
            columns, rows = os.get_terminal_size(self._fd)
        except OSError:
            return None
        return columns, rows

    def write(self, text: str, patience_s: float) -> bool:
        """Write ``text`` if it is taken within ``patience_s``; say whether it was."""
        if self._is_closed:
            return False
        try:
            if self._fd < 0:
                self._stream.write(text)
                self._stream.flush()
                return True
            is_taken = self._write_bytes(text.encode("utf-8", "replace"), patience_s)
        except (OSError, ValueError):
            self.close()
            return False
        self.num_dropped += not is_taken
        return is_taken

    def close(self) -> None:
        self._is_closed = True
        if self._own_fd >= 0:
            os.close(self._own_fd)
            self._own_fd = -1

    def _write_bytes(self, data: bytes, patience_s: float) -> bool:
        left = memoryview(data)
        deadline = time.monotonic() + patience_s
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        while left:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                return False
            try:
                left = left[os.write(self._fd, left[: select.PIPE_BUF]) :]
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    return False
                time.sleep(0.005)  # writable, but not for this much
                continue
            # What is begun is finished, or half an escape sequence would stay behind.
            deadline = max(deadline, time.monotonic() + PATIENCE_S)
        return True


def format_status(view: JobView, verdicts: Sequence[Verdict]) -> str:
    """Give one line: ranks, steps, step time, input share, state."""
    ranks = view.ranks
    parts = [f"{int(ranks.is_seen.sum())}/{view.world_size} ranks"]
    steps = ranks.num_steps[ranks.is_seen]
    if steps.size and steps.max() > 0:
        low, high = int(steps.min()), int(steps.max())
        parts.append(f"step {high:,}" if low == high else f"step {low:,} to {high:,}")
    is_timed = (view.steps.numbers >= 0)[:, None] & (view.steps.duration_ns > 0)
    durations = view.steps.duration_ns[is_timed]
    if durations.size:
        parts.append(f"{_duration_text(float(np.median(durations)))} a step")
        # In floats: a sum of hostile durations must not wrap around.
        total = durations.sum(dtype=np.float64)
        share = view.steps.input_ns[is_timed].sum(dtype=np.float64) / total
        parts.append(f"input {share:.0%}")
    return "tracecore  " + " · ".join([*parts, _state_text(view, verdicts)])


def _state_text(view: JobView, verdicts: Sequence[Verdict]) -> str:
    if verdicts:
        worst = max(verdicts, key=lambda verdict: list(Severity).index(verdict.severity))
        named = [str(suspect.rank) for suspect in worst.suspects if suspect.rank is not None]
        who = f" rank {', '.join(named[:4])}{', …' if len(named) > 4 else ''}" if named else ""
        more = f" and {len(verdicts) - 1} more" if len(verdicts) > 1 else ""
        return f"{worst.pattern.upper().replace('_', ' ')}{who}{more}"
    ranks = view.ranks
    if ranks.is_ended.all():
        return "ended"
    if ranks.is_ended.any():
        return f"{int(ranks.is_ended.sum())} ended"
    if not ranks.is_seen.all():
        num_missing = int((~ranks.is_seen).sum())
        return f"waiting for {num_missing} rank{'s' if num_missing > 1 else ''}"
    if not ranks.num_steps.any():
        return "starting"
    saving = np.flatnonzero(ranks.checkpoint_since_ns)
    if saving.size:
        return f"checkpoint on rank {int(saving[0])}" if saving.size == 1 else "checkpoint"
    return "training"


def _duration_text(duration_ns: float) -> str:
    return f"{duration_ns / 1e6:.0f} ms" if duration_ns < 1e9 else f"{duration_ns / 1e9:.2f} s"


def _clean_block(text: str) -> str:
    return "\n".join(clean_line(line) for line in text.split("\n"))
