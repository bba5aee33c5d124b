"""PSS: a rank's resident memory with shared pages divided among those who share them.

Loader workers share most of their pages with the rank that forked them, so that their RSS, summed,
counts those several times; PSS does not. But the kernel walks all page tables for it, about 10 ms
for each GB in small pages, and holds the process's memory lock for reading meanwhile (kernels since
5.9 give it to whoever waits). So it is read rarely: one rank at a time, never one with more than
:data:`MAX_RSS_BYTES`, with a pause of :data:`PAUSE_FACTOR` times what the last read took. And it is
read in a thread of its own, since a process that is stuck in the kernel may keep the lock for ever.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracecore_train.wire.records import NOT_MEASURED

if TYPE_CHECKING:
    from pathlib import Path

MAX_RSS_BYTES = 8 << 30
"""Reading PSS of more than this holds the memory lock for a tenth of a second or longer."""
PAUSE_FACTOR = 5_000
"""Keeps the reads below 0.02 % of a core."""
MIN_PAUSE_NS = 5_000_000_000
_MAX_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Pss:
    """One value that was read."""

    rank: int
    pid: int
    pss_bytes: int
    time_ns: int


class PssReader:
    """Reads one process at a time, beside the caller."""

    def __init__(self, proc: Path) -> None:
        """Read below ``proc``."""
        self.reason = ""
        """Why the last read gave nothing; empty: it did."""
        self._proc = proc
        self._found: Pss | None = None
        self._next_ns = 0
        self._thread: threading.Thread | None = None

    def is_due(self, now_ns: int) -> bool:
        """Say whether it is time for the next read, and none is under way."""
        is_running = self._thread is not None and self._thread.is_alive()
        return now_ns >= self._next_ns and not is_running

    def start(self, rank: int, pid: int, rss_bytes: int, now_ns: int) -> None:
        """Read a process whose resident memory is ``rss_bytes``, if it is not too large."""
        self._next_ns = now_ns + MIN_PAUSE_NS
        if rss_bytes > MAX_RSS_BYTES:
            self._found = Pss(rank, pid, NOT_MEASURED, now_ns)
            self.reason = f"not read of processes above {MAX_RSS_BYTES >> 30} GiB: it would hurt"
            return
        self._thread = threading.Thread(
            target=self._read, args=(rank, pid, now_ns), name="tracecore-pss", daemon=True
        )
        self._thread.start()

    def take(self) -> Pss | None:
        """Give what was read since the last call."""
        found, self._found = self._found, None
        return found

    def wait(self, timeout_s: float) -> None:
        """Wait for the read that is under way. For tests."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _read(self, rank: int, pid: int, now_ns: int) -> None:
        began_ns = time.monotonic_ns()
        pss_bytes = NOT_MEASURED
        try:
            text = (self._proc / str(pid) / "smaps_rollup").read_bytes()[:_MAX_BYTES]
            line = next(line for line in text.splitlines() if line.startswith(b"Pss:"))
            pss_bytes = int(line.split()[1]) * 1024
            self.reason = ""
        except OSError as error:
            self.reason = f"{error.strerror} (smaps_rollup of rank {rank})"
        except (StopIteration, ValueError, IndexError):
            self.reason = f"smaps_rollup of rank {rank} has no Pss"
        took_ns = time.monotonic_ns() - began_ns
        self._next_ns = now_ns + max(MIN_PAUSE_NS, PAUSE_FACTOR * took_ns)
        self._found = Pss(rank, pid, pss_bytes, now_ns)
