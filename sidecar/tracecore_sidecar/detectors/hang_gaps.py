"""What a hang verdict could not see."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tracecore_sidecar.detectors.hang_diagnosis import Diagnosis, Scene

MAX_LISTED = 8
"""Ranks whose gaps are listed."""


def not_measured(scene: Scene, diagnosis: Diagnosis) -> tuple[str, ...]:
    """List the gaps, each as ``thing: reason``."""
    view = scene.view
    missing = [
        f"collectives of rank {r}: {_whyunread(scene, r)}" for r in unread(scene)[:MAX_LISTED]
    ]
    missing += [
        f"collectives of {group.pg_desc or group.pg_name}: the recorder of backend "
        f"{group.backend} is not read by this version"
        for group in list(view.groups.values())[:MAX_LISTED]
        if group.is_blind
    ]
    if any("gloo" in group.backend for group in view.groups.values()):
        missing.append("send/recv: torch does not record them on gloo")
    for located in diagnosis.suspects[:MAX_LISTED]:
        rank = located.rank
        if not scene.readings.is_fresh[rank]:
            missing.append(
                f"collectives of rank {rank}: unread since progress stopped, it {located.text}"
            )
        if not located.is_certain:
            missing.append(f"stack of rank {rank}: {_why_no_stack(scene, rank)}")
        if lost := view.num_lost.get(rank):
            missing.append(f"records of rank {rank}: {lost} were lost")
        identity = view.identities.get(rank)
        if identity is not None and identity.device != "cpu":
            missing.append(f"device of rank {rank}: its queues and kernels are not looked at")
    concerned = [w.rank for w in diagnosis.suspects] + unread(scene)
    for rank in sorted(set(concerned))[:MAX_LISTED]:
        missing += [f"rank {rank}, {signal}" for signal in view.blind.get(rank, ())]
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
    if not ranks.is_seen[rank]:
        return "this rank was never seen"
    if ranks.pull_failed_ns[rank]:
        return "its flight recorder did not answer"
    return "its flight recorder was not read since progress stopped"


def _why_no_stack(scene: Scene, rank: int) -> str:
    error = next((s.error for s in scene.view.stacks.get(rank, ()) if s.error), "")
    return error or "none has arrived yet"
