"""The whole path on real jobs: a fault in a rank becomes a verdict a person can act on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.jobs import Job, run_job
from tracecore_train.wire.records import RendezvousRecord, StepRecord, WorkerExitRecord

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def assert_silent(job: Job) -> None:
    """The job ended well, was watched to the end, and nobody was named."""
    assert job.returncode == 0, job.stderr
    assert job.verdicts == []
    assert job.replayed() == set()
    assert all(row["steps"] > 0 for row in job.summary["ranks"].values())
    assert len(job.summary["ranks"]) == 2
    assert "verdicts: none" in job.stderr


@pytest.mark.parametrize("where", ["forward", "backward", "input", "host"])
def test_a_slow_rank_is_named_wherever_it_is_slow(tmp_path: Path, where: str) -> None:
    """50 ms more on a 100 ms step of rank 1 names rank 1 within 60 s, and only rank 1."""
    job = run_job(
        tmp_path,
        *("--steps", "320", "--step-ms", "95"),
        fault=(f"slow:rank=1,ms=50,from=40,where={where}",),
    )
    assert job.returncode == 0, job.stderr
    assert job.named() == {("straggler", "late_arrival", (1,))}
    assert job.replayed() == job.named()
    verdict = job.verdicts[0]
    assert (verdict["emitted_at_ns"] - job.step_end_ns(1, 40)) / 1e9 < 60
    assert abs(verdict["since_ns"] - job.step_end_ns(1, 40)) / 1e9 < 5
    assert verdict["cost"]["seconds_per_step"] == pytest.approx(0.05, rel=0.4)
    assert "STRAGGLER  rank 1" in job.stderr


def test_a_hang_is_named_while_the_job_lives(tmp_path: Path) -> None:
    """A rank that stops for 30 s is named within 10 s of the stop; the job ends normally."""
    job = run_job(
        tmp_path, "--steps", "120", "--step-ms", "45", fault=("hang:rank=1,at=60,for=25",)
    )
    assert job.returncode == 0, job.stderr
    assert job.named() == {("hang", "never_entered", (1,))}
    assert job.replayed() == job.named()
    (verdict,) = job.verdicts
    assert (verdict["emitted_at_ns"] - verdict["since_ns"]) / 1e9 < 10
    # The verdict came while the rank still slept.
    assert verdict["emitted_at_ns"] < job.step_end_ns(0, 62)
    assert job.step_end_ns(0, 62) - job.step_end_ns(0, 58) > 20e9
    assert [line["change"] for line in job.incidents] == ["opened", "closed"]
    assert any(item["kind"] == "collective" for item in verdict["evidence"])


def test_a_hang_in_the_loader_says_input(tmp_path: Path) -> None:
    """A rank stuck inside next(dataloader) is named, and the verdict says where it is."""
    job = run_job(
        tmp_path,
        *("--steps", "100", "--step-ms", "45"),
        fault=("hang:rank=0,at=50,for=20,where=input",),
    )
    assert job.named() == {("hang", "never_entered", (0,))}
    texts = " ".join(item["text"] for item in job.verdicts[0]["evidence"])
    assert "next(dataloader)" in texts


def test_a_healthy_run_names_nobody(tmp_path: Path) -> None:
    """300 steps without a fault give no verdict."""
    assert_silent(run_job(tmp_path, "--steps", "300", "--step-ms", "45"))


def test_slowness_that_alternates_names_nobody(tmp_path: Path) -> None:
    """Each rank late in every other step: an imbalance, nobody at fault."""
    job = run_job(
        tmp_path,
        *("--steps", "200", "--step-ms", "95"),
        fault=("slow:rank=0,ms=50,from=40,every=2", "slow:rank=1,ms=50,from=41,every=2"),
    )
    assert_silent(job)


def test_a_long_checkpoint_names_nobody(tmp_path: Path) -> None:
    """Ten seconds inside torch.save on rank 0 are a pause, not a hang and not a straggler."""
    job = run_job(
        tmp_path,
        *("--steps", "150", "--step-ms", "45", "--checkpoint-at", "60"),
        fault=("hang:rank=0,at=60,for=10,where=checkpoint",),
    )
    assert job.duration_s > 15
    assert_silent(job)


def test_a_slow_first_step_names_nobody(tmp_path: Path) -> None:
    """A first step of 15 s on one rank (compilation, caches) is start-up."""
    assert_silent(run_job(tmp_path, "--steps", "120", "--step-ms", "45", "--first-step-s", "15"))


def test_a_killed_rank_is_reported_and_the_next_attempt_is_watched(tmp_path: Path) -> None:
    """The launcher reports the signal; after the restart the new attempt's steps are recorded.

    One rank: torch 2.13 itself often hangs in gloo's connect after a restart of several.
    """
    job = run_job(
        tmp_path,
        *("--steps", "60", "--step-ms", "45"),
        fault=("kill:rank=0,at=20",),
        ranks=1,
        torchrun=("--max-restarts", "1"),
    )
    assert job.returncode == 0, job.stderr
    records = job.records()
    exits = [r for r in records if isinstance(r, WorkerExitRecord)]
    assert (0, 9) in {(r.rank, r.signal) for r in exits}
    assert len([r for r in records if isinstance(r, RendezvousRecord)]) == 2
    assert max(r.step for r in records if isinstance(r, StepRecord)) == 59
    assert job.summary["attempts"] == 2
    assert job.verdicts == []
