"""The flight recorder of a rank, pulled through torch's worker server without the rank's GIL.

The server answers ``POST /handler/fr_trace_json`` on a unix socket with the whole ring as JSON.
A reader keeps a cursor per rank process and recorder and gives what changed: new collectives,
and those that finished since. A failed pull is a record too, with the reason.

Everything that comes back is checked: a rank can be stopped in the middle of an answer, and
something else can hold its socket.
"""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import h11

from tracecore_train.wire.records import CollectiveRecord, PullRecord

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MAX_RESPONSE_BYTES = 64 << 20
"""A ring of 20,000 entries answers with 9.5 MB."""
MAX_ENTRIES = 50_000
"""Entries of one answer that are looked at: the newest."""
MAX_CHARS = 1_000
"""Characters of one text of an entry."""
DEFAULT_HANDLERS = ("fr_trace_json",)
_INT64_MAX = 2**63 - 1


class PullError(Exception):
    """A flight recorder could not be read; the message says why."""


@dataclass(frozen=True, slots=True)
class _Entry:
    record: CollectiveRecord
    created_wall_ns: int
    is_p2p: bool


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
        for handler in handlers:
            try:
                raw = _fetch(socket_path, handler, timeout_s)
                entries = _parse(raw, rank, wall_offset_ns, now_ns)
            except PullError as error:
                reasons.append(str(error))
                continue
            cursor = cursors.by_handler.setdefault(handler, _Cursor())
            fresh, lost = _advance(cursor, entries)
            changed += fresh
            num_lost += lost
        pull = PullRecord(
            time_ns=now_ns,
            rank=rank,
            is_ok=not reasons,
            reason="; ".join(reasons),
            num_entries=len(changed),
            num_lost=num_lost,
        )
        return [pull, *changed]

    def forget(self, rank: int) -> None:
        """Drop the cursor of a rank whose process has ended."""
        self._cursors.pop(rank, None)


def _advance(cursor: _Cursor, entries: Sequence[_Entry]) -> tuple[list[CollectiveRecord], int]:
    """Move the cursor to the end of the ring; give what changed and how many were lost."""
    by_id = {entry.record.record_id: entry for entry in entries}
    first = entries[0].record.record_id if entries else 0
    last = entries[-1].record.record_id if entries else -1
    seen = by_id.get(cursor.last_id)
    was_reset = last < cursor.last_id or (
        seen is not None and seen.created_wall_ns != cursor.last_created_wall_ns
    )
    num_lost = len(cursor.pending if was_reset else cursor.pending - by_id.keys())
    if was_reset:
        cursor.last_id, cursor.pending = -1, set()
    elif cursor.last_id >= 0:
        num_lost += max(0, first - cursor.last_id - 1)
    collectives = [entry.record for entry in entries if not entry.is_p2p]
    fresh = [
        record
        for record in collectives
        if record.record_id > cursor.last_id
        or (record.is_retired and record.record_id in cursor.pending)
    ]
    cursor.pending = {record.record_id for record in collectives if not record.is_retired}
    if entries:
        cursor.last_id, cursor.last_created_wall_ns = last, entries[-1].created_wall_ns
    return fresh, num_lost


def _parse(raw: bytes, rank: int, wall_offset_ns: int, now_ns: int) -> list[_Entry]:
    """Read the JSON of a dump into entries, oldest first."""
    try:
        dump = json.loads(raw)
    except (ValueError, RecursionError):
        raise PullError(f"its answer of {len(raw)} bytes is not JSON") from None
    # torch leaves the key out of the dump of an empty ring.
    listed = dump.get("entries", []) if isinstance(dump, dict) else None
    if not isinstance(listed, list):
        raise PullError("its answer is not a flight recorder dump")
    try:
        entries = [_entry(entry, rank, wall_offset_ns, now_ns) for entry in listed[-MAX_ENTRIES:]]
    except KeyError as error:
        raise PullError(f"an entry of its dump has no {error.args[0]}") from None
    except (TypeError, ValueError) as error:
        raise PullError(f"an entry of its dump is not as expected: {error}") from None
    entries.sort(key=lambda entry: entry.record.record_id)
    if len({entry.record.record_id for entry in entries}) != len(entries):
        raise PullError("its dump holds the same record_id twice")
    return entries


