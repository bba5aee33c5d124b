"""A rank's process as ``/proc`` shows it: state, processor time, memory, where it sleeps."""

from __future__ import annotations

import os
from pathlib import Path

from tracecore_train.wire.records import ProcessRecord

GONE = "-"
"""State of a process that does not exist any more."""
UNREADABLE = "?"
"""State of a process that ``/proc`` does not show us (``hidepid``, another user namespace)."""

_NS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_MAX_STAT_BYTES = 4096
_STATES = frozenset("RSDTtZXxKWPI")


def read_process(rank: int, pid: int, now_ns: int, proc: Path = Path("/proc")) -> ProcessRecord:
    """Look at a process. Never raises: a process that is gone has state ``-``."""
    state, start_ticks, cpu_ticks, rss_pages = UNREADABLE, 0, 0, 0
    try:
        state, start_ticks, cpu_ticks, rss_pages = _parse_stat(_read(proc / str(pid) / "stat"))
    except (FileNotFoundError, ProcessLookupError):
        state = GONE
    except (OSError, ValueError, IndexError):
        pass
    return ProcessRecord(
        time_ns=now_ns,
        rank=rank,
        pid=pid,
        start_ticks=start_ticks,
        state=state,
        cpu_ns=cpu_ticks * _NS_PER_TICK,
        rss_bytes=rss_pages * _PAGE_BYTES,
        wchan=_read_wchan(proc / str(pid) / "wchan"),
    )


def _parse_stat(text: str) -> tuple[str, int, int, int]:
    # The command name is free text in parentheses: it may hold spaces and parentheses itself.
    _, separator, rest = text.rpartition(")")
    fields = rest.split()
    if not separator or fields[0] not in _STATES:
        raise ValueError("not a /proc/PID/stat line")
    utime, stime, start_ticks, rss_pages = (int(fields[i - 3]) for i in (14, 15, 22, 24))
    return fields[0], start_ticks, utime + stime, max(0, rss_pages)


def _read_wchan(path: Path) -> str:
    try:
        name = _read(path).strip()
    except OSError:
        return ""
    return "" if name == "0" else name[:64]


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_MAX_STAT_BYTES).decode("utf-8", "replace")
