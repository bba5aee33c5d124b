"""Runs the smallest job there is, a rank of one beside a real sidecar, and says what arrived.

The rank is ``python -m tracecore_train.trial`` with the user's own environment, so that what the
doctor sees is what a job would get. Both processes and their directories are gone afterwards.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracecore_sidecar.sinks.record_file import read_records
from tracecore_train import runtime
from tracecore_train.config import load_config
from tracecore_train.errors import TracecoreError
from tracecore_train.wire.records import IdentityRecord, StackRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tracecore_train.wire.records import Record

LOOK_S = 0.2
ARRIVAL_S = 12.0
"""How long records may take after the rank is ready: a hand-over, ticks, a pull, a flush. On an
idle machine 4 s."""
END_S = 10.0
"""How long rank and sidecar may take to end before they are killed."""
MAX_STDERR = 2_000
_NOT_INHERITED = (
    "TRACECORE_ENDPOINT",
    "TRACECORE_JOB_ID",
    "TRACECORE_FAULT",
    "TRACECORE_BOOTSTRAP",
    "TRACECORE_LISTEN",
    "TRACECORE_ON_HANG",
    "RANK",
    "LOCAL_RANK",
    "GROUP_RANK",
    "NODE_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
)
_NOT_INHERITED_BEGINNINGS = ("OTEL_", "TORCHELASTIC_", "SLURM_")


@dataclass(kw_only=True)
class Trial:
    """What came of it."""

    problems: list[str] = field(default_factory=list)
    """Why the path does not work; empty: it does."""
    said: dict[str, Any] = field(default_factory=dict)
    """What the rank said of itself on its standard output."""
    records: list[Record] = field(default_factory=list)
    """What the sidecar got to know, stacks included."""

    @property
    def identity(self) -> IdentityRecord | None:
        """How the rank last introduced itself."""
        found = [record for record in self.records if isinstance(record, IdentityRecord)]
        return found[-1] if found else None


def run_trial(
    *,
    timeout_s: float,
    tell: Callable[[str], None],
    is_enough: Callable[[list[Record]], bool],
    environ: Mapping[str, str],
) -> Trial:
    """Run it. ``is_enough`` ends the wait for records early; ``tell`` hears what is going on."""
    trial = Trial()
    job_id = f"doctor-{os.getpid()}"
    environ = _inherited(environ)
    try:
        if load_config(environ=environ).disable:
            trial.problems.append("ranks record nothing: TRACECORE_DISABLE is set")
            return trial
        job_dir = runtime.make_private_dir(runtime.job_dir(job_id).absolute())
        runtime.checked_socket_path(runtime.sidecar_socket(job_dir))
    except TracecoreError as error:
        trial.problems.append(str(error))
        return trial
    try:
        with tempfile.TemporaryDirectory(prefix="tracecore-doctor-") as scratch:
            _Run(trial, job_id, job_dir, Path(scratch), environ, timeout_s).run(tell, is_enough)
    finally:
        shutil.rmtree(job_dir, ignore_errors=True)
    return trial


class _Run:
    """The two processes and the deadlines of one trial."""

    def __init__(
        self,
        trial: Trial,
        job_id: str,
        job_dir: Path,
        scratch: Path,
        environ: Mapping[str, str],
        timeout_s: float,
    ) -> None:
        self._trial = trial
        self._job_id = job_id
        self._job_dir = job_dir
        self._scratch = scratch
        self._environ = environ
        self._deadline = time.monotonic() + timeout_s

    def run(self, tell: Callable[[str], None], is_enough: Callable[[list[Record]], bool]) -> None:
        problems = self._trial.problems
        tell("starting a sidecar")
        with self._process("sidecar", self._sidecar_command(), self._environ) as sidecar:
            if not self._wait(sidecar, runtime.sidecar_socket(self._job_dir).exists):
                problems.append(f"the sidecar did not start{self._errors('sidecar')}")
                return
            tell("starting a rank (this imports torch)")
            with self._process("rank", self._rank_command(), self._rank_environ()) as rank:
                is_ready = self._wait(rank, self._is_ready)
                if is_ready:
                    _ask_for_stacks(sidecar, rank.pid)
                    self._judge(tell, is_enough)
                elif rank.poll() is None:
                    problems.append("the rank was not ready in time; try a longer --timeout")
                else:
                    problems.append(
                        f"the rank ended with exit code {rank.returncode}{self._errors('rank')}"
                    )

    def _judge(
        self, tell: Callable[[str], None], is_enough: Callable[[list[Record]], bool]
    ) -> None:
        trial = self._trial
        if not trial.said.get("is_recording"):
            trial.problems.append(f"the rank records nothing{self._errors('rank')}")
            return
        tell("waiting for its records")
        deadline = time.monotonic() + ARRIVAL_S
        while time.monotonic() < deadline:
            trial.records = [*self._records(), *self._stacks()]
            if is_enough(trial.records):
                break
            time.sleep(LOOK_S)
        if trial.identity is None:
            trial.problems.append(
                f"nothing of the rank reached the sidecar{self._errors('sidecar')}"
            )

    @contextlib.contextmanager
    def _process(
        self, name: str, command: list[str], environ: Mapping[str, str]
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Start a process and end it: by the end of its input, SIGTERM, at last SIGKILL."""
        with (
            (self._scratch / f"{name}.out").open("wb") as stdout,
            (self._scratch / f"{name}.err").open("wb") as stderr,
        ):
            process = subprocess.Popen(
                command,
                cwd=self._scratch,
                env=environ,
                stdin=subprocess.PIPE,
                stdout=stdout,
                stderr=stderr,
            )
        try:
            yield process
        finally:
            if name == "sidecar":
                process.terminate()
            if process.stdin is not None:
                with contextlib.suppress(OSError):
                    process.stdin.close()
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _wait(self, process: subprocess.Popen[bytes], is_so: Callable[[], bool]) -> bool:
        while time.monotonic() < self._deadline and process.poll() is None:
            if is_so():
                return True
            time.sleep(LOOK_S / 4)
        return is_so()

    def _is_ready(self) -> bool:
        for said in self._said_by("rank"):
            self._trial.said.update(said)
        return bool(self._trial.said.get("is_ready"))

    def _stacks(self) -> list[Record]:
        return [_stack(said) for said in self._said_by("sidecar")]

    def _said_by(self, name: str) -> Iterator[dict[str, Any]]:
        for line in (self._scratch / f"{name}.out").read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                said = json.loads(line)
                if isinstance(said, dict):
                    yield said

    def _records(self) -> list[Record]:
        batches = (batch for _, batch in read_records(self._scratch / "runs" / "0" / "records"))
        return [record for batch in batches if batch is not None for record in batch.records]

    def _errors(self, name: str) -> str:
        text = (self._scratch / f"{name}.err").read_text(errors="replace")[-MAX_STDERR:]
        lines = [line for line in text.splitlines() if line.strip()]
        return f": {lines[-1].strip()}" if lines else ""

    def _sidecar_command(self) -> list[str]:
        return [
            *(sys.executable, "-m", "tracecore_sidecar.doctor.sidecar"),
            *(self._job_id, str(self._job_dir), str(self._scratch / "runs")),
        ]

    def _rank_command(self) -> list[str]:
        return [sys.executable, "-m", "tracecore_train.trial"]

    def _rank_environ(self) -> dict[str, str]:
        endpoint = f"unix:{runtime.sidecar_socket(self._job_dir)}"
        place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
        ours = {"TRACECORE_ENDPOINT": endpoint, "TRACECORE_JOB_ID": self._job_id}
        return {**self._environ, **place, **ours}


def _ask_for_stacks(sidecar: subprocess.Popen[bytes], pid: int) -> None:
    if sidecar.stdin is not None:
        with contextlib.suppress(OSError):
            sidecar.stdin.write(f"{pid}\n".encode())
            sidecar.stdin.flush()


def _stack(said: Mapping[str, Any]) -> StackRecord:
    return StackRecord(**{**said, "frames": tuple(said["frames"])})


def _inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """Keep what decides how a job would be seen, and drop what belongs to another job.

    Telemetry of the trial is nobody's business: the sidecar gets no exporter settings.
    """
    return {
        name: value
        for name, value in environ.items()
        if name not in _NOT_INHERITED and not name.startswith(_NOT_INHERITED_BEGINNINGS)
    }
