"""A rank's process as ``/proc`` shows it: state, processor time, memory, where it sleeps.

:func:`read_process` takes one close look. :class:`ProcessFiles` looks at the same process again
and again and keeps its files open: that is cheaper, and an open file of ``/proc`` stays with its
process, so a process that later gets the same pid is never taken for it. None of the files read
here takes a lock of the process; ``smaps_rollup`` does, see ``pss.py``.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

from tracecore_train.wire.records import NOT_MEASURED, ProcessRecord

GONE = "-"
"""State of a process that does not exist any more."""
UNREADABLE = "?"
"""State of a process that ``/proc`` does not show us (``hidepid``, another pid namespace)."""
MAX_CHILDREN = 64
"""Children of one process looked at; all are counted."""

_NS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_MAX_BYTES = 8192
_STATES = frozenset(b"RSDTtZXxKWPI")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stat:
    """What a line of ``/proc/PID/stat`` says."""

    state: str
    start_ticks: int
    cpu_ns: int
    rss_bytes: int
    num_threads: int
    num_major_faults: int


def read_process(rank: int, pid: int, now_ns: int, proc: Path = Path("/proc")) -> ProcessRecord:
    """Look closely at a process. Never raises: one that is gone has state ``-``."""
    with contextlib.closing(ProcessFiles(pid, proc)) as files:
        return files.look_closely(files.look(rank, now_ns, files.stat()))


class ProcessFiles:
    """The files of one process; those that every look reads stay open. Close it."""

    def __init__(self, pid: int, proc: Path = Path("/proc")) -> None:
        """Open what can be opened; nothing raises."""
        self.pid = pid
        self._proc = proc
        self._stat_error: OSError | None = None
        directory = f"{proc}/{pid}"
        self._directory = directory
        self._stat = self._wchan = -1
        try:
            self._stat = os.open(f"{directory}/stat", os.O_RDONLY)
        except OSError as error:
            self._stat_error = error
            return
        with contextlib.suppress(OSError):
            self._wchan = os.open(f"{directory}/wchan", os.O_RDONLY)

    def close(self) -> None:
        """Close the files."""
        for fd in (self._stat, self._wchan):
            if fd >= 0:
                os.close(fd)
        self._stat = self._wchan = -1

    def stat(self) -> Stat:
        """Read the line of the process, or what stands for one that is gone or not shown."""
        try:
            if self._stat_error is not None:
                raise self._stat_error
            return parse_stat(os.pread(self._stat, _MAX_BYTES, 0))
        except (FileNotFoundError, ProcessLookupError):
            return without_numbers(GONE)
        except (OSError, ValueError, IndexError):
            return without_numbers(UNREADABLE)

    def look(self, rank: int, now_ns: int, stat: Stat) -> ProcessRecord:
        """Make a record of what ``stat`` says, and where the process sleeps."""
        return ProcessRecord(
            time_ns=now_ns,
            rank=rank,
            pid=self.pid,
            start_ticks=stat.start_ticks,
            state=stat.state,
            cpu_ns=stat.cpu_ns,
            rss_bytes=stat.rss_bytes,
            wchan=_parse_wchan(_pread(self._wchan)),
            num_threads=stat.num_threads,
            num_major_faults=stat.num_major_faults,
        )

    def look_closely(
        self, look: ProcessRecord, *, pss_bytes: int = NOT_MEASURED, pss_time_ns: int = 0
    ) -> ProcessRecord:
        """Add run queue, switches, kinds of memory and children, and a PSS read before."""
        main_cpu_ns, main_wait_ns = _parse_schedstat(self._read("schedstat"))
        status = self._read("status")
        num_children, children_rss_bytes, child_states = self._look_at_children()
        return replace(
            look,
            main_cpu_ns=main_cpu_ns,
            main_wait_ns=main_wait_ns,
            num_voluntary_switches=_status_number(status, b"\nvoluntary_ctxt_switches:"),
            num_involuntary_switches=_status_number(status, b"\nnonvoluntary_ctxt_switches:"),
            anon_bytes=_status_kibibytes(status, b"\nRssAnon:"),
            shmem_bytes=_status_kibibytes(status, b"\nRssShmem:"),
            pss_bytes=pss_bytes,
            pss_time_ns=pss_time_ns,
            num_children=num_children,
            children_rss_bytes=children_rss_bytes,
            child_states=child_states,
        )

    def _look_at_children(self) -> tuple[int, int, str]:
        """Give number, memory and states of the processes that the main thread started."""
        try:
            pids = _read(f"{self._directory}/task/{self.pid}/children").split()
        except OSError:
            return NOT_MEASURED, NOT_MEASURED, ""
        rss_bytes, states = 0, []
        for pid in pids[:MAX_CHILDREN]:
            # A child that ended since, or a line that is none.
            with contextlib.suppress(OSError, ValueError, IndexError):
                stat = parse_stat(_read(f"{self._proc}/{int(pid)}/stat"))
                rss_bytes += stat.rss_bytes
                states.append(stat.state)
        return len(pids), rss_bytes, "".join(states)

    def _read(self, name: str) -> bytes:
        try:
            return _read(f"{self._directory}/{name}")
        except OSError:
            return b""


def parse_stat(line: bytes) -> Stat:
    """Read a line of ``/proc/PID/stat``. Raises ``ValueError`` or ``IndexError`` on any other."""
    # The command name is free text in parentheses: it may hold spaces and parentheses itself.
    _, separator, rest = line.rpartition(b")")
    fields = rest.split(None, 23)
    if not separator or len(fields[0]) != 1 or fields[0][0] not in _STATES:
        raise ValueError("not a /proc/PID/stat line")
    return Stat(
        state=fields[0].decode("ascii"),
        start_ticks=int(fields[19]),
        cpu_ns=(int(fields[11]) + int(fields[12])) * _NS_PER_TICK,
        rss_bytes=max(0, int(fields[21])) * _PAGE_BYTES,
        num_threads=int(fields[17]),
        num_major_faults=int(fields[9]),
    )


def without_numbers(state: str) -> Stat:
    """Give what stands for a process of which nothing can be read."""
    return Stat(
        state=state,
        start_ticks=0,
        cpu_ns=0,
        rss_bytes=0,
        num_threads=NOT_MEASURED,
        num_major_faults=NOT_MEASURED,
    )


def _parse_schedstat(line: bytes) -> tuple[int, int]:
    """Give time on a processor and time waiting for one."""
    try:
        cpu_ns, wait_ns, _ = (int(word) for word in line.split())
    except ValueError:
        return NOT_MEASURED, NOT_MEASURED
    # A kernel that does not count says 0 of everything, also of a process that has run.
    return (cpu_ns, wait_ns) if cpu_ns else (NOT_MEASURED, NOT_MEASURED)


def _status_number(status: bytes, key: bytes) -> int:
    start = status.find(key)
    if start < 0:
        return NOT_MEASURED
    start += len(key)
    try:
        return int(status[start : status.find(b"\n", start)].split(None, 1)[0])
    except (ValueError, IndexError):
        return NOT_MEASURED


def _status_kibibytes(status: bytes, key: bytes) -> int:
    number = _status_number(status, key)
    return number * 1024 if number >= 0 else NOT_MEASURED


def _parse_wchan(name: bytes) -> str:
    text = name.strip().decode("utf-8", "replace")
    return "" if text == "0" else text[:64]


def _pread(fd: int) -> bytes:
    if fd < 0:
        return b""
    try:
        return os.pread(fd, _MAX_BYTES, 0)
    except OSError:
        return b""


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, _MAX_BYTES)
    finally:
        os.close(fd)
