"""What the launcher tells the sidecar about workers, and how both end."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.support.launches import Launch, finish, is_running, send, wait_for

if TYPE_CHECKING:
    from pathlib import Path

SLEEP = """
import os, pathlib, time
pathlib.Path(f"pid{os.environ['RANK']}").write_text(str(os.getpid()))
time.sleep(300)
"""


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    return Launch(tmp_path)


def test_normal_ends_are_reported(launch: Launch) -> None:
    """Two workers that end well give one rendezvous and two exits with code 0."""
    script = launch.script("import os; open(os.environ['RANK'], 'w').write(str(os.getpid()))")
    ended = launch.run("--job-id", "job7", "--nproc-per-node", "2", str(script))
    assert ended.returncode == 0, ended.stderr
    pids = {rank: int((launch.directory / str(rank)).read_text()) for rank in (0, 1)}
    ((source, rendezvous),) = launch.rendezvous()
    assert (rendezvous.world_size, rendezvous.ranks) == (2, (0, 1))
    assert rendezvous.pids == (pids[0], pids[1])
    assert (source.job_id, source.attempt, source.node_rank) == ("job7", 0, 0)
    assert source.host == os.uname().nodename
    assert {(r.rank, r.pid, r.exit_code, r.signal) for _, r in launch.exits()} == {
        (0, pids[0], 0, None),
        (1, pids[1], 0, None),
    }


def test_restarts_are_attempts_of_one_job(launch: Launch) -> None:
    """--max-restarts 1 gives the rendezvous and exits of attempt 0 and of attempt 1."""
    script = launch.script("import os, sys; sys.exit(5 + int(os.environ['RANK']))")
    ended = launch.run("--nproc-per-node", "1", "--max-restarts", "1", str(script))
    assert ended.returncode == 1
    assert [source.attempt for source, _ in launch.rendezvous()] == [0, 1]
    assert [(s.attempt, r.exit_code) for s, r in launch.exits()] == [(0, 5), (1, 5)]


def test_a_killed_worker_and_the_ones_torchrun_kills_are_told_apart(launch: Launch) -> None:
    """The killed worker's exit says signal 9, that of the one torchrun then ends says 15."""
    script = launch.script(SLEEP)
    process = launch.start("--nproc-per-node", "2", str(script))
    paths = [launch.directory / f"pid{rank}" for rank in (0, 1)]
    wait_for(lambda: all(path.exists() and path.read_text() for path in paths))
    os.kill(int(paths[1].read_text()), signal.SIGKILL)
    assert finish(process).returncode == 1
    exits = [record for _, record in launch.exits()]
    assert {(r.rank, r.exit_code, r.signal) for r in exits} == {(1, None, 9), (0, None, 15)}


def test_a_failed_worker_is_reported_while_torchrun_still_stops_the_others(
    launch: Launch,
) -> None:
    """The first exit is seen at once, not when the slowest of the others has ended."""
    text = SLEEP.replace(
        "import os,", "import signal; signal.signal(15, signal.SIG_IGN)\nimport os,"
    )
    script = launch.script(text)
    process = launch.start("--nproc-per-node", "2", "--shutdown-timeout", "4", str(script))
    paths = [launch.directory / f"pid{rank}" for rank in (0, 1)]
    wait_for(lambda: all(path.exists() and path.read_text() for path in paths))
    os.kill(int(paths[0].read_text()), signal.SIGKILL)
    wait_for(lambda: len(launch.exits()) == 1)
    assert process.poll() is None
    assert finish(process).returncode == 1
    first, second = (record for _, record in launch.exits())
    assert (first.rank, second.rank, second.signal) == (0, 1, 9)
    assert second.time_ns - first.time_ns > 2e9


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_ends_everything(launch: Launch, number: signal.Signals) -> None:
    """Workers get the signal, the sidecar its time for a summary, and nothing is left."""
    script = launch.script(SLEEP)
    process = launch.start("--nproc-per-node", "1", str(script))
    path = launch.directory / "pid0"
    wait_for(lambda: path.exists() and bool(path.read_text()))
    wait_for(lambda: bool(launch.rendezvous()))
    sidecar_pid = launch.sidecar["pid"]
    send(process, number)
    ended = finish(process)
    assert ended.returncode == 1
    assert "SignalException" in ended.stderr
    assert ended.stderr.rstrip().endswith("fake sidecar: summary")
    assert not is_running(int(path.read_text()))
    assert not is_running(sidecar_pid)
    assert [record.signal for _, record in launch.exits()] == [number]
    assert list(launch.runtime.iterdir()) == []


