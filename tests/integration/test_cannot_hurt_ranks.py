"""Ranks that die, are stopped, fork, or get SIGTERM where Python cannot answer."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.support.fake_sidecar import FakeSidecar, wait_until
from tests.support.ranks import PROGRAM, TIMEOUT_S, Ranks, assert_same_bits
from tests.support.real_sidecar import RealSidecar
from tracecore_train.recorder.page import read_page
from tracecore_train.runtime import rank_page
from tracecore_train.wire.records import LastWordRecord, StepRecord

FORK_PROGRAM = PROGRAM.with_name("fork_beside_server.py")
pytest.importorskip("torch")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.parametrize(
    ("action", "code"), [("kill", -signal.SIGKILL), ("exit", 7), ("crash", -signal.SIGSEGV)]
)
def test_sudden_end_keeps_its_exit_code(tmp_path: Path, action: str, code: int) -> None:
    """SIGKILL, os._exit and a crash in C end the rank as without us, at once, and leave a page
    that tells how far it came and no last word.
    """
    with FakeSidecar(tmp_path / "j") as sidecar:
        arguments = ("--do", action, "--do-at", "30")
        with Ranks(tmp_path / "run", *arguments, endpoint=sidecar.endpoint, world_size=1) as ranks:
            (ended,) = ranks.finish()
    assert (ended.returncode, ended.report) == (code, {})
    page = read_page(rank_page(tmp_path / "j", 0, 0), 1)
    assert (page.step, page.last_word) == (30, "")
    assert sidecar.records(LastWordRecord) == []


def test_stopped_rank_is_named_and_goes_on_when_continued(tmp_path: Path) -> None:
    """A rank stopped with SIGSTOP is named while the sidecar goes on; after SIGCONT the job ends
    with the same bits.
    """
    with RealSidecar(tmp_path / "j", tmp_path / "out") as sidecar:
        with Ranks(tmp_path / "run", "--gate", "30", endpoint=sidecar.endpoint) as ranks:
            ranks.wait_at_gate()
            ranks.send(1, signal.SIGSTOP)
            ranks.open_gate()
            wait_until(lambda: sidecar.verdicts, TIMEOUT_S)
            ranks.send(1, signal.SIGCONT)
            assert_same_bits(ranks.finish())
        assert sidecar.end() == 0
    named = {(v["pattern"], s["rank"]) for v in sidecar.verdicts for s in v["suspects"]}
    assert named == {("hang", 1)}
    steps = {(r.rank, r.step) for r in sidecar.records() if isinstance(r, StepRecord)}
    assert steps == {(rank, step) for rank in (0, 1) for step in range(60)}


def test_sigterm_in_a_blocked_collective_ends_the_rank_as_without_us(tmp_path: Path) -> None:
    """A rank that waits in gloo for another dies of SIGTERM, with us as without."""
    codes: dict[bool, list[int]] = {}
    for is_watched in (True, False):
        directory = tmp_path / ("on" if is_watched else "off")
        directory.mkdir()
        with FakeSidecar(directory / "j") as sidecar:
            endpoint = sidecar.endpoint if is_watched else None
            with Ranks(directory / "run", "--gate", "30", endpoint=endpoint) as ranks:
                ranks.wait_at_gate()
                ranks.open_gate([0])
                _wait_until_idle(ranks.processes[0].pid)
                ranks.send(0, signal.SIGTERM)
                ranks.processes[0].wait(TIMEOUT_S)
                ranks.open_gate([1])
                codes[is_watched] = [ended.returncode for ended in ranks.finish()]
    assert codes[True] == codes[False]
    assert codes[True][0] == -signal.SIGTERM


def test_forkserver_loader_workers_change_nothing(tmp_path: Path) -> None:
    """Loader workers that import everything anew: same bits, and only the ranks speak."""
    with (
        FakeSidecar(tmp_path / "j") as sidecar,
        Ranks(tmp_path / "run", "--context", "forkserver", endpoint=sidecar.endpoint) as ranks,
    ):
        pids = {process.pid for process in ranks.processes}
        ended = ranks.finish()
    assert_same_bits(ended)
    assert "tracecore: " not in "".join(rank.stderr for rank in ended)
    assert {batch.source.pid for batch in sidecar.batches} == pids
    steps = sorted((record.rank, record.step) for record in sidecar.records(StepRecord))
    assert steps == [(rank, step) for rank in (0, 1) for step in range(60)]


def test_child_that_exits_normally_leaves_the_worker_server_alone(tmp_path: Path) -> None:
    """A plain fork whose child runs all its clean-up keeps its exit code and neither ends the
    rank nor the rank's worker server.
    """
    path = tmp_path / "j" / "0" / "r0.ws"
    with (
        FakeSidecar(tmp_path / "j") as sidecar,
        Ranks(
            tmp_path / "run",
            str(path),
            endpoint=sidecar.endpoint,
            world_size=1,
            program=FORK_PROGRAM,
        ) as ranks,
    ):
        (ended,) = ranks.finish()
    assert (ended.returncode, ended.stdout) == (0, "7 True\n"), ended.stderr
    assert len(sidecar.records(LastWordRecord)) == 1


def _wait_until_idle(pid: int) -> None:
    """Wait until a process used no CPU for a second: it waits for another rank."""
    ticks = _ticks(pid)
    deadline = time.monotonic() + TIMEOUT_S
    idle_since = time.monotonic()
    while time.monotonic() - idle_since < 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)
        if _ticks(pid) != ticks:
            ticks, idle_since = _ticks(pid), time.monotonic()


def _ticks(pid: int) -> tuple[str, str]:
    """Give the CPU time of a process's main thread."""
    stat = Path(f"/proc/{pid}/task/{pid}/stat").read_text()
    fields = stat.rpartition(")")[2].split()
    return fields[11], fields[12]
