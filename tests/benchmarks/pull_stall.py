"""The worst stall of a training thread that a recorder pull causes, in a real two-rank gloo job.

Both ranks do tiny all_reduces back to back, the worst case: nothing hides a pause, and the
recorder's ring is always full. Stretches with pulls at the sidecar's default interval alternate
with stretches without. For each pull the slowest all_reduce that overlaps it is taken; the
control is the slowest in a window of the same length, half an interval later.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks import stall_program
from tests.benchmarks.measure import ROOT, Row, row
from tracecore_sidecar.config import SidecarConfig
from tracecore_sidecar.sources.flight_recorder import FlightRecorderReader
from tracecore_train.wire.records import PullRecord

GROUP = "recorder pull"
NUM_RANKS = 2
RING_FILL_S = 5.0
START_TIMEOUT_S = 60.0
Times = NDArray[np.int64]


@dataclass(frozen=True)
class Stretch:
    """A stretch of time with pulls, or without."""

    has_pulls: bool
    began_ns: int
    ended_ns: int
    pulls: list[tuple[int, int]]


def measure(is_quick: bool) -> list[Row]:
    """Run the job, pull, and compare."""
    interval_s = float(SidecarConfig.model_fields["pull_interval"].default)
    stretch_s = interval_s * (3 if is_quick else 6)
    num_stretches = 2 if is_quick else 8
    with tempfile.TemporaryDirectory(prefix="tc-", dir="/tmp") as directory:
        root = Path(directory)
        stretches = _run(root, interval_s, stretch_s, num_stretches)
        ranks = [np.load(root / f"r{rank}.npy") for rank in range(NUM_RANKS)]
    half_ns = int(interval_s * 5e8)
    windows = [pull for stretch in stretches for pull in stretch.pulls]
    hit = [_slowest(times, *window) for times in ranks for window in windows]
    control = [
        _slowest(times, begin + half_ns, end + half_ns) for times in ranks for begin, end in windows
    ]
    lengths = statistics.median((end - begin) / 1e6 for begin, end in windows)
    rows = [
        row(
            GROUP, "slowest all_reduce during a pull", "ms", hit, note=f"pulls of {lengths:.0f} ms"
        ),
        row(GROUP, "slowest all_reduce, no pull (A)", "ms", control, note="windows of that length"),
        row(
            GROUP,
            "stall a pull adds",
            "ms",
            [a - b for a, b in zip(hit, control, strict=True)],
            note=f"worst seen {max(hit):.1f} ms, without a pull {max(control):.1f} ms",
        ),
    ]
    for has_pulls, name in ((True, f"pulls every {interval_s:g} s"), (False, "no pulls")):
        chosen = [s for s in stretches if s.has_pulls is has_pulls]
        for quantile in (0.5, 0.999):
            values = [
                _quantile(times, s.began_ns, s.ended_ns, quantile)
                for times in ranks
                for s in chosen
            ]
            rows.append(row(GROUP, f"all_reduce p{quantile * 100:g}, {name}", "ms", values))
    return rows


def _run(root: Path, interval_s: float, stretch_s: float, num_stretches: int) -> list[Stretch]:
    total_s = RING_FILL_S + stretch_s * num_stretches
    processes = [
        subprocess.Popen(
            [sys.executable, stall_program.__file__, str(rank), str(NUM_RANKS), str(total_s)],
            cwd=root,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stderr=subprocess.DEVNULL,
        )
        for rank in range(NUM_RANKS)
    ]
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not all((root / f"at.{rank}").exists() for rank in range(NUM_RANKS)):
            if time.monotonic() > deadline:
                raise RuntimeError("the ranks did not start")
            time.sleep(0.05)
        time.sleep(RING_FILL_S)
        reader = FlightRecorderReader()
        _pull(reader, root, [process.pid for process in processes])
        stretches = []
        for index in range(num_stretches):
            began_ns, pulls = time.monotonic_ns(), []
            has_pulls = index % 4 in {0, 3}  # on, off, off, on
            if has_pulls:
                for _ in range(round(stretch_s / interval_s)):
                    pulls.append(_pull(reader, root, [process.pid for process in processes]))
                    time.sleep(interval_s)
            else:
                time.sleep(stretch_s)
            stretches.append(Stretch(has_pulls, began_ns, time.monotonic_ns(), pulls))
        for process in processes:
            process.wait(60)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return stretches


def _pull(reader: FlightRecorderReader, root: Path, pids: list[int]) -> tuple[int, int]:
    """Pull all ranks at once, as the sidecar does; give when it began and ended."""

    def one(rank: int) -> None:
        now_ns = time.monotonic_ns()
        pulled = reader.pull(
            rank, root / f"r{rank}.ws", pid=pids[rank], wall_offset_ns=0, now_ns=now_ns
        )
        if not (isinstance(pulled[0], PullRecord) and pulled[0].is_ok):
            raise RuntimeError(f"the pull of rank {rank} failed: {pulled[0]}")

    began_ns = time.monotonic_ns()
    with ThreadPoolExecutor(NUM_RANKS) as pool:
        list(pool.map(one, range(NUM_RANKS)))
    return began_ns, time.monotonic_ns()


def _slowest(times: Times, begin_ns: int, end_ns: int) -> float:
    """Give the longest operation, in ms, that overlaps a window; ``times`` are ends in order."""
    first = int(np.searchsorted(times, begin_ns))
    last = int(np.searchsorted(times, end_ns)) + 1
    return float(np.diff(times[max(0, first - 1) : last + 1]).max() / 1e6)


def _quantile(times: Times, begin_ns: int, end_ns: int, quantile: float) -> float:
    chosen = times[(times >= begin_ns) & (times < end_ns)]
    return float(np.quantile(np.diff(chosen), quantile) / 1e6)