def test_a_second_signal_does_not_wait_for_the_sidecar(launch: Launch) -> None:
    """A sidecar that will not end is killed at once when the user insists."""
    script = launch.script("pass")
    process = launch.start("--nproc-per-node", "1", str(script), FAKE_SIDECAR="stubborn")
    wait_for((launch.output / "asked").exists)
    send(process, signal.SIGINT)
    ended = finish(process, timeout_s=8)
    assert ended.returncode == 0
    assert not is_running(launch.sidecar["pid"])


@pytest.mark.parametrize("mode", ["exit", "deaf"])
def test_the_job_runs_without_a_working_sidecar(launch: Launch, mode: str) -> None:
    """A sidecar that ends or never listens costs one line, not the job."""
    script = launch.script("print('trained')")
    ended = launch.run("--nproc-per-node", "1", str(script), FAKE_SIDECAR=mode)
    assert (ended.returncode, ended.stdout.splitlines()[0]) == (0, "trained")
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("tracecore:")]
    expected = {"exit": "sidecar ended before the job (exit code 3)", "deaf": "did not reach"}
    assert expected[mode] in line


def test_the_job_runs_where_no_runtime_directory_can_be_had(launch: Launch) -> None:
    """A runtime directory that cannot be made costs one line, not the job."""
    launch.runtime.write_text("a file")
    script = launch.script("print('trained')")
    ended = launch.run("--nproc-per-node", "1", str(script))
    assert (ended.returncode, ended.stdout) == (0, "trained\n")
    assert "no sidecar, the job runs without one" in ended.stderr


def test_the_sidecar_is_told_about_the_job(launch: Launch) -> None:
    """Job id, node rank, parent and display reach the sidecar; the rank variables do not."""
    script = launch.script("pass")
    process = launch.start(
        *("--quiet", "--job-id", "a job/1"), *("--nproc-per-node", "1"), str(script)
    )
    launcher_pid = process.pid
    assert finish(process).returncode == 0
    options = launch.sidecar["options"]
    assert options["--job-id"] == "a job/1"
    assert options["--node-rank"] == "0"
    assert options["--parent-pid"] == str(launcher_pid)
    assert options["--display"] == "quiet"
    assert "TRACECORE_BOOTSTRAP" not in launch.sidecar["environ"]


def test_two_launchers_of_one_job_on_one_host_do_not_share_a_socket(launch: Launch) -> None:
    """A second launcher with the same job id takes a directory of its own."""
    other = Launch(launch.directory / "other")
    other.directory.mkdir()
    other.runtime = launch.runtime
    script = str(launch.script(SLEEP))
    first = launch.start("--job-id", "same", "--nproc-per-node", "1", script)
    wait_for(lambda: (launch.output / "argv.json").exists())
    second = other.run("--job-id", "same", "--nproc-per-node", "1", str(other.script("pass")))
    assert second.returncode == 0, second.stderr
    assert len(other.exits()) == 1
    wait_for(lambda: len(launch.rendezvous()) == 1)
    assert first.poll() is None
    send(first, signal.SIGTERM)
    finish(first)
    assert len(launch.exits()) == 1
    directories = {one.sidecar["options"]["--job-dir"] for one in (launch, other)}
    assert len(directories) == 2


def test_a_launcher_terminated_in_the_rendezvous_dies_like_torchrun(launch: Launch) -> None:
    """SIGTERM while waiting for other nodes ends the launcher at once, by that signal."""
    script = launch.script("pass")
    process = launch.start(
        *("--job-id", "j", "--nnodes", "2", "--node-rank", "0"),
        *("--master-port", "0", str(script)),
    )
    wait_for((launch.output / "argv.json").exists)
    pid = launch.sidecar["pid"]
    send(process, signal.SIGTERM)
    assert finish(process).returncode == -signal.SIGTERM
    wait_for(lambda: not is_running(pid))
