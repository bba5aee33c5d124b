"""Two real 16-rank runs with injected faults: who is named, and what a missing dump changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracecore_sidecar.offline.diagnose import Answer, diagnose_paths

TRACES = Path(__file__).resolve().parents[3] / "data" / "fr_traces"
TRUTH = {
    "gpu_error_1st": ({12, 14}, "stuck_peers_done"),
    "lock_gil_1st": ({9, 14}, "never_entered"),
}
"""Ranks from ``fault_injection.log``; the class is what such a fault does to the others."""
NUM_RANKS = 16


def suspects(answer: Answer) -> set[int]:
    return {s["rank"] for told in answer.told for s in told.json["suspects"]}


def without(case: str, rank: int) -> Answer:
    return diagnose_paths(p for p in (TRACES / case).glob("_dump_*") if p.name != f"_dump_{rank}")


@pytest.mark.parametrize("case", sorted(TRUTH))
def test_exactly_the_faulty_ranks_are_named(case: str) -> None:
    """One verdict with both ranks, the right class, and nobody else."""
    answer = diagnose_paths([TRACES / case])
    ranks, class_ = TRUTH[case]
    assert [told.json["class"] for told in answer.told] == [class_]
    assert suspects(answer) == ranks
    assert answer.told[0].json["confidence"] == "full"
    assert "16 of 16" in answer.told[0].json["cost"]["text"] or class_ == "never_entered"


def test_two_runs_in_one_directory_are_two_jobs() -> None:
    """Dumps of the same ranks in different directories are not mixed."""
    answer = diagnose_paths([TRACES])
    assert sorted(told.json["class"] for told in answer.told) == [
        "never_entered",
        "stuck_peers_done",
    ]


@pytest.mark.parametrize("rank", range(NUM_RANKS))
@pytest.mark.parametrize("case", sorted(TRUTH))
def test_a_missing_dump_accuses_no_healthy_rank(case: str, rank: int) -> None:
    """Whichever dump is missing, only faulty ranks are named, in part, and the gap is told."""
    answer = without(case, rank)
    ranks, _ = TRUTH[case]
    assert suspects(answer) <= ranks
    assert suspects(answer), "the other faulty rank is still to be seen"
    assert len(answer.told) == 1, "what leads to a rank that was not read is no cause of its own"
    assert all(told.json["confidence"] == "partial" for told in answer.told)
    assert f"rank {rank}: no dump of it was given" in answer.not_measured
    if rank not in ranks and case == "lock_gil_1st":
        assert suspects(answer) == ranks


@pytest.mark.parametrize("case", sorted(TRUTH))
def test_without_the_faulty_dumps_nobody_is_named(case: str) -> None:
    """Ranks that left no dump are waited for, and that is said; absence does not accuse them."""
    ranks, _ = TRUTH[case]
    paths = [p for p in (TRACES / case).glob("_dump_*") if int(p.name[6:]) not in ranks]
    answer = diagnose_paths(paths)
    assert suspects(answer) == set()
    assert any(
        set(item["data"]["unknown"]) & ranks
        for told in answer.told
        for item in told.json["evidence"]
        if item["kind"] == "collective"
    )
