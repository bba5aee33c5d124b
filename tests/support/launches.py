"""Runs `tracecore run` beside a fake sidecar, and plain torchrun to compare with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracecore_train.wire.otlp import decode_logs
from tracecore_train.wire.records import RendezvousRecord, WorkerExitRecord

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable

    from tracecore_train.wire.records import Source

ROOT = Path(__file__).resolve().parents[2]
FAKE_SIDECAR = ROOT / "tests" / "support" / "programs" / "fake_sidecar.py"
TIMEOUT_S = 100
_LAUNCH = """
import sys
from tracecore_integrations import sidecar_process, torchrun
sidecar_process.SIDECAR_COMMAND = (sys.executable, {fake!r})
sys.exit(torchrun.main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Ended:
    """A command that ended."""

    returncode: int
    stdout: str
    stderr: str


class Launch:
    """One `tracecore run` in a directory of its own, with its runtime directory inside."""

    def __init__(self, directory: Path) -> None:
        """Prepare in an empty directory."""
        self.directory = directory
        self.output = directory / "out"
        self.runtime = directory / "rt"

    def script(self, text: str, name: str = "script.py") -> Path:
        """Write a script into the directory."""
        path = self.directory / name
        path.write_text(text)
        return path

    def start(self, *arguments: str, **environ: str) -> subprocess.Popen[str]:
        """Start `tracecore run --output ... ARGUMENTS`."""
        launch = _LAUNCH.format(fake=str(FAKE_SIDECAR))
        command = [sys.executable, "-c", launch, "--output", str(self.output), *arguments]
        return self._popen(command, environ)

    def run(self, *arguments: str, **environ: str) -> Ended:
        """Run `tracecore run --output ... ARGUMENTS` to its end."""
        return finish(self.start(*arguments, **environ))

    def torchrun(self, *arguments: str, **environ: str) -> Ended:
        """Run plain torchrun in the same directory and environment."""
        command = [sys.executable, "-m", "torch.distributed.run", *arguments]
        return finish(self._popen(command, environ))

    def _popen(self, command: list[str], environ: dict[str, str]) -> subprocess.Popen[str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("TRACECORE_")}
        return subprocess.Popen(
            command,
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **inherited,
                "OMP_NUM_THREADS": "1",
                "TRACECORE_RUNTIME_DIR": str(self.runtime),
                **environ,
            },
        )

    @property
    def sidecar(self) -> dict[str, Any]:
        """What the fake sidecar was started with."""
        found: dict[str, Any] = json.loads((self.output / "argv.json").read_text())
        return found

    def received(self) -> list[tuple[Source, RendezvousRecord | WorkerExitRecord]]:
        """The launcher's records, in the order they came."""
        return [
            (batch.source, record)
            for path in sorted(self.output.glob("*.body"))
            for batch in decode_logs(path.read_bytes())
            for record in batch.records
            if isinstance(record, (RendezvousRecord, WorkerExitRecord))
        ]

    def rendezvous(self) -> list[tuple[Source, RendezvousRecord]]:
        """The starts of workers."""
        return [(s, r) for s, r in self.received() if isinstance(r, RendezvousRecord)]

    def exits(self) -> list[tuple[Source, WorkerExitRecord]]:
        """The ends of workers."""
        return [(s, r) for s, r in self.received() if isinstance(r, WorkerExitRecord)]


def finish(process: subprocess.Popen[str], timeout_s: float = TIMEOUT_S) -> Ended:
    """Wait for a command; kill it when it takes too long."""
    try:
        stdout, stderr = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        stdout, stderr = process.communicate()
        raise AssertionError(f"did not end in {timeout_s} s:\n{stdout}\n{stderr}") from None
    return Ended(process.returncode, stdout, stderr)


def wait_for(condition: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> None:
    """Wait until a condition holds, or fail."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Say whether a process exists and is no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def send(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Send a signal to a launcher alone, not to its group."""
    os.kill(process.pid, number)
