"""Makes the verdict of a diagnosis: evidence, what speaks against it, how sure it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracecore_sidecar.detectors.hang.diagnosis import Cause
from tracecore_sidecar.detectors.hang.gaps import not_measured, ras_answers, unread
from tracecore_sidecar.detectors.hang.links import link_items
from tracecore_sidecar.detectors.hang.operations import is_device_backend
from tracecore_sidecar.detectors.hang.words import actions, operation_text, summary
from tracecore_sidecar.detectors.naming import group_text, ranks_text, suspect_of
from tracecore_sidecar.verdicts import Confidence, Cost, Evidence, Severity, Verdict

if TYPE_CHECKING:
    from tracecore_sidecar.detectors.hang.diagnosis import Diagnosis
    from tracecore_sidecar.detectors.hang.head import Head
    from tracecore_sidecar.detectors.hang.scene import Scene
    from tracecore_sidecar.detectors.hang.whereabouts import Whereabouts

MAX_DETAILED = 8
"""Ranks whose own evidence is listed."""
MAX_LINKS = 12
"""Waits of a chain that are written out."""
MAX_LISTED = 64
"""Ranks of one list in the data of an evidence item."""
_CERTAIN = frozenset(
    {Cause.NEVER_ENTERED, Cause.NONE_COMPLETED, Cause.STUCK_PEERS_DONE, Cause.RENDEZVOUS}
)


def report(scene: Scene, diagnosis: Diagnosis) -> Verdict:
    """Make the verdict of a diagnosis."""
    waiting = scene.graph.num_waiting or diagnosis.num_explained
    total = scene.view.world_size
    cost = f"{waiting} of {total} ranks wait"
    if diagnosis.num_explained < waiting:
        cost += f"; this explains {diagnosis.num_explained} of them"
    return Verdict(
        pattern="hang",
        class_=diagnosis.cause.value,
        severity=Severity.CRITICAL,
        confidence=Confidence.FULL if _is_full(scene, diagnosis) else Confidence.PARTIAL,
        summary=summary(scene, diagnosis),
        suspects=tuple(suspect_of(scene.view, w.rank) for w in diagnosis.suspects),
        since_ns=scene.stopped_ns,
        evidence=tuple(_evidence(scene, diagnosis)),
        contradicting=tuple(_contradicting(scene, diagnosis)),
        not_measured=not_measured(scene, diagnosis),
        actions=tuple(actions(scene, diagnosis)),
        cost=Cost(text=cost, waiting_ranks=waiting),
    )


def _is_full(scene: Scene, diagnosis: Diagnosis) -> bool:
    """Say whether everything the rule asks for was there."""
    if diagnosis.head is None and diagnosis.cause is Cause.NEVER_ENTERED:
        return False  # told from stacks
    has_side = diagnosis.mismatch is not None and bool(diagnosis.mismatch.odd)
    if not (diagnosis.cause in _CERTAIN or has_side) or unread(scene):
        return False
    if diagnosis.head is not None and not _is_proven(scene, diagnosis, diagnosis.head):
        return False
    lost = scene.view.num_lost
    if any(lost.get(w.rank) for w in diagnosis.suspects):
        return False
    if scene.is_live:
        return all(w.is_certain for w in diagnosis.suspects)
    if not diagnosis.heads:
        return False
    # Files have no stacks. Where sends and receives are recorded, a wait in one is excluded.
    return all(is_device_backend(head.group.backend) for head in diagnosis.heads)


def _is_proven(scene: Scene, diagnosis: Diagnosis, head: Head) -> bool:
    """Say whether what is absent from the operation is known to be, not only likely."""
    if head.link is not None:
        return head.is_certain
    found = scene.graph.found
    rows = found.rows_of(found.groups.index(head.group))
    is_known = dict(zip(head.group.members, found.is_known[rows].tolist(), strict=True))
    return all(is_known.get(w.rank, True) for w in diagnosis.suspects)


def _evidence(scene: Scene, diagnosis: Diagnosis) -> list[Evidence]:
    items: list[Evidence] = []
    heads = list(diagnosis.heads[:MAX_DETAILED])
    items += [_head_evidence(scene, head) for head in heads]
    if diagnosis.mismatch is not None:
        items.insert(0, _mismatch_evidence(diagnosis))
    for located in diagnosis.suspects[:MAX_DETAILED]:
        if (last := _last_entry(scene, located.rank, diagnosis)) is not None:
            items.append(last)
        items += located.evidence
    for located in diagnosis.bystanders[:MAX_DETAILED]:
        items += located.evidence or ((_page_item(scene, located),) if scene.is_live else ())
    if (chain := _chain(scene, diagnosis)) is not None:
        items.append(chain)
    return [*items, *link_items(scene, diagnosis), *_ras_items(scene)]


def _mismatch_evidence(diagnosis: Diagnosis) -> Evidence:
    odd = diagnosis.mismatch
    assert odd is not None, "asked only where there is one"  # noqa: S101
    return Evidence(
        kind="collective",
        source="flight recorder",
        time_ns=0 if diagnosis.head is None else diagnosis.head.created_ns,
        rank=None,
        text=f"at #{odd.seq_id} of {group_text(odd.group)} {odd.text}; {odd.reason}",
        data={
            "pg_name": odd.group.pg_name,
            "collective_seq_id": odd.seq_id,
            "sides": {what: list(ranks[:MAX_LISTED]) for what, ranks in odd.sides[:MAX_DETAILED]},
            "odd": list(odd.odd[:MAX_LISTED]),
        },
    )


def _head_evidence(scene: Scene, head: Head) -> Evidence:
    if head.link is not None:
        text = f"{ranks_text(head.waiters)} issued its side of {operation_text(head)}"
    else:
        entered = {rank for ranks in head.signatures.values() for rank in ranks}
        text = f"{ranks_text(entered or head.waiters)} entered {operation_text(head)}"
    # A recorder that nobody could read since does not tell whether its rank came after all.
    is_read = scene.readings.is_fresh
    stayed_away = [rank for rank in head.absent if is_read[rank]]
    unseen = [rank for rank in head.absent if not is_read[rank]]
    if stayed_away:
        text += f", {ranks_text(stayed_away)} did not"
    if unseen:
        text += f", {ranks_text(unseen)} {'was' if len(unseen) == 1 else 'were'} not seen to"
    if head.done:
        text += f"; it is over for {ranks_text(head.done)}"
    if head.held_up:
        text += f"; {ranks_text(head.held_up)} cannot get on in it"
    if head.unknown:
        text += f"; {ranks_text(head.unknown)} could not be read"
    return Evidence(
        kind="collective",
        source="flight recorder",
        time_ns=head.created_ns,
        rank=None,
        text=text,
        data={
            "pg_name": head.group.pg_name,
            "collective_seq_id": head.seq_id if head.link is None else None,
            "link": None if head.link is None else list(head.link),
            "op": head.op,
            "waiting": list(head.waiters[:MAX_LISTED]),
            "absent": list(head.absent[:MAX_LISTED]),
            "done": list(head.done[:MAX_LISTED]),
            "unknown": list(head.unknown[:MAX_LISTED]),
            "signatures": {
                name: list(ranks[:MAX_LISTED])
                for name, ranks in list(head.signatures.items())[:MAX_DETAILED]
            },
        },
    )


def _last_entry(scene: Scene, rank: int, diagnosis: Diagnosis) -> Evidence | None:
    head = next((h for h in diagnosis.heads if rank in h.group.members and h.link is None), None)
    if head is None:
        return None
    group = head.group
    column = group.members.index(rank)
    index = scene.graph.found.groups.index(group)
    last = int(scene.graph.found.entered[scene.graph.found.rows_of(index)][column])
    slots = np.flatnonzero(group.seq_ids == last)
    # An unread rank may have gone further than was seen.
    verb = "entered" if scene.readings.is_fresh[rank] else "was seen to enter"
    text = f"rank {rank} was not seen to enter any collective of {group_text(group)}"
    time_ns = int(scene.view.ranks.pull_ns[rank])
    if last >= 0:
        op = group.op_name(int(slots[0]), column) if len(slots) else ""
        what = f"{op or 'collective'} #{last}"
        text = f"the last that rank {rank} {verb} of {group_text(group)} is {what}"
        if len(slots):
            time_ns = int(group.created_ns[slots[0], column]) or time_ns
    return Evidence(
        kind="collective",
        source="flight recorder",
        time_ns=time_ns,
        rank=rank,
        text=text,
        data={"pg_name": group.pg_name, "collective_seq_id": last},
    )


def _chain(scene: Scene, diagnosis: Diagnosis) -> Evidence | None:
    """Follow the waits from the farthest victim to the suspects."""
    graph = scene.graph
    targets = [w.rank for w in diagnosis.suspects]
    nodes = graph.chain_to(targets) if targets else ()
    if len(nodes) < 2:
        return None
    heads = [graph.head(node) for node in nodes[:MAX_LINKS]]
    links = [f"{ranks_text(head.waiters)} in {operation_text(head)}" for head in heads]
    text = "who waits for whom: " + "; which waits for ".join(links)
    end = sorted(set(heads[-1].blockers) & set(targets)) or targets
    return Evidence(
        kind="wait_chain",
        source="flight recorder",
        time_ns=heads[0].created_ns,
        rank=None,
        text=f"{text}; which waits for {ranks_text(end)}",
        data={
            "chain": [
                {
                    "pg_name": head.group.pg_name,
                    "collective_seq_id": head.seq_id if head.link is None else None,
                    "link": None if head.link is None else list(head.link),
                    "waiting": list(head.waiters[:MAX_LISTED]),
                    "for": list(head.blockers[:MAX_LISTED]),
                }
                for head in heads
            ]
        },
    )


def _ras_items(scene: Scene) -> list[Evidence]:
    """Pass on what NCCL's RAS service has said since; nothing is judged by it."""
    return [
        Evidence(
            kind="nccl_ras",
            source="NCCL RAS",
            time_ns=answer.time_ns,
            rank=None,
            text=f"NCCL RAS, a hint: {finding}",
        )
        for answer in ras_answers(scene)
        for finding in answer.findings[:MAX_DETAILED]
    ]


