"""The Lightning callback in real two-rank jobs, under each of the two launchers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

from tests.support.fake_sidecar import FakeSidecar
from tests.support.jobs import ROOT, run_job
from tracecore_train.wire.records import IdentityRecord, LastWordRecord, PhaseRecord, StepRecord

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tracecore_train.wire.records import Record

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        not all(map(find_spec, ("torch", "lightning", "pytorch_lightning"))),
        reason="needs torch and both Lightning packages",
    ),
]

PROGRAM = ROOT / "tests" / "support" / "programs" / "lightning_job.py"
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
PHASES = {"sanity_check": 1, "validation": 2, "epoch": 2, "checkpoint": 2}


def check_the_story(records: Iterable[Record]) -> None:
    """Both ranks told every step once, with its number, and every phase."""
    records = list(records)
    for rank in (0, 1):
        steps = [r for r in records if isinstance(r, StepRecord) and r.rank == rank]
        told = [(step.step, step.global_step, step.num_microbatches) for step in steps]
        assert told == [(number, number, 2) for number in range(8)]
        phases = [r.name for r in records if isinstance(r, PhaseRecord) and r.rank == rank]
        assert Counter(phases) == PHASES


def test_the_callback_adds_to_what_the_launcher_records(tmp_path: Path) -> None:
    """Under `tracecore run` there is one set of records, with phases and step numbers in it."""
    job = run_job(tmp_path, "lightning.pytorch", str(tmp_path), program=PROGRAM, env=ENVIRONMENT)
    assert job.returncode == 0, job.stderr
    assert job.stdout.count("ended at step 8") == 2
    check_the_story(job.records())
    assert job.verdicts == []
    assert "switched off" not in job.stderr


def test_lightning_launches_the_second_rank_itself(tmp_path: Path) -> None:
    """With plain python every process records under the rank that Lightning gave it."""
    with FakeSidecar(tmp_path / "j") as sidecar:
        done = subprocess.run(
            [sys.executable, str(PROGRAM), "pytorch_lightning", str(tmp_path)],
            env={**os.environ, **ENVIRONMENT, "TRACECORE_ENDPOINT": sidecar.endpoint},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    records = [record for batch in sidecar.batches for record in batch.records]
    check_the_story(records)
    identities = {r.rank: r for r in records if isinstance(r, IdentityRecord)}
    assert {(i.rank, i.local_rank, i.node_rank, i.world_size) for i in identities.values()} == {
        (0, 0, 0, 2),
        (1, 1, 0, 2),
    }
    assert {batch.source.world_size for batch in sidecar.batches} == {2}
    assert {r.rank for r in records if isinstance(r, LastWordRecord)} == {0, 1}
