"""Who a rank says it is, from an environment that may be wrong."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tracecore_train.errors import ConfigError
from tracecore_train.identity import read_identity, start_ticks
from tracecore_train.wire.otlp import resource_of

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


LIGHTNING_CHILD = {"LOCAL_RANK": "1", "WORLD_SIZE": "4", "NODE_RANK": "0"}


def test_lightnings_own_child_is_its_local_rank() -> None:
    """Lightning gives its children no RANK; on the first node LOCAL_RANK is the rank."""
    identity = read_identity(job_id=None, job_name="dir", environ=LIGHTNING_CHILD)
    assert (identity.rank, identity.local_rank, identity.world_size) == (1, 1, 4)


def test_a_rank_that_cannot_be_known_is_an_error() -> None:
    """On a later node, without RANK and process group, nobody is guessed."""
    environ = {**LIGHTNING_CHILD, "NODE_RANK": "1"}
    with pytest.raises(ConfigError, match="NODE_RANK"):
        read_identity(job_id=None, job_name="dir", environ=environ)


def test_process_group_knows_the_rank_where_the_environment_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without RANK the rank is the one torch's process group was made with."""
    dist = pytest.importorskip("torch.distributed")
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 5)
    monkeypatch.setattr(dist, "get_world_size", lambda: 8)
    environ = {**LIGHTNING_CHILD, "NODE_RANK": "1"}
    identity = read_identity(job_id=None, job_name="dir", environ=environ)
    assert (identity.rank, identity.world_size) == (5, 8)
    assert (identity.local_rank, identity.node_rank) == (1, 1)


def test_environment_wins_over_the_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """RANK is the launcher's word, and the launcher's records carry the same."""
    dist = pytest.importorskip("torch.distributed")
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    assert read_identity(job_id=None, job_name="dir", environ=TORCHRUN).rank == 5


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


def test_a_name_that_is_no_utf8_can_be_sent() -> None:
    """A stray byte in the job id costs that character, not every record of the rank."""
    identity = read_identity(job_id="train\udcff", job_name="dir", environ={})
    assert identity.job_id == "train?"
    assert resource_of(identity.source(0)).attributes
