"""Waits that leave no trace in Python: who may be in one, and who for certain is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracecore_sidecar.detectors.hang.last_seen import last_look
from tracecore_sidecar.detectors.hang.whereabouts import PLAIN_PLACES, Place
from tracecore_train.wire.records import NOT_MEASURED

if TYPE_CHECKING:
    from tracecore_sidecar.detectors.hang.scene import Scene
    from tracecore_sidecar.detectors.hang.whereabouts import Whereabouts
    from tracecore_sidecar.state.view import Bools

_NO_WAITS = frozenset({Place.COMPILE, Place.GC, Place.DISK, Place.DEBUGGER})
"""Places without calls to a peer."""
_PEER_WCHANS = ("futex", "poll", "select", "sk_wait", "tcp", "inet", "unix")
"""Where in the kernel a thread may sleep that waits for a peer: parts of the function's name."""


def may_wait_untold(scene: Scene) -> Bools:
    """Say by rank whether it may be in a send or recv that neither recorder nor rank has told."""
    found = scene.view.may_wait_unrecorded()
    for group in scene.view.groups.values():
        if len(group.points.tag) and (group.points.tag != NOT_MEASURED).any():
            members = np.asarray(group.members)
            found[members] |= ~scene.readings.has_told[members]
    return found


def cannot_be_waiting(scene: Scene, located: Whereabouts) -> bool:
    """Say whether a rank is for certain in no call to a peer.

    ``work.wait()`` of the user's own code is a call into C++ that leaves no frame: there the
    kernel tells a sleep or a disk from the locks and sockets that a wait for a peer ends in.
    """
    if located.place in PLAIN_PLACES or located.place in _NO_WAITS:
        return True
    process = last_look(scene.view, located.rank, scene.stopped_ns)
    if process is None or not located.is_certain:
        return False
    if process.state == "R":
        return True
    return process.wchan not in ("", "0") and not any(w in process.wchan for w in _PEER_WCHANS)
