"""What /proc shows about real processes in real trouble."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from tracecore_sidecar.sources.process import read_process

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracecore_train.wire.records import ProcessRecord

DEADLINE_S = 60.0


def python(code: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", f"print('ready', flush=True)\n{code}"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def wait_for(pid: int, condition: Callable[[ProcessRecord], bool]) -> ProcessRecord:
    deadline = time.monotonic() + DEADLINE_S
    while True:
        record = read_process(0, pid, time.monotonic_ns())
        if condition(record):
            return record
        assert time.monotonic() < deadline, record
        time.sleep(0.02)


def test_a_stopped_process_is_in_state_t() -> None:
    """SIGSTOP shows as T and keeps the start time."""
    with python("import time; time.sleep(600)") as process:
        before = wait_for(process.pid, lambda record: record.state == "S")
        process.send_signal(signal.SIGSTOP)
        stopped = wait_for(process.pid, lambda record: record.state == "T")
        assert stopped.start_ticks == before.start_ticks > 0
        process.kill()


def test_a_spinning_process_uses_time() -> None:
    """A busy loop shows as processor time that grows."""
    with python("while True: pass") as process:
        before = read_process(0, process.pid, 0)
        wait_for(process.pid, lambda record: record.cpu_ns >= before.cpu_ns + 300_000_000)
        process.kill()


def test_a_sleeping_process_uses_none() -> None:
    """A sleeper's processor time stands still, and its wchan is a sleep where it is shown."""
    with python("import time; time.sleep(600)") as process:
        before = wait_for(process.pid, lambda record: record.state == "S")
        time.sleep(0.3)
        after = read_process(0, process.pid, 0)
        assert after.cpu_ns == before.cpu_ns
        assert after.wchan == "" or "sleep" in after.wchan
        process.kill()


def test_an_unreaped_process_is_a_zombie_then_gone() -> None:
    """A process that ended is Z until its parent waits, and - after that."""
    with python("") as process:
        wait_for(process.pid, lambda record: record.state == "Z")
        process.wait(timeout=60)
        assert read_process(0, process.pid, 0).state == "-"
