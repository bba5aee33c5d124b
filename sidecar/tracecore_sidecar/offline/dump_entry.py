"""Entries of a flight recorder dump, of any version of torch, as records; every value is checked.

Times are nanoseconds since the epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from tracecore_sidecar.offline.refused import RefusedError
from tracecore_train.wire.records import CollectiveRecord

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeGuard

MAX_TEXT = 1_000
"""Characters of one text that are kept."""
MAX_LISTED = 65_536
"""Items of a list of sizes."""
MAX_DIMENSIONS = 64
"""Of a tensor; torch's own limit."""
MAX_TYPE_NAME = 100
"""Characters of the name of a tensor's type."""
MAX_FRAMES = 32
"""Of a stack."""
NUM_READ = 512
"""Newest entries that are read whatever they are: a device is at most that far behind its host."""
NUM_OF_GROUP = 256
"""Finished collectives of each group that are read before those."""
MAX_KEPT = 65_536
"""Different texts that are kept once."""
_RAN = ("started", "completed")
_INT64_MAX = 2**63 - 1


@dataclass(slots=True)
class DumpEntries:
    """The entries of one dump, and what of them has no place in a record."""

    num_listed: int
    """Entries the dump holds."""
    records: list[CollectiveRecord] = field(default_factory=list)
    """Oldest first."""
    names: dict[str, str] = field(default_factory=dict)
    """Of groups, by the number each has in this dump."""
    descriptions: dict[str, str] = field(default_factory=dict)
    """What people call the groups, by name."""
    backends: dict[str, str] = field(default_factory=dict)
    """By name of the group."""
    frames: dict[tuple[str, int], tuple[str, ...]] = field(default_factory=dict)
    """Stack of the call, innermost first, of unfinished collectives by group and number."""


class EntryReader:
    """Reads the entries of dumps; texts that come again are kept once."""

    def __init__(self) -> None:
        """Begin with nothing seen."""
        self._ops: dict[str, tuple[str, str, bool]] = {}
        self._kept: dict[str, str] = {}
        self._lists: dict[str | Sequence[int], str] = {}

    def read(self, listed: Sequence[Any], rank: int) -> DumpEntries:
        """Read the entries of a dump; of what finished long ago only the last of each group."""
        found = DumpEntries(num_listed=len(listed))
        one = self._one
        chosen = _telling(listed) if len(listed) > NUM_READ else enumerate(listed)
        found.records = [one(found, value, index, rank) for index, value in chosen]
        found.records.sort(key=_record_id)
        return found

    def _one(self, found: DumpEntries, value: Any, index: int, rank: int) -> CollectiveRecord:
        """Check an entry; raise :class:`RefusedError` where it is none."""
        if not isinstance(value, dict):
            raise RefusedError(f"entry {index} is not a dict")
        get = value.get
        group = get("process_group")
        if not isinstance(group, (list, tuple)) or not group:
            raise RefusedError(f"entry {index} names no process group")
        pg_name = self._text(group[0])
        found.descriptions[pg_name] = self._text(group[1]) if len(group) > 1 else ""
        found.names[self._text(get("pg_id"))] = pg_name
        backend, op, is_point = self._op(get("profiling_name"))
        found.backends[pg_name] = backend
        state = get("state")
        completed = _number(get("time_discovered_completed_ns"))
        is_p2p = get("is_p2p")
        if not isinstance(is_p2p, bool):
            is_p2p = is_point
        is_done = get("retired") is True or state == "completed" or completed > 0
        seq_id = _number(get("collective_seq_id"))
        if not is_done and not is_p2p and (frames := _frames(get("frames"))):
            found.frames[pg_name, seq_id] = frames
        created = _number(get("time_created_ns")) or 1
        return CollectiveRecord(
            time_ns=created,
            rank=rank,
            pg_name=pg_name,
            collective_seq_id=seq_id,
            record_id=_number(get("record_id"), index),
            op=op,
            input_sizes=self._listing(get("input_sizes")),
            input_dtypes=self._listing(get("input_dtypes")),
            created_ns=created,
            completed_ns=completed,
            is_retired=is_done,
            is_p2p=is_p2p,
            p2p_seq_id=_number(get("p2p_seq_id")),
            op_id=_number(get("op_id")),
            output_sizes=self._listing(get("output_sizes")),
            is_started=(type(state) is str and state in _RAN)
            or _number(get("time_discovered_started_ns")) > 0,
        )

    def _op(self, value: Any) -> tuple[str, str, bool]:
        """Give backend and operation of a name, and whether it is a send or recv."""
        name = self._text(value)
        found = self._ops.get(name)
        if found is None:
            backend, _, op = name.rpartition(":")
            found = (backend, op, op.startswith(("send ", "recv ")))
            self._ops[name] = found
        return found

    def _text(self, value: Any) -> str:
        kept = self._kept.get(value) if type(value) is str else None
        return self._keep(text(value)) if kept is None else kept

    def _listing(self, value: Any) -> str:
        """Write a list of sizes or types as torch does: ``[[8320]]``."""
        if not isinstance(value, (list, tuple)) or len(value) > MAX_LISTED:
            return ""
        # Most have one item, and most of those were seen before.
        only = value[0] if len(value) == 1 else None
        key = only if type(only) is str else tuple(only) if _is_shape(only) else None
        shown = self._lists.get(key) if key is not None else None
        if shown is None:
            first = value if len(value) <= MAX_TEXT else value[:MAX_TEXT]
            shown = self._keep(text(repr(first))) if all(map(_is_plain, first)) else ""
            if key is not None and len(self._lists) < MAX_KEPT:
                self._lists[key] = shown
        return shown

    def _keep(self, value: str) -> str:
        return self._kept.setdefault(value, value) if len(self._kept) < MAX_KEPT else value


