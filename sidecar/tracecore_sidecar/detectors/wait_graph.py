"""Who waits for whom: a head-of-line wait-for graph over all process groups.

The head of a rank is its oldest unfinished operation over all groups; whatever it entered later
is only queued behind. Ranks with the same head wait together, so the graph has one node per head:
a head is blocked by members that have not entered it, and by members that entered it but are
held up at an older head elsewhere. The roots explain the wait:

* *sinks*: ranks that block others and do not wait themselves;
* *stuck* ranks: others finished an operation that this one has not;
* *knots*: heads that wait for nobody outside themselves, alone (all entered, none completed) or
  in a circle.

Absence is no evidence: a member that could not be read blocks nobody, it is listed as unknown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from tracecore_sidecar.detectors.components import sink_components
from tracecore_sidecar.detectors.messages import messages
from tracecore_sidecar.detectors.operations import plain_name
from tracecore_sidecar.detectors.positions import NEVER, positions

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tracecore_sidecar.detectors.messages import Messages
    from tracecore_sidecar.detectors.positions import Positions, Readings
    from tracecore_sidecar.state.view import Bools, GroupView, Ints, JobView


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


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitGraph:
    """All heads as nodes, and what they come down to."""

    found: Positions
    sent: Messages
    node_group: Ints
    node_seq: Ints
    """Sequence number, or -1 - place of a message."""
    node_sender: Ints
    """-1 for a collective."""
    node_receiver: Ints
    node_created: Ints
    node_of: Ints
    """Node in which each rank waits; -1: it does not wait."""
    edge_node: Ints
    edge_rank: Ints
    """Ranks that block a node, with the node: those it waits for."""
    unknown_node: Ints
    unknown_rank: Ints
    sinks: tuple[int, ...]
    """Ranks that block others and do not wait themselves."""
    stuck: tuple[int, ...]
    """Ranks that did not finish what others finished."""
    knots: tuple[tuple[int, ...], ...]
    """Nodes that wait for nobody outside; several: they wait for each other."""
    readings: Readings

    @property
    def num_waiting(self) -> int:
        """Number of ranks that wait."""
        return int((self.node_of >= 0).sum())

    def waiters(self, node: int) -> tuple[int, ...]:
        """Give the ranks whose head a node is."""
        return tuple(np.flatnonzero(self.node_of == node).tolist())

    def nodes_blocked_by(self, ranks: Iterable[int]) -> list[int]:
        """Give the nodes that wait for any of some ranks, the longest wait first."""
        chosen = np.isin(self.edge_rank, list(ranks))
        nodes = np.unique(self.edge_node[chosen])
        return [int(n) for n in nodes[np.argsort(self.node_created[nodes], kind="stable")]]

    def explained(self, *, ranks: Iterable[int] = (), nodes: Iterable[int] = ()) -> set[int]:
        """Give the nodes whose wait comes down to some ranks or nodes."""
        targets = set(ranks)
        seen: set[int] = set()
        fresh = [*nodes, *(int(self.node_of[r]) for r in targets if self.node_of[r] >= 0)]
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
        return int(np.isin(self.node_of, list(nodes)).sum())

    def _edges_into(self) -> dict[int, list[int]]:
        into: dict[int, list[int]] = {}
        targets = self.node_of[self.edge_rank]
        for node, target in zip(self.edge_node.tolist(), targets.tolist(), strict=True):
            if target >= 0:
                into.setdefault(target, []).append(node)
        return into

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

    def head(self, node: int) -> Head:
        """Make the object of a node."""
        group_index = int(self.node_group[node])
        group = self.found.groups[group_index]
        waiters = self.waiters(node)
        created = int(self.node_created[node])
        edges = self.edge_rank[self.edge_node == node]
        unknown = tuple(self.unknown_rank[self.unknown_node == node].tolist())
        seq_id = int(self.node_seq[node])
        if self.node_sender[node] >= 0:
            return self._message_head(node, group, waiters, edges, unknown)
        rows = self.found.rows_of(group_index)
        members = self.found.rank[rows]
        is_entered = self.found.entered[rows] >= seq_id
        is_done = self.found.done[rows] >= seq_id
        is_blocker = np.isin(members, edges)
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
            created_ns=created,
            waiters=waiters,
            absent=_ranks(members, is_blocker & ~is_entered),
            held_up=_ranks(members, is_blocker & is_entered),
            unknown=unknown,
            done=_ranks(members, is_done),
            not_started=not_started,
            signatures={name: tuple(ranks) for name, ranks in signatures.items()},
            is_certain=True,
        )

    def _message_head(
        self,
        node: int,
        group: GroupView,
        waiters: tuple[int, ...],
        edges: Ints,
        unknown: tuple[int, ...],
    ) -> Head:
        link = (int(self.node_sender[node]), int(self.node_receiver[node]))
        place = -1 - int(self.node_seq[node])
        sent = self.sent
        is_here = (sent.group == self.node_group[node]) & (sent.place == place)
        is_here &= np.where(sent.is_send, sent.rank, sent.peer) == link[0]
        is_here &= np.where(sent.is_send, sent.peer, sent.rank) == link[1]
        rows = np.flatnonzero(is_here)
        own = [row for row in rows.tolist() if int(sent.rank[row]) in waiters]
        is_issued = any(bool(sent.is_issued[row]) for row in own)
        others = [rank for rank in link if rank not in waiters]
        blockers = tuple(edges.tolist())
        return Head(
            group=group,
            seq_id=-1,
            link=link,
            created_ns=int(self.node_created[node]),
            waiters=waiters,
            absent=() if is_issued else blockers,
            held_up=blockers if is_issued else (),
            unknown=unknown,
            done=tuple(
                rank
                for rank in others
                if any(bool(sent.is_done[row]) and sent.peer[row] == rank for row in own)
            ),
            not_started=(),
            signatures={},
            is_certain=all(bool(sent.is_certain[row]) for row in own),
        )


def build(view: JobView, readings: Readings) -> WaitGraph:
    """Make the graph of a job as it stands."""
    found = positions(view, readings)
    sent = messages(view, readings, found)
    may_wait = readings.is_fresh & ~readings.is_out & ~readings.is_elsewhere
    node_of, nodes, created = _heads(view.world_size, found, sent, may_wait)
    node_group, node_seq, node_sender, node_receiver = nodes
    stuck = _stuck(view.world_size, found, readings) & (node_of >= 0)
    is_message = node_sender >= 0
    edges = _collective_edges(found, readings, node_of, node_group, node_seq, ~is_message)
    edges = _joined(edges, _message_edges(sent, readings, node_of, nodes, may_wait))
    # What a stuck rank seems to wait for is over: it blames nobody.
    has_waiter: Bools = np.zeros(len(node_group), dtype=np.bool_)
    has_waiter[node_of[(node_of >= 0) & ~stuck]] = True
    is_kept, is_open = has_waiter[edges[0]], has_waiter[edges[2]]
    edge_node, edge_rank = edges[0][is_kept], edges[1][is_kept]
    unknown_node, unknown_rank = edges[2][is_open], edges[3][is_open]
    is_terminal = (node_of < 0) | stuck
    sinks = np.unique(edge_rank[node_of[edge_rank] < 0])
    knots = _knots(len(node_group), edge_node, edge_rank, node_of, is_terminal, stuck)
    return WaitGraph(
        found=found,
        sent=sent,
        node_group=node_group,
        node_seq=node_seq,
        node_sender=node_sender,
        node_receiver=node_receiver,
        node_created=created,
        node_of=node_of,
        edge_node=edge_node,
        edge_rank=edge_rank,
        unknown_node=unknown_node,
        unknown_rank=unknown_rank,
        sinks=tuple(sinks.tolist()),
        stuck=tuple(np.flatnonzero(stuck).tolist()),
        knots=tuple(sorted(knots, key=lambda knot: min(int(created[n]) for n in knot))),
        readings=readings,
    )


def _heads(
    world_size: int, found: Positions, sent: Messages, may_wait: Bools
) -> tuple[Ints, tuple[Ints, Ints, Ints, Ints], Ints]:
    """Find the oldest unfinished operation of each rank; equal ones make one node."""
    group_of_row = np.repeat(np.arange(len(found.groups)), np.diff(found.starts))
    num_sent = len(sent.rank)
    minus = np.full(len(found.open_row), -1, dtype=np.int64)
    rank = np.concatenate([found.rank[found.open_row], sent.rank])
    created = np.concatenate([found.open_created, sent.created])
    keys = np.stack(
        [
            np.concatenate([group_of_row[found.open_row], sent.group]),
            np.concatenate([found.open_seq, -1 - sent.place]),
            np.concatenate([minus, np.where(sent.is_send, sent.rank, sent.peer)]),
            np.concatenate([minus, np.where(sent.is_send, sent.peer, sent.rank)]),
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
    node_of: Ints = np.full(world_size, -1, dtype=np.int64)
    node_of[rank] = node
    node_created = np.full(nodes.shape[1], NEVER, dtype=np.int64)
    np.minimum.at(node_created, node, created)
    return node_of, (nodes[0], nodes[1], nodes[2], nodes[3]), node_created


def _stuck(world_size: int, found: Positions, readings: Readings) -> Bools:
    """Find ranks that did not finish what most of the others finished.

    No member can finish such an operation without all having taken part, so the work is done and
    what fails to finish is on this rank. Where the fewer finished, it is not told from a transfer
    that broke on its way.
    """
    result: Bools = np.zeros(world_size, dtype=np.bool_)
    if not len(found.open_row):
        return result
    group_of_row = np.repeat(np.arange(len(found.groups)), np.diff(found.starts))
    groups = group_of_row[found.open_row]
    pairs, which = np.unique(np.stack([groups, found.open_seq]), axis=1, return_inverse=True)
    which = which.reshape(-1)
    part, rows = found.rows_of_each(pairs[0])
    seq = pairs[1][part]
    is_over = (found.done[rows] >= seq) & readings.is_fresh[found.rank[rows]]
    is_over &= found.is_device[pairs[0]][part] | (found.entered[rows] > seq)
    num_over = np.bincount(part, weights=is_over, minlength=pairs.shape[1])
    num_open = np.bincount(which, minlength=pairs.shape[1])
    is_stuck = found.open_needs_all & (num_over >= num_open)[which] & (num_over > 0)[which]
    result[found.rank[found.open_row[is_stuck]]] = True
    return result


_Edges: TypeAlias = "tuple[Ints, Ints, Ints, Ints]"


def _collective_edges(
    found: Positions,
    readings: Readings,
    node_of: Ints,
    node_group: Ints,
    node_seq: Ints,
    is_collective: Bools,
) -> _Edges:
    nodes = np.flatnonzero(is_collective)
    part, rows = found.rows_of_each(node_group[nodes])
    node, rank = nodes[part], found.rank[rows]
    seq = node_seq[node]
    is_fresh, is_out = readings.is_fresh[rank], readings.is_out[rank]
    is_waiter = node_of[rank] == node
    is_done = ~is_waiter & (found.done[rows] >= seq)
    is_entered = found.entered[rows] >= seq
    is_absent = ~is_waiter & ~is_entered & found.is_known[rows]
    is_held_up = ~is_waiter & is_entered & ~is_done
    is_held_up &= is_out | (is_fresh & (node_of[rank] >= 0))
    is_unknown = ~is_waiter & ~is_done & ~is_absent & ~is_out
    is_unknown &= ~is_fresh | (~is_entered & ~found.is_known[rows])
    # Read, and nothing of it is unfinished: it is through, or it never came. Where more wait than
    # could be through, it is the latter.
    is_silent = is_unknown & is_fresh
    num_silent = np.bincount(part, weights=is_silent, minlength=len(nodes))
    num_open = np.bincount(part, weights=is_waiter | (is_entered & ~is_done), minlength=len(nodes))
    is_outvoted = is_silent & (num_open > num_silent)[part]
    is_absent |= is_outvoted
    is_unknown &= ~is_outvoted
    is_edge = is_absent | is_held_up
    return node[is_edge], rank[is_edge], node[is_unknown], rank[is_unknown]


def _message_edges(
    sent: Messages,
    readings: Readings,
    node_of: Ints,
    nodes: tuple[Ints, Ints, Ints, Ints],
    may_wait: Bools,
) -> _Edges:
    """Give the edges of ranks whose head is a send or recv."""
    node = node_of[sent.rank] if len(sent.rank) else sent.rank
    sender = np.where(sent.is_send, sent.rank, sent.peer)
    receiver = np.where(sent.is_send, sent.peer, sent.rank)
    is_head = (node >= 0) & may_wait[sent.rank] if len(node) else sent.is_send
    for column, own in zip(nodes, (sent.group, -1 - sent.place, sender, receiver), strict=True):
        is_head &= column[node] == own if len(column) else False
    node, peer = node[is_head], sent.peer[is_head]
    is_open = ~sent.is_done[is_head] & (node_of[peer] != node)
    is_known = readings.is_fresh[peer] | readings.is_out[peer]
    is_busy = ~sent.is_issued[is_head] | (node_of[peer] >= 0) | readings.is_out[peer]
    is_edge, is_unknown = is_open & is_known & is_busy, is_open & ~is_known
    return node[is_edge], peer[is_edge], node[is_unknown], peer[is_unknown]


def _joined(first: _Edges, second: _Edges) -> _Edges:
    a, b, c, d = (np.concatenate(pair) for pair in zip(first, second, strict=True))
    return a, b, c, d


def _knots(
    num_nodes: int,
    edge_node: Ints,
    edge_rank: Ints,
    node_of: Ints,
    is_terminal: Bools,
    stuck: Bools,
) -> list[tuple[int, ...]]:
    """Find the sink components among the nodes, away from ranks that explain a wait."""
    leads_out: Bools = np.zeros(num_nodes, dtype=np.bool_)
    leads_out[edge_node[is_terminal[edge_rank]]] = True
    # A stuck rank explains the wait it is in.
    leads_out[node_of[stuck]] = True
    target = node_of[edge_rank]
    is_inner = (target >= 0) & ~is_terminal[edge_rank]
    pairs = np.unique(np.stack([edge_node[is_inner], target[is_inner]]), axis=1)
    return sink_components(num_nodes, pairs[0].tolist(), pairs[1].tolist(), leads_out.tolist())


def _ranks(members: Ints, mask: Bools) -> tuple[int, ...]:
    return tuple(members[mask].tolist())
