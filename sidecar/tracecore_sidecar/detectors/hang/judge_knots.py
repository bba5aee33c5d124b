"""Waits that come down to no rank outside: everybody entered, or operations wait for each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracecore_sidecar.detectors.hang.diagnosis import Cause, Diagnosis, mismatched
from tracecore_sidecar.detectors.hang.mismatch import first_mismatch
from tracecore_sidecar.detectors.hang.operations import is_device_backend
from tracecore_sidecar.detectors.hang.scene import MAX_LOCATED
from tracecore_sidecar.detectors.hang.waiting_order import odd_ranks, unexpected_ranks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracecore_sidecar.detectors.hang.head import Head
    from tracecore_sidecar.detectors.hang.scene import Scene
    from tracecore_sidecar.detectors.hang.wait_graph import WaitGraph


def judge_knot(scene: Scene, knot: Sequence[int]) -> Diagnosis:
    """Judge heads that wait for nobody outside themselves."""
    graph = scene.graph
    heads = tuple(graph.head(node) for node in knot[:MAX_LOCATED])
    explained = graph.num_explained(graph.explained(nodes=knot))
    if len(knot) > 1:
        return _circle(scene, heads, explained)
    head = heads[0]
    if head.link is None and (odd := first_mismatch(head.group, head.seq_id)) is not None:
        return mismatched(scene, head, odd, explained)
    if head.is_certain and _is_on_its_way(head):
        return Diagnosis(
            cause=Cause.NONE_COMPLETED,
            head=head,
            heads=heads,
            bystanders=scene.locate(head.waiters) if scene.is_live else (),
            num_explained=explained,
        )
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


def _is_on_its_way(head: Head) -> bool:
    """Say whether a message was sent and not received, and may be lost between the two.

    Without a device a send is over as soon as the kernel has taken the bytes.
    """
    if head.link is None or is_device_backend(head.group.backend):
        return False
    sender, receiver = head.link
    return head.done == (sender,) and head.waiters == (receiver,)


def _circle(scene: Scene, heads: tuple[Head, ...], explained: int) -> Diagnosis:
    """Judge heads that wait for each other."""
    for head in heads:
        if head.link is None and (odd := first_mismatch(head.group, head.seq_id)) is not None:
            return mismatched(scene, head, odd, explained)
    ordered = tuple(sorted(heads, key=lambda head: head.created_ns))
    unmatched = [head for head in ordered if head.link is not None and head.absent]
    if unmatched:
        # Only a ring that reaches back to the beginning shows that a side was never issued.
        missing = {r for head in unmatched if head.is_certain for r in head.absent}
        is_one_sided = len(missing) == 1
        unexpected = () if is_one_sided else unexpected_ranks(scene.graph.found, ordered)
        return Diagnosis(
            cause=Cause.UNMATCHED_P2P,
            head=unmatched[0],
            heads=ordered,
            suspects=scene.locate(sorted(missing) if is_one_sided else unexpected),
            num_explained=explained,
            reason="up to now something else has come here" if unexpected else "",
        )
    departed, reason = odd_ranks(scene.graph.found, ordered)
    return Diagnosis(
        cause=Cause.WAIT_CYCLE,
        head=ordered[0],
        heads=ordered,
        suspects=scene.locate(departed),
        num_explained=explained,
        reason=reason,
    )


def _has_entered(graph: WaitGraph, node: int, rank: int) -> bool:
    """Say whether a rank that was not read has entered what a node waits for.

    It took part in something that a waiter entered later: members of the same groups call their
    operations in the same order.
    """
    found = graph.found
    created_ns = int(graph.nodes.created[node])
    for index, group in enumerate(found.groups):
        if not (found.needs_all[index] and found.is_device[index]) or rank not in group.members:
            continue
        entered = int(found.entered[found.rows_of(index)][group.members.index(rank)])
        columns = [j for j, other in enumerate(group.members) if graph.nodes.of_rank[other] == node]
        is_shared = (group.seq_ids >= 0) & (group.seq_ids <= entered)
        if (group.created_ns[is_shared][:, columns] > created_ns).any():
            return True
    return False