def _entry(entry: Any, rank: int, wall_offset_ns: int, now_ns: int) -> _Entry:
    if not isinstance(entry, dict):
        raise TypeError("not an object")
    pg_name, _ = entry["process_group"]
    created_wall_ns = _number(entry, "time_created_ns")
    completed_wall_ns = _number(entry, "time_discovered_completed_ns", 0)
    name = _text(entry["profiling_name"])
    record = CollectiveRecord(
        time_ns=now_ns,
        rank=rank,
        pg_name=_text(pg_name),
        collective_seq_id=_number(entry, "collective_seq_id"),
        record_id=_number(entry, "record_id"),
        op=name.partition(":")[2] or name,
        input_sizes=_listing(entry, "input_sizes"),
        input_dtypes=_listing(entry, "input_dtypes"),
        created_ns=_monotonic(created_wall_ns, wall_offset_ns),
        completed_ns=_monotonic(completed_wall_ns, wall_offset_ns) if completed_wall_ns else 0,
        is_retired=_flag(entry["retired"]),
    )
    return _Entry(record, created_wall_ns, is_p2p=_flag(entry.get("is_p2p", False)))


def _number(entry: dict[str, Any], key: str, default: int | None = None) -> int:
    value = entry[key] if default is None else entry.get(key)
    if value is None and default is not None:
        return default
    if type(value) is not int or not 0 <= value <= _INT64_MAX:
        raise ValueError(f"{key} is {str(value)[:40]}")
    return value


def _monotonic(wall_ns: int, wall_offset_ns: int) -> int:
    value = wall_ns - wall_offset_ns
    if abs(value) > _INT64_MAX:
        raise ValueError(f"time {wall_ns} is out of range")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{str(value)[:40]} is neither true nor false")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{str(value)[:40]} is not a text")
    # A lone surrogate is legal in JSON and cannot be written as UTF-8 later on.
    return value[:MAX_CHARS].encode("utf-8", "replace").decode()


def _listing(entry: dict[str, Any], key: str) -> str:
    value = entry.get(key, [])
    if not isinstance(value, list):
        raise TypeError(f"{key} is not a list")
    return _text(str(value))


def _fetch(path: Path, handler: str, timeout_s: float) -> bytes:
    """Ask the worker server; the whole exchange ends within ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            connection.connect(str(path))
            status, body = _exchange(connection, handler, deadline)
    except FileNotFoundError:
        raise PullError("the rank has no worker server (no socket)") from None
    except ConnectionRefusedError:
        raise PullError("nobody listens on the worker server's socket any more") from None
    except BlockingIOError:
        # A unix socket says so at once when its backlog is full: the server stopped accepting.
        raise PullError("the worker server does not accept connections; is it stopped?") from None
    except TimeoutError:
        raise PullError(f"the worker server gave no answer within {timeout_s:g} s") from None
    except h11.RemoteProtocolError as error:
        raise PullError(f"the worker server does not speak HTTP: {error}") from None
    except OSError as error:
        raise PullError(f"the worker server's socket: {error.strerror or error}") from None
    if status == 404:
        raise PullError(f"this torch has no handler {handler}")
    if status != 200:
        raise PullError(f"{handler} answered with status {status}")
    return body


def _exchange(connection: socket.socket, handler: str, deadline: float) -> tuple[int, bytes]:
    client = h11.Connection(our_role=h11.CLIENT)
    headers = [("Host", "localhost"), ("Connection", "close"), ("Content-Length", "0")]
    request = h11.Request(method="POST", target=f"/handler/{handler}", headers=headers)
    sent = [client.send(request), client.send(h11.EndOfMessage())]
    connection.sendall(b"".join(part or b"" for part in sent))
    status, size, chunks = 0, 0, []
    while True:
        event = client.next_event()
        if event is h11.NEED_DATA:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError
            connection.settimeout(remaining)
            client.receive_data(connection.recv(1 << 18))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            size += len(event.data)
            if size > MAX_RESPONSE_BYTES:
                raise PullError(f"its answer has more than {MAX_RESPONSE_BYTES} bytes")
            chunks.append(bytes(event.data))
        elif isinstance(event, h11.EndOfMessage):
            return status, b"".join(chunks)
        elif isinstance(event, h11.ConnectionClosed):
            raise PullError("the worker server hung up without an answer")
