"""Who waits for whom: a head-of-line wait-for graph over all process groups.

A node is an operation in which ranks wait (``nodes``), an edge leads to a rank that blocks it
(``edges``) and from there to the node in which that rank waits itself. Where the edges end is what
explains the waits (``roots``). This module puts them together and answers questions about them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tracecore_sidecar.detectors.hang.edges import find_edges
from tracecore_sidecar.detectors.hang.head import collective_head, message_head
from tracecore_sidecar.detectors.hang.messages import messages
from tracecore_sidecar.detectors.hang.nodes import find_nodes
from tracecore_sidecar.detectors.hang.positions import positions
from tracecore_sidecar.detectors.hang.roots import find_knots, find_sinks, find_stuck

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tracecore_sidecar.detectors.hang.edges import Edges
    from tracecore_sidecar.detectors.hang.head import Head
    from tracecore_sidecar.detectors.hang.messages import Messages
    from tracecore_sidecar.detectors.hang.nodes import Nodes
    from tracecore_sidecar.detectors.hang.positions import Positions
    from tracecore_sidecar.detectors.hang.readings import Readings
    from tracecore_sidecar.state.view import Bools, JobView


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitGraph:
    """The graph, and what it comes down to."""

    found: Positions
    sent: Messages
    nodes: Nodes
    edges: Edges
    sinks: tuple[int, ...]
    """Ranks that block others and do not wait themselves."""
    stuck: tuple[int, ...]
    """Ranks that did not finish what others finished."""
    knots: tuple[tuple[int, ...], ...]
    """Nodes that wait for nobody outside; several: they wait for each other."""

    @property
    def num_waiting(self) -> int:
        """Number of ranks that wait."""
        return int((self.nodes.of_rank >= 0).sum())

    def head(self, node: int) -> Head:
        """Write out a node."""
        if self.nodes.is_message[node]:
            group = self.found.groups[int(self.nodes.group[node])]
            return message_head(node, self.nodes, self.edges, self.sent, group)
        return collective_head(node, self.nodes, self.edges, self.found)

    def nodes_blocked_by(self, ranks: Iterable[int]) -> list[int]:
        """Give the nodes that wait for any of some ranks, the longest wait first."""
        chosen = np.isin(self.edges.rank, list(ranks))
        blocked = np.unique(self.edges.node[chosen])
        order = np.argsort(self.nodes.created[blocked], kind="stable")
        return [int(node) for node in blocked[order]]

    def explained(self, *, ranks: Iterable[int] = (), nodes: Iterable[int] = ()) -> set[int]:
        """Give the nodes whose wait comes down to some ranks or nodes."""
        targets = set(ranks)
        of_rank = self.nodes.of_rank
        seen: set[int] = set()
        fresh = [*nodes, *(int(of_rank[r]) for r in targets if of_rank[r] >= 0)]
        fresh += self.nodes_blocked_by(targets)
        into = self._edges_into()
        while fresh:
            node = fresh.pop()
            if node not in seen:
                seen.add(node)
                fresh += into.get(node, ())
        return seen

    def num_explained(self, nodes: set[int]) -> int:
        """Give how many ranks wait in some nodes."""
        return int(np.isin(self.nodes.of_rank, list(nodes)).sum())

    def chain_to(self, ranks: Iterable[int]) -> tuple[int, ...]:
        """Give nodes that lead to one of some ranks, from the farthest waiter to the nearest."""
        level = self.nodes_blocked_by(ranks)
        into = self._edges_into()
        after: dict[int, int] = dict.fromkeys(level, -1)
        queue = list(level)
        for node in queue:
            for earlier in into.get(node, ()):
                if earlier not in after:
                    after[earlier] = node
                    queue.append(earlier)
        chain: list[int] = []
        node = queue[-1] if queue else -1
        while node >= 0:
            chain.append(node)
            node = after[node]
        return tuple(chain)

    def _edges_into(self) -> dict[int, list[int]]:
        """Give, for each node, the nodes that wait for a rank that waits in it."""
        into: dict[int, list[int]] = {}
        targets = self.nodes.of_rank[self.edges.rank]
        for node, target in zip(self.edges.node.tolist(), targets.tolist(), strict=True):
            if target >= 0:
                into.setdefault(target, []).append(node)
        return into


def build(view: JobView, readings: Readings) -> WaitGraph:
    """Make the graph of a job as it stands."""
    found = positions(view, readings)
    sent = messages(view, readings, found)
    nodes = find_nodes(view.world_size, found, sent, readings.may_wait)
    is_stuck = find_stuck(found, nodes, readings)
    # What a stuck rank seems to wait for is over: it blames nobody.
    has_waiter: Bools = np.zeros(len(nodes), dtype=np.bool_)
    has_waiter[nodes.of_rank[(nodes.of_rank >= 0) & ~is_stuck]] = True
    edges = find_edges(found, sent, nodes, readings).of(has_waiter)
    return WaitGraph(
        found=found,
        sent=sent,
        nodes=nodes,
        edges=edges,
        sinks=find_sinks(nodes, edges),
        stuck=tuple(np.flatnonzero(is_stuck).tolist()),
        knots=find_knots(nodes, edges, is_stuck),
    )
