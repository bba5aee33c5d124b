"""The JSON of a flight recorder dump, read into entries; every value is checked.

A ring of 2,000 entries is a megabyte of JSON, of which most was read before: what comes before
the first entry still needed is cut off unparsed, wherever that is safe.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from tracecore_sidecar.sources.worker_server import PullError
from tracecore_train.wire.records import NOT_MEASURED, CollectiveRecord

MAX_ENTRIES = 50_000
"""Entries of one answer that are looked at: the newest."""
MAX_CHARS = 1_000
"""Characters of one text of an entry."""
_INT64_MAX = 2**63 - 1
_MAX_DURATION_MS = 1e12
_RAN = ("started", "completed")
"""States that say that an operation ran; gloo leaves all at ``scheduled``."""
_LIST_START = b'"entries":['
_ID_KEY = b'"record_id":'
_HEAD_BYTES = 4_096
"""Within which the list of entries begins."""


class Entry(NamedTuple):
    """One entry of the ring."""

    record: CollectiveRecord
    created_wall_ns: int


class Dump(NamedTuple):
    """What a dump holds."""

    entries: list[Entry]
    """Oldest first."""
    has_counted: bool
    """Whether the recorder's counters say that something was recorded."""


def parse(raw: bytes | bytearray, rank: int, wall_offset_ns: int, now_ns: int) -> Dump:
    """Read a dump; raise :class:`PullError` where it is none."""
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
    return Dump(entries, has_counted=_has_counted(dump.get("pg_status")))


def cut(raw: bytes | bytearray, first: int) -> bytes:
    """Leave the entries before record id ``first`` out of a dump; empty where it cannot be done.

    Torch writes the ring in order (the first and the last entry left out are checked), entries
    without inner objects. A quote within a text is always escaped, so a key that stands in the raw
    bytes is a key. A text may still hold what looks like the border of an entry: the result may
    then be no JSON.
    """
    begin = raw.find(_LIST_START, 0, _HEAD_BYTES) + len(_LIST_START)
    if begin < len(_LIST_START) or first < 0:
        return b""
    place = raw.rfind(b"%b%d," % (_ID_KEY, first), begin)
    start = raw.rfind(b"},{", begin, place) + 2 if place > 0 else 0
    if start <= begin:
        return b""
    left_out = (raw.find(_ID_KEY, begin, start), raw.rfind(_ID_KEY, begin, start))
    if not all(0 <= _id_at(raw, at) < first for at in left_out):
        return b""
    return bytes(raw[:begin]) + raw[start:]


def _id_at(raw: bytes | bytearray, place: int) -> int:
    """Give the number behind a key at ``place``; -1 where there is none."""
    begin = place + len(_ID_KEY)
    digits, _, _ = raw[begin : begin + 20].partition(b",")
    return int(digits) if place >= 0 and digits.isdigit() else -1


def _entry(entry: Any, rank: int, wall_offset_ns: int, now_ns: int) -> Entry:
    if not isinstance(entry, dict):
        raise TypeError("not an object")
    pg_name, _ = entry["process_group"]
    created_wall_ns = _number(entry, "time_created_ns")
    started_wall_ns = _number(entry, "time_discovered_started_ns", 0)
    completed_wall_ns = _number(entry, "time_discovered_completed_ns", 0)
    name = _text(entry["profiling_name"])
    backend, colon, op = name.partition(":")
    record = CollectiveRecord(
        time_ns=now_ns,
        rank=rank,
        pg_name=_text(pg_name),
        collective_seq_id=_number(entry, "collective_seq_id"),
        record_id=_number(entry, "record_id"),
        op=op or name,
        input_sizes=_listing(entry, "input_sizes"),
        input_dtypes=_listing(entry, "input_dtypes"),
        created_ns=_monotonic(created_wall_ns, wall_offset_ns),
        completed_ns=_monotonic(completed_wall_ns, wall_offset_ns) if completed_wall_ns else 0,
        is_retired=_flag(entry["retired"]),
        is_p2p=_flag(entry.get("is_p2p", False)),
        p2p_seq_id=_number(entry, "p2p_seq_id", 0),
        op_id=_number(entry, "op_id", 0),
        output_sizes=_listing(entry, "output_sizes"),
        output_dtypes=_listing(entry, "output_dtypes"),
        is_started=bool(started_wall_ns) or entry.get("state") in _RAN,
        started_ns=_monotonic(started_wall_ns, wall_offset_ns) if started_wall_ns else 0,
        backend=backend if colon else "",
        duration_ns=_duration(entry.get("duration_ms")),
    )
    return Entry(record, created_wall_ns)


def _has_counted(status: Any) -> bool:
    """Say whether some group has enqueued anything; counters that are not understood say no."""
    groups = status.values() if isinstance(status, dict) else ()
    told = [group.get("last_enqueued_collective") for group in groups if isinstance(group, dict)]
    return any(str(number)[:20].strip("0").isdecimal() for number in told)


def _duration(milliseconds: Any) -> int:
    """Convert a duration; a recorder that did not measure it gives none, or a negative one."""
    if milliseconds is None:
        return NOT_MEASURED
    if isinstance(milliseconds, bool) or not isinstance(milliseconds, (int, float)):
        raise TypeError(f"duration_ms is {str(milliseconds)[:40]}")
    if not 0 <= milliseconds <= _MAX_DURATION_MS:
        return NOT_MEASURED
    return round(milliseconds * 1e6)


def _number(entry: dict[str, Any], key: str, default: int | None = None) -> int:
    value = entry[key] if default is None else entry.get(key)
    if type(value) is int and 0 <= value <= _INT64_MAX:
        return value
    if value is None and default is not None:
        return default
    raise ValueError(f"{key} is {str(value)[:40]}")


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
    if len(value) <= MAX_CHARS and value.isascii():
        return value
    # A lone surrogate is legal in JSON and cannot be written as UTF-8 later on.
    return value[:MAX_CHARS].encode("utf-8", "replace").decode()


def _listing(entry: dict[str, Any], key: str) -> str:
    value = entry.get(key, [])
    if not isinstance(value, list):
        raise TypeError(f"{key} is not a list")
    return _text(str(value))
