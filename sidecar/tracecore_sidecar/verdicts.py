"""What a detector says: a verdict, whom it suspects, and the evidence it rests on.

Times inside a verdict are integer nanoseconds of the observing host's monotonic clock;
:func:`to_json` turns them into wall-clock time for people and files. ``docs/verdict.schema.json``
describes the JSON form.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timezone
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

VERDICT_SCHEMA_VERSION = 1


class Severity(str, Enum):
    """How bad it is."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


class Confidence(str, Enum):
    """``full``: every input the rule asks for was there. ``partial``: something was missing."""

    FULL = "full"
    PARTIAL = "partial"


class SuspectKind(str, Enum):
    """What is suspected; ``none`` is a legal answer and has no suspects."""

    RANK = "rank"
    NODE = "node"
    GPU = "gpu"
    LINK = "link"
    STAGE = "stage"
    PROCESS = "process"


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """Something that explains the trouble."""

    kind: SuspectKind = SuspectKind.RANK
    rank: int | None = None
    local_rank: int | None = None
    host: str | None = None
    pid: int | None = None
    gpu_uuid: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One fact a verdict rests on (or that speaks against it)."""

    kind: str
    """Record kind it comes from: ``collective``, ``rank_page``, ``stack``, ``process`` ..."""
    source: str
    """Where it was read: ``flight recorder``, ``rank page``, ``py-spy``, ``/proc`` ..."""
    time_ns: int
    rank: int | None
    text: str
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What the trouble costs; None where it was not measured."""

    text: str
    seconds_per_step: float | None = None
    share_of_step: float | None = None
    """0 to 1."""
    waiting_ranks: int | None = None
    gpu_hours: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One judgement of one detector."""

    pattern: str
    """Slug of the detector catalogue: ``hang``, ``straggler`` ..."""
    class_: str
    severity: Severity
    confidence: Confidence
    summary: str
    """One sentence that names the suspect first."""
    suspects: tuple[Suspect, ...]
    since_ns: int
    evidence: tuple[Evidence, ...]
    contradicting: tuple[Evidence, ...] = ()
    not_measured: tuple[str, ...] = ()
    """What could not be seen, each as ``thing: reason``."""
    actions: tuple[str, ...] = ()
    """What to do next, most useful first."""
    cost: Cost | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobInfo:
    """Which job, attempt and node a verdict is about."""

    job_id: str
    attempt: int
    world_size: int
    node_rank: int
    host: str


def to_json(
    verdict: Verdict, job: JobInfo, *, incident_id: str, emitted_ns: int, wall_offset_ns: int
) -> dict[str, Any]:
    """Give the JSON object of a verdict, as ``verdicts.jsonl`` holds it."""
    return {
        "schema_version": VERDICT_SCHEMA_VERSION,
        "incident_id": incident_id,
        "pattern": verdict.pattern,
        "class": verdict.class_,
        "severity": verdict.severity.value,
        "confidence": verdict.confidence.value,
        "summary": verdict.summary,
        "suspects": [_suspect_json(suspect) for suspect in verdict.suspects],
        "since": rfc3339(verdict.since_ns + wall_offset_ns),
        "since_ns": verdict.since_ns + wall_offset_ns,
        "emitted_at": rfc3339(emitted_ns + wall_offset_ns),
        "emitted_at_ns": emitted_ns + wall_offset_ns,
        "evidence": [_evidence_json(item, wall_offset_ns) for item in verdict.evidence],
        "contradicting": [_evidence_json(item, wall_offset_ns) for item in verdict.contradicting],
        "not_measured": list(verdict.not_measured),
        "actions": list(verdict.actions),
        "cost": None if verdict.cost is None else _cost_json(verdict.cost),
        "job": {
            "job_id": job.job_id,
            "attempt": job.attempt,
            "world_size": job.world_size,
            "node_rank": job.node_rank,
            "host": job.host,
        },
    }


def rfc3339(wall_ns: int) -> str:
    """Render nanoseconds since the epoch as RFC 3339 in UTC with milliseconds."""
    seconds, rest = divmod(wall_ns, 1_000_000_000)
    moment = datetime.fromtimestamp(seconds, tz=timezone.utc)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{rest // 1_000_000:03d}Z"


def _suspect_json(suspect: Suspect) -> dict[str, Any]:
    return {
        "kind": suspect.kind.value,
        "rank": suspect.rank,
        "local_rank": suspect.local_rank,
        "host": suspect.host,
        "pid": suspect.pid,
        "gpu_uuid": suspect.gpu_uuid,
    }


def _evidence_json(item: Evidence, wall_offset_ns: int) -> dict[str, Any]:
    return {
        "kind": item.kind,
        "source": item.source,
        "time": rfc3339(item.time_ns + wall_offset_ns),
        "time_ns": item.time_ns + wall_offset_ns,
        "rank": item.rank,
        "text": item.text,
        "data": dict(item.data),
    }


def _cost_json(cost: Cost) -> dict[str, Any]:
    return {
        "text": cost.text,
        "seconds_per_step": cost.seconds_per_step,
        "share_of_step": cost.share_of_step,
        "waiting_ranks": cost.waiting_ranks,
        "gpu_hours": cost.gpu_hours,
    }
