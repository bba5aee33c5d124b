"""Runs the ranks of a short gloo job as plain processes, with and without us, and times them.

Ranks start under the bootstrap, as ``tracecore run`` starts them, but without torchrun: each
rank's own exit code can be read, and a job takes seconds less.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tracecore_train
from tests.support.fake_sidecar import wait_until

if TYPE_CHECKING:
    import signal
    from collections.abc import Sequence
    from types import TracebackType

BOOTSTRAP = Path(tracecore_train.__file__).parent / "bootstrap"
PROGRAM = Path(__file__).parent / "programs" / "short_job.py"
JOB_ID = "short"
TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Ended:
    """A rank that ended. ``report`` is what the program said; empty when it never came there."""

    returncode: int
    stdout: str
    stderr: str
    report: dict[str, Any]

    @property
    def exit_s(self) -> float:
        """Seconds between the program's last line and the last callback of the exit, ours among
        them. What the interpreter tears down after that takes seconds of noise.
        """
        return float(self.report["gone_s"]) - float(self.report["end_s"])

    @property
    def train_s(self) -> float:
        """Seconds of training."""
        return float(self.report["train_s"])


class Ranks:
    """The ranks of one job, killed at the end of the ``with`` block."""

    def __init__(
        self,
        directory: Path,
        *arguments: str,
        endpoint: str | None,
        world_size: int = 2,
        program: Path = PROGRAM,
        **environ: str,
    ) -> None:
        """Start them in ``directory``; ``endpoint`` None: without us."""
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.processes = []
        for rank in range(world_size):
            out, err = (directory / f"r{rank}.{name}" for name in ("out", "err"))
            with out.open("wb") as stdout, err.open("wb") as stderr:
                process = subprocess.Popen(
                    [sys.executable, str(program), *arguments],
                    cwd=directory,
                    env=_environment(rank, world_size, endpoint) | environ,
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                )
            self.processes.append(process)

    def __enter__(self) -> Ranks:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()

    def wait_at_gate(self) -> None:
        """Wait until every rank stands at the gate."""
        names = [f"at.{rank}" for rank in range(len(self.processes))]

        def is_there() -> bool:
            assert all(process.poll() is None for process in self.processes), self.errors()
            return all((self.directory / name).exists() for name in names)

        wait_until(is_there, TIMEOUT_S)

    def open_gate(self, ranks: Sequence[int] = (0, 1)) -> None:
        """Let ranks go on."""
        for rank in ranks:
            (self.directory / f"go.{rank}").touch()

    def send(self, rank: int, number: signal.Signals) -> None:
        """Send a signal to a rank."""
        os.kill(self.processes[rank].pid, number)

    def errors(self) -> str:
        """What the ranks wrote to standard error so far."""
        paths = sorted(self.directory.glob("r*.err"))
        return "\n".join(path.read_text(errors="replace") for path in paths)

    def has_ended(self, rank: int) -> bool:
        """Say whether a rank is gone."""
        return self.processes[rank].poll() is not None

    def finish(self, timeout_s: float = TIMEOUT_S) -> list[Ended]:
        """Wait for all ranks."""
        deadline = time.monotonic() + timeout_s
        while not all(self.has_ended(rank) for rank in range(len(self.processes))):
            assert time.monotonic() < deadline, f"not ended in {timeout_s} s:\n{self.errors()}"
            time.sleep(0.02)
        return [self._ended(rank) for rank in range(len(self.processes))]

    def _ended(self, rank: int) -> Ended:
        stdout = (self.directory / f"r{rank}.out").read_text()
        lines = [json.loads(line) for line in stdout.splitlines() if line.startswith("{")]
        return Ended(
            returncode=self.processes[rank].returncode,
            stdout=stdout,
            stderr=(self.directory / f"r{rank}.err").read_text(errors="replace"),
            report=dict(pair for line in lines for pair in line.items()),
        )


@functools.cache
def plain_job() -> tuple[Ended, ...]:
    """Run the job once without us, to compare with."""
    with (
        tempfile.TemporaryDirectory() as directory,
        Ranks(Path(directory), endpoint=None) as ranks,
    ):
        ended = tuple(ranks.finish())
    assert [rank.returncode for rank in ended] == [0, 0], ended
    return ended


def assert_same_bits(ended: Sequence[Ended]) -> None:
    """Every rank ended well and has the parameters and random state it has without us."""
    for rank, (ours, theirs) in enumerate(zip(ended, plain_job(), strict=True)):
        assert ours.returncode == 0, ours.stderr
        assert ours.report["digest"] == theirs.report["digest"], f"rank {rank} computed otherwise"


def assert_unhurt(ended: Sequence[Ended]) -> None:
    """Every rank ended well, computed the same bits, and took no time beyond noise.

    The noise of this kind of machine is large; what is caught is a wait: one answer's deadline
    on the training thread, or an exit held for longer than promised.
    """
    assert_same_bits(ended)
    for rank, (ours, theirs) in enumerate(zip(ended, plain_job(), strict=True)):
        assert ours.train_s < theirs.train_s * 1.3 + 0.7, f"rank {rank} trained longer"
        assert ours.exit_s < theirs.exit_s + 1.0, f"rank {rank} left later"


def _environment(rank: int, world_size: int, endpoint: str | None) -> dict[str, str]:
    inherited = {name: text for name, text in os.environ.items() if "TRACECORE" not in name}
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    ours = {
        "PYTHONPATH": str(BOOTSTRAP),
        "TRACECORE_BOOTSTRAP": "1",
        "TRACECORE_ENDPOINT": endpoint or "",
        "TRACECORE_JOB_ID": JOB_ID,
        "TRACECORE_FLUSH_INTERVAL": "0.2",
    }
    return {**inherited, "OMP_NUM_THREADS": "1", **place, **(ours if endpoint else {})}