def _page_item(scene: Scene, located: Whereabouts) -> Evidence:
    return Evidence(
        kind="rank_page",
        source="rank page",
        time_ns=int(scene.view.ranks.page_ns[located.rank]),
        rank=located.rank,
        text=f"rank {located.rank} {located.text}",
    )


def _contradicting(scene: Scene, diagnosis: Diagnosis) -> list[Evidence]:
    """Entries a suspect made after the others began to wait: it was not idle all the time."""
    head = diagnosis.head
    items: list[Evidence] = []
    if head is None or diagnosis.cause is not Cause.NEVER_ENTERED:
        return items
    waiter_host = int(scene.view.ranks.host_index[head.waiters[0]])
    for located in diagnosis.suspects[:MAX_DETAILED]:
        rank = located.rank
        if int(scene.view.ranks.host_index[rank]) != waiter_host:
            continue
        for group in scene.view.groups.values():
            if group.pg_name == head.group.pg_name or rank not in group.members:
                continue
            column = group.members.index(rank)
            slot = int(group.created_ns[:, column].argmax())
            time_ns = int(group.created_ns[slot, column])
            if time_ns > head.created_ns:
                op, seq_id = group.op_name(slot, column), int(group.seq_ids[slot])
                items.append(
                    Evidence(
                        kind="collective",
                        source="flight recorder",
                        time_ns=time_ns,
                        rank=rank,
                        text=f"rank {rank} entered {op} #{seq_id} of {group_text(group)} after "
                        "the others began to wait",
                    )
                )
    return items
