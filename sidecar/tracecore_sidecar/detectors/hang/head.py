"""One operation in which ranks wait, written out: who waits in it, for whom, and what they called.

The graph works on arrays; this is made for the few nodes that are judged and told of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tracecore_sidecar.detectors.hang.operations import plain_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tracecore_sidecar.detectors.hang.edges import Edges
    from tracecore_sidecar.detectors.hang.messages import Messages
    from tracecore_sidecar.detectors.hang.nodes import Nodes
    from tracecore_sidecar.detectors.hang.positions import Positions
    from tracecore_sidecar.state.view import Bools, GroupView, Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """One operation in which ranks wait."""

    group: GroupView
    seq_id: int
    """Sequence number of a collective; -1 for a send or recv."""
    link: tuple[int, int] | None
    """Sender and receiver of a send or recv."""
    created_ns: int
    """When the first waiter entered."""
    waiters: tuple[int, ...]
    absent: tuple[int, ...]
    """Members that have not entered, on good evidence."""
    held_up: tuple[int, ...]
    """Members that entered but wait in an older operation, or were stopped or ended in it."""
    unknown: tuple[int, ...]
    """Members that could not be read: they may have entered or not."""
    done: tuple[int, ...]
    """Members whose part is over while the waiters still wait."""
    not_started: tuple[int, ...]
    """Waiters whose device did not begin it, where others' did and the recorder tells."""
    signatures: Mapping[str, tuple[int, ...]]
    """Operation with sizes and types, and the members that entered with it."""
    is_certain: bool
    """Who did not issue its side never did; false where it may have finished before."""

    @property
    def op(self) -> str:
        """Operation most waiters are in, without sizes."""
        if self.link is not None:
            return "send" if self.link[0] in self.waiters else "recv"
        if not self.signatures:
            return "collective"
        most = max(self.signatures, key=lambda name: len(self.signatures[name]))
        return plain_name(most)

    @property
    def blockers(self) -> tuple[int, ...]:
        """Members the waiters wait for."""
        return self.absent + self.held_up


def collective_head(node: int, nodes: Nodes, edges: Edges, found: Positions) -> Head:
    """Write out a node that is a collective."""
    group_index, seq_id = int(nodes.group[node]), int(nodes.seq[node])
    group = found.groups[group_index]
    waiters = nodes.waiters(node)
    rows = found.rows_of(group_index)
    members = found.rank[rows]
    is_entered = found.entered[rows] >= seq_id
    is_done = found.done[rows] >= seq_id
    is_blocker = np.isin(members, edges.rank[edges.node == node])
    slots = np.flatnonzero(group.seq_ids == seq_id)
    signatures: dict[str, list[int]] = {}
    not_started: tuple[int, ...] = ()
    if len(slots):
        slot = int(slots[0])
        for rank, op in zip(group.members, group.op[slot].tolist(), strict=True):
            if op >= 0:
                signatures.setdefault(group.ops[op], []).append(rank)
        has_begun = group.is_started[slot]
        if has_begun.any():
            not_started = _ranks(members, ~has_begun & np.isin(members, waiters))
    return Head(
        group=group,
        seq_id=seq_id,
        link=None,
        created_ns=int(nodes.created[node]),
        waiters=waiters,
        absent=_ranks(members, is_blocker & ~is_entered),
        held_up=_ranks(members, is_blocker & is_entered),
        unknown=_ranks(edges.unknown_rank, edges.unknown_node == node),
        done=_ranks(members, is_done),
        not_started=not_started,
        signatures={name: tuple(ranks) for name, ranks in signatures.items()},
        is_certain=True,
    )


def message_head(node: int, nodes: Nodes, edges: Edges, sent: Messages, group: GroupView) -> Head:
    """Write out a node that is a send or recv."""
    link = (int(nodes.sender[node]), int(nodes.receiver[node]))
    place = -1 - int(nodes.seq[node])
    waiters = nodes.waiters(node)
    is_here = (sent.group == nodes.group[node]) & (sent.place == place)
    is_here &= (sent.sender == link[0]) & (sent.receiver == link[1])
    rows = np.flatnonzero(is_here)
    own = [row for row in rows.tolist() if int(sent.rank[row]) in waiters]
    is_issued = any(bool(sent.is_issued[row]) for row in own)
    others = [rank for rank in link if rank not in waiters]
    blockers = _ranks(edges.rank, edges.node == node)
    return Head(
        group=group,
        seq_id=-1,
        link=link,
        created_ns=int(nodes.created[node]),
        waiters=waiters,
        absent=() if is_issued else blockers,
        held_up=blockers if is_issued else (),
        unknown=_ranks(edges.unknown_rank, edges.unknown_node == node),
        done=tuple(
            rank
            for rank in others
            if any(bool(sent.is_done[row]) and sent.peer[row] == rank for row in own)
        ),
        not_started=(),
        signatures={},
        is_certain=all(bool(sent.is_certain[row]) for row in own),
    )


def _ranks(ranks: Ints, mask: Bools) -> tuple[int, ...]:
    return tuple(ranks[mask].tolist())
