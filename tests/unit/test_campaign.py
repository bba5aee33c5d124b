"""The hang campaign's bookkeeping: what is run, what counts as right, and how it goes on."""

from __future__ import annotations

import json
import socket
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.campaign import below
from tests.campaign.cases import AWAY, CASES, EARLY, FIRST, LAST, LATE, LAYOUTS, Case
from tests.campaign.hang import NO_FAULT, NOTHING, earlier_scores, score_of, summarise

if TYPE_CHECKING:
    from pathlib import Path

SLEEP = Case(fault="sleep", ranks=(2,), classes=("never_entered",))
BEGAN_NS = 1_000_000_000


def verdict(kind: str, *ranks: int, incident: str = "a") -> dict[str, Any]:
    return {
        "incident_id": incident,
        "class": kind,
        "suspects": [{"kind": "rank", "rank": rank} for rank in ranks],
        "confidence": "full",
        "summary": "",
        "emitted_at_ns": 7_000_000_000 + BEGAN_NS,
    }


def test_every_case_has_a_name_of_its_own() -> None:
    """No two cases share a name, so a result is found again."""
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))


def test_layout_place_and_time_are_crossed() -> None:
    """In each layout a rank is away on the first, a middle and the last place, early and late."""
    found = {
        (c.shape, {FIRST: "first", LAST: "last"}.get(c.ranks[0], "mid"), c.at)
        for c in CASES
        if c.fault in AWAY and c.classes == ("never_entered",) and c.num_ranks == 4
        if len(c.ranks) == 1 and (c.hooks or c.shape != "pipeline")
    }
    wanted = {(s, p, t) for s in LAYOUTS for p in ("first", "mid", "last") for t in (EARLY, LATE)}
    assert found == wanted


@pytest.mark.parametrize(
    "kind", ["never_entered", "mismatch", "none_completed", "stuck_peers_done"]
)
def test_classes_have_one_and_two_ranks_at_fault(kind: str) -> None:
    """Each class that one rank can cause is also caused by two at once, early and late."""
    found = [c for c in CASES if c.classes and c.classes[0] == kind]
    assert {len(c.ranks) for c in found} == {1, 2}
    assert {c.at for c in found} == {EARLY, LATE}


def test_exactly_the_ranks_at_fault_are_right() -> None:
    """One innocent beside the rank at fault makes a case wrong, and is counted."""
    exact = score_of(SLEEP, [verdict("never_entered", 2)], BEGAN_NS)
    more = score_of(SLEEP, [verdict("never_entered", 1, 2)], BEGAN_NS)
    assert exact.is_right
    assert exact.seconds == 7.0
    assert not more.is_right
    assert more.accused_innocents == [1]


def test_an_innocent_who_was_cleared_later_counts() -> None:
    """The last verdict is scored, and an accusation in an earlier one is not forgotten."""
    scored = score_of(SLEEP, [verdict("never_entered", 0), verdict("never_entered", 2)], BEGAN_NS)
    assert scored.is_right
    assert scored.accused_innocents == [0]


def test_causes_that_are_told_apart_count_together() -> None:
    """Two verdicts of one rank each are the set of both; one of another class makes it wrong."""
    case = replace(SLEEP, ranks=(1, 2))
    one, other = verdict("never_entered", 1), verdict("never_entered", 2, incident="b")
    assert score_of(case, [one, other], BEGAN_NS).is_right
    assert not score_of(case, [one, other | {"class": "mismatch"}], BEGAN_NS).is_right


def test_the_second_rank_of_a_case_may_be_innocent() -> None:
    """Of a case with its own set of suspects, the other ranks it concerns are innocent."""
    case = replace(SLEEP, ranks=(1, 2), suspects=(2,))
    assert score_of(case, [verdict("never_entered", 1)], BEGAN_NS).accused_innocents == [1]


def test_nobody_is_right_only_where_it_may_be() -> None:
    """A verdict without a suspect is right only for a case whose evidence names nobody."""
    nobody = [verdict("never_entered")]
    assert not score_of(SLEEP, nobody, BEGAN_NS).is_right
    assert score_of(replace(SLEEP, may_be_partial=True), nobody, BEGAN_NS).is_right
    assert not score_of(replace(SLEEP, may_be_partial=True), [], BEGAN_NS).is_right


def test_silence_is_right_for_a_near_miss_that_happened() -> None:
    """Silence is right for a near miss, unless its job never came so far."""
    near = replace(SLEEP, classes=(), suspects=())
    assert score_of(near, [], BEGAN_NS).is_right
    assert not score_of(near, [verdict("never_entered", 2)], BEGAN_NS).is_right
    broken = score_of(near, [], 0)
    assert broken.got == NO_FAULT
    assert not broken.is_right


def test_an_interrupted_campaign_goes_on(tmp_path: Path) -> None:
    """Whole lines of unchanged cases are taken over; half a line and changed cases are not."""
    path = tmp_path / "scores.jsonl"
    changed, broken = replace(SLEEP, fault="gil"), replace(SLEEP, fault="stop")
    scores = [
        score_of(SLEEP, [verdict("never_entered", 2)], BEGAN_NS),
        score_of(changed, [], BEGAN_NS),
        score_of(broken, [], 0),
    ]
    lines = [json.dumps(asdict(score)) for score in scores]
    path.write_text("\n".join([*lines, lines[0][:40]]))
    now = [SLEEP, replace(changed, seconds=1.0), broken]
    assert earlier_scores(path, now) == {SLEEP.name: scores[0]}
    assert earlier_scores(tmp_path / "none", now) == {}


def test_the_summary_tells_singles_doubles_and_silence_apart() -> None:
    """One wrong double lowers the doubles alone."""
    double = replace(SLEEP, ranks=(0, 2))
    near = replace(SLEEP, classes=(), suspects=(), note="near")
    text = summarise(
        [
            score_of(SLEEP, [verdict("never_entered", 2)], BEGAN_NS),
            score_of(double, [verdict("never_entered", 2)], BEGAN_NS),
            score_of(near, [], BEGAN_NS),
        ]
    )
    assert "exact set, one at fault   1 of 1 (100%)" in text
    assert "exact set, two at fault   0 of 1 (0%)" in text
    assert "near misses silent        1 of 1 (100%)" in text
    assert NOTHING in text


def test_a_dead_link_takes_nothing_and_comes_back() -> None:
    """Nothing arrives through a cut connection; once it is mended, what was sent does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        far = socket.create_connection(server.getsockname())
        near, _ = server.accept()
        with far, near:
            near.settimeout(0.3)
            below.drop_all(near)
            far.sendall(b"x")
            with pytest.raises(TimeoutError):
                near.recv(1)
            near.settimeout(30)
            below.mend_links([near.dup()])
            assert near.recv(1) == b"x"
