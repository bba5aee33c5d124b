"""Strongly connected components that nothing leads out of."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def sink_components(
    num_nodes: int, sources: Sequence[int], targets: Sequence[int], leads_out: Sequence[bool]
) -> list[tuple[int, ...]]:
    """Give the components without an edge to another one and without a node that leads out.

    Tarjan's algorithm without recursion: linear in nodes and edges.
    """
    following: list[list[int]] = [[] for _ in range(num_nodes)]
    for source, target in zip(sources, targets, strict=True):
        following[source].append(target)
    order = [-1] * num_nodes
    low = [0] * num_nodes
    component = [-1] * num_nodes
    members: list[list[int]] = []
    stack: list[int] = []
    counter = 0
    for root in range(num_nodes):
        if order[root] >= 0:
            continue
        work = [(root, 0)]
        while work:
            node, position = work.pop()
            if position == 0:
                order[node] = low[node] = counter
                counter += 1
                stack.append(node)
            is_finished = True
            for index in range(position, len(following[node])):
                after = following[node][index]
                if order[after] < 0:
                    work += [(node, index + 1), (after, 0)]
                    is_finished = False
                    break
                if component[after] < 0:
                    low[node] = min(low[node], order[after])
            if not is_finished:
                continue
            if low[node] == order[node]:
                found: list[int] = []
                while True:
                    member = stack.pop()
                    component[member] = len(members)
                    found.append(member)
                    if member == node:
                        break
                members.append(found)
            if work:
                parent = work[-1][0]
                low[parent] = min(low[parent], low[node])
    is_sink = [not any(leads_out[node] for node in found) for found in members]
    for source, target in zip(sources, targets, strict=True):
        if component[source] != component[target]:
            is_sink[component[source]] = False
    return [tuple(sorted(found)) for found, keep in zip(members, is_sink, strict=True) if keep]
