"""Who is in which making of a process group: what a group of the same name did before is over.

A group can be destroyed and made anew under its name; sequence numbers then start again. Each
member says on its own how often it made the group, and until it has, what it shows under the name
belongs to the former one. A flight recorder still holds the former entries for a while: they are
told apart by when the member began to make the group anew.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracecore_train.wire.records import CollectiveRecord, GroupRecord


class Change(Enum):
    """What a member's word about a group means for the group."""

    NONE = "none"
    MADE_ANEW = "made anew"
    """The first member says that it made the group again."""
    OVER = "over"
    """All members that were heard of destroyed it."""


class _Membership(NamedTuple):
    generation: int
    made_ns: int
    is_former: bool = False
    """The member has not made the group anew yet, others have."""
    has_left: bool = False


class Memberships:
    """The members of one process group, as each has told."""

    def __init__(self) -> None:
        """Start with nobody heard of."""
        self._by_rank: dict[int, _Membership] = {}

    def apply(self, record: GroupRecord) -> Change:
        """Take in a member's word."""
        known = self._by_rank.get(record.rank)
        is_later = known is not None and record.generation > known.generation
        if record.is_destroyed:
            if known is not None and (is_later or record.generation == known.generation):
                self._by_rank[record.rank] = known._replace(has_left=True)
                if all(member.has_left for member in self._by_rank.values()):
                    return Change.OVER
            return Change.NONE
        if known is not None and not is_later:
            return Change.NONE
        change = Change.NONE
        if known is not None and not known.is_former:
            change = Change.MADE_ANEW
            self._by_rank = {
                rank: member._replace(is_former=True) for rank, member in self._by_rank.items()
            }
        self._by_rank[record.rank] = _Membership(record.generation, record.made_ns)
        return change

    def is_current(self, rank: int) -> bool:
        """Say whether what a member shows now can belong to the present group."""
        member = self._by_rank.get(rank)
        return member is None or not member.is_former

    def current(self, rank: int, entries: Sequence[CollectiveRecord]) -> Sequence[CollectiveRecord]:
        """Give those entries of a member that belong to the present group."""
        member = self._by_rank.get(rank)
        if member is None or (not member.is_former and not member.generation):
            return entries
        if member.is_former:
            return ()
        return [entry for entry in entries if entry.created_ns >= member.made_ns]
