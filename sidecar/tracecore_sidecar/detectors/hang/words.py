"""The sentences of a hang verdict: what happened, and what to do next."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracecore_sidecar.detectors.hang.diagnosis import Cause
from tracecore_sidecar.detectors.hang.gaps import unread
from tracecore_sidecar.detectors.hang.links import dead_pairs, late_readers, links
from tracecore_sidecar.detectors.hang.whereabouts import Place
from tracecore_sidecar.detectors.naming import group_text, ranks_text

if TYPE_CHECKING:
    from tracecore_sidecar.detectors.hang.diagnosis import Diagnosis
    from tracecore_sidecar.detectors.hang.head import Head
    from tracecore_sidecar.detectors.hang.scene import Scene

_ACTIONS: dict[Place, str] = {
    Place.ENDED: "find out why it ended: its log, and the launcher's report of the exit",
    Place.INPUT: "look at the data source and the loader workers of {rank}: slow or unreachable "
    "storage, a worker that died or is blocked",
    Place.CHECKPOINT: "look at the storage {rank} writes its checkpoint to; keep the other ranks "
    "waiting only as long as their collective timeout allows",
    Place.EXCEPTION: "see the exception of {rank}: it left the loop, and the others do not know",
    Place.GIL: "find the call that keeps the GIL: see the stack, or `py-spy dump --native`",
    Place.GC: "collect garbage on all ranks at the same step (`gc.disable()`, then `gc.collect()`)",
    Place.DEBUGGER: "leave the debugger, or raise the timeout while it is open",
    Place.COMPILE: "see why only {rank} compiles: shapes that differ between ranks, a cold cache",
    Place.RENDEZVOUS: "every rank must make the same process groups in the same order",
    Place.PHASE: "let the other ranks wait outside a collective while {rank} is in that phase, "
    "or do its work on every rank",
    Place.BUSY: "see the stack: do the other ranks run this code as well, or only {rank}?",
    Place.DISK: "look at the file system {rank} reads or writes (NFS, local disk); see wchan",
    Place.CODE: "see the stack: what does {rank} wait for there, and why do the others not?",
    Place.UNKNOWN: "run `py-spy dump` on the process of {rank}",
    Place.PEER_WAIT: "see the stack: which rank is {rank} waiting for?",
}
_BY_CAUSE: dict[Cause, str] = {
    Cause.NONE_COMPLETED: "look at the network between the members of this group",
    Cause.MISMATCH: "compare the code paths of these ranks: they call different collectives",
    Cause.WAIT_CYCLE: "let every rank call the collectives of these groups in the same order",
    Cause.UNMATCHED_P2P: "compare the schedules of both sides: each send needs its recv",
}
MAX_NAMED = 3


def summary(scene: Scene, diagnosis: Diagnosis) -> str:
    """Give the one sentence that names the suspect first."""
    head = diagnosis.head
    if diagnosis.cause is Cause.RENDEZVOUS:
        return _rendezvous(diagnosis)
    if diagnosis.mismatch is not None:
        return _disagreement(diagnosis)
    if head is None:
        waiting = [w.rank for w in diagnosis.bystanders if w.place is Place.PEER_WAIT]
        if waiting:
            return _unrecorded(diagnosis, waiting)
        if diagnosis.cause is Cause.NOT_COLLECTIVE:
            return "nothing moves, and no rank waits in a collective"
        blind = unread(scene) or np.flatnonzero(scene.view.is_in_blind_group()).tolist()
        return f"nothing moves, and what {ranks_text(blind)} wait in could not be read"
    where = operation_text(head)
    if diagnosis.cause is Cause.WAIT_CYCLE:
        names = " and ".join(operation_text(h) for h in diagnosis.heads[:MAX_NAMED])
        circle = f"ranks wait for each other in a circle: {names}"
        who = ranks_text(w.rank for w in diagnosis.suspects)
        return f"{who} came to these groups in another order: {circle}" if who else circle
    if diagnosis.cause is Cause.UNMATCHED_P2P:
        return _unmatched(diagnosis, head)
    if diagnosis.suspects:
        return _accusation(diagnosis, head)
    if diagnosis.cause is Cause.NONE_COMPLETED:
        return _nobody_completed(scene, diagnosis, head)
    if head.unknown:
        wait = "waits" if len(head.waiters) == 1 else "wait"
        return f"{ranks_text(head.waiters)} {wait} in {where}; {ranks_text(head.unknown)} unread"
    if head.done:
        waits = "waits" if len(head.waiters) == 1 else "wait"
        text = f"{ranks_text(head.waiters)} still {waits} in {where}"
        return f"{text}, which is over for {ranks_text(head.done)}"
    held = ", ".join(f"rank {w.rank} {w.text}" for w in diagnosis.bystanders[:MAX_NAMED])
    why = f": {held}" if held else ""
    return f"{ranks_text(head.waiters)} wait in {where}; nobody can be named{why}"


def _accusation(diagnosis: Diagnosis, head: Head) -> str:
    where = operation_text(head)
    ranks = {w.rank for w in diagnosis.suspects}
    who = ranks_text(ranks)
    first = diagnosis.suspects[0]
    is_elsewhere = bool(ranks - set(head.waiters) - set(head.blockers))
    others = f" and {len(diagnosis.heads) - 1} more" if is_elsewhere else ""
    if diagnosis.cause is Cause.STUCK_PEERS_DONE:
        over = f", which is over for {ranks_text(head.done)}" if head.done else ""
        return f"{who} did not finish {where}{others}{over}"
    if diagnosis.cause is Cause.NONE_COMPLETED and first.rank not in head.held_up:
        return f"{who} did not begin {where} on the device, while the others did"
    if first.rank in head.held_up:
        return f"{who} {first.text} inside {where}"
    if first.place in {Place.STOPPED, Place.ENDED}:
        return f"{who} {first.text}; the others wait for it in {where}"
    if head.link is not None:
        side = "its side" if len(ranks) == 1 else "their side"
        return f"{who} never issued {side} of {where}{others}"
    return f"{who} never joined {where}{others}"


def _nobody_completed(scene: Scene, diagnosis: Diagnosis, head: Head) -> str:
    where = operation_text(head)
    if head.link is not None and head.done:
        text = f"{where} was handed over, and does not arrive"
    elif head.link is not None:
        text = f"both sides of {where} were issued, and it does not complete"
    else:
        num = len(head.waiters) + len(diagnosis.presumed)
        text = f"all {num} members entered {where}, and none completed it"
    found = links(scene, diagnosis)
    if pairs := dead_pairs(found):
        return f"{text}; nothing gets through between {pairs}"
    readers = late_readers(found)
    return f"{text}; {readers} did not read what came" if readers else text


def _disagreement(diagnosis: Diagnosis) -> str:
    odd = diagnosis.mismatch
    assert odd is not None, "asked only where there is one"  # noqa: S101
    where = f"#{odd.seq_id} of {group_text(odd.group)}"
    if odd.odd:
        return f"{ranks_text(odd.odd)} went another way at {where}: {odd.text}"
    return f"the members of {group_text(odd.group)} disagree about #{odd.seq_id}: {odd.text}"


def _unmatched(diagnosis: Diagnosis, head: Head) -> str:
    waiting = ranks_text(head.waiters)
    other = ranks_text(head.absent)
    where = operation_text(head)
    suspects = {w.rank for w in diagnosis.suspects}
    if suspects and suspects <= set(head.absent):
        return f"{other} never issued its side of {where}, and waits elsewhere for {waiting}"
    if suspects:
        return f"{ranks_text(suspects)} sends or receives out of its usual order, in {where}"
    return f"{waiting} waits in {where}, {other} waits elsewhere for {waiting}: one side is missing"


def _unrecorded(diagnosis: Diagnosis, waiting: list[int]) -> str:
    verb = "waits" if len(waiting) == 1 else "wait"
    text = f"{ranks_text(waiting)} {verb} for a message of another rank"
    if not diagnosis.suspects:
        return f"nothing moves; {text}, and nobody can be named"
    return f"{ranks_text(w.rank for w in diagnosis.suspects)} {diagnosis.suspects[0].text}; {text}"


def _rendezvous(diagnosis: Diagnosis) -> str:
    missing = {w.rank for w in diagnosis.suspects}
    waiting = [w.rank for w in diagnosis.bystanders if w.place is Place.RENDEZVOUS]
    verb = "waits" if len(waiting) == 1 else "wait"
    text = f"{ranks_text(waiting)} {verb} in the making of a process group"
    if not missing:
        return f"{text}; nobody can be named"
    first = diagnosis.suspects[0]
    return f"{ranks_text(missing)} {first.text}; {text}"


def operation_text(head: Head) -> str:
    """Name an operation with its group."""
    if head.link is not None:
        sender, receiver = head.link
        return f"send from rank {sender} to rank {receiver} in {group_text(head.group)}"
    return f"{head.op} #{head.seq_id} of {group_text(head.group)}"


def actions(scene: Scene, diagnosis: Diagnosis) -> list[str]:
    """Say what to do next, most useful first."""
    found: list[str] = []
    if diagnosis.cause in {Cause.MISMATCH, Cause.WAIT_CYCLE, Cause.UNMATCHED_P2P}:
        return [_BY_CAUSE[diagnosis.cause]]
    if diagnosis.cause is Cause.NONE_COMPLETED and not diagnosis.suspects:
        return [_find_link(scene, diagnosis)]
    for located in diagnosis.suspects[:MAX_NAMED] or diagnosis.bystanders[:1]:
        rank, pid = located.rank, int(scene.view.ranks.pid[located.rank])
        if located.place is Place.STOPPED:
            found.append(f"somebody or something stopped rank {rank}: `kill -CONT {pid}`")
        elif scene.is_live or located.place is not Place.UNKNOWN:
            found.append(_ACTIONS[located.place].format(rank=f"rank {rank}"))
    if not scene.is_live and diagnosis.suspects:
        found += _afterwards(diagnosis)
    if diagnosis.head is not None and diagnosis.head.unknown and not scene.is_live:
        found.append(f"find the dumps of {ranks_text(diagnosis.head.unknown)}, or their logs")
    return list(dict.fromkeys(found))


def _find_link(scene: Scene, diagnosis: Diagnosis) -> str:
    found = links(scene, diagnosis)
    if pairs := dead_pairs(found):
        return f"look at the network between {pairs}"
    if readers := late_readers(found):
        return f"see which thread of {readers} should read: `py-spy dump --native`"
    return _BY_CAUSE[Cause.NONE_COMPLETED]


def _afterwards(diagnosis: Diagnosis) -> list[str]:
    who = ranks_text(w.rank for w in diagnosis.suspects)
    if diagnosis.cause is Cause.STUCK_PEERS_DONE:
        return [
            f"look at the GPU and the kernel log (Xid) of {who} at that time",
            f"look at the log of {who}",
        ]
    return [
        f"look at the log of {who} at that time: an exception, a slow loader, a checkpoint, a kill",
        "next time run under `tracecore run`: it takes the stack while the rank is still there",
    ]
