"""From the wait-for graph to causes: who is missing, who is stuck, who disagrees, or why none."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from tracecore_sidecar.detectors import wait_graph, waiting_order
from tracecore_sidecar.detectors.frames import is_in_rendezvous
from tracecore_sidecar.detectors.mismatch import first_mismatch, mismatch_at
from tracecore_sidecar.detectors.positions import Readings
from tracecore_sidecar.detectors.whereabouts import (
    OUT_STATES,
    PLAIN_PLACES,
    Patience,
    Place,
    last_look,
    locate,
    main_stack,
)
from tracecore_sidecar.state.view import UNKNOWN_EXIT

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tracecore_sidecar.detectors.mismatch import Mismatch
    from tracecore_sidecar.detectors.wait_graph import Head, WaitGraph
    from tracecore_sidecar.detectors.whereabouts import Whereabouts
    from tracecore_sidecar.state.view import JobView

MAX_LOCATED = 64
"""Ranks whose whereabouts are worked out in one look."""
MAX_KNOTS = 16
"""Independent knots that are told one by one."""


class Cause(str, Enum):
    """What the evidence comes down to; the verdict's class."""

    NEVER_ENTERED = "never_entered"
    """A member never joined what the others wait in."""
    STUCK_PEERS_DONE = "stuck_peers_done"
    """A member did not finish what the others finished."""
    NONE_COMPLETED = "none_completed"
    """Every member entered, and it does not complete."""
    MISMATCH = "mismatch"
    """Members called different things under one sequence number."""
    WAIT_CYCLE = "wait_cycle"
    """Operations of several groups wait for each other."""
    UNMATCHED_P2P = "unmatched_p2p"
    """A send or recv whose other side was never issued."""
    RENDEZVOUS = "rendezvous"
    """Members wait for others in the making of a process group."""
    NOT_COLLECTIVE = "not_collective"
    """Nothing moves and nobody waits in a collective."""
    UNDETERMINED = "undetermined"
    """Somebody is waited for, and the evidence does not say who."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """One independent cause, as one look at the evidence says."""

    cause: Cause
    head: Head | None = None
    """The operation the verdict speaks of."""
    suspects: tuple[Whereabouts, ...] = ()
    bystanders: tuple[Whereabouts, ...] = ()
    """Ranks that were looked at and are not accused."""
    heads: tuple[Head, ...] = ()
    """All operations involved: those that hold each other up, or that lead to the suspects."""
    mismatch: Mismatch | None = None
    num_explained: int = 0
    """Waiting ranks whose wait comes down to this."""
    reason: str = ""
    """Why these are the suspects, where that needs saying."""
    presumed: tuple[int, ...] = ()
    """Members that were not read and have entered, as others' later operations show."""

    @property
    def accuse_after_ns(self) -> int:
        """The moment from which nobody involved has an excuse."""
        return max((w.accuse_after_ns for w in (*self.suspects, *self.bystanders)), default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """The job as one look finds it."""

    view: JobView
    graph: WaitGraph
    readings: Readings
    stopped_ns: int
    now: int
    patience: Patience
    is_live: bool = True
    """There is a job to look at further; False for files from elsewhere."""

    def locate(self, ranks: Iterable[int]) -> tuple[Whereabouts, ...]:
        """Say where ranks are."""
        return tuple(
            locate(
                self.view,
                rank,
                stopped_ns=self.stopped_ns,
                now=self.now,
                patience=self.patience,
            )
            for rank in list(ranks)[:MAX_LOCATED]
        )


def read(view: JobView, *, stopped_ns: int, fresh_after_ns: int) -> Readings:
    """Sort out which facts about each rank are good enough to reason from."""
    ranks = view.ranks
    is_out = ranks.is_ended.copy()
    for rank in view.processes:
        look = last_look(view, rank, stopped_ns)
        if look is not None and look.state in OUT_STATES:
            is_out[rank] = True
    has_page = ranks.page_ns > stopped_ns
    is_inside = (ranks.input_since_ns > 0) | (ranks.checkpoint_since_ns > 0)
    return Readings(
        is_fresh=(ranks.pull_ns > fresh_after_ns) & ~ranks.is_ended,
        is_out=is_out,
        is_elsewhere=has_page & is_inside,
    )


def look(
    view: JobView,
    *,
    stopped_ns: int,
    fresh_after_ns: int,
    now: int,
    patience: Patience,
    is_live: bool = True,
) -> Scene:
    """Take the evidence as it stands."""
    readings = read(view, stopped_ns=stopped_ns, fresh_after_ns=fresh_after_ns)
    return Scene(
        view=view,
        graph=wait_graph.build(view, readings),
        readings=readings,
        stopped_ns=stopped_ns,
        now=now,
        patience=patience,
        is_live=is_live,
    )


def diagnose(scene: Scene) -> tuple[Diagnosis, ...]:
    """Give the independent causes, the one that explains most first; none: nothing to say."""
    graph = scene.graph
    if not graph.num_waiting:
        return _nobody_waits(scene)
    found: list[Diagnosis] = []
    found += _sinks(scene)
    found += _stuck(scene)
    unsure: list[Diagnosis] = []
    for knot in graph.knots:
        diagnosis = _knot(scene, knot)
        # Of a message whose order is not certain, both sides may be of different messages.
        is_paired = diagnosis.head is None or diagnosis.head.is_certain or len(knot) > 1
        if diagnosis.cause is Cause.UNDETERMINED or not is_paired:
            unsure.append(diagnosis)
        elif len(found) < MAX_KNOTS:
            found.append(diagnosis)
    found = _merged(found)
    # What leads to a rank that was not read, or to one that waits unseen, is no cause of its own.
    if not any(d.cause is not Cause.UNDETERMINED for d in found):
        found += unsure
        found = sorted(found, key=_weight)[:1]
    return tuple(sorted(found, key=_weight))


def _weight(diagnosis: Diagnosis) -> tuple[bool, int]:
    return diagnosis.cause is Cause.UNDETERMINED, -diagnosis.num_explained


def _sinks(scene: Scene) -> list[Diagnosis]:
    """Judge the ranks that keep others waiting and do not wait themselves."""
    graph = scene.graph
    if not graph.sinks:
        return []
    sinks = scene.locate(graph.sinks)
    # A rank may wait in a group nobody reads; only where it is for certain elsewhere is it named.
    may_wait_unseen = scene.view.is_in_blind_group()
    in_rendezvous = {w.rank for w in sinks if w.place is Place.RENDEZVOUS}
    suspects = tuple(
        w
        for w in sinks
        if w.place is not Place.PEER_WAIT
        and w.rank not in in_rendezvous
        and (not may_wait_unseen[w.rank] or w.place in PLAIN_PLACES)
    )
    peers = tuple(w for w in sinks if w not in suspects)
    chosen = suspects or peers
    ranks = tuple(w.rank for w in chosen) if len(sinks) == len(graph.sinks) else graph.sinks
    nodes = graph.nodes_blocked_by(ranks)
    explained = graph.num_explained(graph.explained(ranks=ranks))
    heads = tuple(graph.head(node) for node in nodes[:MAX_LOCATED])
    if not suspects:
        return [
            Diagnosis(
                cause=Cause.RENDEZVOUS if in_rendezvous else Cause.UNDETERMINED,
                head=heads[0],
                heads=heads,
                bystanders=peers,
                num_explained=explained,
            )
        ]
    found: list[Diagnosis] = []
    rest = set(ranks)
    for head in heads:
        # A rank that departed from the others before is not missing: it went another way.
        odd = None if head.link else first_mismatch(head.group, head.seq_id)
        if odd is not None and set(odd.odd) & rest:
            found.append(_mismatched(scene, head, odd, explained))
            rest -= set(odd.odd)
    suspects = tuple(w for w in suspects if w.rank in rest)
    if suspects:
        heads = _telling_first(heads, {w.rank for w in suspects})
        has_entered = all(w.rank in heads[0].held_up for w in suspects)
        found.append(
            Diagnosis(
                cause=Cause.NONE_COMPLETED if has_entered else Cause.NEVER_ENTERED,
                head=heads[0],
                heads=heads,
                suspects=suspects,
                bystanders=peers,
                num_explained=explained,
            )
        )
    return found


def _telling_first(heads: tuple[Head, ...], suspects: set[int]) -> tuple[Head, ...]:
    """Leave the waits for suspects: those for most of them and by most ranks first."""
    concerned = [head for head in heads if suspects & set(head.blockers)] or list(heads)
    concerned.sort(key=lambda h: (-len(suspects & set(h.blockers)), -len(h.waiters)))
    return tuple(concerned)


def _stuck(scene: Scene) -> list[Diagnosis]:
    """Judge the ranks that did not finish what others finished."""
    graph = scene.graph
    if not graph.stuck:
        return []
    nodes = sorted({int(graph.node_of[rank]) for rank in graph.stuck})
    heads = tuple(graph.head(node) for node in nodes[:MAX_LOCATED])
    explained = graph.num_explained(graph.explained(ranks=graph.stuck))
    found: list[Diagnosis] = []
    rest = set(graph.stuck)
    for head in heads:
        odd = None if head.link else mismatch_at(head.group, head.seq_id)
        if odd is not None:
            found.append(_mismatched(scene, head, odd, explained))
            rest -= set(head.waiters)
    if rest:
        heads = tuple(h for h in heads if rest & set(h.waiters))
        found.append(
            Diagnosis(
                cause=Cause.STUCK_PEERS_DONE,
                head=heads[0],
                heads=heads,
                suspects=scene.locate(sorted(rest)),
                num_explained=explained,
            )
        )
    return found


def _mismatched(scene: Scene, head: Head, odd: Mismatch, explained: int) -> Diagnosis:
    return Diagnosis(
        cause=Cause.MISMATCH,
        head=head,
        heads=(head,),
        suspects=scene.locate(odd.odd),
        mismatch=odd,
        reason=odd.reason,
        num_explained=explained,
    )


def _knot(scene: Scene, knot: Sequence[int]) -> Diagnosis:
    """Judge heads that wait for nobody outside themselves."""
    graph = scene.graph
    heads = tuple(graph.head(node) for node in knot[:MAX_LOCATED])
    explained = graph.num_explained(graph.explained(nodes=knot))
    if len(knot) > 1:
        return _circle(scene, heads, explained)
    head = heads[0]
    if head.link is None and (odd := first_mismatch(head.group, head.seq_id)) is not None:
        return _mismatched(scene, head, odd, explained)
    if head.done:
        is_stuck = head.link is not None and head.is_certain
        return Diagnosis(
            cause=Cause.STUCK_PEERS_DONE if is_stuck else Cause.UNDETERMINED,
            head=head,
            heads=heads,
            suspects=scene.locate(head.waiters) if is_stuck else (),
            num_explained=explained,
        )
    presumed = tuple(rank for rank in head.unknown if _has_entered(graph, knot[0], rank))
    members = head.link or head.group.members
    if len(head.waiters) + len(presumed) < len(members):
        return Diagnosis(
            cause=Cause.UNDETERMINED,
            head=head,
            heads=heads,
            bystanders=scene.locate(head.unknown) if scene.is_live else (),
            num_explained=explained,
        )
    not_begun = head.not_started if 2 * len(head.not_started) < len(head.waiters) else ()
    return Diagnosis(
        cause=Cause.NONE_COMPLETED,
        head=head,
        heads=heads,
        suspects=scene.locate(not_begun),
        bystanders=() if not_begun or not scene.is_live else scene.locate(head.waiters),
        num_explained=explained,
        reason="the others' devices have begun it" if not_begun else "",
        presumed=presumed,
    )


def _circle(scene: Scene, heads: tuple[Head, ...], explained: int) -> Diagnosis:
    """Judge heads that wait for each other."""
    for head in heads:
        if head.link is None and (odd := first_mismatch(head.group, head.seq_id)) is not None:
            return _mismatched(scene, head, odd, explained)
    ordered = tuple(sorted(heads, key=lambda head: head.created_ns))
    unmatched = [head for head in ordered if head.link is not None and head.absent]
    if unmatched:
        # Only a ring that reaches back to the beginning shows that a side was never issued.
        missing = {r for head in unmatched if head.is_certain for r in head.absent}
        is_one_sided = len(missing) == 1
        return Diagnosis(
            cause=Cause.UNMATCHED_P2P,
            head=unmatched[0],
            heads=ordered,
            suspects=scene.locate(sorted(missing)) if is_one_sided else (),
            num_explained=explained,
        )
    odd_ranks, reason = waiting_order.odd_ranks(scene.graph.found, ordered)
    return Diagnosis(
        cause=Cause.WAIT_CYCLE,
        head=ordered[0],
        heads=ordered,
        suspects=scene.locate(odd_ranks),
        num_explained=explained,
        reason=reason,
    )


def _has_entered(graph: WaitGraph, node: int, rank: int) -> bool:
    """Say whether a rank that was not read has entered what a node waits for.

    It took part in something that a waiter entered later: members of the same groups call their
    operations in the same order.
    """
    found = graph.found
    created_ns = int(graph.node_created[node])
    for index, group in enumerate(found.groups):
        if not (found.needs_all[index] and found.is_device[index]) or rank not in group.members:
            continue
        entered = int(found.entered[found.rows_of(index)][group.members.index(rank)])
        columns = [j for j, other in enumerate(group.members) if graph.node_of[other] == node]
        is_shared = (group.seq_ids >= 0) & (group.seq_ids <= entered)
        if (group.created_ns[is_shared][:, columns] > created_ns).any():
            return True
    return False


def diagnose_aftermath(scene: Scene) -> tuple[Diagnosis, ...]:
    """Judge dumps in which nobody waits any more, because what they waited in has failed.

    Gloo calls an operation over when it timed out. Where the last operations of a group are over
    on every member and disagree, that is what they failed of; a job that went on has later ones.
    """
    found: list[Diagnosis] = []
    graph = scene.graph
    for index, group in enumerate(graph.found.groups):
        last = int(group.last_seq.max(initial=-1))
        if graph.found.is_device[index] or last < 0 or (group.last_seq != last).any():
            continue
        odd = mismatch_at(group, last)
        if odd is not None:
            suspects = scene.locate(odd.odd)
            found.append(
                Diagnosis(cause=Cause.MISMATCH, suspects=suspects, mismatch=odd, reason=odd.reason)
            )
    return tuple(found)


def _merged(found: list[Diagnosis]) -> list[Diagnosis]:
    """Leave one diagnosis for each disagreement, however many heads show it."""
    kept: list[Diagnosis] = []
    seen: set[tuple[str, int]] = set()
    for diagnosis in found:
        if diagnosis.mismatch is not None:
            key = (diagnosis.mismatch.group.pg_name, diagnosis.mismatch.seq_id)
            if key in seen:
                continue
            seen.add(key)
        kept.append(diagnosis)
    return kept


def _nobody_waits(scene: Scene) -> tuple[Diagnosis, ...]:
    ranks = scene.view.ranks
    live = ranks.is_seen & ~ranks.is_ended
    if (rendezvous := _rendezvous(scene)) is not None:
        return (rendezvous,)
    has_finished = ranks.is_ended & np.isin(ranks.exit_code, (0, UNKNOWN_EXIT))
    if has_finished.any():
        # Ranks end one by one; the last one may tidy up for as long as it likes.
        return ()
    is_blind = live & scene.view.is_in_blind_group()
    is_unread = live & ~scene.readings.is_fresh & ~scene.readings.is_out
    return (
        Diagnosis(
            cause=Cause.UNDETERMINED if (is_unread | is_blind).any() else Cause.NOT_COLLECTIVE,
            bystanders=scene.locate(np.flatnonzero(live).tolist()),
        ),
    )


def _rendezvous(scene: Scene) -> Diagnosis | None:
    """Find ranks that wait for others in the making of a process group, and those others."""
    view = scene.view
    waiting = [
        rank
        for rank in view.stacks
        if (stack := main_stack(view, rank, scene.stopped_ns)) is not None
        and is_in_rendezvous(stack)
    ]
    if not waiting:
        return None
    others = [rank for rank in range(view.world_size) if rank not in waiting]
    located = scene.locate(others)
    # Who has not even been looked at may be in there as well.
    suspects = tuple(
        w
        for w in located
        if w.place in PLAIN_PLACES or (w.is_certain and w.place is not Place.PEER_WAIT)
    )
    return Diagnosis(
        cause=Cause.RENDEZVOUS,
        suspects=suspects,
        bystanders=scene.locate(waiting) + tuple(w for w in located if w not in suspects),
        num_explained=len(waiting),
    )
