"""The statistics and clocks that the overhead table leans on."""

from __future__ import annotations

import os
import random
import statistics
import threading
import time

from tests.benchmarks.measure import extremes, interval, process_cpu_ns, row, thread_cpu_ns


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
