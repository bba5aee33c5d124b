"""One independent cause of a hang: what was concluded, about whom, and from which operations."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracecore_sidecar.detectors.hang.head import Head
    from tracecore_sidecar.detectors.hang.mismatch import Mismatch
    from tracecore_sidecar.detectors.hang.scene import Scene
    from tracecore_sidecar.detectors.hang.whereabouts import Whereabouts


class Cause(str, Enum):
    """What the evidence comes down to; the verdict's class."""

    NEVER_ENTERED = "never_entered"
    """A member never joined what the others wait in."""
    STUCK_PEERS_DONE = "stuck_peers_done"
    """A member did not finish what the others finished."""
    NONE_COMPLETED = "none_completed"
    """Every member entered, and it does not complete."""
    MISMATCH = "mismatch"
    """Members called different things under one sequence number."""
    WAIT_CYCLE = "wait_cycle"
    """Operations of several groups wait for each other."""
    UNMATCHED_P2P = "unmatched_p2p"
    """A send or recv whose other side was never issued."""
    RENDEZVOUS = "rendezvous"
    """Members wait for others in the making of a process group."""
    NOT_COLLECTIVE = "not_collective"
    """Nothing moves and nobody waits in a collective."""
    UNDETERMINED = "undetermined"
    """Somebody is waited for, and the evidence does not say who."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """One independent cause, as one look at the evidence says."""

    cause: Cause
    head: Head | None = None
    """The operation the verdict speaks of."""
    suspects: tuple[Whereabouts, ...] = ()
    bystanders: tuple[Whereabouts, ...] = ()
    """Ranks that were looked at and are not accused."""
    heads: tuple[Head, ...] = ()
    """All operations involved: those that hold each other up, or that lead to the suspects."""
    mismatch: Mismatch | None = None
    num_explained: int = 0
    """Waiting ranks whose wait comes down to this."""
    reason: str = ""
    """Why these are the suspects, where that needs saying."""
    presumed: tuple[int, ...] = ()
    """Members that were not read and have entered, as others' later operations show."""

    @property
    def accuse_after_ns(self) -> int:
        """The moment from which nobody involved has an excuse."""
        return max((w.accuse_after_ns for w in (*self.suspects, *self.bystanders)), default=0)


def mismatched(scene: Scene, head: Head, odd: Mismatch, explained: int) -> Diagnosis:
    """Make the diagnosis of a disagreement that a head shows."""
    return Diagnosis(
        cause=Cause.MISMATCH,
        head=head,
        heads=(head,),
        suspects=scene.locate(odd.odd),
        mismatch=odd,
        reason=odd.reason,
        num_explained=explained,
    )
