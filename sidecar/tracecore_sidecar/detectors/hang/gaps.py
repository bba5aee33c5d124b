"""What a hang verdict could not see."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracecore_sidecar.detectors.hang.links import unseen_links
from tracecore_sidecar.detectors.naming import ranks_text
from tracecore_sidecar.detectors.unseen import unseen_texts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tracecore_sidecar.detectors.hang.diagnosis import Diagnosis
    from tracecore_sidecar.detectors.hang.scene import Scene
    from tracecore_sidecar.state.view import GroupView, JobView
    from tracecore_train.wire.records import NcclRasRecord

MAX_LISTED = 8
"""Ranks whose gaps are listed."""
AGREES = "nothing stands out in its answer, which does not mean that all is well"
WANTED = (
    "rank_page",
    "steps",
    "input",
    "checkpoint",
    "process_groups",
    "collectives.counters",
    "collectives.entries",
    "exceptions",
)
"""Signals of a rank that say where it is; without one of them a hang is judged with less."""


def not_measured(scene: Scene, diagnosis: Diagnosis) -> tuple[str, ...]:
    """List the gaps, each as ``thing: reason``."""
    view, is_blind = scene.view, scene.view.is_in_blind_group()
    missing = list(_unread_texts(scene))
    unread_groups = [
        group
        for group in view.groups.values()
        if group.is_blind and is_blind[list(group.members)].any()
    ]
    missing += [
        f"collectives of {group.pg_desc or group.pg_name}: the recorder of backend "
        f"{group.backend} is not read by this version"
        for group in unread_groups[:MAX_LISTED]
    ]
    if any(_hides_messages(view, group) for group in view.groups.values()):
        missing.append("send/recv: torch does not record them on gloo")
    missing += [
        f"collectives of rank {rank}: not read; it took part in later ones, so it has entered"
        for rank in diagnosis.presumed
    ]
    for located in diagnosis.suspects[:MAX_LISTED]:
        rank = located.rank
        if not scene.readings.is_fresh[rank]:
            missing.append(
                f"collectives of rank {rank}: unread since progress stopped, it {located.text}"
            )
        if not located.is_certain and not scene.is_live:
            missing.append(f"whereabouts of rank {rank}: a dump does not tell where it was instead")
        if not located.is_certain and scene.is_live:
            missing.append(f"stack of rank {rank}: {_why_no_stack(scene, rank)}")
        if lost := view.num_lost.get(rank):
            missing.append(f"records of rank {rank}: {lost} were lost")
        identity = view.identities.get(rank)
        if identity is not None and identity.device != "cpu":
            missing.append(f"device of rank {rank}: its queues and kernels are not looked at")
    missing += unseen_links(scene, diagnosis)
    missing += [
        f"nccl_ras: {answer.error or AGREES}"
        for answer in ras_answers(scene)
        if not answer.findings
    ]
    concerned = [w.rank for w in diagnosis.suspects] + unread(scene)
    missing += unseen_texts(view, sorted(set(concerned))[:MAX_LISTED], WANTED)
    return tuple(missing)


def ras_answers(scene: Scene) -> list[NcclRasRecord]:
    """Give what NCCL's RAS service said since progress stopped."""
    answers = scene.view.ras_answers.values()
    return [answer for answer in answers if answer.time_ns > scene.stopped_ns][:MAX_LISTED]


def unread(scene: Scene) -> list[int]:
    """List ranks that can act and whose recorder was not read while nothing moved."""
    readings = scene.readings
    members = {r for group in scene.view.groups.values() for r in group.members}
    live = scene.view.ranks.is_seen & ~scene.view.ranks.is_ended
    concerned = members | set(np.flatnonzero(live).tolist())
    return sorted(r for r in concerned if not (readings.is_fresh[r] or readings.is_out[r]))


def _unread_texts(scene: Scene) -> Iterator[str]:
    """Say whose recorder was not read, ranks of one reason together."""
    by_reason: dict[str, list[int]] = {}
    for rank in unread(scene):
        by_reason.setdefault(_why_unread(scene, rank), []).append(rank)
    for reason, ranks in by_reason.items():
        yield f"collectives of {ranks_text(ranks)}: {reason}"


def _hides_messages(view: JobView, group: GroupView) -> bool:
    """Say whether a group's send and receive calls go unseen: on gloo, unless they are wrapped."""
    if "gloo" not in group.backend or len(group.points.member):
        return False
    known = [view.identities.get(rank) for rank in group.members]
    return not all(who is not None and "point_to_point" in who.measured for who in known)


def _why_unread(scene: Scene, rank: int) -> str:
    ranks = scene.view.ranks
    if not scene.is_live and not ranks.pull_ns[rank]:
        return "no dump was given"
    if not ranks.is_seen[rank]:
        return "never seen"
    if ranks.pull_failed_ns[rank]:
        return "the flight recorder did not answer"
    return "the flight recorder was not read since progress stopped"


def _why_no_stack(scene: Scene, rank: int) -> str:
    error = next((s.error for s in scene.view.stacks.get(rank, ()) if s.error), "")
    return error or "none has arrived yet"
