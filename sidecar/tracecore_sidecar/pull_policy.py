"""Which flight recorders of a rank are read, and when.

Gloo's and nccl2's are sampled. Legacy NCCL's is not: reading it asks the device about its events
from a thread of torch's worker server, which may make a device context of its own or break a
graph capture. It is read only where the user allows it, only on suspicion, and never while the
rank captures a graph; until then its groups show counters only.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from tracecore_sidecar.sources.flight_recorder import GLOO_HANDLER, NCCL2_HANDLER, NCCL_HANDLER

if TYPE_CHECKING:
    from tracecore_sidecar.state.view import JobView


class NcclPull(str, Enum):
    """Whether the recorder of legacy NCCL may be read."""

    NEVER = "never"
    ON_SUSPICION = "on-suspicion"


class PullPlan(NamedTuple):
    """What one read of one rank asks for."""

    handlers: tuple[str, ...]
    left_out: str
    """Why a recorder that may be read is not read this time; empty: all are."""


class PullPolicy:
    """Plans the reads of one moment."""

    def __init__(self, view: JobView, nccl: NcclPull) -> None:
        """Look at which groups have which backends."""
        self._pages = view.pages
        self._nccl = nccl
        self._members: dict[str, set[int]] = {}
        for group in view.groups.values():
            for backend in _backends(group.backend):
                if backend != "gloo":
                    self._members.setdefault(backend, set()).update(group.members)

    def plan(self, rank: int, *, is_suspicion: bool) -> PullPlan:
        """Say what to read of a rank."""
        handlers = [GLOO_HANDLER]
        left_out = ""
        if rank in self._members.get("nccl2", ()):
            handlers.append(NCCL2_HANDLER)
        if self._nccl is NcclPull.ON_SUSPICION and rank in self._members.get("nccl", ()):
            page = self._pages.get(rank)
            if not is_suspicion:
                left_out = "the flight recorder of NCCL is read on suspicion only"
            elif page is None:
                left_out = "without its rank page nobody knows whether it captures a graph"
            elif page.capture_since_ns:
                left_out = "the flight recorder of NCCL is not read during a graph capture"
            else:
                handlers.append(NCCL_HANDLER)
        return PullPlan(tuple(handlers), left_out)


def unread_recorders(view: JobView, nccl: NcclPull) -> tuple[str, ...]:
    """Name what this policy never reads although the job has it, as ``signal: reason``."""
    has_nccl = any("nccl" in _backends(group.backend) for group in view.groups.values())
    if nccl is not NcclPull.NEVER or not has_nccl:
        return ()
    reason = "the flight recorder of NCCL is not read (TRACECORE_NCCL_PULL=never)"
    return (f"collectives.entries: {reason}, its groups show counters only",)


def _backends(told: str) -> set[str]:
    """Read ``gloo`` or ``cpu:gloo,cuda:nccl``."""
    return {part.rpartition(":")[2].strip() for part in told.lower().split(",")}
