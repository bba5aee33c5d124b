"""Ends the ranks of one attempt on this node, so that torchrun starts the next one.

A signal goes only to a process that is still the one a rank introduced itself as: same pid, same
start time, looked at through a pidfd where the kernel has them, so that a pid used again never
meets it. First SIGTERM (and SIGCONT to a stopped rank, which acts on nothing else), after a grace
SIGKILL to those that are left. Ranks that are spared are torchrun's: it ends every rank of an
attempt that lost one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracecore_sidecar.sources.process import GONE, UNREADABLE, read_process

if TYPE_CHECKING:
    from collections.abc import Sequence

GRACE_S = 5.0
"""Between SIGTERM and SIGKILL. torchrun itself gives 30 s, to ranks that can still act."""
KILL_WAIT_S = 3.0
"""How long an end after SIGKILL is waited for; a rank in an uninterruptible call outlives it."""
STOPPED = "T"
_LOOK_INTERVAL_S = 0.1
_ENDED = frozenset({GONE, "Z", "X"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RankProcess:
    """A rank's process as the rank introduced it."""

    rank: int
    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Aborted:
    """What became of the ranks of an attempt."""

    ended: dict[int, str]
    """By rank, the last signal sent: ``SIGTERM`` or ``SIGKILL``."""
    spared: dict[int, str]
    """By rank, why it was not ended."""


async def end_ranks(processes: Sequence[RankProcess], *, grace_s: float = GRACE_S) -> Aborted:
    """End processes; takes ``grace_s`` and a moment at most."""
    ended: dict[int, str] = {}
    spared: dict[int, str] = {}
    left: list[RankProcess] = []
    for process in processes:
        if reason := _send(process, signal.SIGTERM):
            spared[process.rank] = reason
        else:
            left.append(process)
            ended[process.rank] = "SIGTERM"
    left = await _wait(left, grace_s)
    for process in left:
        if not _send(process, signal.SIGKILL):
            ended[process.rank] = "SIGKILL"
    for process in await _wait(left, KILL_WAIT_S):
        ended.pop(process.rank)
        spared[process.rank] = f"process {process.pid} outlived SIGKILL for {KILL_WAIT_S:g} s"
    return Aborted(ended=ended, spared=spared)


async def _wait(processes: Sequence[RankProcess], timeout_s: float) -> list[RankProcess]:
    """Wait for ends; give those that are left."""
    left = list(processes)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while left and loop.time() < deadline:
        await asyncio.sleep(_LOOK_INTERVAL_S)
        left = [process for process in left if not _is_over(process)]
    return left


def _is_over(process: RankProcess) -> bool:
    seen = read_process(process.rank, process.pid, 0)
    if seen.state == UNREADABLE:
        return False
    return seen.state in _ENDED or seen.start_ticks != process.start_ticks


def _send(process: RankProcess, number: signal.Signals) -> str:
    """Send a signal; give the reason where it was not sent."""
    if process.pid <= 1 or process.start_ticks <= 0:
        return "it never introduced itself, so its process is not known for certain"
    fd = -1
    try:
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):  # an older kernel
                fd = os.pidfd_open(process.pid)
        seen = read_process(process.rank, process.pid, 0)
        if seen.state in _ENDED:
            return f"process {process.pid} has ended already"
        if seen.start_ticks != process.start_ticks:
            return f"pid {process.pid} is another process (pid namespace, or used again)"
        numbers = [number]
        if seen.state == STOPPED and number is signal.SIGTERM:
            numbers.append(signal.SIGCONT)
        for each in numbers:
            if fd >= 0:
                signal.pidfd_send_signal(fd, each)
            else:
                os.kill(process.pid, each)
    except OSError as error:
        return f"process {process.pid}: {error.strerror}"
    finally:
        if fd >= 0:
            os.close(fd)
    return ""
