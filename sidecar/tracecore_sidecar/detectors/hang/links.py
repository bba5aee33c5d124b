"""Which connections hold up an operation that all members entered and none completed.

The kernel counts what waits in each: bytes sent again and again without an answer get lost on
their way; bytes that came and are not read wait for a thread of the receiver. That names links,
and tells where to look; a rank is not accused by it, for who did not read may be waiting itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracecore_sidecar.detectors.hang.diagnosis import Cause
from tracecore_sidecar.detectors.naming import ranks_text
from tracecore_sidecar.verdicts import Evidence
from tracecore_train.wire.records import NOT_MEASURED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tracecore_sidecar.detectors.hang.diagnosis import Diagnosis
    from tracecore_sidecar.detectors.hang.scene import Scene
    from tracecore_train.wire.records import ConnectionsRecord

MIN_RETRANSMITS = 2
"""One may be a packet that was lost by chance."""
MAX_LISTED = 8
SOURCE = "/proc/net/tcp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A connection of a member in which something waits."""

    time_ns: int
    rank: int
    peer: int
    """``NOT_MEASURED``: no rank of this node."""
    other_end: str
    """The peer in words."""
    num_unacknowledged: int
    num_unread: int
    num_retransmits: int

    @property
    def is_dead(self) -> bool:
        """What was sent does not arrive, or its answer does not."""
        return self.num_retransmits >= MIN_RETRANSMITS


def links(scene: Scene, diagnosis: Diagnosis) -> list[Link]:
    """Give the connections between members that do not move; none for causes that need none."""
    members = _members(diagnosis)
    looks = [look for rank in members if (look := _look(scene, rank)) is not None]
    found = [
        link
        for look in looks
        for link in _links(look)
        if (link.is_dead or link.num_unread) and (link.peer in members or link.peer < 0)
    ]
    found.sort(key=lambda link: (not link.is_dead, -link.num_retransmits, -link.num_unread))
    return found


def link_items(scene: Scene, diagnosis: Diagnosis) -> Iterator[Evidence]:
    """Give these connections as evidence."""
    for link in links(scene, diagnosis)[:MAX_LISTED]:
        if link.is_dead:
            text = (
                f"rank {link.rank} has sent {link.num_unacknowledged} bytes to {link.other_end}"
                f" that are not acknowledged, {link.num_retransmits} times again"
            )
        else:
            text = f"rank {link.rank} has not read {link.num_unread} bytes from {link.other_end}"
        yield Evidence(
            kind="connection",
            source=SOURCE,
            time_ns=link.time_ns,
            rank=link.rank,
            text=text,
            data={
                "peer": None if link.peer == NOT_MEASURED else link.peer,
                "unacknowledged": link.num_unacknowledged,
                "unread": link.num_unread,
                "retransmits": link.num_retransmits,
            },
        )


def dead_pairs(found: list[Link]) -> str:
    """Name both ends of the connections that are dead; empty: none is."""
    pairs = dict.fromkeys(
        " and ".join(sorted((f"rank {link.rank}", link.other_end)))
        for link in found
        if link.is_dead
    )
    more = f" and {len(pairs) - MAX_LISTED} more" if len(pairs) > MAX_LISTED else ""
    return ", ".join(list(pairs)[:MAX_LISTED]) + more


def late_readers(found: list[Link]) -> str:
    """Name the ranks that did not read what came, where no connection is dead."""
    is_dead = any(link.is_dead for link in found)
    return "" if is_dead or not found else ranks_text({link.rank for link in found})


def unseen_links(scene: Scene, diagnosis: Diagnosis) -> list[str]:
    """List members whose connections could not be looked at, each as ``thing: reason``."""
    if not scene.is_live:
        return []
    looks = {rank: _look(scene, rank) for rank in sorted(_members(diagnosis))}
    texts = [
        f"connections of rank {rank}: {'not looked at' if look is None else look.error}"
        for rank, look in looks.items()
        if look is None or look.error
    ]
    return texts[:MAX_LISTED]


def _members(diagnosis: Diagnosis) -> frozenset[int]:
    is_inside = diagnosis.cause in {Cause.NONE_COMPLETED, Cause.STUCK_PEERS_DONE}
    if not is_inside or diagnosis.head is None:
        return frozenset()
    return frozenset(diagnosis.head.link or diagnosis.head.group.members)


def _look(scene: Scene, rank: int) -> ConnectionsRecord | None:
    """Give the look at a rank's connections that was taken since progress stopped."""
    look = scene.view.connections.get(rank)
    return look if look is not None and look.time_ns > scene.stopped_ns else None


def _links(look: ConnectionsRecord) -> Iterator[Link]:
    columns = (
        look.peers,
        look.addresses,
        look.num_unacknowledged,
        look.num_unread,
        look.num_retransmits,
    )
    for peer, address, unacknowledged, unread, retransmits in zip(*columns, strict=False):
        yield Link(
            time_ns=look.time_ns,
            rank=look.rank,
            peer=peer,
            other_end=f"rank {peer}" if peer >= 0 else address,
            num_unacknowledged=unacknowledged,
            num_unread=unread,
            num_retransmits=retransmits,
        )
