"""Python stacks of a rank, taken from outside by py-spy; only native ones stop it for that time.

py-spy runs as a process of its own with a deadline, and no more of its output is kept than a
sane dump needs. A stack that cannot be had is a record too: it says why and the way out.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracecore_train.wire.records import StackRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

TIMEOUT_S = 5.0
"""py-spy answers in 15 ms; five seconds is a machine in deep trouble."""
MAX_OUTPUT_BYTES = 4 << 20
MAX_COMPLAINT_BYTES = 64 << 10
MAX_THREADS = 32
MAX_FRAMES = 64
MAX_CHARS = 300
"""Characters of one frame or thread name."""
MAIN_THREAD = "MainThread"
NUM_TRIES = 3
"""A dump without stopping the process can meet a stack in motion; the next one rarely does."""


async def dump_stacks(
    rank: int,
    pid: int,
    now: int,
    *,
    program: str | None = None,
    timeout_s: float = TIMEOUT_S,
    is_native: bool = False,
) -> list[StackRecord]:
    """Give one record per thread, ``MainThread`` first, or one record that says why not.

    ``now`` becomes the records' time; ``program`` is py-spy, found where it is not given. Takes
    ``timeout_s`` and a moment at most and never blocks the event loop. ``is_native`` shows the
    frames of C and C++ too; that pauses the process for 0.05 to 1 s.
    """
    program = program or find_py_spy()
    if program is None:
        error = "py-spy is neither beside this Python nor on PATH; pip install py-spy"
        return [_failure(rank, pid, now, error)]
    way = "--native" if is_native else "--nonblocking"
    command = (program, "dump", way, "--json", "--pid", str(pid))
    try:
        return await asyncio.wait_for(_dump(command, rank, pid, now), timeout_s)
    except asyncio.TimeoutError:
        error = f"py-spy gave no answer about process {pid} within {timeout_s:g} s"
    except (OSError, ValueError, RecursionError) as problem:
        error = f"py-spy did not work: {problem}"
    return [_failure(rank, pid, now, error)]


def find_py_spy() -> str | None:
    """Find py-spy: beside this Python first, then on PATH."""
    beside = Path(sys.executable).parent / "py-spy"
    return str(beside) if beside.exists() else shutil.which("py-spy")


def parse_dump(raw: bytes, rank: int, pid: int, now: int) -> list[StackRecord]:
    """Read ``py-spy dump --json``. Raises ``ValueError`` when it is not that."""
    threads = json.loads(raw)
    if not isinstance(threads, list) or not threads:
        raise ValueError("its dump holds no threads")
    records = [_thread(thread, rank, pid, now) for thread in threads]
    records.sort(key=lambda r: (r.thread != MAIN_THREAD, not r.holds_gil, not r.is_active))
    return records[:MAX_THREADS]


async def _dump(command: Sequence[str], rank: int, pid: int, now: int) -> list[StackRecord]:
    error = ""
    for _ in range(NUM_TRIES):
        code, output, complaint = await _run(command)
        if code == 0:
            return parse_dump(output, rank, pid, now)
        error, is_final = _explain(pid, code, complaint)
        if is_final:
            break
    return [_failure(rank, pid, now, error)]


async def _run(command: Sequence[str]) -> tuple[int, bytes, str]:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    streams = [stream for stream in (process.stdout, process.stderr) if stream is not None]
    try:
        output, complaint = await asyncio.gather(
            _read(streams[0], MAX_OUTPUT_BYTES, process),
            _read(streams[1], MAX_COMPLAINT_BYTES, process),
        )
        if len(output) > MAX_OUTPUT_BYTES:
            raise ValueError(f"its dump has more than {MAX_OUTPUT_BYTES} bytes")
        return await process.wait(), output, complaint.decode("utf-8", "replace")
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(_discard(process, streams), 1.0)


async def _read(
    stream: asyncio.StreamReader, limit: int, process: asyncio.subprocess.Process
) -> bytes:
    """Read to the end; a process that writes more than ``limit`` is killed."""
    data = bytearray()
    while chunk := await stream.read(65536):
        data += chunk
        if len(data) > limit:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            break
    return bytes(data)


async def _discard(
    process: asyncio.subprocess.Process, streams: Sequence[asyncio.StreamReader]
) -> None:
    for stream in streams:
        while await stream.read(65536):
            pass
    await process.wait()


def _explain(pid: int, code: int, complaint: str) -> tuple[str, bool]:
    """Say why py-spy failed, and whether trying again is of no use."""
    lowered = complaint.lower()
    if not Path(f"/proc/{pid}").exists():
        return f"process {pid} is gone", True
    if "permission denied" in lowered or "operation not permitted" in lowered:
        return (
            f"py-spy may not look into process {pid} (ptrace is denied); give the sidecar "
            "CAP_SYS_PTRACE (containers: add SYS_PTRACE), or set kernel.yama.ptrace_scope=0"
        ), True
    if "failed to find python version" in lowered:
        return f"process {pid} runs no Python that py-spy knows", True
    first = complaint.strip().partition("\n")[0] or f"exit code {code}"
    return f"py-spy: {first[:MAX_CHARS]}", False


def _thread(thread: Any, rank: int, pid: int, now: int) -> StackRecord:
    if not isinstance(thread, dict) or not isinstance(thread.get("frames"), list):
        raise ValueError("its dump holds something that is no thread")
    name = thread.get("thread_name") or f"thread {thread.get('os_thread_id')}"
    return StackRecord(
        time_ns=now,
        rank=rank,
        pid=pid,
        thread=str(name)[:MAX_CHARS],
        is_active=thread.get("active") is True,
        holds_gil=thread.get("owns_gil") is True,
        frames=tuple(_frame(frame) for frame in thread["frames"][:MAX_FRAMES]),
        error="",
    )


def _frame(frame: Any) -> str:
    if not isinstance(frame, dict):
        raise ValueError("its dump holds something that is no frame")
    file = frame.get("short_filename") or frame.get("filename")
    return f"{frame.get('name')} ({file}:{frame.get('line')})"[:MAX_CHARS]


def _failure(rank: int, pid: int, now: int, error: str) -> StackRecord:
    return StackRecord(
        time_ns=now,
        rank=rank,
        pid=pid,
        thread="",
        is_active=False,
        holds_gil=False,
        frames=(),
        error=error,
    )
