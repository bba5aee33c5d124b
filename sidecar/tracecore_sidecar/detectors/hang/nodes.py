"""In which operation each rank waits: the nodes of the wait-for graph.

The head of a rank is its oldest unfinished operation over all groups; whatever it entered later
is only queued behind. Ranks with the same head wait together: there is one node per head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tracecore_sidecar.detectors.hang.positions import NEVER

if TYPE_CHECKING:
    from tracecore_sidecar.detectors.hang.messages import Messages
    from tracecore_sidecar.detectors.hang.positions import Positions
    from tracecore_sidecar.state.view import Bools, Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """One value per head, and the head of each rank."""

    group: Ints
    """Index among the groups of the positions."""
    seq: Ints
    """Sequence number, or -1 - place of a message."""
    sender: Ints
    """-1 for a collective."""
    receiver: Ints
    created: Ints
    """When the first waiter entered."""
    of_rank: Ints
    """By rank: the node in which it waits; -1: it does not wait."""

    def __len__(self) -> int:
        """Give the number of nodes."""
        return len(self.group)

    @property
    def is_message(self) -> Bools:
        """By node: it is a send or recv."""
        return self.sender >= 0

    def waiters(self, node: int) -> tuple[int, ...]:
        """Give the ranks whose head a node is."""
        return tuple(np.flatnonzero(self.of_rank == node).tolist())


def find_nodes(world_size: int, found: Positions, sent: Messages, may_wait: Bools) -> Nodes:
    """Find the oldest unfinished operation of each rank that may wait; equal ones are one node."""
    group_of_row = np.repeat(np.arange(len(found.groups)), np.diff(found.starts))
    num_sent = len(sent.rank)
    minus = np.full(len(found.open_row), -1, dtype=np.int64)
    rank = np.concatenate([found.rank[found.open_row], sent.rank])
    created = np.concatenate([found.open_created, sent.created])
    keys = np.stack(
        [
            np.concatenate([group_of_row[found.open_row], sent.group]),
            np.concatenate([found.open_seq, -1 - sent.place]),
            np.concatenate([minus, sent.sender]),
            np.concatenate([minus, sent.receiver]),
        ]
    )
    is_usable = may_wait[rank] if num_sent or len(minus) else np.zeros(0, dtype=np.bool_)
    rank, created, keys = rank[is_usable], created[is_usable], keys[:, is_usable]
    order = np.lexsort((created, rank))
    rank, created, keys = rank[order], created[order], keys[:, order]
    is_first = np.concatenate([[True], rank[1:] != rank[:-1]]) if len(rank) else rank > 0
    rank, created, keys = rank[is_first], created[is_first], keys[:, is_first]
    nodes, node = np.unique(keys, axis=1, return_inverse=True)
    node = node.reshape(-1)
    of_rank: Ints = np.full(world_size, -1, dtype=np.int64)
    of_rank[rank] = node
    node_created = np.full(nodes.shape[1], NEVER, dtype=np.int64)
    np.minimum.at(node_created, node, created)
    return Nodes(
        group=nodes[0],
        seq=nodes[1],
        sender=nodes[2],
        receiver=nodes[3],
        created=node_created,
        of_rank=of_rank,
    )
