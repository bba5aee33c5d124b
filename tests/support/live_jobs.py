"""A real job under `tracecore run` that a test looks at while it lives."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.fake_sidecar import wait_until

if TYPE_CHECKING:
    from types import TracebackType

TIMEOUT_S = 60.0


class LiveJob:
    """`tracecore run` of a program on two ranks; ended with everything it started."""

    def __init__(
        self,
        directory: Path,
        program: Path,
        *arguments: str,
        options: tuple[str, ...] = (),
        torchrun: tuple[str, ...] = (),
        output: Path | None = None,
        **environ: str,
    ) -> None:
        """Start it."""
        self.output = output or directory / "output"
        self._errors = directory / "job.err"
        self._out = directory / "job.out"
        command = [sys.executable, "-m", "tracecore_sidecar", "run", "--output", str(self.output)]
        command += [*options, "--nproc-per-node", "2", *torchrun, str(program), *arguments]
        with self._errors.open("wb") as stderr, self._out.open("wb") as stdout:
            self.process = subprocess.Popen(
                command,
                cwd=directory,
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": "1",
                    "TRACECORE_RUNTIME_DIR": str(directory / "rt"),
                    **environ,
                },
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
            )

    def __enter__(self) -> LiveJob:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self._kill_ranks()
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def _kill_ranks(self) -> None:
        """Ranks that hang do not act on SIGTERM, and torchrun would wait 30 s for them."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        for pid in path.read_text().split():
            with contextlib.suppress(OSError):
                if b"tracecore_sidecar" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(int(pid), signal.SIGKILL)

    def wait_for_text(self, text: str) -> None:
        """Wait until the job's standard error holds ``text``."""
        wait_until(lambda: text in self.errors or self.process.poll() is not None, TIMEOUT_S)
        assert text in self.errors, self.errors

    def wait_for_end(self) -> int:
        """Wait for the end and give the exit code."""
        return self.process.wait(TIMEOUT_S)

    @property
    def is_alive(self) -> bool:
        """Whether the launcher still runs."""
        return self.process.poll() is None

    @property
    def errors(self) -> str:
        """Standard error so far: torchrun's, the ranks' and the sidecar's."""
        return self._errors.read_text(errors="replace")

    @property
    def text(self) -> str:
        """Standard output so far."""
        return self._out.read_text(errors="replace")

    @property
    def bundles(self) -> list[Path]:
        """Bundles of node 0 that are in place."""
        return sorted((self.output / "0" / "bundles").glob("[!.]*"))

    def verdicts(self) -> list[dict[str, Any]]:
        """Lines of verdicts.jsonl of node 0."""
        path = self.output / "0" / "verdicts.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
