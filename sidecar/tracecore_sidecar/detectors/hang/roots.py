"""What the waits come down to: the roots of the wait-for graph.

* *sinks*: ranks that block others and do not wait themselves;
* *stuck* ranks: others finished an operation that this one has not;
* *knots*: nodes that wait for nobody outside themselves, alone (all entered, none completed) or
  in a circle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracecore_sidecar.detectors.hang.components import sink_components

if TYPE_CHECKING:
    from tracecore_sidecar.detectors.hang.edges import Edges
    from tracecore_sidecar.detectors.hang.nodes import Nodes
    from tracecore_sidecar.detectors.hang.positions import Positions
    from tracecore_sidecar.detectors.hang.readings import Readings
    from tracecore_sidecar.state.view import Bools, Ints


def find_sinks(nodes: Nodes, edges: Edges) -> tuple[int, ...]:
    """Find ranks that block others and do not wait themselves."""
    return tuple(np.unique(edges.rank[nodes.of_rank[edges.rank] < 0]).tolist())


def find_stuck(found: Positions, nodes: Nodes, readings: Readings) -> Bools:
    """Find, by rank, who waits in what most of the others finished.

    No member can finish such an operation without all having taken part, so the work is done and
    what fails to finish is on this rank. Where the fewer finished, it is not told from a transfer
    that broke on its way.
    """
    result: Bools = np.zeros(len(nodes.of_rank), dtype=np.bool_)
    if not len(found.open_row):
        return result
    group_of_row = np.repeat(np.arange(len(found.groups)), np.diff(found.starts))
    groups = group_of_row[found.open_row]
    pairs, which = np.unique(np.stack([groups, found.open_seq]), axis=1, return_inverse=True)
    which = which.reshape(-1)
    part, rows = found.rows_of_each(pairs[0])
    seq = pairs[1][part]
    is_over = (found.done[rows] >= seq) & readings.is_fresh[found.rank[rows]]
    is_over &= found.is_device[pairs[0]][part] | _went_on(found, pairs, part, rows)
    num_over = np.bincount(part, weights=is_over, minlength=pairs.shape[1])
    num_open = np.bincount(which, minlength=pairs.shape[1])
    is_stuck = found.open_needs_all & (num_over >= num_open)[which] & (num_over > 0)[which]
    result[found.rank[found.open_row[is_stuck]]] = True
    return result & (nodes.of_rank >= 0)


def _went_on(found: Positions, pairs: Ints, part: Ints, rows: Ints) -> Bools:
    """Say, of the members of some operations, who entered another one later, in any group.

    Where over may mean failed, that tells who is really through: it went on.
    """
    entered_ns: Ints = np.zeros(len(rows), dtype=np.int64)
    for index in np.flatnonzero(~found.is_device[pairs[0]]).tolist():
        group = found.groups[int(pairs[0][index])]
        slots = np.flatnonzero(group.seq_ids == pairs[1][index])
        if len(slots):
            first, last = np.searchsorted(part, (index, index + 1))
            entered_ns[first:last] = group.created_ns[int(slots[0])]
    has_gone_on: Bools = found.entered[rows] > pairs[1][part]
    has_gone_on |= (entered_ns > 0) & (found.last_created[found.rank[rows]] > entered_ns)
    return has_gone_on


def find_knots(nodes: Nodes, edges: Edges, is_stuck: Bools) -> tuple[tuple[int, ...], ...]:
    """Find the sink components of the nodes, away from ranks that explain a wait; oldest first."""
    is_terminal = (nodes.of_rank < 0) | is_stuck
    leads_out: Bools = np.zeros(len(nodes), dtype=np.bool_)
    leads_out[edges.node[is_terminal[edges.rank]]] = True
    # A stuck rank explains the wait it is in.
    leads_out[nodes.of_rank[is_stuck]] = True
    target = nodes.of_rank[edges.rank]
    is_inner = (target >= 0) & ~is_terminal[edges.rank]
    pairs = np.unique(np.stack([edges.node[is_inner], target[is_inner]]), axis=1)
    knots = sink_components(len(nodes), pairs[0].tolist(), pairs[1].tolist(), leads_out.tolist())
    return tuple(sorted(knots, key=lambda knot: min(int(nodes.created[n]) for n in knot)))
