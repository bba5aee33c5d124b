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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tracecore_sidecar.offline.dump_entry import DumpEntry, read_entry, text
from tracecore_sidecar.offline.refused import RefusedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import TypeGuard

MAX_ENTRIES = 200_000
"""Of one dump; the newest are read."""
MAX_GROUPS = 65_536
MAX_RANK = 131_071
_KNOWN_KEYS = frozenset({"entries", "pg_config", "pg_status", "nccl_version", "comm_lib_version"})
_POINT = re.compile(r"(?:send|recv) (\d{1,9})(?:->|<-)\d{1,9}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecorderFile:
    """See the module."""

    name: str
    """Of the file, for people."""
    rank: int | None
    """As the content tells it: by sends and receives in groups whose members are known."""
    version: str
    members: Mapping[str, tuple[int, ...]]
    """Global ranks by process-group name, where the dump says so rightly."""
    descriptions: Mapping[str, str]
    """What people call the groups, by name."""
    counters: Mapping[str, tuple[int, int, int]]
    """Enqueued, started and completed by process-group name, where they could be joined."""
    entries: Sequence[DumpEntry]
    """Oldest first."""
    is_active_only: bool
    """Finished entries were left out."""
    is_truncated: bool
    """The ring had overwritten older entries."""

    @property
    def backends(self) -> frozenset[str]:
        """Backends the entries are of."""
        return frozenset(entry.backend for entry in self.entries)


def is_recorder_dump(value: Any) -> bool:
    """Say whether a loaded value looks like a dump."""
    return isinstance(value, dict) and "version" in value and bool(_KNOWN_KEYS & value.keys())


def read_recorder(value: Any, name: str) -> RecorderFile:
    """Check a loaded dump; raise :class:`RefusedError` where it is none."""
    listed = value.get("entries", [])
    if listed is None:
        listed = []
    if not isinstance(listed, (list, tuple)):
        raise RefusedError("a flight recorder dump whose entries are no list")
    entries = [read_entry(item, i) for i, item in enumerate(listed[-MAX_ENTRIES:])]
    entries.sort(key=lambda entry: entry.record_id)
    if len({entry.record_id for entry in entries}) != len(entries):
        raise RefusedError("a flight recorder dump that holds the same record_id twice")
    members, descriptions = _groups(value.get("pg_config"))
    descriptions |= {entry.pg_name: entry.pg_desc for entry in entries}
    first = entries[0].record_id if entries else 0
    has_all = bool(entries) and entries[-1].record_id - first + 1 == len(entries)
    is_active_only = not any(entry.is_done for entry in entries) and not (has_all and first == 0)
    return RecorderFile(
        name=name,
        rank=_rank_told(value, entries, members),
        version=text(value.get("version")),
        members=members,
        descriptions=descriptions,
        counters=_counters(value.get("pg_status"), entries, members),
        entries=_with_coalesced(entries),
        is_active_only=is_active_only,
        is_truncated=not is_active_only and first > 0,
    )


def _groups(config: Any) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    found: dict[str, tuple[int, ...]] = {}
    descriptions: dict[str, str] = {}
    if not isinstance(config, dict):
        return found, descriptions
    for key, told in list(config.items())[:MAX_GROUPS]:
        if not isinstance(told, dict):
            continue
        name, ranks = text(told.get("name", key)), told.get("ranks")
        if isinstance(ranks, str) and len(ranks) < 1 << 20:
            try:
                ranks = json.loads(ranks)
            except (ValueError, RecursionError):
                continue
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
    status: Any, entries: Sequence[DumpEntry], members: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, int, int]]:
    if not isinstance(status, dict):
        return {}
    by_id = {text(key): told for key, told in list(status.items())[:MAX_GROUPS]}
    names = {entry.pg_id: entry.pg_name for entry in entries if entry.pg_id in by_id}
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
    entries: Sequence[DumpEntry],
    members: Mapping[str, tuple[int, ...]],
) -> int | None:
    """Find the rank the content tells; None where it tells none, or two."""
    told = value.get("rank")
    found = {told} if type(told) is int and 0 <= told <= MAX_RANK else set()
    for entry in entries:
        match = _POINT.match(entry.op)
        ranks = members.get(entry.pg_name, ())
        if match and int(match[1]) < len(ranks):
            found.add(ranks[int(match[1])])
    if not found and members:
        # The one rank that is in every group this process belongs to.
        found = set.intersection(*map(set, members.values()))
    return found.pop() if len(found) == 1 else None


def _with_coalesced(entries: list[DumpEntry]) -> list[DumpEntry]:
    """Give sends and receives that were issued as one their common state.

    Torch follows such a group by one entry of its own, ``coalesced``; the entries of its parts
    never change, and what they stand for is over once that entry is, or is gone.
    """
    groups = {
        (entry.pg_name, entry.p2p_seq_id): entry
        for entry in entries
        if entry.is_p2p and entry.op == "coalesced"
    }
    if not groups:
        return entries
    joined: list[DumpEntry] = []
    for entry in entries:
        if not entry.is_p2p:
            joined.append(entry)
        elif entry.op != "coalesced":
            whole = groups.get((entry.pg_name, entry.p2p_seq_id))
            is_done = entry.is_done or whole is None or whole.is_done
            is_started = entry.is_started or (whole is not None and whole.is_started)
            joined.append(entry._replace(is_done=is_done, is_started=is_started))
    return joined
