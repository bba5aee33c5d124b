"""The parts of a step under FSDP2, between two real ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.fake_sidecar import FakeSidecar
from tests.support.ranks import PROGRAM, Ranks
from tracecore_train.wire.records import InputRecord, StepRecord

if TYPE_CHECKING:
    from pathlib import Path

torch = pytest.importorskip("torch")
fsdp = pytest.importorskip("torch.distributed.fsdp")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(200),
    pytest.mark.skipif(not hasattr(fsdp, "fully_shard"), reason="this torch has no fully_shard"),
    pytest.mark.skipif(
        not hasattr(torch.cpu.Stream, "record_event"),
        reason="fully_shard of this torch does not run on CPU (torch.cpu.Stream.record_event)",
    ),
]

FSDP_JOB = PROGRAM.parent / "fsdp_job.py"
NUM_STEPS = 12


def test_fully_sharded_steps_are_told_apart_and_unchanged(tmp_path: Path) -> None:
    """Under fully_shard every step has its two backwards, all parts, and no more than it took;
    the parameters are bit for bit those of a job without us.
    """
    with Ranks(tmp_path / "without", endpoint=None, program=FSDP_JOB) as ranks:
        plain = ranks.finish()
    with (
        FakeSidecar(tmp_path / "j") as sidecar,
        Ranks(tmp_path / "with", endpoint=sidecar.endpoint, program=FSDP_JOB) as ranks,
    ):
        ended = ranks.finish()
        assert [rank.returncode for rank in (*plain, *ended)] == [0] * 4, ranks.errors()
    assert [rank.report for rank in ended] == [rank.report for rank in plain]
    found = sidecar.records(StepRecord)
    assert {(step.rank, step.step) for step in found} == {
        (rank, step) for rank in (0, 1) for step in range(NUM_STEPS)
    }
    for step in found:
        assert step.num_backwards == 2
        told = (step.input_ns, step.forward_ns, step.backward_ns, step.optimizer_ns)
        assert min(told) > 0
        assert step.step == 0 or sum(told) <= step.duration_ns
    assert {record.rank for record in sidecar.records(InputRecord)} == {0, 1}
