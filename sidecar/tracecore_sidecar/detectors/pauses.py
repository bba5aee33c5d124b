"""Who, of the ranks that are too long in a pause, is at work there, and who waits for another.

A rank inside a pause may wait there for a peer, and then the peer is the cause. So a rank is named
only when it was looked at after its limit, neither waits nor exchanges anything with others, and
the others have done their part: where they are in the pause too, they were waiting for it before
the limit passed. Where all that take part work, or more than half of the job does, nobody is
singled out: what makes them slow is not one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tracecore_sidecar.detectors.frames import first_frame, waits_for_peer
from tracecore_sidecar.detectors.naming import group_text, span_text
from tracecore_sidecar.verdicts import Evidence

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from tracecore_sidecar.state.view import GroupView, JobView
    from tracecore_train.wire.records import StackRecord

SECOND_NS = 1_000_000_000
SETTLE_NS = 2 * SECOND_NS
"""What is seen of a rank counts from this long after its limit: ranks that exchange data all along
have entered another collective by then, and are not taken for one that works and one that waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LookSettings:
    """How closely ranks are looked at that are too long in a pause."""

    evidence_ns: int = 15 * SECOND_NS
    """Time for the stack that tells a rank at work from one that waits: stacks are fetched once
    in 10 s, with a deadline of 5 s. Then the pause is told without naming anybody."""
    max_looks: int = 8
    """Ranks that are looked at: more of them over the limit are hardly each at fault."""
    max_listed: int = 16
    """Ranks with a line of evidence of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrun:
    """A rank that is too long in a pause."""

    rank: int
    since_ns: int
    until_ns: int
    """The moment from which it is too long."""

    @property
    def fresh_after_ns(self) -> int:
        """The moment from which what is seen of it counts."""
        return self.until_ns + SETTLE_NS


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What was said about one pause: it stays the same for as long as the ranks do."""

    overruns: tuple[Overrun, ...]
    named: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What can be said about one pause now, and who has to be looked at."""

    told: Told | None
    """None: nothing yet, a look is under way."""
    wanted: tuple[int, ...] = ()


def judge(
    view: JobView,
    overruns: tuple[Overrun, ...],
    inside: Collection[int],
    known: Told | None,
    *,
    now: int,
    settings: LookSettings,
) -> Judged:
    """Say who is named; ``inside`` are all ranks in the pause, also those within their limit."""
    if known is not None and known.overruns == overruns:
        return Judged(told=known)
    unseen = [o for o in overruns if not _is_examined(view, o)]
    latest_ns = max(o.until_ns for o in overruns)
    wanted: tuple[int, ...] = ()
    if unseen and now - latest_ns < settings.evidence_ns:
        wanted = tuple(o.rank for o in unseen if now > o.fresh_after_ns)[: settings.max_looks]
        if known is None:
            return Judged(told=None, wanted=wanted)
    return Judged(told=Told(overruns=overruns, named=_named(view, overruns, inside)), wanted=wanted)


def is_everybody(view: JobView, inside: Collection[int]) -> bool:
    """Say whether all ranks that run are in it: one that cannot be seen may be in it too."""
    running = int((~view.ranks.is_ended).sum())
    num_seen = int(np.count_nonzero((view.ranks.page_ns > 0) & ~view.ranks.is_ended))
    return len(inside) > 1 and len(inside) >= min(running, num_seen)


def stack_after(view: JobView, rank: int, after_ns: int) -> StackRecord | None:
    """Give the stack of the main thread, or why there is none, if taken after that moment."""
    fresh = [s for s in view.stacks.get(rank, ()) if s.time_ns > after_ns]
    return next((s for s in fresh if s.thread == "MainThread"), fresh[0] if fresh else None)


def look_evidence(view: JobView, overrun: Overrun, now: int) -> Iterator[Evidence]:
    """Give what was seen of a rank after its limit: its collective, its stack."""
    rank = overrun.rank
    for group in _groups(view, rank) if _has_fresh_pull(view, overrun) else ():
        entered_ns = _entered_ns(group, rank)
        if entered_ns:
            yield Evidence(
                kind="collective",
                source="flight recorder",
                time_ns=int(view.ranks.pull_ns[rank]),
                rank=rank,
                text=f"rank {rank} has waited in {group_text(group)} for"
                f" {span_text(now - entered_ns)}",
                data={"pg_name": group.pg_name, "entered_ns": entered_ns},
            )
    stack = stack_after(view, rank, overrun.fresh_after_ns)
    if stack is not None and not stack.error:
        does = "waits for another rank" if waits_for_peer(stack) else "is"
        yield Evidence(
            kind="stack",
            source="py-spy",
            time_ns=stack.time_ns,
            rank=rank,
            text=f"rank {rank} {does} in {first_frame(stack)}",
            data={"frames": list(stack.frames[:20])},
        )


def unseen_texts(view: JobView, overruns: Sequence[Overrun]) -> list[str]:
    """List what could not be seen of these ranks, each as ``thing: reason``."""
    return [text for overrun in overruns for text in _unseen(view, overrun)]


def _unseen(view: JobView, overrun: Overrun) -> Iterator[str]:
    rank, groups = overrun.rank, _groups(view, overrun.rank)
    if _waits_since(view, overrun):
        return
    stack = stack_after(view, rank, overrun.fresh_after_ns)
    if stack is None or stack.error:
        yield f"stack of rank {rank}: {'not taken' if stack is None else stack.error}"
    if any(group.is_blind for group in groups):
        yield f"collectives of rank {rank}: their recorder is not read"
    elif groups and not _has_fresh_pull(view, overrun):
        yield f"collectives of rank {rank}: not read since its limit"


def _is_examined(view: JobView, overrun: Overrun) -> bool:
    """Say whether it was looked at after its limit as far as that is possible and needed."""
    if _waits_since(view, overrun):
        return True
    has_answer = _has_fresh_pull(view, overrun) or view.ranks.pull_failed_ns[overrun.rank] > 0
    stack = stack_after(view, overrun.rank, overrun.fresh_after_ns)
    return stack is not None and bool(has_answer or not _groups(view, overrun.rank))


def _named(
    view: JobView, overruns: tuple[Overrun, ...], inside: Collection[int]
) -> tuple[int, ...]:
    """Give the ranks that are at work while the others have done their part."""
    at_work = [o.rank for o in overruns if _is_at_work(view, o)]
    waits = {o: _waits_since(view, o) for o in overruns}
    if any(since_ns > o.until_ns for o, since_ns in waits.items()):
        return ()
    running = int((~view.ranks.is_ended).sum())
    if running > 1 and 2 * len(at_work) > running:
        return ()
    num_waiting = sum(since_ns > 0 for since_ns in waits.values())
    if is_everybody(view, inside) and len(at_work) + num_waiting < len(inside):
        return ()
    return tuple(at_work)


def _is_at_work(view: JobView, overrun: Overrun) -> bool:
    """Say whether it was seen to do something of its own: neither wait nor exchange anything."""
    rank = overrun.rank
    stack = stack_after(view, rank, overrun.fresh_after_ns)
    if stack is None or stack.error or waits_for_peer(stack):
        return False
    groups = _groups(view, rank)
    if any(group.is_blind for group in groups) or (groups and not _has_fresh_pull(view, overrun)):
        return False
    return not any(
        _entered_ns(group, rank) or _last_entry_ns(group, rank) > overrun.until_ns
        for group in groups
    )


def _waits_since(view: JobView, overrun: Overrun) -> int:
    """Give when it entered what it waits in, as its recorder told after its limit; 0: it does not.

    Of several, the one it entered last: the others may be meant to run beside it.
    """
    if not _has_fresh_pull(view, overrun):
        return 0
    return max((_entered_ns(g, overrun.rank) for g in _groups(view, overrun.rank)), default=0)


def _groups(view: JobView, rank: int) -> list[GroupView]:
    """Give the groups in which it can wait for somebody."""
    return [g for g in view.groups.values() if rank in g.members and len(g.members) > 1]


def _has_fresh_pull(view: JobView, overrun: Overrun) -> bool:
    return int(view.ranks.pull_ns[overrun.rank]) > overrun.fresh_after_ns


def _entered_ns(group: GroupView, rank: int) -> int:
    """Give when it last entered an operation that is not over; 0: none."""
    column = group.members.index(rank)
    is_open = (group.seq_ids >= 0) & ~group.is_retired[:, column]
    is_mine = (group.points.member == column) & ~group.points.is_done
    return max(
        int(group.created_ns[is_open, column].max(initial=0)),
        int(group.points.created_ns[is_mine].max(initial=0)),
    )


def _last_entry_ns(group: GroupView, rank: int) -> int:
    column = group.members.index(rank)
    is_mine = group.points.member == column
    return max(
        int(group.created_ns[group.seq_ids >= 0, column].max(initial=0)),
        int(group.points.created_ns[is_mine].max(initial=0)),
    )
