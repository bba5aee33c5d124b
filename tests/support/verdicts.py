"""Verdicts for tests, complete unless told otherwise."""

from __future__ import annotations

from typing import Any

from tracecore_sidecar.incidents import Change, IncidentEvent
from tracecore_sidecar.verdicts import (
    Confidence,
    Cost,
    Evidence,
    JobInfo,
    Severity,
    Suspect,
    Verdict,
)

SECOND = 1_000_000_000
WALL_OFFSET_NS = 1_795_000_000 * SECOND
JOB = JobInfo(job_id="job", attempt=0, world_size=8, node_rank=0, host="a07")


def suspect(rank: int) -> Suspect:
    """A rank on host a07 with a GPU."""
    return Suspect(
        rank=rank, local_rank=rank, host="a07", pid=4120 + rank, gpu_uuid=f"GPU-5f1c77d2-{rank}"
    )


def fact(text: str, rank: int | None = 1, **data: Any) -> Evidence:
    """A fact from the flight recorder."""
    return Evidence(
        kind="collective",
        source="flight recorder",
        time_ns=60 * SECOND,
        rank=rank,
        text=text,
        data=data,
    )


def hang(*ranks: int, **changes: Any) -> Verdict:
    """A hang that began at 60 s and suspects ``ranks``."""
    values: dict[str, Any] = {
        "pattern": "hang",
        "class_": "never_entered",
        "severity": Severity.CRITICAL,
        "confidence": Confidence.FULL,
        "summary": "rank 1 never joined all_reduce #482 of default_pg",
        "suspects": tuple(suspect(rank) for rank in ranks),
        "since_ns": 60 * SECOND,
        "evidence": (
            fact("ranks 0,2-7 entered #482; the last that rank 1 entered is #481", seq=482),
            fact("rank 1 has been inside next(dataloader) since 14:02:10"),
        ),
        "contradicting": (),
        "not_measured": ("kernel log: no /dev/kmsg in this container",),
        "actions": ("look at the NFS mount of a07",),
        "cost": Cost(text="7 ranks wait", waiting_ranks=7),
    }
    return Verdict(**values | changes)


def event_of(
    verdict: Verdict, change: Change = "opened", *, now_ns: int = 68 * SECOND
) -> IncidentEvent:
    """An event of an incident that opened at 68 s."""
    return IncidentEvent(
        incident_id="c0ffee",
        change=change,
        verdict=verdict,
        opened_ns=68 * SECOND,
        now_ns=now_ns,
    )
