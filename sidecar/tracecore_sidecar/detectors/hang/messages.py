"""Unfinished sends and receives, matched by pair, direction and order.

The k-th unfinished send from a to b belongs to the k-th unfinished recv of b from a, among those of
one tag where both sides tell their tags and the backend minds them (NCCL does not). Where both
rings reach back to the beginning, finished ones count too, and it can be told that the other side
never issued its part; otherwise it may have finished it before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tracecore_train.wire.records import NOT_MEASURED

if TYPE_CHECKING:
    from tracecore_sidecar.detectors.hang.positions import Positions
    from tracecore_sidecar.detectors.hang.readings import Readings
    from tracecore_sidecar.state.view import Bools, GroupView, Ints, JobView


@dataclass(frozen=True, slots=True, kw_only=True)
class Messages:
    """One value per unfinished send or recv."""

    group: Ints
    rank: Ints
    peer: Ints
    is_send: Bools
    place: Ints
    """Ordinal of the message between the two, in its direction; unlike for unlike tags."""
    created: Ints
    is_issued: Bools
    """The other side has issued its part."""
    is_done: Bools
    """The other side has finished its part."""
    is_certain: Bools
    """Both rings reach back to the beginning: what is not issued never was."""

    @property
    def sender(self) -> Ints:
        """By message: the rank it comes from."""
        return np.where(self.is_send, self.rank, self.peer)

    @property
    def receiver(self) -> Ints:
        """By message: the rank it goes to."""
        return np.where(self.is_send, self.peer, self.rank)


_EMPTY = np.zeros(0, dtype=np.int64)
_FLAGS = ("is_send", "is_issued", "is_done", "is_certain")
_TAG_SHIFT = 32
"""Places of one tag lie this many bits from those of the next."""
_NAMES = ("group", "rank", "peer", "place", "created", *_FLAGS)


def messages(view: JobView, readings: Readings, found: Positions) -> Messages:
    """Gather what is unfinished in all groups."""
    ranks = view.ranks
    has_all = readings.is_fresh & ~ranks.is_active_only & ~ranks.is_truncated
    has_all[[rank for rank, lost in view.num_lost.items() if lost > 0]] = False
    parts = [
        _of_group(index, group, has_all, readings.has_told, minds_tags=not found.is_device[index])
        for index, group in enumerate(found.groups)
        if len(group.points.member)
    ]
    columns = {name: np.concatenate([_EMPTY, *(p[name] for p in parts)]) for name in _NAMES}
    flags = {name: columns.pop(name).astype(np.bool_) for name in _FLAGS}
    return Messages(
        **columns,
        is_send=flags["is_send"],
        is_issued=flags["is_issued"],
        is_done=flags["is_done"],
        is_certain=flags["is_certain"],
    )


def _of_group(
    index: int, group: GroupView, has_all: Bools, has_told: Bools, *, minds_tags: bool
) -> dict[str, Ints]:
    points = group.points
    members = np.asarray(group.members, dtype=np.int64)
    is_whole = has_all[members] & points.is_whole
    is_tagged = minds_tags and bool((points.tag != NOT_MEASURED).all())
    tag = np.unique(points.tag, return_inverse=True)[1] if is_tagged else 0 * points.tag
    # One line per tag, member, peer and direction: messages on a line finish in order.
    size = len(members)
    line = ((tag * size + points.member) * size + points.peer) * 2 + points.is_send
    other = ((tag * size + points.peer) * size + points.member) * 2 + ~points.is_send
    place = _ordinals(line)
    lines, of = np.unique(line, return_inverse=True)
    last_done = np.full(len(lines), -1, dtype=np.int64)
    np.maximum.at(last_done, of, np.where(points.is_done, place, -1))
    count = np.bincount(of, minlength=len(lines))
    # What a rank told of itself before it fell silent may be over by now.
    is_news = (points.tag == NOT_MEASURED) | has_told[members[points.member]]
    is_open = (place > last_done[of]) & is_news
    is_certain = is_whole[points.member] & is_whole[points.peer]
    # Where the beginning is missing, only what is unfinished on both sides can be lined up.
    shift = np.where(is_certain, 0, last_done[of] + 1)
    at = np.minimum(np.searchsorted(lines, other), len(lines) - 1)
    has_other = lines[at] == other
    other_done = np.where(has_other, last_done[at] + 1, 0)
    other_count = np.where(has_other, count[at], 0) - np.where(is_certain, 0, other_done)
    is_issued = other_count > place - shift
    is_other_done = is_certain & (other_done > place - shift)
    place = place - shift + (tag << _TAG_SHIFT)
    columns = {
        "group": np.full(len(place), index, dtype=np.int64),
        "rank": members[points.member],
        "peer": members[points.peer],
        "is_send": points.is_send.astype(np.int64),
        "place": place,
        "created": points.created_ns,
        "is_issued": is_issued.astype(np.int64),
        "is_done": is_other_done.astype(np.int64),
        "is_certain": is_certain.astype(np.int64),
    }
    return {name: column[is_open] for name, column in columns.items()}


def _ordinals(keys: Ints) -> Ints:
    """Number equal keys 0, 1, 2 ... in the order in which they stand."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    is_first = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    first = np.maximum.accumulate(np.where(is_first, np.arange(len(keys)), 0))
    result: Ints = np.empty(len(keys), dtype=np.int64)
    result[order] = np.arange(len(keys)) - first
    return result
