"""Whether the entries of a dump are over, where their own state does not tell.

* *Given up.* On a device an operation that finished has the time at which that was discovered.
  One that is retired without it was ended by torch's watchdog: its rank had waited in it.
* *Overwritten.* A ring may be too short even for what is unfinished. Where a group's counter has
  not come to the entry before its oldest one, those between were overwritten, and what the rank
  waits in is not known.
* *Coalesced.* Operations that were issued as one are followed by one entry of their own,
  ``coalesced``; the entries of the parts never change. What they stand for is over once that entry
  is, or is gone. Sends and receives stay apart, each with its peer; of the parts of a collective,
  which share a sequence number, one entry is made. A single send or recv may be such a part too:
  where its group's counter calls one completed that never changed, they are.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import groupby, islice
from operator import attrgetter, eq
from typing import TYPE_CHECKING

from tracecore_sidecar.detectors.hang.operations import is_device_backend

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tracecore_train.wire.records import CollectiveRecord

COALESCED = "coalesced"
_Key = tuple[str, bool, int]


def without_given_up(
    entries: Sequence[CollectiveRecord],
    backends: Mapping[str, str],
    counters: Mapping[str, tuple[int, int, int]],
) -> Sequence[CollectiveRecord]:
    """Call unfinished what was retired without having finished."""
    odd = {
        entry.record_id: entry
        for entry in entries
        if entry.is_retired
        and not entry.completed_ns
        and is_device_backend(backends[entry.pg_name])
    }
    if not odd:
        return entries
    if not any(entry.completed_ns for entry in entries):
        # Collectives of a group complete in order: its counter tells. Messages overtake each other.
        beyond = {key for key, e in odd.items() if not e.is_p2p and _is_beyond(e, counters)}
        messages = {key for key, e in odd.items() if e.is_p2p}
        is_believed = len(beyond) + len(messages) < len(odd)
        odd = {key: odd[key] for key in (beyond if is_believed else beyond | messages)}
    return [replace(e, is_retired=False) if e.record_id in odd else e for e in entries]


def _is_beyond(entry: CollectiveRecord, counters: Mapping[str, tuple[int, int, int]]) -> bool:
    """Say whether the group's counter has not come to an entry."""
    enqueued, _, completed = counters.get(entry.pg_name, (-1, -1, -1))
    return completed < _key(entry)[2] <= enqueued


def has_lost_unfinished(
    entries: Sequence[CollectiveRecord], counters: Mapping[str, tuple[int, int, int]]
) -> bool:
    """Say whether unfinished entries were overwritten, as the counters show."""
    keys = list(map(_raw_key, entries))
    oldest = {pg_name: key for pg_name, *key in reversed(keys)}
    newest = {pg_name: key for pg_name, *key in keys}
    kinds = Counter(pg_name for pg_name, _ in {key[:2] for key in keys})
    for pg_name, (is_p2p, *numbers) in newest.items():
        enqueued, _, completed = counters.get(pg_name, (-1, -1, -1))
        is_counted = kinds[pg_name] == 1 and completed >= 0 and numbers[is_p2p] == enqueued
        if is_counted and oldest[pg_name][1:][is_p2p] > completed + 1:
            return True
    return False


def with_coalesced(
    entries: Sequence[CollectiveRecord], counters: Mapping[str, tuple[int, int, int]]
) -> Sequence[CollectiveRecord]:
    """Give operations that were issued as one their common state."""
    if not _may_hold_parts(entries, counters):
        return entries
    batches = [(key, tuple(found)) for key, found in groupby(entries, key=_key)]
    batched = {
        (pg_name, is_p2p)
        for (pg_name, is_p2p, _), found in batches
        if len(found) > 1 or found[0].op == COALESCED or _is_counted_part(found[0], counters)
    }
    plain = {
        pg_name
        for pg_name, is_p2p in batched
        if not is_p2p and _counts_collectives(pg_name, entries, counters)
    }
    joined: list[CollectiveRecord] = []
    for index, ((pg_name, is_p2p, number), found) in enumerate(batches):
        if (pg_name, is_p2p) not in batched:
            joined += found
        elif is_p2p:
            joined += _messages(found)
        else:
            completed = counters[pg_name][2] if pg_name in plain else -1
            is_cut = index == 0 and found[0].record_id > 0
            one = _collective(found, is_counted=number <= completed, is_cut=is_cut)
            joined.append(replace(one, op_id=one.collective_seq_id) if pg_name in plain else one)
    return joined


def _may_hold_parts(
    entries: Sequence[CollectiveRecord], counters: Mapping[str, tuple[int, int, int]]
) -> bool:
    """Say whether anything was issued as one; most dumps hold nothing of the kind."""
    keys = list(map(_raw_key, entries))
    return (
        any(map(eq, keys, islice(keys, 1, None)))
        or any(entry.op == COALESCED for entry in entries)
        or any(_is_counted_part(entry, counters) for entry in entries if entry.is_p2p)
    )


_raw_key = attrgetter("pg_name", "is_p2p", "collective_seq_id", "p2p_seq_id")


def _key(entry: CollectiveRecord) -> _Key:
    number = entry.p2p_seq_id if entry.is_p2p else entry.collective_seq_id
    return entry.pg_name, entry.is_p2p, number


def _is_counted_part(entry: CollectiveRecord, counters: Mapping[str, tuple[int, int, int]]) -> bool:
    """Say whether a send or recv that never changed is the one its group completed last."""
    _, _, completed = counters.get(entry.pg_name, (-1, -1, -1))
    return entry.is_p2p and not entry.is_retired and 0 < entry.p2p_seq_id == completed


def _counts_collectives(
    pg_name: str,
    entries: Sequence[CollectiveRecord],
    counters: Mapping[str, tuple[int, int, int]],
) -> bool:
    """Say whether the counters of a group count its collectives, and nothing else."""
    own = [entry for entry in entries if entry.pg_name == pg_name]
    enqueued, _, completed = counters.get(pg_name, (-1, -1, -1))
    return (
        not any(entry.is_p2p for entry in own)
        and own[-1].collective_seq_id == enqueued
        and completed <= enqueued
    )


def _messages(found: Sequence[CollectiveRecord]) -> Iterator[CollectiveRecord]:
    whole = found[-1] if found[-1].op == COALESCED else None
    for entry in found:
        if entry.op != COALESCED:
            is_done = entry.is_retired or whole is None or whole.is_retired
            is_started = entry.is_started or (whole is not None and whole.is_started)
            yield replace(entry, is_retired=is_done, is_started=is_started)


def _collective(
    found: Sequence[CollectiveRecord], *, is_counted: bool, is_cut: bool
) -> CollectiveRecord:
    """Make one entry of a collective's parts; a single part may be a collective of its own."""
    last, parts = found[-1], [entry for entry in found if entry.op != COALESCED]
    is_done = last.is_retired or is_counted or (last.op != COALESCED and len(found) > 1)
    if is_cut:
        # The ring may have overwritten parts: what is left does not tell what was called.
        return replace(last, op=COALESCED, input_sizes="", output_sizes="", is_retired=is_done)
    return replace(
        parts[0] if parts else last,
        input_sizes=_together([entry.input_sizes for entry in parts]),
        output_sizes=_together([entry.output_sizes for entry in parts]),
        is_retired=is_done,
        is_started=any(entry.is_started for entry in found),
    )


def _together(listings: Sequence[str]) -> str:
    """Write several lists of sizes as one."""
    return f"[{', '.join(listing[1:-1] for listing in listings)}]" if listings else ""
