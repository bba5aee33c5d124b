"""Random jobs, faults and forms of dumps: nobody innocent is named, and no class is wrong."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.support.dump_fuzz import CLASSES, judged, random_hang
from tests.support.stream_job import StreamJob

if TYPE_CHECKING:
    from pathlib import Path

SEEDS = range(120)
"""`python -m tests.benchmarks.hang_dumps --fuzz 2000` draws more."""
PARTS = 4
ONCE_WRONG = (43, 75, 113, 158, 172, 190, 224, 1303, 1438, 1536, 4040)
"""Seeds in which an innocent rank was named, or a class was wrong, each for a rule of its own."""


@pytest.mark.parametrize("part", range(PARTS))
def test_no_innocent_rank_is_named_and_no_class_is_wrong(tmp_path: Path, part: int) -> None:
    """Whatever the layout, the fault, the version, the ring, the file; most sets are exact."""
    counts: Counter[str] = Counter()
    for seed in SEEDS[part::PARTS]:
        outcome = judged(random_hang(random.Random(seed)), tmp_path / "dumps")
        told = f"seed {seed}: {outcome.hang.name}: {outcome.named} {outcome.hang.form}"
        assert not outcome.innocents, told
        assert not outcome.is_class_wrong, told
        is_plain = bool(outcome.hang.faults) and not outcome.hang.form.missing
        counts["plain"] += is_plain
        counts["named"] += is_plain and bool(outcome.named)
        counts["exact"] += is_plain and outcome.is_exact
    assert counts["named"] > 0.7 * counts["plain"]
    assert counts["exact"] > 0.5 * counts["plain"]


@pytest.mark.parametrize("seed", ONCE_WRONG)
def test_what_once_was_wrong_stays_right(tmp_path: Path, seed: int) -> None:
    """Rings too short for what is unfinished, cut batches, waits given up, lone parts."""
    outcome = judged(random_hang(random.Random(seed)), tmp_path / "dumps")
    assert not outcome.innocents
    assert not outcome.is_class_wrong


def test_the_simulated_jobs_come_to_their_end_without_a_fault() -> None:
    """What the fuzz calls a fault is what stops them."""
    for seed in SEEDS[::12]:
        hang = random_hang(random.Random(seed))
        programs = [process.program for process in hang.job.ranks]
        job = StreamJob(hang.job.groups, programs, run_ahead=8).run()
        assert all(process.at == len(process.program) for process in job.ranks), hang.name


def test_every_fault_of_the_fuzz_is_named_at_least_once(tmp_path: Path) -> None:
    """Both kinds are drawn, and found."""
    classes: set[str] = set()
    for seed in SEEDS[:16]:
        classes |= set(judged(random_hang(random.Random(seed)), tmp_path / "dumps").named.values())
    assert classes >= set(CLASSES.values())
