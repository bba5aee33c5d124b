"""A dump of torch's flight recorder, read from a file: one recorder of one rank.

Versions 2.4 to 2.10 of the format differ in what they leave out; nothing but the entries is asked
for. ``pg_status`` is keyed by a number that only this rank knows, ``pg_config`` by name: they are
joined through entries, and where entries are missing by their order (both count process groups
as they were made), if that contradicts no entry. On gloo torch writes a ``pg_config`` without
names and members; it is left aside.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tracecore_sidecar.offline.dump_entry import text
from tracecore_sidecar.offline.refused import RefusedError
from tracecore_sidecar.offline.whether_over import (
    has_lost_unfinished,
    with_coalesced,
    without_given_up,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import TypeGuard

    from tracecore_sidecar.offline.dump_entry import EntryReader
    from tracecore_train.wire.records import CollectiveRecord

MAX_ENTRIES = 200_000
"""Of one dump; the newest are read."""
MAX_GROUPS = 65_536
MAX_MEMBERS = 4_000_000
"""Of all groups of one dump together; shared parts of a small file could say any number."""
MAX_RANK = 131_071
_KNOWN_KEYS = frozenset({"entries", "pg_config", "pg_status", "nccl_version", "comm_lib_version"})
_POINT = re.compile(r"(?:send|recv) (\d{1,9})(?:->|<-)\d{1,9}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecorderFile:
    """See the module."""

    name: str
    """Of the file, for people."""
    rank: int | None
    """As the content tells it, by sends and receives in groups whose members are known; else as
    the name of the file does."""
    version: str
    members: Mapping[str, tuple[int, ...]]
    """Global ranks by process-group name, where the dump says so rightly."""
    descriptions: Mapping[str, str]
    """What people call the groups, by name."""
    counters: Mapping[str, tuple[int, int, int]]
    """Enqueued, started and completed by process-group name, where they could be joined."""
    backends: Mapping[str, str]
    """Of the entries, by process-group name."""
    frames: Mapping[tuple[str, int], tuple[str, ...]]
    """Stack of the call of unfinished collectives, by process-group name and sequence number."""
    num_entries: int
    """The dump holds."""
    entries: Sequence[CollectiveRecord]
    """Those that can matter, oldest first; see :mod:`tracecore_sidecar.offline.dump_entry`."""
    is_active_only: bool
    """Finished entries were left out."""
    is_truncated: bool
    """The ring had overwritten older entries."""
    has_lost_unfinished: bool
    """The ring had overwritten unfinished entries: what the rank waits in is not known."""


def is_recorder_dump(value: Any) -> bool:
    """Say whether a loaded value looks like a dump."""
    return isinstance(value, dict) and "version" in value and bool(_KNOWN_KEYS & value.keys())


def read_recorder(value: Any, name: str, named: int | None, reader: EntryReader) -> RecorderFile:
    """Check a loaded dump of a rank ``named`` so; raise :class:`RefusedError` where it is none."""
    listed = value.get("entries", [])
    if listed is None:
        listed = []
    if not isinstance(listed, (list, tuple)):
        raise RefusedError("a flight recorder dump whose entries are no list")
    guess = named or 0
    read = reader.read(listed[-MAX_ENTRIES:], guess)
    entries: Sequence[CollectiveRecord] = read.records
    if len({entry.record_id for entry in entries}) != len(entries):
        raise RefusedError("a flight recorder dump that holds the same record_id twice")
    members, descriptions = _groups(value.get("pg_config"))
    descriptions |= read.descriptions
    counters = _counters(value.get("pg_status"), read.names, members)
    told = _rank_told(value, entries, members)
    rank = named if told is None else told
    if rank != guess and rank is not None:
        entries = [replace(entry, rank=rank) for entry in entries]
    entries = without_given_up(entries, read.backends, counters)
    first = entries[0].record_id if entries else 0
    has_all = bool(entries) and entries[-1].record_id - first + 1 == read.num_listed
    has_finished = any(entry.is_retired for entry in entries)
    has_lost = has_lost_unfinished(entries, counters)
    is_active_only = not has_finished and not (has_all and first == 0) and not has_lost
    return RecorderFile(
        name=name,
        rank=rank,
        version=text(value.get("version")),
        members=members,
        descriptions=descriptions,
        counters=counters,
        backends=read.backends,
        frames=read.frames,
        num_entries=read.num_listed,
        entries=with_coalesced(entries, counters),
        is_active_only=is_active_only,
        is_truncated=not is_active_only and first > 0,
        has_lost_unfinished=has_lost,
    )


def _groups(config: Any) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    found: dict[str, tuple[int, ...]] = {}
    descriptions: dict[str, str] = {}
    if not isinstance(config, dict):
        return found, descriptions
    num_left = MAX_MEMBERS
    for key, told in list(config.items())[:MAX_GROUPS]:
        if not isinstance(told, dict):
            continue
        name, ranks = text(told.get("name", key)), told.get("ranks")
        if isinstance(ranks, str) and len(ranks) < 1 << 20:
            num_left -= ranks.count(",")
            try:
                ranks = json.loads(ranks)
            except (ValueError, RecursionError):
                continue
        num_left -= len(ranks) if isinstance(ranks, (list, tuple)) else 1
        if num_left < 0:
            raise RefusedError(f"a flight recorder dump of more than {MAX_MEMBERS:,} members")
        if name and _are_ranks(ranks):
            found[name] = tuple(dict.fromkeys(ranks))
            descriptions[name] = text(told.get("desc"))
    return found, descriptions


def _are_ranks(value: Any) -> TypeGuard[Sequence[int]]:
    return (
        isinstance(value, (list, tuple))
        and bool(value)
        and all(type(rank) is int and 0 <= rank <= MAX_RANK for rank in value)
    )


def _counters(
    status: Any, seen: Mapping[str, str], members: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, int, int]]:
    if not isinstance(status, dict):
        return {}
    by_id = {text(key): told for key, told in list(status.items())[:MAX_GROUPS]}
    names = {pg_id: name for pg_id, name in seen.items() if pg_id in by_id}
    names = _by_order(by_id, members, names) or names
    found: dict[str, tuple[int, int, int]] = {}
    for pg_id, name in names.items():
        told = by_id[pg_id]
        if isinstance(told, dict):
            keys = ("last_enqueued", "last_started", "last_completed")
            enqueued, started, completed = (_count(told.get(f"{k}_collective")) for k in keys)
            found[name] = (enqueued, started, completed)
    return found


def _by_order(
    by_id: Mapping[str, Any],
    members: Mapping[str, tuple[int, ...]],
    names: Mapping[str, str],
) -> dict[str, str]:
    """Pair numbers and names of groups in the order of their making; empty where it cannot be."""
    if len(by_id) != len(members) or not all(key.isdecimal() for key in (*by_id, *members)):
        return {}
    paired = dict(zip(sorted(by_id, key=int), sorted(members, key=int), strict=True))
    return paired if all(paired[pg_id] == name for pg_id, name in names.items()) else {}


def _count(value: Any) -> int:
    if isinstance(value, str) and len(value) < 20 and value.lstrip("-").isdecimal():
        value = int(value)
    return value if type(value) is int and -1 <= value < 2**63 else -1


def _rank_told(
    value: Mapping[str, Any],
    entries: Sequence[CollectiveRecord],
    members: Mapping[str, tuple[int, ...]],
) -> int | None:
    """Find the rank the content tells; None where it tells none, or two."""
    told = value.get("rank")
    found = {told} if type(told) is int and 0 <= told <= MAX_RANK else set()
    for op, pg_name in {(entry.op, entry.pg_name) for entry in entries}:
        match = _POINT.match(op)
        ranks = members.get(pg_name, ())
        if match and int(match[1]) < len(ranks):
            found.add(ranks[int(match[1])])
    if not found and members:
        # The one rank that is in every group this process belongs to.
        found = set.intersection(*map(set, members.values()))
    return found.pop() if len(found) == 1 else None
