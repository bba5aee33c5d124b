"""What a hang verdict could not see."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracecore_sidecar.detectors.unseen import unseen_texts

if TYPE_CHECKING:
    from tracecore_sidecar.detectors.hang_diagnosis import Diagnosis, Scene

MAX_LISTED = 8
"""Ranks whose gaps are listed."""
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
    missing = [
        f"collectives of rank {r}: {_whyunread(scene, r)}" for r in unread(scene)[:MAX_LISTED]
    ]
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
    if any(
        "gloo" in group.backend and not len(group.points.member) for group in view.groups.values()
    ):
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
    concerned = [w.rank for w in diagnosis.suspects] + unread(scene)
    missing += unseen_texts(view, sorted(set(concerned))[:MAX_LISTED], WANTED)
    return tuple(missing)


def unread(scene: Scene) -> list[int]:
    """List ranks that can act and whose recorder was not read while nothing moved."""
    readings = scene.readings
    members = {r for group in scene.view.groups.values() for r in group.members}
    live = scene.view.ranks.is_seen & ~scene.view.ranks.is_ended
    concerned = members | set(np.flatnonzero(live).tolist())
    return sorted(r for r in concerned if not (readings.is_fresh[r] or readings.is_out[r]))


def _whyunread(scene: Scene, rank: int) -> str:
    ranks = scene.view.ranks
    if not scene.is_live and not ranks.pull_ns[rank]:
        return "no dump of this rank was given"
    if not ranks.is_seen[rank]:
        return "this rank was never seen"
    if ranks.pull_failed_ns[rank]:
        return "its flight recorder did not answer"
    return "its flight recorder was not read since progress stopped"


def _why_no_stack(scene: Scene, rank: int) -> str:
    error = next((s.error for s in scene.view.stacks.get(rank, ()) if s.error), "")
    return error or "none has arrived yet"
