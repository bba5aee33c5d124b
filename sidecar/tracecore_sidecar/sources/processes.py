"""The processes of this node's ranks, looked at on every tick.

Sampled here and not in the rank: it costs the training nothing, and goes on while the rank holds
the GIL, is stopped or has no thread left to speak. The rank page tells the pid and when the process
started. Where ``/proc`` shows no such process, or another one under that pid, and the rank still
beats, it lives in another pid namespace or is hidden from us: then it is blind, and not ended.

Three rhythms. Every tick: state, processor time, memory, faults, threads, where it sleeps. Every
:data:`CLOSELY_EVERY_NS`: run queue, switches, kinds of memory, and children, loader workers among
them; a second look of this kind each tick would take a tenth of the sidecar's budget. Now and then
PSS, see ``pss.py``.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tracecore_sidecar.sources.process import (
    GONE,
    UNREADABLE,
    ProcessFiles,
    without_numbers,
)
from tracecore_sidecar.sources.pss import PssReader
from tracecore_train.wire.records import NOT_MEASURED

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tracecore_sidecar.sources.process import Stat
    from tracecore_train.wire.records import ProcessRecord, RankPageRecord

TURN_NS = 1_000_000_000
NUM_TURNS = 5
CLOSELY_EVERY_NS = NUM_TURNS * TURN_NS
"""Between two close looks at one rank; ranks take turns. 8 loader workers add 0.1 ms to one."""
MAX_KEPT_OPEN = 128
"""Ranks whose files stay open, two each; on a larger node they are opened for every look."""
FRESH_NS = 10_000_000_000
"""A rank that beat less than this ago has not ended, whatever ``/proc`` does not show."""
MAX_NAMED = 8
"""Ranks named singly in a blind spot."""


@dataclass(slots=True)
class _Watched:
    """What is known of one rank's process."""

    pid: int
    start_ticks: int
    """0: not known."""
    heartbeat_ns: int
    """Of the rank page, at the first look."""
    closely_at_ns: int
    """When it is looked at closely next."""
    files: ProcessFiles | None = None
    is_found: bool = False
    """``/proc`` has shown this process."""
    is_hidden: bool = False
    """The rank lives, and ``/proc`` does not show it."""
    pss_bytes: int = NOT_MEASURED
    pss_time_ns: int = 0

    def close(self) -> None:
        if self.files is not None:
            self.files.close()
            self.files = None


