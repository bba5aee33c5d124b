"""A real job whose checkpoint takes far longer than those before: told by name while it lasts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.fake_sidecar import wait_until
from tests.support.live_jobs import LiveJob
from tracecore_sidecar.replay import replay_path, verdict_json

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("torch")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

PROGRAM = """
import io, os, sys, time, torch, torch.distributed as dist, tracecore_train

class Storage(io.BytesIO):
    def __init__(self, is_stuck):
        super().__init__()
        self.until = time.monotonic() + (120 if is_stuck else float(sys.argv[1]))
        self.is_stuck = is_stuck

    def write(self, data):
        while time.monotonic() < self.until and not (self.is_stuck and os.path.exists("released")):
            time.sleep(0.05)
        return super().write(data)

dist.init_process_group("gloo")
for epoch in range(5):
    for step in range(5):
        dist.all_reduce(torch.ones(3))
        time.sleep(0.03)
        tracecore_train.step()
    with tracecore_train.phase("validation"):
        time.sleep(0.3)
    if dist.get_rank() == 0:
        torch.save({"weights": torch.ones(9)}, Storage(epoch == 4 and "stuck" in sys.argv))
dist.barrier()
dist.destroy_process_group()
"""


def test_the_fifth_checkpoint_that_does_not_end_is_told_by_name(tmp_path: Path) -> None:
    """Four saves of 1.1 s, then one that hangs in its storage: rank 0 is named, in that save.

    The rank that waits for it is not, nor are the validations; replay judges the same.
    """
    program = tmp_path / "job.py"
    program.write_text(PROGRAM)
    with LiveJob(tmp_path, program, "1.1", "stuck") as job:
        wait_until(lambda: bool(job.verdicts()) or not job.is_alive, 100)
        told = job.verdicts()
        (tmp_path / "released").touch()
        assert job.wait_for_end() == 0, job.errors
    assert told, job.errors
    (verdict,) = told
    assert (verdict["pattern"], verdict["class"]) == ("long_pause", "checkpoint")
    assert verdict["severity"] == "warning"
    assert [suspect["rank"] for suspect in verdict["suspects"]] == [0]
    assert verdict["summary"].startswith("rank 0 has been in a checkpoint call for ")
    assert "longest of 4 before: " in verdict["summary"]
    assert any("write (" in item["text"] for item in verdict["evidence"])
    assert verdict["cost"]["text"].startswith("2 of 2 ranks stand still")
    events = [item for item in replay_path(job.output) if item.event.change == "opened"]
    replayed = [verdict_json(item) for item in events]
    assert [(v["pattern"], len(v["suspects"])) for v in replayed] == [("long_pause", 1)]


def test_pauses_of_equal_length_are_silent(tmp_path: Path) -> None:
    """Five saves of 1.1 s each, with four of them as history, give no finding."""
    program = tmp_path / "job.py"
    program.write_text(PROGRAM)
    with LiveJob(tmp_path, program, "1.1") as job:
        assert job.wait_for_end() == 0, job.errors
    assert job.verdicts() == []
