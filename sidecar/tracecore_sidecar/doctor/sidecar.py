"""A real sidecar that also takes the stacks of a process whose id comes on its standard input.

It has to be the sidecar itself: where Yama restricts ptrace, a rank lets its sidecar look into it
and nobody else. Run as ``python -m tracecore_sidecar.doctor.sidecar JOB_ID JOB_DIR OUTPUT``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

from tracecore_sidecar.config import Display, SidecarConfig
from tracecore_sidecar.daemon import Daemon
from tracecore_sidecar.sources.stacks import dump_stacks
from tracecore_train.errors import TracecoreError

PULL_INTERVAL_S = 1.0


def main(job_id: str, job_dir: str, output: str) -> int:
    """Serve until SIGTERM; give the exit code."""
    config = SidecarConfig(
        job_id=job_id,
        job_dir=Path(job_dir),
        output=Path(output),
        display=Display.QUIET,
        pull_interval=PULL_INTERVAL_S,
        # It must not outlive a doctor that was killed.
        parent_pid=os.getppid(),
    )
    try:
        asyncio.run(_serve(config))
    except (TracecoreError, OSError) as error:
        sys.stderr.write(f"tracecore: {error}\n")
        return 1
    return 0


async def _serve(config: SidecarConfig) -> None:
    answering = asyncio.create_task(_answer())
    try:
        await Daemon(config).run()
    finally:
        answering.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await answering


async def _answer() -> None:
    """For each line with a process id, say its stacks as JSON lines."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while line := await reader.readline():
        for record in await dump_stacks(0, int(line), time.monotonic_ns()):
            sys.stdout.write(json.dumps(asdict(record)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
