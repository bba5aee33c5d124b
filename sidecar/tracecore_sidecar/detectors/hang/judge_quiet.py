"""Quiet in which nobody waits in a recorded operation: what the ranks' stacks say instead.

They may be in the making of a process group, or in send and receive calls, which gloo's recorder
leaves out. What is told from stacks alone is never certain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracecore_sidecar.detectors.frames import is_in_rendezvous
from tracecore_sidecar.detectors.hang.diagnosis import Cause, Diagnosis
from tracecore_sidecar.detectors.hang.hidden_waits import cannot_be_waiting
from tracecore_sidecar.detectors.hang.last_seen import main_stack
from tracecore_sidecar.detectors.hang.operations import is_device_backend
from tracecore_sidecar.detectors.hang.whereabouts import PLAIN_PLACES, Place
from tracecore_sidecar.state.view import UNKNOWN_EXIT

if TYPE_CHECKING:
    from tracecore_sidecar.detectors.hang.scene import Scene


def judge_quiet(scene: Scene) -> tuple[Diagnosis, ...]:
    """Judge a job in which nothing moves and nobody waits; none: it is at its end."""
    ranks = scene.view.ranks
    live = ranks.is_seen & ~ranks.is_ended
    if (rendezvous := _rendezvous(scene)) is not None:
        return (rendezvous,)
    if (unrecorded := _unrecorded_waits(scene, np.flatnonzero(live).tolist())) is not None:
        return (unrecorded,)
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


def _unrecorded_waits(scene: Scene, live: list[int]) -> Diagnosis | None:
    """Find ranks whose stacks are in calls to a peer that no recorder holds, and who is elsewhere.

    Only where every rank was looked at, and only on the host: behind a device, a rank that waits
    for its own queue looks busy with its own code.
    """
    if any(is_device_backend(group.backend) for group in scene.view.groups.values()):
        return None
    located = scene.locate(live)
    waiting = tuple(w for w in located if w.place is Place.PEER_WAIT)
    elsewhere = tuple(w for w in located if w.place is not Place.PEER_WAIT)
    if not waiting or len(located) < len(live):
        return None
    is_known = bool(elsewhere) and all(cannot_be_waiting(scene, w) for w in elsewhere)
    return Diagnosis(
        cause=Cause.NEVER_ENTERED if is_known else Cause.UNDETERMINED,
        suspects=elsewhere if is_known else (),
        bystanders=waiting if is_known else located,
        num_explained=len(waiting),
    )
