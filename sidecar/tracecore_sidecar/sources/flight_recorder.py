"""The flight recorder of a rank, pulled through torch's worker server without the rank's GIL.

The server answers ``POST /handler/fr_trace_json`` on a unix socket with the whole ring as JSON.
A reader keeps a cursor per rank process and recorder and gives what changed: new collectives,
and those that finished since. A failed pull is a record too, with the reason.

Everything that comes back is checked: a rank can be stopped in the middle of an answer, and
something else can hold its socket.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tracecore_sidecar.sources.recorder_dump import cut, parse
from tracecore_sidecar.sources.worker_server import PullError, fetch
from tracecore_train.wire.records import CollectiveRecord, PullRecord

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tracecore_sidecar.sources.recorder_dump import Dump

GLOO_HANDLER = "fr_trace_json"
NCCL2_HANDLER = "fr_trace_json?backend=nccl2"
NCCL_HANDLER = "dump_nccl_trace_json"
DEFAULT_HANDLERS = (GLOO_HANDLER,)


@dataclass(slots=True)
class _Cursor:
    """How far one recorder of one process was read."""

    last_id: int = -1
    last_created_wall_ns: int = 0
    pending: set[int] = field(default_factory=set)
    """Record ids of collectives that were not retired at the last pull."""


@dataclass(slots=True)
class _RankCursors:
    pid: int
    by_handler: dict[str, _Cursor] = field(default_factory=dict)


class FlightRecorderReader:
    """Pulls flight recorders and remembers how far it got."""

    def __init__(self) -> None:
        """Start with nothing read."""
        self._cursors: dict[int, _RankCursors] = {}
        self._reading = threading.Lock()
        """Held while an answer is read: only one is unpacked at a time, and none contend."""

    def pull(
        self,
        rank: int,
        socket_path: Path,
        *,
        pid: int,
        wall_offset_ns: int,
        now_ns: int,
        timeout_s: float = 2.0,
        handlers: Sequence[str] = DEFAULT_HANDLERS,
    ) -> list[PullRecord | CollectiveRecord]:
        """Pull the recorders of a rank; blocks up to ``timeout_s`` for each handler.

        Gives a :class:`PullRecord` first, then the collectives that are new or finished since the
        last pull of this process. Pulls of one rank must not overlap; those of different ranks
        may. Where one of several recorders fails, the pull has failed, and the others' entries
        still come back.
        """
        cursors = self._cursors.get(rank)
        if cursors is None or cursors.pid != pid:
            cursors = self._cursors[rank] = _RankCursors(pid=pid)
        changed: list[CollectiveRecord] = []
        reasons: list[str] = []
        num_lost = 0
        is_active_only = is_truncated = False
        for handler in handlers:
            cursor = cursors.by_handler.setdefault(handler, _Cursor())
            try:
                raw = fetch(socket_path, handler, timeout_s)
                with self._reading:
                    dump = _unread(raw, cursor, rank, wall_offset_ns, now_ns)
            except PullError as error:
                reasons.append(str(error))
                continue
            is_partial = _leaves_out_finished(dump)
            is_active_only = is_active_only or is_partial
            is_first_look = cursor.last_id < 0
            fresh, lost = _advance(cursor, dump.records, wall_offset_ns)
            changed += fresh
            if not is_partial:
                num_lost += lost
                began = dump.records[0].record_id if dump.records else 0
                is_truncated |= lost > 0 or (is_first_look and began > 0)
        pull = PullRecord(
            time_ns=now_ns,
            rank=rank,
            is_ok=not reasons,
            reason="; ".join(reasons),
            num_entries=len(changed),
            num_lost=num_lost,
            is_active_only=is_active_only,
            is_truncated=is_truncated,
        )
        return [pull, *changed]

    def forget(self, rank: int) -> None:
        """Drop the cursor of a rank whose process has ended."""
        self._cursors.pop(rank, None)


def _unread(
    raw: bytes | bytearray, cursor: _Cursor, rank: int, wall_offset_ns: int, now_ns: int
) -> Dump:
    """Read the entries a cursor still needs, or all where the ring is not as it was left."""
    needed = min(cursor.pending | {cursor.last_id})
    if tail := cut(raw, needed):
        try:
            dump = parse(tail, rank, wall_offset_ns, now_ns)
        except PullError:
            return parse(raw, rank, wall_offset_ns, now_ns)
        left = {record.record_id: record.created_ns for record in dump.records}
        created_ns = left.get(cursor.last_id)
        is_as_left = created_ns == cursor.last_created_wall_ns - wall_offset_ns
        if is_as_left and dump.records[0].record_id == needed:
            return dump
    return parse(raw, rank, wall_offset_ns, now_ns)


def _leaves_out_finished(dump: Dump) -> bool:
    """Say whether a recorder answered with what is under way only, as some versions do.

    The recorder of a rank that waits for nothing is then empty although it counts, and ids of
    entries that are all under way have gaps.
    """
    records = dump.records
    if any(record.is_retired or record.completed_ns for record in records):
        return False
    if not records:
        return dump.has_counted
    return records[-1].record_id - records[0].record_id >= len(records)


def _advance(
    cursor: _Cursor, records: Sequence[CollectiveRecord], wall_offset_ns: int
) -> tuple[list[CollectiveRecord], int]:
    """Move the cursor to the end of the ring; give what changed and how many were lost."""
    by_id = {record.record_id: record for record in records}
    first = records[0].record_id if records else 0
    last = records[-1].record_id if records else -1
    seen = by_id.get(cursor.last_id)
    was_reset = last < cursor.last_id or (
        seen is not None and seen.created_ns + wall_offset_ns != cursor.last_created_wall_ns
    )
    num_lost = len(cursor.pending if was_reset else cursor.pending - by_id.keys())
    if was_reset:
        cursor.last_id, cursor.pending = -1, set()
    elif cursor.last_id >= 0:
        num_lost += max(0, first - cursor.last_id - 1)
    fresh = [
        record
        for record in records
        if record.record_id > cursor.last_id
        or (record.is_retired and record.record_id in cursor.pending)
    ]
    cursor.pending = {record.record_id for record in records if not record.is_retired}
    if records:
        cursor.last_id = last
        cursor.last_created_wall_ns = records[-1].created_ns + wall_offset_ns
    return fresh, num_lost
