"""Who waits for whom in collectives: a head-of-line wait-for graph over all process groups.

The head of a rank is its oldest unfinished collective over all groups; whatever it entered later
is only queued behind. Ranks with the same head wait together, so the graph has one node per head:
a head is blocked by members that have not entered it, and by members that entered it but are
held up at an older head elsewhere. A rank that blocks others and has no head of its own is a
sink: it explains the wait. Absence is no evidence: a member that could not be read blocks nobody,
it is listed as unknown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tracecore_sidecar.state.view import Bools, GroupView, Ints, JobView

_NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """Which facts about the ranks are good enough to reason from; arrays by rank."""

    is_fresh: Bools
    """The flight recorder was read while nothing moved."""
    is_out: Bools
    """It cannot enter anything: it ended, is stopped, a zombie or gone."""
    is_elsewhere: Bools
    """Its training thread is known to be outside collectives (input, checkpoint)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """One collective in which ranks wait."""

    pg_name: str
    seq_id: int
    created_ns: int
    """When the first waiter entered."""
    waiters: tuple[int, ...]
    absent: tuple[int, ...]
    """Members that have not entered, on good evidence."""
    held_up: tuple[int, ...]
    """Members that entered but wait in an older collective, or were stopped or ended in it."""
    unknown: tuple[int, ...]
    """Members that could not be read: they may have entered or not."""
    done: tuple[int, ...]
    """Members whose part is over while the waiters still wait."""
    signatures: Mapping[str, tuple[int, ...]]
    """Operation with sizes and types, and the members that entered with it."""

    @property
    def op(self) -> str:
        """Operation most waiters are in, without sizes."""
        if not self.signatures:
            return "collective"
        most = max(self.signatures, key=lambda name: len(self.signatures[name]))
        return most.split(" ", 1)[0]

    @property
    def blockers(self) -> tuple[int, ...]:
        """Members the waiters wait for."""
        return self.absent + self.held_up


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitGraph:
    """All heads, oldest first, and what they come down to."""

    heads: tuple[Head, ...]
    head_of: Mapping[int, int]
    """Index into ``heads`` by waiting rank."""
    sinks: tuple[int, ...]
    """Ranks that block others and do not wait themselves."""

    def head_blocked_by(self, rank: int) -> Head | None:
        """Give the oldest head a rank blocks."""
        return next((head for head in self.heads if rank in head.blockers), None)

    def cycle_from(self, index: int) -> tuple[Head, ...]:
        """Follow a head to what holds it up; give the circle it ends in, or nothing."""
        chain = [index]
        while True:
            following = (self.head_of.get(rank) for rank in self.heads[chain[-1]].blockers)
            after = next((i for i in following if i is not None), None)
            if after is None:
                return ()
            if after in chain:
                return tuple(self.heads[i] for i in chain[chain.index(after) :])
            chain.append(after)

    def chain_to(self, rank: int) -> tuple[Head, ...]:
        """Give the waits that lead to a sink, from the farthest waiter to the nearest."""
        chain: list[Head] = []
        targets = {rank}
        while True:
            nearest = next(
                (h for h in self.heads if h not in chain and targets & set(h.blockers)), None
            )
            if nearest is None:
                return tuple(reversed(chain))
            chain.append(nearest)
            targets = set(nearest.waiters)


def build(view: JobView, readings: Readings) -> WaitGraph:
    """Make the graph of a job as it stands."""
    may_wait = readings.is_fresh & ~readings.is_out & ~readings.is_elsewhere
    groups = [group for group in view.groups.values() if len(group.members) > 1]
    oldest, group_of, slot_of = _oldest_unfinished(view, groups, may_wait)
    waiting: dict[tuple[int, int], list[int]] = {}
    for rank in np.flatnonzero(group_of >= 0).tolist():
        waiting.setdefault((int(group_of[rank]), int(slot_of[rank])), []).append(rank)
    places = sorted(waiting, key=lambda place: min(int(oldest[r]) for r in waiting[place]))
    head_of = {rank: i for i, place in enumerate(places) for rank in waiting[place]}
    heads = tuple(
        _head(groups[g], slot, tuple(waiting[g, slot]), oldest, readings) for g, slot in places
    )
    sinks = sorted({r for head in heads for r in head.blockers if r not in head_of})
    return WaitGraph(heads=heads, head_of=head_of, sinks=tuple(sinks))


def _oldest_unfinished(
    view: JobView, groups: list[GroupView], may_wait: Bools
) -> tuple[Ints, Ints, Ints]:
    """Give by rank the entry time, group index and slot of its head; group -1: it has none."""
    oldest: Ints = np.full(view.world_size, _NEVER, dtype=np.int64)
    group_of: Ints = np.full(view.world_size, -1, dtype=np.int64)
    slot_of: Ints = np.full(view.world_size, -1, dtype=np.int64)
    has_lost = np.zeros(view.world_size, dtype=np.bool_)
    has_lost[[rank for rank, lost in view.num_lost.items() if lost > 0]] = True
    for index, group in enumerate(groups):
        members = np.asarray(group.members, dtype=np.int64)
        created = group.created_ns
        is_entry = (created > 0) & (group.seq_ids >= 0)[:, None]
        seq_ids = np.broadcast_to(group.seq_ids[:, None], created.shape)
        # A group finishes in order: an entry with a finished one after it is finished too, its
        # own completion was overwritten in the ring before we read it.
        last_done = np.where(is_entry & group.is_retired, seq_ids, -1).max(axis=0, initial=-1)
        is_open = is_entry & ~group.is_retired & (seq_ids > last_done) & may_wait[members]
        # Same reason, for a group whose last entry is the one that was overwritten.
        is_open &= ~has_lost[members] | (created > view.ranks.step_ns[members])
        times = np.where(is_open, created, _NEVER)
        slots = times.argmin(axis=0)
        first = times[slots, np.arange(len(members))]
        is_older = first < oldest[members]
        chosen = members[is_older]
        oldest[chosen] = first[is_older]
        group_of[chosen] = index
        slot_of[chosen] = slots[is_older]
    return oldest, group_of, slot_of


def _head(
    group: GroupView, slot: int, waiters: tuple[int, ...], oldest: Ints, readings: Readings
) -> Head:
    members = np.asarray(group.members, dtype=np.int64)
    seq_id = int(group.seq_ids[slot])
    created = group.created_ns[slot]
    is_fresh, is_out = readings.is_fresh[members], readings.is_out[members]
    is_entered = group.last_seq >= seq_id
    is_waiter = np.isin(members, waiters)
    is_done = is_entered & group.is_retired[slot]
    is_open = is_entered & ~is_done & ~is_waiter
    is_held_up = is_open & (is_out | (is_fresh & (oldest[members] < created)))
    signatures: dict[str, list[int]] = {}
    for rank, op in zip(group.members, group.op[slot].tolist(), strict=True):
        if op >= 0:
            signatures.setdefault(group.ops[op], []).append(rank)
    return Head(
        pg_name=group.pg_name,
        seq_id=seq_id,
        created_ns=int(oldest[list(waiters)].min()),
        waiters=waiters,
        absent=_ranks(members, ~is_entered & (is_fresh | is_out)),
        held_up=_ranks(members, is_held_up),
        unknown=_ranks(members, ~is_fresh & ~is_out & ~is_done),
        done=_ranks(members, is_done),
        signatures={name: tuple(ranks) for name, ranks in signatures.items()},
    )


def _ranks(members: Ints, mask: Bools) -> tuple[int, ...]:
    return tuple(members[mask].tolist())
