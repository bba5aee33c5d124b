"""Runs a command that may start others, and ends all of them at its time limit."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parents[2]
MAX_SHOWN = 400
"""Characters of what a failed command said."""


class CommandError(Exception):
    """A command did not do it; the message says which, and what it said."""


def output_of(command: Sequence[str], *, limit_s: float) -> bytes:
    """Run a command from the repository and give its standard output, however it ended."""
    return _run(command, limit_s=limit_s, stdout=subprocess.PIPE)[1]


def must(command: Sequence[str], *, limit_s: float) -> None:
    """Run a command that must succeed; what it says is shown only where it fails."""
    status, said = _run(command, limit_s=limit_s, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if status:
        lines = said.decode(errors="replace").splitlines()
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        raise CommandError(f"{_short(command)}: {' '.join(errors[-1:])}"[:MAX_SHOWN])


def watch(command: Sequence[str], *, limit_s: float) -> int:
    """Run a command whose output is progress, and give its exit code."""
    return _run(command, limit_s=limit_s, stdout=sys.stderr.fileno())[0]


def _run(
    command: Sequence[str], *, limit_s: float, stdout: int, stderr: int | None = None
) -> tuple[int, bytes]:
    try:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=stdout, stderr=stderr, start_new_session=True
        )
    except OSError as error:
        raise CommandError(f"{_short(command)}: {error}") from None
    try:
        said, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        raise CommandError(f"{_short(command)}: not done after {limit_s / 60:.0f} min") from None
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return process.returncode, said or b""


def _short(command: Sequence[str]) -> str:
    return " ".join(word for word in command[1:6] if not word.startswith("--"))
