"""Who takes the groups of a circle in another order than the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracecore_sidecar.detectors.hang.history import expected_next

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
