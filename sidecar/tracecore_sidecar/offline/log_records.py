"""Facts of logs as records: the watchdog tells in words what the flight recorder holds.

A rank that gave up on an operation had entered it; a rank that told counters had entered that many
and no more. Who never spoke is not known. Members of a group are the ranks that spoke of it, of the
default group all ranks up to the highest that spoke.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracecore_sidecar.offline.job_records import DEFAULT_GROUP, JobRecords, batch
from tracecore_sidecar.offline.watchdog_log import DEFAULT_NAME
from tracecore_train.wire.records import (
    CollectiveRecord,
    GroupRecord,
    ProgressRecord,
    PullRecord,
    WorkerExitRecord,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tracecore_sidecar.offline.watchdog_log import LogFacts, Timeout
    from tracecore_train.wire.records import Record

FATAL_EXITS = frozenset({-4, -7, -8, -9, -11})
"""Signals that end a rank by itself; SIGABRT and SIGTERM are how the others end afterwards."""
_POINTS = frozenset({"send", "recv", "coalesced"})
_MS = 1_000_000


def exit_records(facts: Iterable[LogFacts], now_ns: int) -> list[WorkerExitRecord]:
    """Give the ends that came before the wait: of the first failure, by a fatal signal."""
    return [
        WorkerExitRecord(
            time_ns=now_ns,
            rank=found.rank,
            pid=found.pid,
            exit_code=None,
            signal=-found.exit_code,
        )
        for log in facts
        for found in log.exits
        if found.is_first and found.exit_code in FATAL_EXITS
    ]


def log_records(facts: Sequence[LogFacts], now_ns: int) -> JobRecords | None:
    """Turn the facts of a job's logs, which end at ``now_ns``, into batches; None without a wait.

    The lines themselves have many forms of time; what ran how long is told by all.
    """
    timeouts = [t for log in facts for t in log.timeouts if t.op not in _POINTS]
    counts = [c for log in facts for c in log.counts]
    if not timeouts:
        return None
    groups: dict[str, set[int]] = {}
    for pg_name, rank in [(t.pg_name, t.rank) for t in timeouts] + [
        (c.pg_name, c.rank) for c in counts
    ]:
        groups.setdefault(pg_name, set()).add(rank)
    exits = exit_records(facts, now_ns)
    everybody = set().union(*groups.values(), {e.rank for e in exits})
    world_size = max(everybody) + 1
    names = {DEFAULT_NAME: DEFAULT_GROUP}
    names |= {k: v for log in facts for k, v in log.descriptions.items()}
    for pg_name, ranks in groups.items():
        if names.get(pg_name) == DEFAULT_GROUP:
            ranks.update(range(world_size))
    records: list[Record] = [
        GroupRecord(
            time_ns=now_ns,
            rank=min(ranks),
            pg_name=pg_name,
            pg_desc=names.get(pg_name, ""),
            backend="nccl",
            ranks=tuple(sorted(ranks)),
        )
        for pg_name, ranks in groups.items()
    ]
    records += [
        PullRecord(
            time_ns=now_ns,
            rank=rank,
            is_ok=True,
            reason="",
            num_entries=0,
            num_lost=0,
            is_active_only=True,
        )
        for rank in sorted({t.rank for t in timeouts} | {c.rank for c in counts})
    ]
    records += [
        ProgressRecord(
            time_ns=now_ns,
            rank=c.rank,
            pg_name=c.pg_name,
            enqueued=c.enqueued,
            started=-1,
            completed=c.completed,
        )
        for c in counts
    ]
    first: dict[tuple[int, str, int], Timeout] = {}
    for timeout in timeouts:
        first.setdefault((timeout.rank, timeout.pg_name, timeout.seq_id), timeout)
    records += [_collective(timeout, index, now_ns) for index, timeout in enumerate(first.values())]
    return JobRecords(
        world_size=world_size,
        batches=(batch([*records, *exits], world_size),),
        now_ns=now_ns,
        inferred=frozenset(groups),
    )


def _collective(timeout: Timeout, index: int, now_ns: int) -> CollectiveRecord:
    return CollectiveRecord(
        time_ns=now_ns,
        rank=timeout.rank,
        pg_name=timeout.pg_name,
        collective_seq_id=timeout.seq_id,
        record_id=index,
        op=timeout.op,
        input_sizes=f"[[{timeout.numel_in}]]",
        input_dtypes="",
        created_ns=max(1, now_ns - timeout.ran_ms * _MS),
        completed_ns=0,
        is_retired=False,
        op_id=timeout.seq_id,
    )
