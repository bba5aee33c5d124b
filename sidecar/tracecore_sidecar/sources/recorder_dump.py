"""The JSON of a flight recorder dump, read into entries; every value is checked.

A ring of 2,000 entries is a megabyte of JSON, of which most was read before: what comes before
the first entry still needed is cut off unparsed, wherever that is safe.
"""

from __future__ import annotations

import json
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from tracecore_sidecar.sources.worker_server import PullError
from tracecore_train.wire.records import NOT_MEASURED, CollectiveRecord, RecordKind
from tracecore_train.wire.tables import from_columns

if TYPE_CHECKING:
    from collections.abc import Sequence

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


class Dump(NamedTuple):
    """What a dump holds."""

    records: list[CollectiveRecord]
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
        records = _records(listed[-MAX_ENTRIES:], rank, wall_offset_ns, now_ns)
    except KeyError as error:
        raise PullError(f"an entry of its dump has no {error.args[0]}") from None
    except (TypeError, ValueError) as error:
        raise PullError(f"an entry of its dump is not as expected: {error}") from None
    records.sort(key=attrgetter("record_id"))
    if len({record.record_id for record in records}) != len(records):
        raise PullError("its dump holds the same record_id twice")
    return Dump(records, has_counted=_has_counted(dump.get("pg_status")))


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


def _records(
    entries: list[Any], rank: int, wall_offset_ns: int, now_ns: int
) -> list[CollectiveRecord]:
    """Read entries column by column: what all of them hold is checked at once.

    Each column is looked at value by value only where something in it is out of the ordinary.
    """
    if not set(map(type, entries)) <= {dict}:
        raise TypeError("not an object")
    started_wall_ns = _numbers(entries, "time_discovered_started_ns", 0)
    names = _texts(_column(entries, "profiling_name"))
    parted = {name: name.partition(":") for name in set(names)}
    columns: dict[str, Sequence[object]] = {
        "time_ns": [now_ns] * len(entries),
        "rank": [rank] * len(entries),
        "pg_name": _texts([pg_name for pg_name, _ in _column(entries, "process_group")]),
        "collective_seq_id": _numbers(entries, "collective_seq_id"),
        "record_id": _numbers(entries, "record_id"),
        "op": [parted[name][2] or name for name in names],
        "input_sizes": _listings(entries, "input_sizes"),
        "input_dtypes": _listings(entries, "input_dtypes"),
        "created_ns": _monotonic(_numbers(entries, "time_created_ns"), wall_offset_ns),
        "completed_ns": _seen(_numbers(entries, "time_discovered_completed_ns", 0), wall_offset_ns),
        "is_retired": _flags(_column(entries, "retired")),
        "is_p2p": _flags([entry.get("is_p2p", False) for entry in entries]),
        "p2p_seq_id": _numbers(entries, "p2p_seq_id", 0),
        "op_id": _numbers(entries, "op_id", 0),
        "output_sizes": _listings(entries, "output_sizes"),
        "output_dtypes": _listings(entries, "output_dtypes"),
        "is_started": [
            wall_ns > 0 or entry.get("state") in _RAN
            for wall_ns, entry in zip(started_wall_ns, entries, strict=True)
        ],
        "started_ns": _seen(started_wall_ns, wall_offset_ns),
        "backend": [parted[name][0] if parted[name][1] else "" for name in names],
        "duration_ns": [
            _duration(entry["duration_ms"]) if "duration_ms" in entry else NOT_MEASURED
            for entry in entries
        ],
    }
    return cast("list[CollectiveRecord]", from_columns(RecordKind.COLLECTIVE, columns))


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


def _column(entries: list[dict[str, Any]], key: str) -> list[Any]:
    return [entry[key] for entry in entries]


def _numbers(entries: list[dict[str, Any]], key: str, default: int | None = None) -> list[int]:
    values: list[Any]
    values = _column(entries, key) if default is None else [entry.get(key) for entry in entries]
    if set(map(type, values)) == {int} and min(values) >= 0 and max(values) <= _INT64_MAX:
        return values
    return [_number(value, key, default) for value in values]


def _number(value: Any, key: str, default: int | None) -> int:
    if type(value) is int and 0 <= value <= _INT64_MAX:
        return value
    if value is None and default is not None:
        return default
    raise ValueError(f"{key} is {str(value)[:40]}")


def _monotonic(wall_ns: list[int], wall_offset_ns: int) -> list[int]:
    values = [value - wall_offset_ns for value in wall_ns]
    if values and max(map(abs, values)) > _INT64_MAX:
        raise ValueError(f"a time from {min(wall_ns)} to {max(wall_ns)} is out of range")
    return values


def _seen(wall_ns: list[int], wall_offset_ns: int) -> list[int]:
    """Convert times of which 0 says that nothing was seen yet."""
    if not any(wall_ns):
        return wall_ns
    converted = _monotonic(wall_ns, wall_offset_ns)
    return [at_ns if told else 0 for told, at_ns in zip(wall_ns, converted, strict=True)]


def _flags(values: list[Any]) -> list[bool]:
    if set(map(type, values)) <= {bool}:
        return values
    wrong = next(value for value in values if type(value) is not bool)
    raise TypeError(f"{str(wrong)[:40]} is neither true nor false")


def _texts(values: list[Any]) -> list[str]:
    is_text = set(map(type, values)) == {str}
    if is_text and max(map(len, values)) <= MAX_CHARS and all(map(str.isascii, values)):
        return values
    return [_text(value) for value in values]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{str(value)[:40]} is not a text")
    if len(value) <= MAX_CHARS and value.isascii():
        return value
    # A lone surrogate is legal in JSON and cannot be written as UTF-8 later on.
    return value[:MAX_CHARS].encode("utf-8", "replace").decode()


def _listings(entries: list[dict[str, Any]], key: str) -> list[str]:
    values = [entry.get(key, []) for entry in entries]
    if not set(map(type, values)) <= {list}:
        raise TypeError(f"{key} is not a list")
    return _texts(list(map(str, values)))
