"""Metrics are the sums of the records."""

from __future__ import annotations

from tracecore_train.export.totals import Totals
from tracecore_train.wire import metrics
from tracecore_train.wire.metrics import HistogramValue
from tracecore_train.wire.records import CheckpointRecord, StepFlag, StepRecord


def _step(duration_ns: int, flags: int = 0) -> StepRecord:
    return StepRecord(
        time_ns=1,
        rank=0,
        step=0,
        duration_ns=duration_ns,
        input_ns=1_500_000,
        num_batches=2,
        checkpoint_ns=0,
        flags=flags,
    )


def test_points_sum_the_records() -> None:
    """Counts, times and losses add up over several hand-overs."""
    totals = Totals()
    totals.add([_step(0, StepFlag.FIRST), _step(10_000_000)])
    totals.add([CheckpointRecord(time_ns=1, rank=0, call="torch.save", duration_ns=2 * 10**9)])
    values = {point.metric: point.value for point in totals.points(num_lost=7)}
    assert values[metrics.STEPS] == 2
    assert values[metrics.BATCHES] == 4
    assert values[metrics.CHECKPOINT_TIME] == 2.0
    assert values[metrics.LOST_RECORDS] == 7
    assert set(values) == set(metrics.METRICS)


def test_first_step_is_no_duration_and_bounds_are_inclusive() -> None:
    """The unknown duration of a first step is left out; 10 ms lies in the bucket up to 10 ms."""
    totals = Totals()
    totals.add([_step(0, StepFlag.FIRST), _step(10_000_000)])
    value = next(p.value for p in totals.points(0) if p.metric is metrics.STEP_DURATION)
    assert isinstance(value, HistogramValue)
    assert (value.count, value.sum) == (1, 0.01)
    assert value.bucket_counts[metrics.STEP_DURATION.bounds.index(0.01)] == 1