def _telling(listed: Sequence[Any]) -> list[tuple[int, Any]]:
    """Give the entries that can matter, with their places.

    The first and the newest ones, all that is unfinished, every send and recv, and of what each
    group finished before only the last.
    """
    ids: list[Any] = [
        value.get("record_id") if isinstance(value, dict) else None for value in listed
    ]
    if not all(type(i) is int for i in ids) or ids != sorted(ids):
        return list(enumerate(listed))
    num_old = len(listed) - NUM_READ
    chosen = [(index, listed[index]) for index in range(len(listed) - 1, num_old - 1, -1)]
    num_kept: dict[Any, int] = {}
    for index in range(num_old - 1, 0, -1):
        value = listed[index]
        if value.get("retired") is True and value.get("is_p2p") is False:
            group, name = value.get("process_group"), value.get("profiling_name")
            key = group[0] if isinstance(group, (list, tuple)) and group else None
            if type(key) is str and type(name) is str and not name.endswith(":coalesced"):
                num = num_kept.get(key, 0)
                if num >= NUM_OF_GROUP:
                    continue
                num_kept[key] = num + 1
        chosen.append((index, value))
    chosen.append((0, listed[0]))
    chosen.reverse()
    return chosen


_record_id = attrgetter("record_id")


def text(value: Any) -> str:
    """Give a text or number as a text of bounded length."""
    if isinstance(value, str):
        if len(value) <= MAX_TEXT and value.isascii():
            return value
        return value[:MAX_TEXT].encode("utf-8", "replace").decode()
    return str(value) if type(value) is int and abs(value) < 2**63 else ""


def _number(value: Any, default: int = 0) -> int:
    if isinstance(value, str) and len(value) < 20 and value.isdecimal():
        value = int(value)
    return value if type(value) is int and 0 <= value <= _INT64_MAX else default


def _is_plain(item: Any) -> bool:
    """Say whether it is a number, a short text, or a shape: what is deeper may have no end."""
    if type(item) is str:
        return len(item) <= MAX_TYPE_NAME
    return type(item) is int or _is_shape(item)


def _is_shape(item: Any) -> TypeGuard[Sequence[int]]:
    """Say whether it is a list of a few numbers."""
    if (type(item) is not list and type(item) is not tuple) or len(item) > MAX_DIMENSIONS:
        return False
    for size in item:  # noqa: SIM110  (a generator takes twice as long)
        if type(size) is not int:
            return False
    return True


def _frames(value: Any) -> tuple[str, ...]:
    """Give the stack of the call, innermost first, as ``function (file:line)``."""
    if not isinstance(value, (list, tuple)):
        return ()
    return tuple(
        f"{text(frame.get('name'))} ({text(frame.get('filename'))}:{text(frame.get('line'))})"
        for frame in value[:MAX_FRAMES]
        if isinstance(frame, dict)
    )
