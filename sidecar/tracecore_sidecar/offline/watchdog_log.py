"""What training logs tell about a hang: timeouts of torch's watchdog, and how processes ended.

A line is read for what it says and nothing is concluded here. Formats of torch 2.2 to 2.15 and of
torchrun; other lines pass by.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from typing import IO

DEFAULT_NAME = "0"
"""Name of the default group, which lines of older versions leave out."""
MAX_LINE = 16_384
"""Characters of a line that are looked at."""
MAX_FACTS = 200_000
"""Timeouts, counts and exits kept of one log."""
_INTERESTING = re.compile(
    r"atchdog|last enqueued|Last enqueued|Timed out|timed out|exitcode|monitoredBarrier"
    r"|store based barrier|first observed failure|^\s*rank\s+:|^\s*exitcode\s+:"
)
_PREFIX = re.compile(r"\[rank(\d{1,6})\]:")
_RANK = re.compile(r"\[?Rank (\d{1,6})\]")
_GROUP = re.compile(
    r"\[PG (?:ID \d+ )?(?:PG GUID )?(?P<guid>[^\s(\]]{1,64})\s*(?:\((?P<desc>[^)]{0,200})\))?"
)
_WORK = re.compile(
    r"Work(?:NCCL|[A-Z]*)\(SeqNum=(\d{1,18}), OpType=(\w{1,40})(?:, NumelIn=(\d{1,18}))?"
    r"(?:, NumelOut=(\d{1,18}))?"
)
_RAN = re.compile(r"ran for (\d{1,15}) milliseconds")
_COUNTS = re.compile(
    r"last enqueued (?:NCCL |GLOO )?work: (-?\d{1,18}),? last completed (?:NCCL |GLOO )?work: "
    r"(-?\d{1,18})",
    re.IGNORECASE,
)
_GLOO = re.compile(r"Timed out waiting (\d{1,12})ms for (recv|send) operation")
_STORE_BARRIER = re.compile(
    r"store based barrier on rank:? (\d{1,6}).{0,400}?world_size=(\d{1,6}), "
    r"(?:worker_count|num_workers_joined)=(\d{1,6})"
)
_MONITORED = re.compile(r"Ranks? ([\d, ]{1,2000}) failed to pass monitoredBarrier in (\d{1,12}) ms")
_FAILURE_RANK = re.compile(r"^\s*rank\s+: (\d{1,6}) \(local_rank")
_FAILURE_EXIT = re.compile(r"^\s*exitcode\s+: (-?\d{1,4}) \(pid: (\d{1,8})\)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeout:
    """The watchdog of a rank gave up on an operation."""

    rank: int
    pg_name: str
    seq_id: int
    op: str
    numel_in: int
    numel_out: int
    ran_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """A rank told its counters of a process group."""

    rank: int
    pg_name: str
    enqueued: int
    completed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """Torchrun told how a rank ended; the first failure is the one it takes for the root cause."""

    rank: int
    pid: int
    exit_code: int
    is_first: bool


@dataclass(slots=True)
class LogFacts:
    """What one log holds."""

    timeouts: list[Timeout] = field(default_factory=list)
    counts: list[Counts] = field(default_factory=list)
    exits: list[Exit] = field(default_factory=list)
    gloo_timeouts: dict[int, int] = field(default_factory=dict)
    """Milliseconds waited on gloo, by rank."""
    barrier_absent: dict[int, int] = field(default_factory=dict)
    """Ranks that failed to pass a monitored barrier, with the milliseconds waited."""
    store_barrier: dict[int, tuple[int, int]] = field(default_factory=dict)
    """World size and ranks that joined, by the rank that waited in the making of a group."""
    descriptions: dict[str, str] = field(default_factory=dict)
    """What people call the process groups, by name."""

    @property
    def num_facts(self) -> int:
        """Give how many facts there are."""
        in_lists = len(self.timeouts) + len(self.counts) + len(self.exits)
        return (
            in_lists + len(self.gloo_timeouts) + len(self.barrier_absent) + len(self.store_barrier)
        )


def read_log(path: Path, data: bytes | None = None) -> LogFacts:
    """Read a log, from ``data`` where it was unpacked; raises ``OSError``."""
    with path.open("rb") if data is None else io.BytesIO(data) as file:
        return log_facts(_lines(file))


def _lines(file: IO[bytes]) -> Iterator[str]:
    while line := file.readline(MAX_LINE):
        yield line.decode("utf-8", "replace")


def log_facts(lines: Iterable[str]) -> LogFacts:
    """Gather what the lines tell."""
    facts = LogFacts()
    is_first, failed_rank = False, None
    for line in lines:
        if not _INTERESTING.search(line):
            continue
        if facts.num_facts >= MAX_FACTS:
            break
        if "first observed failure" in line:
            is_first = True
        elif (match := _FAILURE_RANK.match(line)) is not None:
            failed_rank = int(match[1])
        elif (match := _FAILURE_EXIT.match(line)) is not None and failed_rank is not None:
            exit_ = Exit(
                rank=failed_rank, pid=int(match[2]), exit_code=int(match[1]), is_first=is_first
            )
            facts.exits.append(exit_)
            is_first, failed_rank = False, None
        else:
            _line(facts, line)
    return facts


def _line(facts: LogFacts, line: str) -> None:
    if (match := _MONITORED.search(line)) is not None:
        for rank in re.findall(r"\d{1,6}", match[1]):
            facts.barrier_absent[int(rank)] = int(match[2])
        return
    if (match := _STORE_BARRIER.search(line)) is not None:
        facts.store_barrier[int(match[1])] = (int(match[2]), int(match[3]))
        return
    rank = _rank(line)
    if rank is None:
        return
    if (match := _GLOO.search(line)) is not None:
        facts.gloo_timeouts.setdefault(rank, int(match[1]))
    pg_name = _group(facts, line)
    if "timeout" in line and (work := _WORK.search(line)) is not None:
        ran = _RAN.search(line)
        facts.timeouts.append(
            Timeout(
                rank=rank,
                pg_name=pg_name,
                seq_id=int(work[1]),
                op=op_name(work[2]),
                numel_in=int(work[3] or 0),
                numel_out=int(work[4] or 0),
                ran_ms=int(ran[1]) if ran else 0,
            )
        )
    if (match := _COUNTS.search(line)) is not None:
        counts = Counts(rank=rank, pg_name=pg_name, enqueued=int(match[1]), completed=int(match[2]))
        facts.counts.append(counts)


def _rank(line: str) -> int | None:
    """Give the global rank: torch's prefix of the line, else the rank it names itself by."""
    match = _PREFIX.search(line) or _RANK.search(line)
    return int(match[1]) if match else None


def _group(facts: LogFacts, line: str) -> str:
    match = _GROUP.search(line)
    if match is None:
        return DEFAULT_NAME
    if match["desc"]:
        facts.descriptions[match["guid"]] = match["desc"]
    return match["guid"]


_NAMES = {
    "ALLREDUCE": "all_reduce",
    "ALLREDUCE_COALESCED": "all_reduce_coalesced",
    "ALLGATHER": "all_gather",
    "_ALLGATHER_BASE": "_all_gather_base",
    "ALLGATHER_COALESCED": "all_gather_coalesced",
    "_REDUCE_SCATTER_BASE": "_reduce_scatter_base",
    "ALLTOALL_BASE": "all_to_all",
    "ALLTOALL": "all_to_all",
}


def op_name(name: str) -> str:
    """Give the name the flight recorder uses for an operation of a log."""
    return _NAMES.get(name, name.lower())
