"""Who a rank says it is, from an environment that may be wrong."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tracecore_train.errors import ConfigError
from tracecore_train.identity import read_identity, start_ticks

TORCHRUN = {
    "RANK": "5",
    "LOCAL_RANK": "1",
    "GROUP_RANK": "2",
    "WORLD_SIZE": "8",
    "TORCHELASTIC_RESTART_COUNT": "3",
    "TORCHELASTIC_RUN_ID": "nightly",
}


def test_torchrun_environment_is_read() -> None:
    """Every variable of torchrun lands in its field."""
    identity = read_identity(job_id=None, job_name="dir", environ=TORCHRUN)
    assert (identity.rank, identity.local_rank, identity.node_rank) == (5, 1, 2)
    assert (identity.world_size, identity.attempt, identity.job_id) == (8, 3, "nightly")
    assert (identity.pid, identity.start_ticks) == (os.getpid(), start_ticks(os.getpid()))


def test_no_rank_is_rank_0_of_1() -> None:
    """Without RANK a leftover WORLD_SIZE is not believed."""
    identity = read_identity(job_id=None, job_name="dir", environ={"WORLD_SIZE": "8"})
    assert (identity.rank, identity.world_size, identity.job_id) == (0, 1, "dir")


@pytest.mark.parametrize(
    ("job_id", "extra", "expected"),
    [
        ("mine", {"SLURM_JOB_ID": "7"}, "mine"),
        (None, {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}, "7.0"),
        (None, {"TORCHELASTIC_RUN_ID": "none"}, "dir"),
    ],
)
def test_job_id_by_precedence(job_id: str | None, extra: dict[str, str], expected: str) -> None:
    """The setting wins, then the scheduler; torchrun's default names nothing."""
    assert read_identity(job_id=job_id, job_name="dir", environ=extra).job_id == expected


@pytest.mark.parametrize("rank", ["8", "-1", "five", "٣", "1e3", "9" * 5000])
def test_impossible_rank_is_named(rank: str) -> None:
    """A RANK outside the world is an error that says which variable."""
    with pytest.raises(ConfigError, match=r"^RANK="):
        read_identity(job_id=None, job_name="dir", environ={"RANK": rank, "WORLD_SIZE": "8"})


def test_start_ticks_tell_processes_apart() -> None:
    """A living process has start ticks, not before its parent's; a process that is gone has 0."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert start_ticks(child.pid) >= start_ticks(os.getpid()) > 0
    finally:
        child.communicate(b"\n", timeout=30)
    assert start_ticks(child.pid) == 0
