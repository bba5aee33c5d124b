"""Runs the user's command of ``--on-hang``: no shell, a deadline, bounded output.

The command gets a session of its own, so that it and its children can be ended together, and so
that a Ctrl-C meant for the job does not reach it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

TIMEOUT_S = 60.0
"""A notification takes a second, uploading a bundle some more."""
TERM_GRACE_S = 2.0
LAST_WORDS_S = 0.5
"""How long output is still taken after the end."""
MAX_OUTPUT_BYTES = 64 << 10
"""Of standard output and standard error together; the rest is read and dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandEnd:
    """How the command ended."""

    program: str
    """Its first word. The others may hold a secret and are not kept."""
    exit_code: int | None
    """Minus the signal number when a signal ended it; None when it could not be started."""
    is_late: bool
    """It was ended because it took too long."""
    output: str
    error: str = ""
    """Why it could not be started."""

    @property
    def text(self) -> str:
        """What to tell the user."""
        if self.error:
            return f"{self.program} could not be started: {self.error}"
        if self.is_late:
            return f"{self.program} was ended after {TIMEOUT_S:g} s without an end"
        if self.exit_code is not None and self.exit_code < 0:
            return f"{self.program} was ended by signal {-self.exit_code}"
        return f"{self.program} ended with exit code {self.exit_code}"


async def run_command(words: Sequence[str], *, timeout_s: float = TIMEOUT_S) -> CommandEnd:
    """Run a command line to its end, or to the deadline. Never raises because of it."""
    program = words[0]
    read_fd, write_fd = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=write_fd,
            stderr=write_fd,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        os.close(read_fd)
        reason = getattr(error, "strerror", None) or str(error)
        return CommandEnd(program=program, exit_code=None, is_late=False, output="", error=reason)
    finally:
        os.close(write_fd)
    output = _Output()
    pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: output, os.fdopen(read_fd, "rb", buffering=0)
    )
    is_late = False
    try:
        await asyncio.wait_for(process.wait(), timeout_s)
        # A child that it left behind may keep the pipe open: the end of the command counts.
        await asyncio.wait({output.is_over}, timeout=LAST_WORDS_S)
    except asyncio.TimeoutError:
        is_late = True
    finally:
        await _end(process)
        pipe.close()
    return CommandEnd(
        program=program,
        exit_code=process.returncode,
        is_late=is_late,
        output=output.kept.decode("utf-8", "replace"),
    )


class _Output(asyncio.Protocol):
    """Keeps the beginning of what comes, and drops the rest."""

    def __init__(self) -> None:
        self.kept = bytearray()
        self.is_over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.kept += data[: MAX_OUTPUT_BYTES - len(self.kept)]

    def connection_lost(self, error: Exception | None) -> None:
        if not self.is_over.done():
            self.is_over.set_result(None)


async def _end(process: asyncio.subprocess.Process) -> None:
    """End what is left of the command's session."""
    if process.returncode is not None:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(process.wait(), TERM_GRACE_S)
            return
