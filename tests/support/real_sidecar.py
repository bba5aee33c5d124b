"""The real sidecar as a process of its own, started by hand beside ranks started by hand."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from tests.support.fake_sidecar import wait_until
from tests.support.ranks import JOB_ID, TIMEOUT_S
from tracecore_sidecar.sinks.record_file import read_records

if TYPE_CHECKING:
    import signal
    from pathlib import Path
    from types import TracebackType

    from tracecore_train.wire.records import Record


class RealSidecar:
    """`tracecore sidecar` for the job of :mod:`tests.support.ranks`; killed at the end."""

    def __init__(self, job_dir: Path, output: Path, *options: str, job_id: str = JOB_ID) -> None:
        """Start it and wait until it listens."""
        self.socket_path = job_dir / "otlp.sock"
        self.endpoint = f"unix:{self.socket_path}"
        self.output = output / "0"
        self._errors = job_dir.parent / f"{output.name}.err"
        with self._errors.open("wb") as stderr:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tracecore_sidecar", "sidecar", "--display", "quiet"),
                    *("--job-id", job_id, "--job-dir", str(job_dir), "--output", str(output)),
                    *("--pull-interval", "1", *options),
                ],
                cwd=job_dir.parent,
                env={name: text for name, text in os.environ.items() if "TRACECORE" not in name},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )
        wait_until(self._listens, TIMEOUT_S)

    def __enter__(self) -> RealSidecar:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def end(self) -> int:
        """Ask it to finish and give its exit code."""
        self.process.terminate()
        return self.process.wait(TIMEOUT_S)

    @property
    def errors(self) -> str:
        """What it wrote to standard error so far."""
        return self._errors.read_text(errors="replace")

    @property
    def memory(self) -> int:
        """Bytes of memory it holds."""
        with open(f"/proc/{self.process.pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    @property
    def verdicts(self) -> list[dict[str, Any]]:
        """Lines of verdicts.jsonl so far."""
        path = self.output / "verdicts.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    @property
    def summary(self) -> dict[str, Any]:
        """summary.json, once it ended."""
        found: dict[str, Any] = json.loads((self.output / "summary.json").read_text())
        return found

    def records(self) -> list[Record]:
        """Every record of its recording so far."""
        batches = (batch for _, batch in read_records(self.output / "records"))
        return [record for batch in batches if batch is not None for record in batch.records]

    def _listens(self) -> bool:
        assert self.process.poll() is None, self.errors
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket_path)) == 0
