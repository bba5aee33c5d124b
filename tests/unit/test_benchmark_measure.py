"""The statistics and clocks that the overhead table leans on."""

from __future__ import annotations

import dataclasses
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.benchmarks import whole_run
from tests.benchmarks.measure import ROOT, extremes, interval, process_cpu_ns, row, thread_cpu_ns
from tests.benchmarks.peer_programs.sent import SENT
from tests.benchmarks.whole_run import NOTHING, TRACECORE, Outcome, Run

RUN = Run(**dict.fromkeys((field.name for field in dataclasses.fields(Run)), 1.0))
LOOP, THREAD = whole_run.METRICS[:2]
_SENDER = """
import socket, sys
from pathlib import Path
from tests.benchmarks.peer_programs.sent import SentCounter
counter = SentCounter(Path(sys.argv[1]))
for _ in range(3):
    counter.step()
near, far = socket.socketpair()
near.send(b"12345")
near.sendall(b"1234567")
far.recv(100)
"""


def _block(**loops: float) -> whole_run.Block:
    names = {"nothing": NOTHING.name, "ours": TRACECORE.name}
    return {
        names[name]: dataclasses.replace(RUN, loop_s=s, thread_us=10 * s)
        for name, s in loops.items()
    }


def test_the_interval_holds_the_median() -> None:
    """The bootstrap interval of 200 values lies around their median and inside their range."""
    chance = random.Random(1)
    values = [chance.gauss(10, 2) for _ in range(200)]
    low, high = interval(values)
    assert min(values) < low < statistics.median(values) < high < max(values)


def test_the_interval_narrows_with_more_values() -> None:
    """A hundred times the values give an interval several times narrower."""
    chance = random.Random(2)
    few, many = ([chance.gauss(0, 1) for _ in range(n)] for n in (10, 1_000))
    assert interval(few)[1] - interval(few)[0] > 3 * (interval(many)[1] - interval(many)[0])


def test_a_row_is_judged_by_its_median() -> None:
    """One outlier neither breaks nor saves a budget; without a budget nothing is judged."""
    assert row("g", "w", "us", [1, 1, 1, 1, 50], budget=2).is_within is True
    assert row("g", "w", "us", [3, 3, 3, 3, 0.1], budget=2).is_within is False
    assert row("g", "w", "us", [3, 3]).is_within is None


def test_extremes_are_judged_by_the_mean() -> None:
    """Windows of a process are averaged: what it used, it used."""
    judged = extremes("g", "w", "%", [1, 5], budget=2)
    assert (judged.measured, judged.low, judged.high, judged.is_within) == (3, 1, 5, False)


def test_the_clocks_see_one_thread_and_one_process() -> None:
    """A thread's clock counts that thread's work only, the process's clock counts all."""
    tids: list[int] = []
    is_done = threading.Event()

    def idle() -> None:
        tids.append(threading.get_native_id())
        is_done.wait(60)

    thread = threading.Thread(target=idle)
    thread.start()
    try:
        before = process_cpu_ns(os.getpid())
        began = time.thread_time()
        while time.thread_time() - began < 0.1:
            pass
        assert process_cpu_ns(os.getpid()) - before >= 90_000_000
        assert thread_cpu_ns(tids[0]) < 50_000_000
    finally:
        is_done.set()
        thread.join()


def test_an_arm_is_compared_within_its_block() -> None:
    """A machine that is four times slower in one block changes neither block's ratio."""
    blocks = [_block(nothing=1, ours=1.5), _block(nothing=4, ours=6)]
    assert whole_run.over(blocks, TRACECORE, LOOP) == [1.5, 1.5]
    assert whole_run.over(blocks, TRACECORE, THREAD) == [5, 20]
    assert whole_run.over(blocks, NOTHING, LOOP) == []


def test_a_block_without_a_pair_is_not_compared() -> None:
    """An arm is never compared with its baseline of another block."""
    blocks = [_block(nothing=1), _block(ours=6), _block(nothing=2, ours=6)]
    assert whole_run.over(blocks, TRACECORE, LOOP) == [3]


def test_an_arm_that_cannot_run_is_a_row_with_its_reason() -> None:
    """The row says why, is not judged, and no figure is made up for the arm."""
    outcome = Outcome([_block(nothing=1)], {TRACECORE.name: "no such port"})
    (only,) = whole_run.compare("g", whole_run.ARMS, outcome)
    assert (only.what, only.is_within, only.num_samples) == (TRACECORE.name, None, 0)
    assert "no such port" in only.note


def test_blocks_hold_every_arm_once_in_changing_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve blocks run three arms in more than one order; one that fails is not run again."""
    ran: list[str] = []

    def run(arm: whole_run.Arm, num_ranks: int, num_steps: int, python: Path) -> Run:
        ran.append(arm.name)
        if arm is TRACECORE and len(ran) > 30:
            raise whole_run.RunError("enough")
        return RUN

    monkeypatch.setattr(whole_run, "run", run)
    outcome = whole_run.run_blocks(whole_run.ARMS, 2, 12, 10)
    names = {arm.name for arm in whole_run.ARMS}
    orders = [tuple(ran[start : start + 3]) for start in range(1, 28, 3)]
    assert all(set(order) == names for order in orders)
    assert len(set(orders)) > 1
    assert outcome.failures == {TRACECORE.name: "enough"}
    assert [set(block) for block in outcome.blocks][-1] == names - {TRACECORE.name}
    assert ran[31:].count(TRACECORE.name) <= 1


def test_a_run_that_fails_says_what_the_rank_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason is the rank's own error, not what its launcher says about it."""
    program = tmp_path / "fails.py"
    program.write_text("print('ValueError: no such port\\nRunError: a rank failed'); exit(3)")

    def launcher(job: whole_run.Job, program: str, arguments: list[str]) -> list[str]:
        return [str(job.python), program]

    monkeypatch.setitem(whole_run.LAUNCHERS, "torchrun", launcher)
    directory = tmp_path / "job"
    directory.mkdir()
    job = whole_run.make_job(directory, 2, 10, Path(sys.executable))
    with pytest.raises(whole_run.RunError, match="exit code 3, said: ValueError: no such port"):
        whole_run.execute(whole_run.Arm(name="fails", program=program), job)


def test_what_python_sends_is_counted(tmp_path: Path) -> None:
    """The file holds the bytes of send and sendall, and the steps, after the process has ended."""
    path = tmp_path / "rank-0.sent"
    subprocess.run([sys.executable, "-c", _SENDER, str(path)], cwd=ROOT, check=True, timeout=60)
    assert SENT.unpack(path.read_bytes()) == (12, 3)
