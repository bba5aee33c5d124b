"""Who departs from its own past: takes groups in another order, or sends when it should receive."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracecore_sidecar.detectors.hang.history import expected_next
from tracecore_sidecar.detectors.hang.operations import name_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracecore_sidecar.detectors.hang.head import Head
    from tracecore_sidecar.detectors.hang.positions import Positions

MAX_PAST = 512
"""Operations of a rank's past that are looked at."""
MAX_RANKS = 64
"""Ranks whose past is looked at."""


def odd_ranks(found: Positions, heads: Sequence[Head]) -> tuple[tuple[int, ...], str]:
    """Give the ranks at fault for a circle of waits, and why; none where it does not tell."""
    waiters = [(rank, head) for head in heads for rank in head.waiters]
    departed = {rank for rank, head in waiters[:MAX_RANKS] if _departs(found, rank, head)}
    if departed and 2 * len(departed) <= len(waiters):
        return tuple(sorted(departed)), "up to now it took these groups in another order"
    if len(heads) == 2:
        # Only who belongs to both groups can take them in either order.
        both = set(heads[0].group.members) & set(heads[1].group.members)
        fewer, more = sorted((both & set(head.waiters) for head in heads), key=len)
        if 0 < len(fewer) < len(more):
            return tuple(sorted(fewer)), "the others take these groups in the other order"
    return (), ""


def _departs(found: Positions, rank: int, head: Head) -> bool:
    """Say whether a rank went to another group than its past lets expect."""
    slots = np.flatnonzero(head.group.seq_ids == head.seq_id)
    column = head.group.members.index(rank)
    entered_ns = int(head.group.created_ns[slots, column].max(initial=0))
    times: list[tuple[int, str, str]] = []
    for group in found.groups:
        if rank not in group.members:
            continue
        column = group.members.index(rank)
        created = group.created_ns[:, column]
        slots = np.flatnonzero((created > 0) & (created < entered_ns))
        times += [
            (int(created[slot]), group.pg_name, group.ops[int(group.op[slot, column])])
            for slot in slots
        ]
    expected = expected_next([(name, op) for _, name, op in sorted(times)[-MAX_PAST:]])
    return expected is not None and expected[0] != head.group.pg_name


def unexpected_ranks(found: Positions, heads: Sequence[Head]) -> tuple[int, ...]:
    """Give the ranks of a circle with messages whose past lets expect another operation.

    None unless the past of every waiter tells, and most of them wait in what it lets expect.
    """
    waiters = [(rank, head) for head in heads for rank in head.waiters][:MAX_RANKS]
    departed: list[int] = []
    for rank, head in waiters:
        past = [call for _, call in sorted(_calls(found, rank, _entered_ns(rank, head)))]
        expected = expected_next(past[-MAX_PAST - 1 : -1])
        if expected is None:
            return ()
        if expected != past[-1]:
            departed.append(rank)
    return tuple(sorted(departed)) if 2 * len(departed) <= len(waiters) else ()


def _entered_ns(rank: int, head: Head) -> int:
    """Give when a rank entered what it waits in."""
    column = head.group.members.index(rank)
    if head.link is None:
        slots = np.flatnonzero(head.group.seq_ids == head.seq_id)
        return int(head.group.created_ns[slots, column].max(initial=0))
    points = head.group.points
    is_open = (points.member == column) & ~points.is_done
    return int(points.created_ns[is_open].min(initial=np.iinfo(np.int64).max))


def _calls(found: Positions, rank: int, until_ns: int) -> list[tuple[int, tuple[str, str, int]]]:
    """Give when a rank called what: the group, the operation without sizes, the tag."""
    calls: list[tuple[int, tuple[str, str, int]]] = []
    for group in found.groups:
        if rank not in group.members:
            continue
        column = group.members.index(rank)
        created = group.created_ns[:, column]
        for slot in np.flatnonzero((created > 0) & (created <= until_ns)).tolist():
            op = group.ops[int(group.op[slot, column])]
            calls.append((int(created[slot]), (group.pg_name, name_of(op), 0)))
        points = group.points
        is_own = (points.member == column) & (points.created_ns <= until_ns)
        for row in np.flatnonzero(is_own).tolist():
            direction = "send" if points.is_send[row] else "recv"
            op = f"{direction} {int(points.peer[row])}"
            created_ns, tag = int(points.created_ns[row]), int(points.tag[row])
            calls.append((created_ns, (group.pg_name, op, tag)))
    return calls
