"""A real two-rank job on gloo under a sidecar that takes notes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tracecore_train
from tests.support.fake_sidecar import FakeSidecar
from tests.support.installed_torch import has_gloo_recorder, unseen_on_gloo
from tracecore_train.wire.records import (
    CheckpointRecord,
    GroupRecord,
    IdentityRecord,
    LastWordRecord,
    ProgressRecord,
    StepRecord,
)
from tracecore_train.wire.signals import BY_NAME, name_in

pytest.importorskip("torch")
pytestmark = pytest.mark.timeout(300)

PROGRAM = Path(__file__).resolve().parents[1] / "support" / "programs" / "rank_job.py"
BOOTSTRAP = Path(tracecore_train.__file__).parent / "bootstrap"
NUM_STEPS = 12


def _torchrun(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            str(PROGRAM),
            *arguments,
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def _digests(run: subprocess.CompletedProcess[str]) -> list[str]:
    assert run.returncode == 0, run.stderr
    # Two ranks share the pipe: their lines may run into each other.
    found = sorted(re.findall(r"digest \d [0-9a-f]{64}", run.stdout))
    assert len(found) == 2, run.stdout
    return found


@pytest.mark.parametrize("way", ["init", "bootstrap"])
def test_job_tells_its_story(tmp_path: Path, way: str) -> None:
    """Identity, groups, progress, steps and checkpoint of both ranks arrive, with and without
    a line of code in the script.
    """
    variables = {"REST_S": "1.5"}
    if way == "bootstrap":
        variables |= {"PYTHONPATH": str(BOOTSTRAP), "TRACECORE_BOOTSTRAP": "1"}
    with FakeSidecar(tmp_path / "j") as sidecar:
        run = _torchrun(
            *(["--init"] if way == "init" else []),
            **variables,
            TRACECORE_ENDPOINT=sidecar.endpoint,
            TRACECORE_FLUSH_INTERVAL="0.2",
            TRACECORE_JOB_ID="story",
        )
    _digests(run)
    assert "tracecore:" not in run.stderr
    assert {batch.source.job_id for batch in sidecar.batches} == {"story"}
    identities = {record.rank: record for record in sidecar.records(IdentityRecord)}
    assert {rank: i.world_size for rank, i in identities.items()} == {0: 2, 1: 2}
    assert len({identity.pid for identity in identities.values()}) == 2
    for identity in identities.values():
        # Nothing but what needs a device, what this torch lacks, and a queue that may have gone
        # between two looks.
        unseen = {name_in(text) for text in identity.blind}
        of_torch = {name for name in unseen - {"input.queue"} if not BY_NAME[name].is_of_device}
        assert of_torch == unseen_on_gloo(), identity.blind
    groups = {(g.rank, g.pg_name): (g.ranks, g.pg_desc) for g in sidecar.records(GroupRecord)}
    assert groups == {
        (0, "0"): ((0, 1), "default_pg"),
        (1, "0"): ((0, 1), "default_pg"),
        (1, "1"): ((1,), "odd"),
        (0, "2"): ((0, 1), "both"),
        (1, "2"): ((0, 1), "both"),
    }
    for rank in (0, 1):
        last = {p.pg_name: p for p in sidecar.records(ProgressRecord) if p.rank == rank}
        if has_gloo_recorder():
            assert last["2"].enqueued == 1, "the counters of a side group carry its name"
            assert last["0"].enqueued > NUM_STEPS
        else:
            assert not last
        steps = [step for step in sidecar.records(StepRecord) if step.rank == rank]
        assert [step.step for step in steps] == list(range(NUM_STEPS))
        assert {step.num_batches for step in steps} == {1}
        assert all(step.input_ns > 0 for step in steps)
        assert all(step.duration_ns > 20_000_000 for step in steps[1:])
    assert [record.rank for record in sidecar.records(CheckpointRecord)] == [0]
    assert {record.rank for record in sidecar.records(LastWordRecord)} == {0, 1}
    sockets = sorted(path.name for path in (sidecar.path.parent / "0").glob("*.ws"))
    assert sockets == ["r0.ws", "r1.ws"]


def test_loss_is_bit_identical_with_and_without_us(tmp_path: Path) -> None:
    """Losses, parameters and the random state after training are the same bits."""
    with FakeSidecar(tmp_path / "j") as sidecar:
        recorded = _torchrun("--init", TRACECORE_ENDPOINT=sidecar.endpoint)
    assert sidecar.records(StepRecord)
    assert _digests(recorded) == _digests(_torchrun())
