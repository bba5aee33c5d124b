"""Verdicts over time: what opened, what changed, what is over.

Detectors say on each tick what holds now. An incident follows one trouble through those ticks:
it opens with the first verdict, is updated when something a person acts on has changed (not when
a number drifts), and closes when the verdict has stayed away. Ids depend on nothing but the job,
the attempt, the pattern, the suspects and the onset, so another observer gives the same id.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from tracecore_sidecar.verdicts import Confidence, Severity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tracecore_sidecar.verdicts import JobInfo, Suspect, Verdict

CLOSE_AFTER_NS = 10_000_000_000
"""Absence that ends an incident; longer than detectors pause between two looks."""
UPDATE_INTERVAL_NS = 5_000_000_000
"""Between two updates of an incident that does not get worse or surer: no flood by flapping."""
MAX_OPEN = 100
"""Incidents open at once; a job with more troubles is not told by more lines."""

Change: TypeAlias = Literal["opened", "updated", "closed"]
_Identity: TypeAlias = tuple[str, "int | str"]
_SEVERITIES = (Severity.INFO, Severity.WARNING, Severity.CRITICAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class IncidentEvent:
    """An incident changed at ``now_ns``; ``verdict`` is the latest about it."""

    incident_id: str
    change: Change
    verdict: Verdict
    opened_ns: int
    now_ns: int


@dataclass(slots=True)
class _Open:
    incident_id: str
    verdict: Verdict
    """The latest."""
    told: Verdict
    """The one of the latest event."""
    opened_ns: int
    told_ns: int
    seen_ns: int


class Incidents:
    """Follows the incidents of one attempt of a job."""

    def __init__(
        self, job: JobInfo, *, wall_offset_ns: int, close_after_ns: int = CLOSE_AFTER_NS
    ) -> None:
        """Start with none open. ``wall_offset_ns`` makes ids comparable between hosts."""
        self._job = job
        self._wall_offset_ns = wall_offset_ns
        self._close_after_ns = close_after_ns
        self._open: dict[str, _Open] = {}
        self.num_dropped = 0
        """Verdicts that found no room among the open incidents."""

    def update(self, verdicts: Sequence[Verdict], now_ns: int) -> list[IncidentEvent]:
        """Take every verdict that holds at ``now_ns``; give what changed."""
        events: list[IncidentEvent] = []
        for verdict, incident in self._matched(verdicts):
            if incident is None:
                events += self._opened(verdict, now_ns)
                continue
            incident.verdict, incident.seen_ns = verdict, now_ns
            if _is_worth_telling(incident, now_ns):
                incident.told, incident.told_ns = verdict, now_ns
                events.append(_event(incident, "updated", now_ns))
        overdue = now_ns - self._close_after_ns
        gone = [incident for incident in self._open.values() if incident.seen_ns <= overdue]
        return events + self._closed(gone, now_ns)

    def close_all(self, now_ns: int) -> list[IncidentEvent]:
        """Close what is open: the job has ended."""
        return self._closed(list(self._open.values()), now_ns)

    def _matched(self, verdicts: Iterable[Verdict]) -> list[tuple[Verdict, _Open | None]]:
        """Pair each verdict with its incident: same suspects first, then a loose fit."""
        free = list(self._open.values())
        paired: list[tuple[Verdict, _Open | None]] = []
        rest = list(verdicts)
        for fits in (_has_same_suspects, _shares_suspects, _lacks_suspects):
            unpaired: list[Verdict] = []
            for verdict in rest:
                incident = _first(free, verdict, fits)
                if incident is None:
                    unpaired.append(verdict)
                else:
                    free.remove(incident)
                    paired.append((verdict, incident))
            rest = unpaired
        return paired + [(verdict, None) for verdict in rest]

    def _opened(self, verdict: Verdict, now_ns: int) -> list[IncidentEvent]:
        incident_id = incident_id_of(verdict, self._job, self._wall_offset_ns)
        if incident_id in self._open:
            return []
        if len(self._open) >= MAX_OPEN:
            self.num_dropped += 1
            return []
        incident = _Open(
            incident_id=incident_id,
            verdict=verdict,
            told=verdict,
            opened_ns=now_ns,
            told_ns=now_ns,
            seen_ns=now_ns,
        )
        self._open[incident_id] = incident
        return [_event(incident, "opened", now_ns)]

    def _closed(self, gone: Iterable[_Open], now_ns: int) -> list[IncidentEvent]:
        events = [_event(incident, "closed", now_ns) for incident in gone]
        for event in events:
            del self._open[event.incident_id]
        return events


def incident_id_of(verdict: Verdict, job: JobInfo, wall_offset_ns: int) -> str:
    """Give the id of the incident that ``verdict`` opens."""
    onset_s = (verdict.since_ns + wall_offset_ns + 500_000_000) // 1_000_000_000
    suspects = sorted(f"{kind}={name}" for kind, name in _identities(verdict))
    parts = (job.job_id, str(job.attempt), verdict.pattern, ",".join(suspects), str(onset_s))
    return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()[:12]


def _first(
    free: Iterable[_Open], verdict: Verdict, fits: Callable[[Verdict, Verdict], bool]
) -> _Open | None:
    for incident in free:
        # An onset after the incident was last seen is the next trouble of the same kind.
        is_same_time = verdict.since_ns <= incident.seen_ns
        if (
            is_same_time
            and verdict.pattern == incident.verdict.pattern
            and fits(verdict, incident.verdict)
        ):
            return incident
    return None


def _has_same_suspects(verdict: Verdict, other: Verdict) -> bool:
    return _identities(verdict) == _identities(other)


def _shares_suspects(verdict: Verdict, other: Verdict) -> bool:
    return not _identities(verdict).isdisjoint(_identities(other))


def _lacks_suspects(verdict: Verdict, other: Verdict) -> bool:
    return not verdict.suspects or not other.suspects


def _identities(verdict: Verdict) -> frozenset[_Identity]:
    return frozenset(_identity(suspect) for suspect in verdict.suspects)


def _identity(suspect: Suspect) -> _Identity:
    name = suspect.rank if suspect.rank is not None else suspect.gpu_uuid or suspect.host or ""
    return suspect.kind.value, name


def _is_worth_telling(incident: _Open, now_ns: int) -> bool:
    told, verdict = incident.told, incident.verdict
    if _material(verdict) == _material(told):
        return False
    is_stronger = any(
        new > old for new, old in zip(_strength(verdict), _strength(told), strict=True)
    )
    return is_stronger or now_ns - incident.told_ns >= UPDATE_INTERVAL_NS


def _material(verdict: Verdict) -> tuple[object, ...]:
    return verdict.class_, verdict.severity, verdict.confidence, _identities(verdict)


def _strength(verdict: Verdict) -> tuple[int, bool, bool]:
    return (
        _SEVERITIES.index(verdict.severity),
        verdict.confidence is Confidence.FULL,
        bool(verdict.suspects),
    )


def _event(incident: _Open, change: Change, now_ns: int) -> IncidentEvent:
    return IncidentEvent(
        incident_id=incident.incident_id,
        change=change,
        verdict=incident.verdict,
        opened_ns=incident.opened_ns,
        now_ns=now_ns,
    )
