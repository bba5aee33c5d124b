"""What one scrape of /metrics costs the sidecar, by number of ranks; no budget, only stated."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.benchmarks.measure import row
from tests.support.metrics_page import Metered
from tests.support.recordings import SECOND, SimulatedJob
from tests.support.verdicts import JOB, event_of, hang
from tracecore_sidecar.telemetry.exposition import Page
from tracecore_train.wire.records import StepRecord

if TYPE_CHECKING:
    from tests.benchmarks.measure import Row


def measure(quick: bool) -> list[Row]:
    """Make pages of simulated jobs and time each."""
    rows = []
    for num_ranks in (8, 72, 256):
        metered = _job(num_ranks)
        taken = []
        for _ in range(5 if quick else 30):
            page = Page(metered.meter.collect, clock=lambda: 0)
            began = time.thread_time_ns()
            page.text("")
            taken.append((time.thread_time_ns() - began) / 1e6)
        num_series = len(metered.samples())
        rows.append(
            row("page", f"one page, {num_ranks} ranks", "ms", taken, note=f"{num_series} series")
        )
    return rows


def _job(num_ranks: int) -> Metered:
    job = SimulatedJob(num_ranks)
    job.advance(job.now + SECOND, pull=False)
    metered = Metered(job)
    for rank in range(num_ranks):
        metered.apply(
            StepRecord(
                time_ns=job.now,
                rank=rank,
                step=1,
                duration_ns=SECOND,
                input_ns=1,
                num_batches=1,
                checkpoint_ns=0,
                flags=0,
            ),
            rank=rank,
        )
    metered.meter.on_event(event_of(hang(1)), JOB)
    metered.meter.times.ticked(1, {"hang": 1, "straggler": 1})
    return metered