class ProcessSampler:
    """Looks at the ranks that have a page on this node."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        """Look below ``proc``; nothing is opened yet."""
        self._proc = proc
        self._watched: dict[int, _Watched] = {}
        self.pss = PssReader(proc)
        """Reads PSS now and then."""

    def sample(self, pages: Iterable[RankPageRecord], now_ns: int) -> list[ProcessRecord]:
        """Look at the process of every page. Never raises because of one."""
        self._take_pss()
        records = {page.rank: self._look(page, now_ns) for page in pages}
        for rank in self._watched.keys() - records.keys():
            self._watched.pop(rank).close()
        self._want_pss(records, now_ns)
        return list(records.values())

    def look_closely(self, rank: int, pid: int, now_ns: int) -> ProcessRecord:
        """Look at all there is of one rank's process now; never at another under its pid.

        Raises nothing; a rank that is not watched yet is believed to be whoever has the pid.
        """
        watched = self._watched.get(rank)
        with contextlib.closing(ProcessFiles(pid, self._proc)) as files:
            stat = files.stat()
            if watched is not None and watched.pid == pid and stat.start_ticks:
                if watched.start_ticks not in (0, stat.start_ticks):
                    stat = without_numbers(GONE if watched.is_found else UNREADABLE)
            elif watched is not None and watched.is_hidden:
                stat = without_numbers(UNREADABLE)
            record = files.look(rank, now_ns, stat)
            return files.look_closely(record) if stat.start_ticks else record

    def blind(self) -> tuple[str, ...]:
        """Give what cannot be seen, each as ``signal: reason``."""
        hidden = sorted(rank for rank, watched in self._watched.items() if watched.is_hidden)
        found = []
        if hidden:
            ranks = ", ".join(str(rank) for rank in hidden[:MAX_NAMED])
            more = f" and {len(hidden) - MAX_NAMED} more" if len(hidden) > MAX_NAMED else ""
            found.append(
                f"host.process: /proc does not show the sidecar rank {ranks}{more} (another pid"
                " namespace, or hidepid); run the sidecar in their namespace and as their user"
            )
        if self.pss.reason:
            found.append(f"host.pss: {self.pss.reason}")
        return tuple(found)

    def close(self) -> None:
        """Close all files."""
        for watched in self._watched.values():
            watched.close()
        self._watched.clear()

    def _look(self, page: RankPageRecord, now_ns: int) -> ProcessRecord:
        watched = self._watch(page, now_ns)
        files = watched.files or ProcessFiles(watched.pid, self._proc)
        stat = _believed(files.stat(), watched, page, now_ns)
        is_there = stat.start_ticks > 0
        record = files.look(page.rank, now_ns, stat)
        if is_there and now_ns >= watched.closely_at_ns:
            num_due = (now_ns - watched.closely_at_ns) // CLOSELY_EVERY_NS + 1
            watched.closely_at_ns += num_due * CLOSELY_EVERY_NS
            record = files.look_closely(
                record, pss_bytes=watched.pss_bytes, pss_time_ns=watched.pss_time_ns
            )
        watched.files = files
        if not is_there or len(self._watched) > MAX_KEPT_OPEN:
            watched.close()
        return record

    def _watch(self, page: RankPageRecord, now_ns: int) -> _Watched:
        watched = self._watched.get(page.rank)
        if watched is not None and watched.pid == page.pid:
            return watched
        if watched is not None:
            watched.close()
        watched = self._watched[page.rank] = _Watched(
            pid=page.pid,
            start_ticks=page.start_ticks,
            heartbeat_ns=page.heartbeat_ns,
            closely_at_ns=now_ns + page.rank % NUM_TURNS * TURN_NS - TURN_NS // 10,
        )
        return watched

    def _take_pss(self) -> None:
        if (found := self.pss.take()) is not None:
            watched = self._watched.get(found.rank)
            if watched is not None and watched.pid == found.pid:
                watched.pss_bytes, watched.pss_time_ns = found.pss_bytes, found.time_ns

    def _want_pss(self, records: dict[int, ProcessRecord], now_ns: int) -> None:
        there = [rank for rank, record in records.items() if record.start_ticks]
        if there and self.pss.is_due(now_ns):
            rank = min(there, key=lambda rank: self._watched[rank].pss_time_ns)
            self.pss.start(rank, records[rank].pid, records[rank].rss_bytes, now_ns)


def _believed(stat: Stat, watched: _Watched, page: RankPageRecord, now_ns: int) -> Stat:
    """Give what ``/proc`` said, if that was about the rank; else what stands for it."""
    if stat.start_ticks and watched.start_ticks in (0, stat.start_ticks):
        watched.start_ticks, watched.is_found, watched.is_hidden = stat.start_ticks, True, False
        return stat
    if watched.is_found and stat.state != UNREADABLE:
        return without_numbers(GONE)
    is_alive = (
        stat.state == UNREADABLE
        or watched.is_hidden
        or page.heartbeat_ns > watched.heartbeat_ns
        or now_ns - page.heartbeat_ns < FRESH_NS
    )
    # A page that is only young may be that of a rank that just ended: unknown, not yet hidden.
    watched.is_hidden = stat.state == UNREADABLE or (
        is_alive and page.heartbeat_ns > watched.heartbeat_ns
    )
    return without_numbers(UNREADABLE if is_alive else GONE)
