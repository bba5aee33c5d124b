"""What a bundle is to be about, copied out of the view at the moment an incident opens.

The view's columns go on changing while the bundle is gathered; a case does not.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from tracecore_sidecar.bundle.node_facts import versions
from tracecore_sidecar.pull_policy import NcclPull, PullPolicy, unread_recorders

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tracecore_sidecar.incidents import IncidentEvent
    from tracecore_sidecar.pull_policy import PullPlan
    from tracecore_sidecar.state.view import GroupView, JobView
    from tracecore_sidecar.verdicts import JobInfo, Verdict

MAX_SUSPECTS = 8
"""Suspects looked at in depth: py-spy and ``/proc`` take a second for each."""
NUM_WAITERS = 2
"""Waiting ranks looked at beside the suspects: one may be odd, two that agree are typical."""
NUM_WAITERS_ALONE = 4
"""The same where nobody is suspected: then the waiting ranks are all there is."""


class Role(str, Enum):
    """What a rank is in the incident."""

    SUSPECT = "suspect"
    WAITER = "waiter"
    """Waits in what the verdict speaks of, and was chosen as typical of those that do."""
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalRank:
    """A rank of this node."""

    rank: int
    pid: int
    start_ticks: int
    """As the rank introduced itself; 0 where it did not."""
    role: Role
    is_ended: bool
    plan: PullPlan
    """Which of its flight recorders may be read now."""

    @property
    def is_looked_at(self) -> bool:
        """Whether stacks and process facts are wanted."""
        return self.role is not Role.OTHER


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An incident and the ranks of this node."""

    incident_id: str
    verdict: Verdict
    opened_ns: int
    job: JobInfo
    ranks: tuple[LocalRank, ...]
    """Suspects first, then waiters, then the others."""
    elsewhere: Mapping[int, str]
    """Suspects of other nodes, with their host where it is known."""
    groups: tuple[GroupView, ...]
    unread: tuple[str, ...]
    """Recorders that are never read, each as ``signal: reason``."""
    versions: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_nccl(self) -> bool:
        """Whether a group of the job runs on NCCL."""
        return any("nccl" in group.backend.lower() for group in self.groups)


def open_case(
    event: IncidentEvent,
    view: JobView,
    with_page: Iterable[int],
    nccl_pull: NcclPull = NcclPull.NEVER,
) -> Case:
    """Take from the view what the bundle of an incident needs.

    ``with_page`` are the ranks that left a rank page on this node.
    """
    policy = PullPolicy(view, nccl_pull)
    suspects = [s.rank for s in event.verdict.suspects if s.rank is not None]
    local = _local_ranks(view, with_page)
    chosen = [rank for rank in suspects if rank in local][:MAX_SUSPECTS]
    waiters = _typical(_waiting(event.verdict), local, suspects, view)
    roles = {**dict.fromkeys(waiters, Role.WAITER), **dict.fromkeys(chosen, Role.SUSPECT)}
    order = [*chosen, *waiters, *(rank for rank in sorted(local) if rank not in roles)]
    return Case(
        incident_id=event.incident_id,
        verdict=event.verdict,
        opened_ns=event.opened_ns,
        job=view.job,
        ranks=tuple(_local_rank(view, rank, roles.get(rank, Role.OTHER), policy) for rank in order),
        elsewhere={rank: _host(view, rank) for rank in suspects if rank not in local},
        groups=tuple(view.groups.values()),
        unread=unread_recorders(view, nccl_pull),
        versions=versions(view),
    )


def _local_ranks(view: JobView, with_page: Iterable[int]) -> set[int]:
    here = [i for i, host in enumerate(view.hosts) if host == view.job.host]
    found = {rank for rank in with_page if 0 <= rank < view.world_size}
    for index in here:
        found.update((view.ranks.host_index == index).nonzero()[0].tolist())
    return found


def _local_rank(view: JobView, rank: int, role: Role, policy: PullPolicy) -> LocalRank:
    pid = int(view.ranks.pid[rank])
    identity = view.identities.get(rank)
    is_known = identity is not None and identity.pid == pid
    return LocalRank(
        rank=rank,
        pid=pid,
        start_ticks=identity.start_ticks if identity is not None and is_known else 0,
        role=role,
        is_ended=bool(view.ranks.is_ended[rank]),
        plan=policy.plan(rank, is_suspicion=True),
    )


def _host(view: JobView, rank: int) -> str:
    index = int(view.ranks.host_index[rank]) if 0 <= rank < view.world_size else -1
    return view.hosts[index] if 0 <= index < len(view.hosts) else ""


def _waiting(verdict: Verdict) -> list[int]:
    """Give the ranks that the verdict's evidence lists as waiting, those of most items first."""
    counts: Counter[int] = Counter()
    for item in verdict.evidence:
        listed = item.data.get("waiting")
        if isinstance(listed, (list, tuple)):
            counts.update(rank for rank in listed if isinstance(rank, int))
    return sorted(counts, key=lambda rank: (-counts[rank], rank))


def _typical(
    waiting: list[int], local: set[int], suspects: list[int], view: JobView
) -> tuple[int, ...]:
    """Choose waiters of this node: the first and the last, as far apart as there are."""
    count = NUM_WAITERS if suspects else NUM_WAITERS_ALONE
    pool = [rank for rank in waiting if rank in local and rank not in suspects]
    if not pool:
        pool = [
            rank for rank in sorted(local) if rank not in suspects and not view.ranks.is_ended[rank]
        ]
    if len(pool) <= count:
        return tuple(pool)
    stride = (len(pool) - 1) / (count - 1)
    return tuple(pool[round(index * stride)] for index in range(count))
