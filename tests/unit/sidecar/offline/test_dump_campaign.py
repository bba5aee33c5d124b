"""Simulated hangs of every class on every kind of job: exact ranks, right class, no innocent."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from tests.support.hang_cases import cases, random_case
from tests.support.hang_score import judge, table

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.hang_cases import Case

EVERY = 3
"""One case in so many; `tests/benchmarks/hang_dumps.py` judges all of them."""
EVERY_DROPPED = 11
"""The same for dropped dumps."""


@pytest.fixture(scope="module")
def all_cases() -> list[Case]:
    return list(cases())


def test_all_classes_and_near_misses(all_cases: list[Case], tmp_path: Path) -> None:
    """Every answer is exact, or one that the evidence cannot tell apart; no class is wrong."""
    results = [judge(case, tmp_path) for case in all_cases[::EVERY]]
    assert {result.case.class_ for result in results} == {case.class_ for case in all_cases}
    wrong = [r.case.name for r in results if not (r.is_allowed and r.is_class)]
    assert not wrong, table(results) + "\n" + "\n".join(wrong[:20])
    assert not any(r.has_innocent for r in results)


def test_dropping_a_dump_accuses_no_healthy_rank(all_cases: list[Case], tmp_path: Path) -> None:
    """With one dump missing, whichever, nobody is named but ranks at fault."""
    for index, case in enumerate(all_cases[::EVERY_DROPPED]):
        rank = index % len(case.job.ranks)
        result = judge(case, tmp_path, without=rank)
        assert not result.has_innocent, f"{case.name} without {rank}: {sorted(result.suspects)}"


@pytest.mark.parametrize("seed", range(3))
def test_random_places_accuse_no_healthy_rank(tmp_path: Path, seed: int) -> None:
    """Stops and stuck devices anywhere in jobs with four kinds of groups, often a dump missing."""
    rng = random.Random(seed)
    num_named = 0
    for _ in range(40):
        case = random_case(rng)
        without = rng.choice([None, rng.randrange(len(case.job.ranks))])
        result = judge(case, tmp_path, without=without)
        assert not result.has_innocent, f"{case.name} without {without}: {sorted(result.suspects)}"
        num_named += bool(result.suspects)
    assert num_named > 20
