"""A real job breaks: the summary names the rank that failed first, and how."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.jobs import run_job

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("torch")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

PROGRAM = """
import os, signal, sys, time, torch, tracecore_train
rank = int(os.environ["RANK"])
for step in range(20):
    tracecore_train.log(loss=1 / (step + 1))
    tracecore_train.step()
    time.sleep(0.05)
if rank == 1:
    {ending}
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("ending", "kind", "text"),
    [
        ("raise ValueError('bad shard')", "exception", "ValueError in <module> (job.py:"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "signal", "killed by signal 9 (SIGKILL)"),
    ],
)
def test_the_first_to_fail_is_named_and_the_other_is_a_consequence(
    tmp_path: Path, ending: str, kind: str, text: str
) -> None:
    """Rank 1 fails, torchrun ends rank 0 by SIGTERM: rank 1 is first, rank 0 was terminated."""
    program = tmp_path / "job.py"
    program.write_text(PROGRAM.format(ending=ending))
    job = run_job(tmp_path, program=program, torchrun=("--monitor-interval", "0.2"))
    assert job.returncode == 1
    ends = job.summary["ends"]["0"]
    assert (ends["1"]["kind"], ends["1"]["is_first"]) == (kind, True)
    assert ends["1"]["text"].startswith(text)
    assert (ends["0"]["kind"], ends["0"]["exit_code"]) == ("terminated", -15)
    assert f"rank 1: {text}" in job.stderr
    assert "rank 0: ended by the launcher: SIGTERM after rank 1 had failed" in job.stderr
