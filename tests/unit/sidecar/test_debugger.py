"""A rank that a debugger holds is no culprit of a hang without that being said."""

from __future__ import annotations

import asyncio
import ctypes
import os
import subprocess
import sys

import pytest

from tests.support.recordings import MS, SimulatedJob, Watch
from tracecore_sidecar.detectors.hang import HangDetector
from tracecore_sidecar.sources.process import read_process
from tracecore_sidecar.sources.stacks import dump_stacks, find_py_spy

PTRACE_ATTACH = 16
PDB = ("interaction (pdb.py:350)", "main (train.py:1)")
WORKS = ("forward (model.py:7)", "main (train.py:1)")


def hung() -> SimulatedJob:
    """Twenty steps of three ranks, then rank 1 does not come to a collective."""
    job = SimulatedJob(3)
    job.train(20, lambda rank, step: 100 * MS)
    job.ranks[1].frames = WORKS
    job.enter([0, 2])
    return job


def told(job: SimulatedJob, seconds: float) -> str:
    """All that is said within some seconds of the hang."""
    watch = Watch(job, [HangDetector()])
    watch.run_to_end(seconds)
    return "\n".join(
        text
        for seen in watch.seen
        for text in (seen.verdict.summary, *(item.text for item in seen.verdict.evidence))
    )


@pytest.mark.parametrize("place", ["code", "checkpoint", "input"])
@pytest.mark.parametrize("is_readable", [True, False])
def test_a_rank_held_from_outside_is_left_alone(place: str, is_readable: bool) -> None:
    """A process that a debugger holds (state t) accuses nobody for minutes, wherever it stands."""
    job = hung()
    job.ranks[1].state, job.ranks[1].is_readable = "t", is_readable
    if place != "code":
        job.ranks[1].spans.append((place, job.ranks[1].at_ns, None))
    assert told(job, 200) == ""


def test_a_breakpoint_in_the_dataset_is_left_alone() -> None:
    """Python's debugger inside next(dataloader) is a debugger, not an input that never comes."""
    job = hung()
    job.ranks[1].frames = PDB
    job.ranks[1].spans.append(("input", job.ranks[1].at_ns, None))
    assert told(job, 200) == ""


def test_after_half_an_hour_the_debugger_is_told() -> None:
    """Somebody forgot it: the verdict says that a debugger holds the rank."""
    job = hung()
    job.ranks[1].state = "t"
    said = told(job, 1_850)
    assert "rank 1 never joined" in said
    assert "is in state t (held by a debugger or tracer)" in said


def test_without_a_debugger_the_same_rank_is_told_within_seconds() -> None:
    """The same hang in state S names rank 1, and no debugger."""
    said = told(hung(), 20)
    assert "rank 1 never joined" in said
    assert "debugger" not in said


def test_a_profiler_that_stops_it_for_one_look_is_no_debugger() -> None:
    """State t in one look of two excuses nobody."""
    job = hung()
    watch = Watch(job, [HangDetector()])
    watch.run_to_end(0)
    for second in range(20):
        job.ranks[1].state = "t" if second % 2 else "S"
        watch.run(1)
    assert watch.accused == {1}


def test_a_process_that_a_debugger_stopped_is_in_state_t_and_its_stack_can_be_read() -> None:
    """The kernel's own: what the rule reads of a traced process is there."""
    libc = ctypes.CDLL(None, use_errno=True)
    program = "import time\nprint(flush=True)\ntime.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            if libc.ptrace(PTRACE_ATTACH, process.pid, None, None) != 0:
                pytest.skip("this kernel lets nobody trace a process")
            os.waitpid(process.pid, 0)
            assert read_process(1, process.pid, 0).state == "t"
            if find_py_spy() is not None:
                stacks = asyncio.run(dump_stacks(1, process.pid, 0))
                assert any("<string>" in frame for frame in stacks[0].frames), stacks
        finally:
            process.kill()
