"""Two jobs on one node at the same time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.support.jobs import run_job

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.jobs import Job

pytest.importorskip("torch")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_two_jobs_on_one_node_each_name_their_own_fault(tmp_path: Path) -> None:
    """Two launchers that share a runtime directory: each job ends well, and each sidecar names
    the rank of its own job and nobody of the other.
    """

    def run(name: str, rank: int) -> Job:
        directory = tmp_path / name
        directory.mkdir()
        return run_job(
            directory,
            *("--steps", "60", "--step-ms", "20"),
            fault=(f"hang:rank={rank},at=30,for=14",),
            env={"TRACECORE_RUNTIME_DIR": str(tmp_path / "rt"), "TRACECORE_JOB_ID": name},
        )

    with ThreadPoolExecutor(2) as pool:
        jobs = list(pool.map(run, ("one", "two"), (0, 1)))
    assert [job.returncode for job in jobs] == [0, 0], jobs[0].stderr + jobs[1].stderr
    assert jobs[0].named() == {("hang", "never_entered", (0,))}
    assert jobs[1].named() == {("hang", "never_entered", (1,))}
    assert {batch.source.job_id for batch in jobs[0].batches()} == {"one"}
    assert {batch.source.job_id for batch in jobs[1].batches()} == {"two"}
    assert list((tmp_path / "rt").iterdir()) == []
