"""Who blocks a node: the edges of the wait-for graph.

A node is blocked by members that have not entered its operation, and by members that entered it
but are held up: they wait in an older operation, or were stopped or ended in this one. Absence is
no evidence: a member that could not be read blocks nobody, it is unknown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tracecore_sidecar.detectors.hang.messages import Messages
    from tracecore_sidecar.detectors.hang.nodes import Nodes
    from tracecore_sidecar.detectors.hang.positions import Positions
    from tracecore_sidecar.detectors.hang.readings import Readings
    from tracecore_sidecar.state.view import Bools, Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Edges:
    """Pairs of a node and a rank."""

    node: Ints
    rank: Ints
    """Blocks that node: its waiters wait for it."""
    unknown_node: Ints
    unknown_rank: Ints
    """Could not be read: it may block that node or not."""

    def of(self, is_chosen: Bools) -> Edges:
        """Leave the edges of some nodes."""
        is_kept, is_open = is_chosen[self.node], is_chosen[self.unknown_node]
        return Edges(
            node=self.node[is_kept],
            rank=self.rank[is_kept],
            unknown_node=self.unknown_node[is_open],
            unknown_rank=self.unknown_rank[is_open],
        )


def find_edges(found: Positions, sent: Messages, nodes: Nodes, readings: Readings) -> Edges:
    """Find who blocks each node, and who may."""
    collective = _collective_edges(found, nodes, readings)
    message = _message_edges(sent, nodes, readings)
    return Edges(
        node=np.concatenate([collective.node, message.node]),
        rank=np.concatenate([collective.rank, message.rank]),
        unknown_node=np.concatenate([collective.unknown_node, message.unknown_node]),
        unknown_rank=np.concatenate([collective.unknown_rank, message.unknown_rank]),
    )


def _collective_edges(found: Positions, nodes: Nodes, readings: Readings) -> Edges:
    """Find the edges of ranks whose head is a collective."""
    chosen = np.flatnonzero(~nodes.is_message)
    part, rows = found.rows_of_each(nodes.group[chosen])
    node, rank = chosen[part], found.rank[rows]
    seq = nodes.seq[node]
    is_fresh, is_out = readings.is_fresh[rank], readings.is_out[rank]
    is_waiter = nodes.of_rank[rank] == node
    is_done = ~is_waiter & (found.done[rows] >= seq)
    is_entered = found.entered[rows] >= seq
    is_absent = ~is_waiter & ~is_entered & found.is_known[rows]
    is_held_up = ~is_waiter & is_entered & ~is_done
    is_held_up &= is_out | (is_fresh & (nodes.of_rank[rank] >= 0))
    is_unknown = ~is_waiter & ~is_done & ~is_absent & ~is_out
    is_unknown &= ~is_fresh | (~is_entered & ~found.is_known[rows])
    # Read, and nothing of it is unfinished: it is through, or it never came. Where more wait than
    # could be through, it is the latter.
    is_silent = is_unknown & is_fresh
    num_silent = np.bincount(part, weights=is_silent, minlength=len(chosen))
    num_open = np.bincount(part, weights=is_waiter | (is_entered & ~is_done), minlength=len(chosen))
    is_outvoted = is_silent & (num_open > num_silent)[part]
    is_absent |= is_outvoted
    is_unknown &= ~is_outvoted
    is_edge = is_absent | is_held_up
    return Edges(
        node=node[is_edge],
        rank=rank[is_edge],
        unknown_node=node[is_unknown],
        unknown_rank=rank[is_unknown],
    )


def _message_edges(sent: Messages, nodes: Nodes, readings: Readings) -> Edges:
    """Find the edges of ranks whose head is a send or recv."""
    of_rank = nodes.of_rank
    node = of_rank[sent.rank] if len(sent.rank) else sent.rank
    is_head = (node >= 0) & readings.may_wait[sent.rank] if len(node) else sent.is_send
    columns = (nodes.group, nodes.seq, nodes.sender, nodes.receiver)
    own_columns = (sent.group, -1 - sent.place, sent.sender, sent.receiver)
    for column, own in zip(columns, own_columns, strict=True):
        is_head &= column[node] == own if len(column) else False
    node, peer = node[is_head], sent.peer[is_head]
    is_open = ~sent.is_done[is_head] & (of_rank[peer] != node)
    is_known = readings.is_fresh[peer] | readings.is_out[peer]
    is_busy = ~sent.is_issued[is_head] | (of_rank[peer] >= 0) | readings.is_out[peer]
    is_edge, is_unknown = is_open & is_known & is_busy, is_open & ~is_known
    return Edges(
        node=node[is_edge],
        rank=peer[is_edge],
        unknown_node=node[is_unknown],
        unknown_rank=peer[is_unknown],
    )
