"""How detectors name things: ranks, process groups, spans of time, suspects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracecore_sidecar.verdicts import Suspect

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tracecore_sidecar.state.view import GroupView, JobView

MAX_LISTED = 12
"""Runs of ranks written out; a longer list ends in a count."""


def suspect_of(view: JobView, rank: int) -> Suspect:
    """Give everything known about who a rank is."""
    identity = view.identities.get(rank)
    pid = int(view.ranks.pid[rank])
    return Suspect(
        rank=rank,
        local_rank=None if identity is None else identity.local_rank,
        host=host_of(view, rank),
        pid=pid or None,
        gpu_uuid=None if identity is None else identity.gpu_uuid,
    )


def host_of(view: JobView, rank: int) -> str | None:
    """Give the host a rank runs on, where it is known."""
    index = int(view.ranks.host_index[rank])
    return view.hosts[index] or None if 0 <= index < len(view.hosts) else None


def ranks_text(ranks: Iterable[int]) -> str:
    """Write ranks as ``rank 1`` or ``ranks 0, 2-7``."""
    ordered = sorted(set(ranks))
    runs: list[tuple[int, int]] = []
    for rank in ordered:
        if runs and runs[-1][1] == rank - 1:
            runs[-1] = (runs[-1][0], rank)
        else:
            runs.append((rank, rank))
    parts = [_run_text(first, last) for first, last in runs[:MAX_LISTED]]
    if len(runs) > MAX_LISTED:
        parts.append(f"... ({len(ordered)} in all)")
    return f"{'rank' if len(ordered) == 1 else 'ranks'} {', '.join(parts)}"


def _run_text(first: int, last: int) -> str:
    if first == last:
        return str(first)
    return f"{first}, {last}" if last == first + 1 else f"{first}-{last}"


def group_text(group: GroupView) -> str:
    """Give the name a person gave a process group, else torch's own."""
    return group.pg_desc if group.pg_desc not in {"", "undefined"} else group.pg_name


def span_text(span_ns: int) -> str:
    """Write a length of time in the unit that suits it."""
    if abs(span_ns) < 10_000_000:
        return f"{span_ns / 1e6:.1f} ms"
    if abs(span_ns) < 1_000_000_000:
        return f"{span_ns / 1e6:.0f} ms"
    return f"{span_ns / 1e9:.1f} s" if abs(span_ns) < 100_000_000_000 else f"{span_ns / 1e9:.0f} s"
