"""Runtime and output directories that are full, read-only, too deep, or littered."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.fake_sidecar import FakeSidecar, wait_until
from tests.support.launches import Launch
from tests.support.ranks import TIMEOUT_S, Ranks, assert_same_bits, assert_unhurt
from tests.support.real_sidecar import RealSidecar
from tests.support.small_disk import SmallDisk, small_disk
from tracecore_train.recorder.page import read_page
from tracecore_train.runtime import MAX_SOCKET_PATH, rank_page
from tracecore_train.wire.records import (
    CollectiveRecord,
    IdentityRecord,
    RankPageRecord,
    StepRecord,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RankRecord = CollectiveRecord | RankPageRecord | StepRecord
pytest.importorskip("torch")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "d") as mounted:
        yield mounted


@pytest.mark.parametrize("state", ["full", "read-only"])
def test_runtime_directory_without_room_costs_the_rank_page(
    tmp_path: Path, disk: SmallDisk, state: str
) -> None:
    """Where no page can be made the job trains on, records arrive, and the page is blind."""
    with FakeSidecar(disk.path / "j") as sidecar:
        if state == "full":
            disk.fill()
        else:
            disk.make_read_only()
        with Ranks(tmp_path / "run", endpoint=sidecar.endpoint) as ranks:
            assert_unhurt(ranks.finish())
        identities = sidecar.records(IdentityRecord)
    assert {record.rank for record in identities} == {0, 1}
    assert all("rank_page: " in " ".join(record.blind) for record in identities)
    steps = {(record.rank, record.step) for record in sidecar.records(StepRecord)}
    assert steps == {(rank, step) for rank in (0, 1) for step in range(60)}


def test_runtime_directory_that_fills_up_kills_nobody(tmp_path: Path, disk: SmallDisk) -> None:
    """A tmpfs that fills while the pages are mapped gives no SIGBUS, and the pages go on."""
    with (
        FakeSidecar(disk.path / "j") as sidecar,
        Ranks(tmp_path / "run", "--gate", "30", endpoint=sidecar.endpoint) as ranks,
    ):
        ranks.wait_at_gate()
        disk.fill()
        ranks.open_gate()
        assert_unhurt(ranks.finish())
    pages = [read_page(rank_page(disk.path / "j", 0, rank), 1) for rank in (0, 1)]
    assert [(page.step, page.last_word) for page in pages] == [(60, "exit")] * 2


def test_too_long_socket_path_leaves_the_rank_alone(tmp_path: Path) -> None:
    """An endpoint longer than a unix socket path records nothing and ends well and on time."""
    deep = tmp_path / ("d" * MAX_SOCKET_PATH)
    program = (
        "import time, tracecore_train\n"
        "session = tracecore_train.init(flush_interval=0.1)\n"
        "for _ in range(3): tracecore_train.step(); time.sleep(0.1)\n"
        "began = time.monotonic(); session.stop(); print(time.monotonic() - began < 1.0)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TRACECORE_ENDPOINT": f"unix:{deep}/otlp.sock"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "True\n", "")


def test_too_long_runtime_directory_costs_the_sidecar(tmp_path: Path) -> None:
    """The launcher says in one line which directory is too long; the job runs without us."""
    launch = Launch(tmp_path)
    launch.runtime = tmp_path / ("d" * MAX_SOCKET_PATH)
    script = launch.script("print('trained')")
    ended = launch.run("--nproc-per-node", "1", str(script))
    assert (ended.returncode, ended.stdout) == (0, "trained\n")
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("tracecore:")]
    assert "no sidecar, the job runs without one" in line
    assert f"the system allows {MAX_SOCKET_PATH}" in line


def test_litter_of_a_dead_job_is_replaced(tmp_path: Path) -> None:
    """Sockets nobody listens on, claims of dead processes and old pages do not stop a new job:
    pages are fresh, and both ranks' flight recorders are read.
    """
    attempt = tmp_path / "j" / "0"
    attempt.mkdir(mode=0o700, parents=True)
    (tmp_path / "j").chmod(0o700)
    for path in (tmp_path / "j" / "otlp.sock", attempt / "r0.ws", attempt / "r1.ws"):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
    (attempt / "r0.claim").write_text("4194303 1")
    (attempt / "r1.claim").write_bytes(b"\xff" * 100)
    (attempt / "r0.page").write_bytes(b"\0" * 4096)
    (attempt / "r1.page").write_bytes(b"old")
    with RealSidecar(tmp_path / "j", tmp_path / "out") as sidecar:
        with Ranks(tmp_path / "run", "--gate", "30", endpoint=sidecar.endpoint) as ranks:
            ranks.wait_at_gate()
            wait_until(lambda: _ranks(sidecar, CollectiveRecord) == {0, 1}, TIMEOUT_S)
            ranks.open_gate()
            assert_unhurt(ranks.finish())
        assert sidecar.end() == 0
    assert _ranks(sidecar, RankPageRecord) == {0, 1}
    assert _ranks(sidecar, StepRecord) == {0, 1}


@pytest.mark.parametrize("state", ["full", "read-only"])
def test_output_that_takes_nothing_costs_the_files_only(
    tmp_path: Path, disk: SmallDisk, state: str
) -> None:
    """The sidecar says which file it cannot write, once, still names the rank that stays away,
    and ends well; the job notices nothing.
    """
    if state == "full":
        disk.fill()
    else:
        disk.make_read_only()
    with RealSidecar(tmp_path / "j", disk.path / "out") as sidecar:
        with Ranks(tmp_path / "run", "--gate", "30", endpoint=sidecar.endpoint) as ranks:
            ranks.wait_at_gate()
            ranks.open_gate([0])
            wait_until(lambda: "HANG  rank 1" in sidecar.errors, TIMEOUT_S)
            ranks.open_gate([1])
            assert_same_bits(ranks.finish())
        assert sidecar.end() == 0, sidecar.errors
    complaints = [line for line in sidecar.errors.splitlines() if "cannot" in line]
    assert complaints
    assert len(complaints) == len(set(complaints)), sidecar.errors
    assert "Traceback" not in sidecar.errors


def _ranks(sidecar: RealSidecar, record_type: type[RankRecord]) -> set[int]:
    return {record.rank for record in sidecar.records() if isinstance(record, record_type)}
