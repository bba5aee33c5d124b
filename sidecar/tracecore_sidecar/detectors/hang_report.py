"""Puts a hang into words: summary, evidence, what speaks against it, what to do next."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracecore_sidecar.detectors.hang_diagnosis import Cause
from tracecore_sidecar.detectors.hang_gaps import not_measured, unread
from tracecore_sidecar.detectors.naming import group_text, ranks_text, suspect_of
from tracecore_sidecar.detectors.whereabouts import Place
from tracecore_sidecar.verdicts import Confidence, Cost, Evidence, Severity, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracecore_sidecar.detectors.hang_diagnosis import Diagnosis, Scene
    from tracecore_sidecar.detectors.wait_graph import Head
    from tracecore_sidecar.detectors.whereabouts import Whereabouts

MAX_DETAILED = 8
"""Ranks whose own evidence is listed."""
SAME_SIZE_OPS = frozenset({"all_reduce", "allreduce", "broadcast", "reduce", "reduce_scatter"})
"""Operations every member must call with the same sizes."""

_ACTIONS: dict[Place, str] = {
    Place.ENDED: "find out why it ended: its log, and the launcher's report of the exit",
    Place.INPUT: "look at the data source and the loader workers of {rank}: slow or unreachable "
    "storage, a worker that died or is blocked",
    Place.CHECKPOINT: "look at the storage {rank} writes its checkpoint to; keep the other ranks "
    "waiting only as long as their collective timeout allows",
    Place.GIL: "find the call that keeps the GIL: see the stack, or `py-spy dump --native`",
    Place.PHASE: "let the other ranks wait outside a collective while {rank} is in that phase, "
    "or do its work on every rank",
    Place.BUSY: "see the stack: do the other ranks run this code as well, or only {rank}?",
    Place.DISK: "look at the file system {rank} reads or writes (NFS, local disk); see wchan",
    Place.CODE: "see the stack: what does {rank} wait for there, and why do the others not?",
    Place.UNKNOWN: "run `py-spy dump` on the process of {rank}",
    Place.PEER_WAIT: "see the stack: which rank is {rank} waiting for?",
}


def report(scene: Scene, diagnosis: Diagnosis) -> Verdict:
    """Make the verdict of a diagnosis."""
    is_full = (
        diagnosis.cause in {Cause.NEVER_ENTERED, Cause.NONE_COMPLETED}
        and not diagnosis.cycle
        and not unread(scene)
        and all(w.is_certain for w in diagnosis.suspects)
        and not any(scene.view.num_lost.get(w.rank) for w in diagnosis.suspects)
    )
    waiting = len(scene.graph.head_of)
    total = scene.view.world_size
    return Verdict(
        pattern="hang",
        class_=diagnosis.cause.value,
        severity=Severity.CRITICAL,
        confidence=Confidence.FULL if is_full else Confidence.PARTIAL,
        summary=_summary(scene, diagnosis),
        suspects=tuple(suspect_of(scene.view, w.rank) for w in diagnosis.suspects),
        since_ns=scene.stopped_ns,
        evidence=tuple(_evidence(scene, diagnosis)),
        contradicting=tuple(_contradicting(scene, diagnosis)),
        not_measured=not_measured(scene, diagnosis),
        actions=tuple(_actions(scene, diagnosis)),
        cost=Cost(text=f"{waiting} of {total} ranks wait", waiting_ranks=waiting),
    )


def _summary(scene: Scene, diagnosis: Diagnosis) -> str:
    head = diagnosis.head
    if head is None:
        if diagnosis.cause is Cause.NOT_COLLECTIVE:
            return "nothing moves, and no rank waits in a collective"
        blind = unread(scene) or np.flatnonzero(scene.view.is_in_blind_group()).tolist()
        return f"nothing moves, and what {ranks_text(blind)} wait in could not be read"
    where = _collective_text(scene, head)
    if diagnosis.cycle:
        names = " and ".join(_collective_text(scene, h) for h in diagnosis.cycle[:3])
        return f"ranks wait for each other in a circle: {names}"
    if diagnosis.suspects:
        return _accusation(scene, diagnosis, head)
    if diagnosis.cause is Cause.NONE_COMPLETED:
        if odd := _mismatch(head):
            return f"the members of {_group(scene, head)} disagree about {where}: {odd}"
        return f"all {len(head.waiters)} members entered {where}, and none completed it"
    if head.unknown:
        return f"{ranks_text(head.waiters)} wait in {where}; {ranks_text(head.unknown)} unread"
    if head.done:
        waits = "waits" if len(head.waiters) == 1 else "wait"
        text = f"{ranks_text(head.waiters)} still {waits} in {where}"
        return f"{text}, which is over for {ranks_text(head.done)}"
    held = ", ".join(f"rank {w.rank} {w.text}" for w in diagnosis.bystanders[:3])
    return f"{ranks_text(head.waiters)} wait in {where}; nobody can be named: {held}"


def _accusation(scene: Scene, diagnosis: Diagnosis, head: Head) -> str:
    where = _collective_text(scene, head)
    who = ranks_text(w.rank for w in diagnosis.suspects)
    first = diagnosis.suspects[0]
    if first.rank in head.held_up:
        return f"{who} {first.text} inside {where}"
    if first.place in {Place.STOPPED, Place.ENDED}:
        return f"{who} {first.text}; the others wait for it in {where}"
    return f"{who} never joined {where}"


def _evidence(scene: Scene, diagnosis: Diagnosis) -> list[Evidence]:
    items: list[Evidence] = []
    heads = list(diagnosis.cycle)
    if diagnosis.suspects:
        for located in diagnosis.suspects[:MAX_DETAILED]:
            heads += [h for h in scene.graph.chain_to(located.rank) if h not in heads]
    elif diagnosis.head is not None and not heads:
        heads = [diagnosis.head]
    heads = sorted(heads[:MAX_DETAILED], key=lambda h: h is not diagnosis.head)
    items += [_head_evidence(scene, head) for head in heads]
    for located in diagnosis.suspects[:MAX_DETAILED]:
        if diagnosis.head is not None:
            items.append(_last_entry(scene, located.rank, diagnosis.head))
        items += located.evidence
    for located in diagnosis.bystanders[:MAX_DETAILED]:
        items += located.evidence or (_whereabouts_item(scene, located),)
    rest = [h for h in scene.graph.heads if h not in heads and diagnosis.suspects]
    items += [_head_evidence(scene, head) for head in rest[:MAX_DETAILED]]
    return items


def _head_evidence(scene: Scene, head: Head) -> Evidence:
    entered = [rank for ranks in head.signatures.values() for rank in ranks]
    text = f"{ranks_text(entered)} entered {_collective_text(scene, head)}"
    if head.absent:
        text += f", {ranks_text(head.absent)} did not"
    if head.held_up:
        text += f"; {ranks_text(head.held_up)} cannot get on in it"
    if head.unknown:
        text += f"; {ranks_text(head.unknown)} could not be read"
    if len(head.signatures) > 1 and (odd := _mismatch(head)):
        text += f"; they disagree: {odd}"
    return Evidence(
        kind="collective",
        source="flight recorder",
        time_ns=head.created_ns,
        rank=None,
        text=text,
        data={
            "pg_name": head.pg_name,
            "collective_seq_id": head.seq_id,
            "op": head.op,
            "waiting": list(head.waiters),
            "absent": list(head.absent),
            "unknown": list(head.unknown),
            "signatures": {name: list(ranks) for name, ranks in head.signatures.items()},
        },
    )


def _last_entry(scene: Scene, rank: int, head: Head) -> Evidence:
    group = scene.view.groups[head.pg_name]
    column = group.members.index(rank)
    last = int(group.last_seq[column])
    slots = np.flatnonzero(group.seq_ids == last)
    # An unread rank may have gone further than was seen.
    verb = "entered" if scene.readings.is_fresh[rank] else "was seen to enter"
    text = f"rank {rank} was not seen to enter any collective of {group_text(group)}"
    time_ns = int(scene.view.ranks.pull_ns[rank])
    if last >= 0:
        op = group.op_name(int(slots[0]), column) if len(slots) else ""
        text = f"the last that rank {rank} {verb} of {group_text(group)} is {op} #{last}"
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


def _whereabouts_item(scene: Scene, located: Whereabouts) -> Evidence:
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
    if head is None:
        return items
    waiter_host = int(scene.view.ranks.host_index[head.waiters[0]])
    for located in diagnosis.suspects[:MAX_DETAILED]:
        rank = located.rank
        if int(scene.view.ranks.host_index[rank]) != waiter_host:
            continue
        for group in scene.view.groups.values():
            if group.pg_name == head.pg_name or rank not in group.members:
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


def _actions(scene: Scene, diagnosis: Diagnosis) -> list[str]:
    actions: list[str] = []
    for located in diagnosis.suspects[:3] or diagnosis.bystanders[:1]:
        rank, pid = located.rank, int(scene.view.ranks.pid[located.rank])
        if located.place is Place.STOPPED:
            actions.append(f"somebody or something stopped rank {rank}: `kill -CONT {pid}`")
        else:
            actions.append(_ACTIONS[located.place].format(rank=f"rank {rank}"))
    if diagnosis.cause is Cause.NONE_COMPLETED and not diagnosis.suspects:
        head = diagnosis.head
        if head is not None and _mismatch(head):
            return ["compare the code paths of these ranks: they call different collectives"]
        return ["look at the network between the members of this group"]
    if diagnosis.cycle:
        return ["let every rank call the collectives of these groups in the same order"]
    return list(dict.fromkeys(actions))


def _mismatch(head: Head) -> str:
    """Say how the members' calls differ where they must not; empty when they agree."""
    names = {name.split(" ", 1)[0] for name in head.signatures}
    if len(head.signatures) < 2 or (len(names) == 1 and not names & SAME_SIZE_OPS):
        return ""
    ordered: Sequence[tuple[str, tuple[int, ...]]] = sorted(
        head.signatures.items(), key=lambda item: (-len(item[1]), item[1])
    )
    return ", ".join(f"{ranks_text(ranks)} called {name}" for name, ranks in ordered[:4])


def _collective_text(scene: Scene, head: Head) -> str:
    return f"{head.op} #{head.seq_id} of {_group(scene, head)}"


def _group(scene: Scene, head: Head) -> str:
    return group_text(scene.view.groups[head.pg_name])
