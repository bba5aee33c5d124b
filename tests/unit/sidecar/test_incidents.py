"""Incidents follow one trouble through the ticks."""

from __future__ import annotations

import dataclasses

from tests.support.verdicts import JOB, SECOND, WALL_OFFSET_NS, hang
from tracecore_sidecar.incidents import (
    CLOSE_AFTER_NS,
    MAX_OPEN,
    UPDATE_INTERVAL_NS,
    IncidentEvent,
    Incidents,
    incident_id_of,
)
from tracecore_sidecar.verdicts import Confidence, JobInfo, Severity, Verdict

START = 68 * SECOND


def incidents(job: JobInfo = JOB) -> Incidents:
    return Incidents(job, wall_offset_ns=WALL_OFFSET_NS)


def changes(events: list[IncidentEvent]) -> list[str]:
    return [event.change for event in events]


def straggler(rank: int) -> Verdict:
    return hang(rank, pattern="straggler", class_="host", severity=Severity.WARNING)


def test_a_verdict_opens_an_incident_once() -> None:
    """The same verdict on the next ticks changes nothing."""
    followed = incidents()
    (event,) = followed.update([hang(1)], START)
    assert (event.change, event.opened_ns, event.now_ns) == ("opened", START, START)
    for tick in range(1, 30):
        assert followed.update([hang(1)], START + tick * SECOND) == []


def test_drifting_numbers_are_no_update() -> None:
    """Another summary, cost, evidence or onset says nothing new."""
    followed = incidents()
    followed.update([hang(1)], START)
    drifted = hang(
        1, summary="rank 1 is 9 s late", cost=None, evidence=(), since_ns=61 * SECOND, actions=()
    )
    assert followed.update([drifted], START + 60 * SECOND) == []


def test_absence_closes_after_a_while() -> None:
    """An incident closes when its verdict was away for ten seconds, not before."""
    followed = incidents()
    (opened,) = followed.update([hang(1)], START)
    assert followed.update([], START + CLOSE_AFTER_NS - 1) == []
    (closed,) = followed.update([], START + CLOSE_AFTER_NS)
    assert (closed.change, closed.incident_id) == ("closed", opened.incident_id)
    assert followed.update([], START + 2 * CLOSE_AFTER_NS) == []


def test_a_short_absence_is_the_same_incident() -> None:
    """A verdict that is away for nine seconds and returns opens nothing."""
    followed = incidents()
    followed.update([hang(1)], START)
    assert followed.update([], START + SECOND) == []
    assert followed.update([hang(1)], START + 9 * SECOND) == []


def test_naming_a_suspect_updates_at_once() -> None:
    """A hang that first suspects nobody stays the same incident when it names a rank."""
    followed = incidents()
    (opened,) = followed.update([hang()], START)
    (updated,) = followed.update([hang(1)], START + SECOND)
    assert (updated.change, updated.incident_id) == ("updated", opened.incident_id)
    assert [suspect.rank for suspect in updated.verdict.suspects] == [1]


def test_becoming_full_updates_at_once() -> None:
    """A partial verdict that becomes full updates its incident."""
    followed = incidents()
    (opened,) = followed.update([hang(1, confidence=Confidence.PARTIAL)], START)
    (updated,) = followed.update([hang(1)], START + SECOND)
    assert (updated.change, updated.incident_id) == ("updated", opened.incident_id)


def test_getting_worse_updates_at_once() -> None:
    """A higher severity updates the incident."""
    followed = incidents()
    followed.update([hang(1, severity=Severity.WARNING)], START)
    assert changes(followed.update([hang(1)], START + 1)) == ["updated"]


def test_a_second_suspect_joins_the_same_incident() -> None:
    """A verdict that shares a suspect with an open incident belongs to it."""
    followed = incidents()
    (opened,) = followed.update([hang(1)], START)
    (updated,) = followed.update([hang(1, 3)], START + UPDATE_INTERVAL_NS)
    assert (updated.change, updated.incident_id) == ("updated", opened.incident_id)


def test_flapping_is_told_rarely() -> None:
    """A class that changes on every tick gives one update per interval, the last state wins."""
    followed = incidents()
    followed.update([hang(1)], START)
    events: list[IncidentEvent] = []
    for tick in range(1, 21):
        class_ = "not_collective" if tick % 2 else "never_entered"
        events += followed.update([hang(1, class_=class_)], START + tick * SECOND)
    assert 1 <= len(events) <= 20 * SECOND // UPDATE_INTERVAL_NS


def test_other_suspects_are_another_incident() -> None:
    """Two stragglers are two incidents, and each keeps its own."""
    followed = incidents()
    opened = followed.update([straggler(1), straggler(5)], START)
    assert changes(opened) == ["opened", "opened"]
    assert len({event.incident_id for event in opened}) == 2
    assert followed.update([straggler(5), straggler(1)], START + SECOND) == []


def test_other_patterns_are_another_incident() -> None:
    """A hang and a straggler about one rank are two incidents."""
    assert changes(incidents().update([hang(1), straggler(1)], START)) == ["opened", "opened"]


def test_a_later_onset_is_another_incident() -> None:
    """A hang that begins after the last one was last seen is a new one."""
    followed = incidents()
    (first,) = followed.update([hang(1)], START)
    (second,) = followed.update([hang(1, since_ns=START + SECOND)], START + 9 * SECOND)
    assert (second.change, second.incident_id != first.incident_id) == ("opened", True)


def test_the_same_verdict_twice_on_a_tick_opens_once() -> None:
    """A detector that repeats itself gets one incident."""
    assert changes(incidents().update([hang(1), hang(1)], START)) == ["opened"]


def test_close_all_closes_what_is_open() -> None:
    """At the end of the job every open incident closes, with its latest verdict."""
    followed = incidents()
    followed.update([hang(1), straggler(5)], START)
    later = hang(1, summary="rank 1 is still away")
    followed.update([later, straggler(5)], START + SECOND)
    closed = followed.close_all(START + 2 * SECOND)
    assert changes(closed) == ["closed", "closed"]
    assert later in [event.verdict for event in closed]
    assert followed.close_all(START + 3 * SECOND) == []


def test_open_incidents_are_bounded() -> None:
    """Verdicts beyond the bound open nothing and are counted."""
    followed = incidents()
    opened = followed.update([hang(rank) for rank in range(MAX_OPEN + 3)], START)
    assert len(opened) == MAX_OPEN
    assert followed.num_dropped == 3


def test_another_observer_gives_the_same_id() -> None:
    """Clocks with another origin, another node and another order of suspects change no id."""
    shift = 123 * SECOND
    verdict = hang(1, 3)
    theirs = dataclasses.replace(
        hang(3, 1), since_ns=verdict.since_ns + shift + 300_000_000, summary="as seen from b02"
    )
    their_job = dataclasses.replace(JOB, node_rank=1, host="b02")
    assert incident_id_of(verdict, JOB, WALL_OFFSET_NS) == incident_id_of(
        theirs, their_job, WALL_OFFSET_NS - shift
    )


def test_job_attempt_pattern_suspects_and_onset_change_the_id() -> None:
    """Incidents that differ in any of these have different ids."""
    ids = {
        incident_id_of(verdict, job, WALL_OFFSET_NS)
        for verdict, job in (
            (hang(1), JOB),
            (hang(2), JOB),
            (hang(), JOB),
            (straggler(1), JOB),
            (hang(1, since_ns=62 * SECOND), JOB),
            (hang(1), dataclasses.replace(JOB, attempt=1)),
            (hang(1), dataclasses.replace(JOB, job_id="other")),
        )
    }
    assert len(ids) == 7
