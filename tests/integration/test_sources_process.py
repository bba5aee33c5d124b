"""What /proc shows about real processes in real trouble."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.proc_tree import page
from tracecore_sidecar.sources.process import read_process
from tracecore_sidecar.sources.processes import ProcessSampler

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


def test_two_that_share_a_processor_wait_for_it() -> None:
    """Of two busy loops on one processor each waits in the run queue and is taken off it."""
    spin = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nwhile True: pass"
    with python(spin) as first, python(spin) as second:
        before = read_process(0, first.pid, 0)
        if before.main_wait_ns < 0:
            pytest.skip("this kernel keeps no schedstat")
        after = wait_for(
            first.pid, lambda record: record.main_wait_ns > before.main_wait_ns + 200_000_000
        )
        assert after.num_involuntary_switches > before.num_involuntary_switches
        assert after.main_cpu_ns > before.main_cpu_ns
        first.kill()
        second.kill()


def test_children_are_seen_with_their_state() -> None:
    """Two children, one of them stopped: both are counted, with memory of their own."""
    code = (
        "import os, signal, subprocess, sys, time\n"
        "sleep = [sys.executable, '-c', 'import time; time.sleep(100)']\n"
        "children = [subprocess.Popen(sleep) for _ in range(2)]\n"
        "children[0].send_signal(signal.SIGSTOP)\n"
        "time.sleep(600)"
    )
    with python(code) as process:
        record = wait_for(process.pid, lambda record: sorted(record.child_states) == ["S", "T"])
        assert record.num_children == 2
        assert record.children_rss_bytes > 1 << 20
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
        for pid in children:
            os.kill(int(pid), signal.SIGKILL)


def test_a_rank_is_followed_until_it_is_gone() -> None:
    """The sampler's open files show a rank stop, and then that it is gone, not somebody else."""
    with python("import time; time.sleep(600)") as process:
        ticks = read_process(0, process.pid, 0).start_ticks
        seen = replace(page(process.pid), start_ticks=ticks)
        sampler = ProcessSampler()
        (record,) = sampler.sample([seen], 1)
        assert record.start_ticks == ticks
        process.send_signal(signal.SIGSTOP)
        wait_for(process.pid, lambda record: record.state == "T")
        assert sampler.sample([seen], 2)[0].state == "T"
        process.kill()
        process.wait(60)
        assert sampler.sample([seen], 3)[0].state == "-"
        sampler.pss.wait(30)
        sampler.close()
