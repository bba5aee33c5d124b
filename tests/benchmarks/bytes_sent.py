"""What a rank sends to its sidecar: real ranks at a usual pace, beside a real sidecar.

Counted are all bytes that Python code of the rank puts into sockets, heads of HTTP included, per
window after the first steps. The sidecar's pulls of the flight recorder are answered by torch's
own server from C++ and are not in it.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks import whole_run
from tests.benchmarks.measure import Row, extremes

GROUP = "bytes"
NUM_RANKS = 2
PACE_MS = 245
"""Some four steps a second."""
BUDGET_PER_STEP = 1_000.0
NUM_FIRST_STEPS = 40
START_TIMEOUT_S = 120.0
WINDOW_S = 10.0
PACED = whole_run.Arm(
    name="TraceCore, paced", launcher="tracecore", options=("--pace-ms", str(PACE_MS))
)


def measure(is_quick: bool) -> list[Row]:
    """Measure per rank-step and per rank-second."""
    num_windows = 2 if is_quick else 6
    with tempfile.TemporaryDirectory(
        prefix="tc-", dir="/tmp", ignore_cleanup_errors=True
    ) as directory:
        job = whole_run.make_job(Path(directory), NUM_RANKS, sys.maxsize, Path(sys.executable))
        with (job.directory / "log").open("wb") as log:
            process = whole_run.start(PACED, job, log)
            try:
                _await_steps(job)
                windows = [_window(job) for _ in range(num_windows)]
            finally:
                whole_run.stop(process)
    ranks = [rank for window in windows for rank in window]
    rate = sum(steps for _, steps in ranks) / len(ranks) / WINDOW_S
    note = f"{rate:.1f} steps/s, a hand-over a second, {NUM_RANKS} ranks"
    per_step = [num_bytes / steps for num_bytes, steps in ranks]
    per_second = [num_bytes / WINDOW_S for num_bytes, _ in ranks]
    return [
        extremes(GROUP, "sent a rank-step", "B", per_step, budget=BUDGET_PER_STEP, note=note),
        extremes(GROUP, "sent a rank-second", "B", per_second, note=note),
    ]


def _await_steps(job: whole_run.Job) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not _are_ready(job):
        if time.monotonic() > deadline:
            raise RuntimeError((job.directory / "log").read_text(errors="replace"))
        time.sleep(0.1)


def _are_ready(job: whole_run.Job) -> bool:
    ranks = whole_run.sent_by_rank(job.results)
    return len(ranks) == NUM_RANKS and all(steps >= NUM_FIRST_STEPS for _, steps in ranks)


def _window(job: whole_run.Job) -> list[tuple[int, int]]:
    """Give bytes and steps of every rank within a window."""
    before = whole_run.sent_by_rank(job.results)
    time.sleep(WINDOW_S)
    after = whole_run.sent_by_rank(job.results)
    return [(b - a, t - s) for (a, s), (b, t) in zip(before, after, strict=True)]
