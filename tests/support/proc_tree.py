"""A made-up ``/proc`` directory of a process, and the rank page that names it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.rank_pages import rank_page

if TYPE_CHECKING:
    from pathlib import Path

    from tracecore_train.wire.records import RankPageRecord

START_TICKS = 123_456
HEARTBEAT_NS = 999_000_000_000
"""A second before the tests' first look."""
_STATUS = (
    "Name:\tpython\nVmRSS:\t  228620 kB\nRssAnon:\t  148452 kB\nRssFile:\t   80144 kB\n"
    "RssShmem:\t      24 kB\nThreads:\t3\nvoluntary_ctxt_switches:\t11\n"
    "nonvoluntary_ctxt_switches:\t766\n"
)


class FakeProcess:
    """The files of one process below ``root``."""

    def __init__(self, root: Path, pid: int) -> None:
        """Make them, for an ordinary process without children."""
        self.directory = root / str(pid)
        self._pid = pid
        (self.directory / "task" / str(pid)).mkdir(parents=True)
        self.write()
        self.schedstat("1500000000 250000 77\n")
        self.children()
        (self.directory / "wchan").write_text("0")
        (self.directory / "status").write_text(_STATUS)
        (self.directory / "smaps_rollup").write_text("00-ff ---p 0 00:00 0\nPss:    1234 kB\n")

    def write(
        self,
        *,
        state: str = "S",
        major_faults: int = 0,
        threads: int = 1,
        start_ticks: int = START_TICKS,
        rss_pages: int = 5_000,
    ) -> None:
        """Write the ``stat`` line anew, in place: open files see it."""
        (self.directory / "stat").write_text(
            f"{self._pid} (python) {state} 1 7 7 0 -1 4194304 900 0 {major_faults} 0 250 50 0 0"
            f" 20 0 {threads} 0 {start_ticks} 1000000 {rss_pages} 18446744073709\n"
        )

    def schedstat(self, text: str) -> None:
        """Write what the scheduler counted."""
        (self.directory / "schedstat").write_text(text)

    def children(self, *pids: int) -> None:
        """Write the children of the main thread."""
        text = "".join(f"{pid} " for pid in pids)
        (self.directory / "task" / str(self._pid) / "children").write_text(text)


def page(pid: int, rank: int = 0) -> RankPageRecord:
    """Give the page of a rank that lives under ``pid`` and beat a moment ago."""
    return rank_page(HEARTBEAT_NS, pid=pid, rank=rank, start_ticks=START_TICKS)
