"""Members of a process group that called different things under one sequence number.

Operation, sizes and types must agree, as far as the operation asks for it; of an all-to-all, what
one sends to another must be what that one takes. The minority is the odd side. Where the sides are
equal, the one that departs from what the group did so far is; where that does not tell, none is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tracecore_sidecar.detectors.hang.history import expected_next
from tracecore_sidecar.detectors.hang.operations import (
    name_of,
    needs_same_sizes,
    splits,
    tells_call,
)
from tracecore_sidecar.detectors.naming import ranks_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tracecore_sidecar.state.view import GroupView

Sides = tuple[tuple[str, tuple[int, ...]], ...]
"""What was called, and by which ranks; the larger side first."""
MAX_SIDES = 4
"""Written out."""
MAX_BACK = 16
"""Operations before a wait that are compared: the host runs that far ahead of a device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """A disagreement under one sequence number."""

    group: GroupView
    seq_id: int
    sides: Sides
    odd: tuple[int, ...]
    """Ranks of the odd side; empty where no side is."""
    reason: str
    """Why that side is the odd one."""

    @property
    def text(self) -> str:
        """Both sides, in words."""
        told = [f"{ranks_text(ranks)} called {what}" for what, ranks in self.sides[:MAX_SIDES]]
        if len(self.sides) > MAX_SIDES:
            told.append(f"and {len(self.sides) - MAX_SIDES} more")
        return ", ".join(told)


def mismatch_at(group: GroupView, seq_id: int) -> Mismatch | None:
    """Give the disagreement of a group at a sequence number, or None."""
    slots = np.flatnonzero(group.seq_ids == seq_id)
    return _at_slot(group, int(slots[0])) if len(slots) else None


def first_mismatch(group: GroupView, up_to: int) -> Mismatch | None:
    """Give the earliest disagreement shortly before a wait, or in it.

    One that lies further back did no harm: the group went on.
    """
    seen = group.op >= 0
    low = np.where(seen, group.op, np.iinfo(np.int32).max).min(axis=1, initial=2**31 - 1)
    high = group.op.max(axis=1, initial=-1)
    is_mixed = (high > low) & (group.seq_ids > up_to - MAX_BACK) & (group.seq_ids <= up_to)
    for slot in sorted(np.flatnonzero(is_mixed), key=lambda s: int(group.seq_ids[s])):
        found = _at_slot(group, int(slot))
        if found is not None:
            return found
    return None


def _at_slot(group: GroupView, slot: int) -> Mismatch | None:
    called: dict[str, list[int]] = {}
    for rank, op in zip(group.members, group.op[slot].tolist(), strict=True):
        if op >= 0 and tells_call(group.ops[op]):
            called.setdefault(group.ops[op], []).append(rank)
    seq_id = int(group.seq_ids[slot])
    names = {name_of(signature) for signature in called}
    if len(names) > 1:
        by_name: dict[str, list[int]] = {}
        for signature, ranks in called.items():
            by_name.setdefault(name_of(signature), []).extend(ranks)
        return _judged(group, seq_id, by_name if len(by_name) < len(called) else called)
    if len(called) > 1 and all(needs_same_sizes(signature) for signature in called):
        return _judged(group, seq_id, called)
    return _unequal_splits(group, seq_id, called)


def _judged(group: GroupView, seq_id: int, called: Mapping[str, Sequence[int]]) -> Mismatch:
    ordered = sorted(called.items(), key=lambda item: (-len(item[1]), item[1]))
    sides: Sides = tuple((what, tuple(sorted(ranks))) for what, ranks in ordered)
    largest = len(sides[0][1])
    rest = sum(len(ranks) for _, ranks in sides[1:])
    if rest < largest:
        odd = tuple(sorted(r for _, ranks in sides[1:] for r in ranks))
        return Mismatch(group=group, seq_id=seq_id, sides=sides, odd=odd, reason="the others agree")
    expected = _expected(group, seq_id)
    agreeing = [ranks for what, ranks in sides if expected is not None and _fits(what, expected)]
    if len(agreeing) == 1:
        odd = tuple(sorted(r for _, ranks in sides for r in ranks if r not in agreeing[0]))
        reason = f"after the operations before, {expected} has always come"
        return Mismatch(group=group, seq_id=seq_id, sides=sides, odd=odd, reason=reason)
    return Mismatch(group=group, seq_id=seq_id, sides=sides, odd=(), reason="the sides are equal")


def _fits(what: str, expected: str) -> bool:
    return what in (expected, name_of(expected))


def _expected(group: GroupView, seq_id: int) -> str | None:
    """Predict the operation at a sequence number from what the group agreed on before."""
    slots = [int(s) for s in np.argsort(group.seq_ids) if 0 <= group.seq_ids[s] < seq_id]
    past: list[str] = []
    last = seq_id - len(slots) - 1
    for slot in slots:
        found = {int(op) for op in group.op[slot] if op >= 0}
        if len(found) != 1 or int(group.seq_ids[slot]) != last + 1:
            past.clear()
        if len(found) == 1:
            past.append(group.ops[found.pop()])
        last = int(group.seq_ids[slot])
    return expected_next(past) if last == seq_id - 1 else None


def _unequal_splits(
    group: GroupView, seq_id: int, called: Mapping[str, Sequence[int]]
) -> Mismatch | None:
    """Compare, for every pair, what one sends with what the other takes."""
    size = len(group.members)
    place = {rank: index for index, rank in enumerate(group.members)}
    told = {rank: splits(signature) for signature, ranks in called.items() for rank in ranks}
    whole = {
        rank: found
        for rank, found in told.items()
        if found and len(found[0]) == len(found[1]) == size
    }
    bad: dict[int, set[int]] = {}
    for sender, (sent, _) in whole.items():
        for receiver, (_, taken) in whole.items():
            if sent[place[receiver]] != taken[place[sender]]:
                bad.setdefault(sender, set()).add(receiver)
                bad.setdefault(receiver, set()).add(sender)
    if not bad:
        return None
    pair = max(bad, key=lambda rank: len(bad[rank]))
    others = bad[pair]
    # One rank in every bad pair, and more than one pair: it is the odd one.
    is_one = len(others) > 1 and all(found == {pair} for r, found in bad.items() if r != pair)
    ranks = sorted(bad)
    sides: Sides = tuple(
        (next(what for what, who in called.items() if rank in who), (rank,)) for rank in ranks
    )
    reason = "every pair that disagrees has it on one side" if is_one else "either side may be off"
    odd = (pair,) if is_one else ()
    return Mismatch(group=group, seq_id=seq_id, sides=sides, odd=odd, reason=reason)
