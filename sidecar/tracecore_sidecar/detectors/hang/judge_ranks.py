"""Waits that come down to ranks: those that never came, and those that did not finish."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracecore_sidecar.detectors.hang.diagnosis import Cause, Diagnosis, mismatched
from tracecore_sidecar.detectors.hang.hidden_waits import cannot_be_waiting, may_wait_untold
from tracecore_sidecar.detectors.hang.mismatch import first_mismatch, mismatch_at
from tracecore_sidecar.detectors.hang.scene import MAX_LOCATED
from tracecore_sidecar.detectors.hang.whereabouts import PLAIN_PLACES, Place

if TYPE_CHECKING:
    from tracecore_sidecar.detectors.hang.head import Head
    from tracecore_sidecar.detectors.hang.scene import Scene


def judge_sinks(scene: Scene) -> list[Diagnosis]:
    """Judge the ranks that keep others waiting and do not wait themselves."""
    graph = scene.graph
    if not graph.sinks:
        return []
    sinks = scene.locate(graph.sinks)
    # A rank may wait in a group nobody reads; only where it is for certain elsewhere is it named.
    may_wait_unseen = scene.view.is_in_blind_group()
    # So may one that sends and receives on gloo; where its stack or the kernel tells, it is named.
    may_wait_unrecorded = may_wait_untold(scene) & scene.is_live
    in_rendezvous = {w.rank for w in sinks if w.place is Place.RENDEZVOUS}
    suspects = tuple(
        w
        for w in sinks
        if w.place is not Place.PEER_WAIT
        and w.rank not in in_rendezvous
        and (not may_wait_unseen[w.rank] or w.place in PLAIN_PLACES)
        and (not may_wait_unrecorded[w.rank] or cannot_be_waiting(scene, w))
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
            found.append(mismatched(scene, head, odd, explained))
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


def judge_stuck(scene: Scene) -> list[Diagnosis]:
    """Judge the ranks that did not finish what others finished."""
    graph = scene.graph
    if not graph.stuck:
        return []
    nodes = sorted({int(graph.nodes.of_rank[rank]) for rank in graph.stuck})
    heads = tuple(graph.head(node) for node in nodes[:MAX_LOCATED])
    explained = graph.num_explained(graph.explained(ranks=graph.stuck))
    found: list[Diagnosis] = []
    rest = set(graph.stuck)
    for head in heads:
        odd = None if head.link else mismatch_at(head.group, head.seq_id)
        if odd is not None:
            found.append(mismatched(scene, head, odd, explained))
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
