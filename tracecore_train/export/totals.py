"""Cumulative metrics of this process, summed from the records as they are handed over."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from tracecore_train.wire import metrics
from tracecore_train.wire.metrics import HistogramValue, Metric, MetricPoint
from tracecore_train.wire.records import CheckpointRecord, StepFlag, StepRecord

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tracecore_train.wire.records import Record

_NS = 1e-9


class _Histogram:
    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        self._counts = [0] * (len(metric.bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        # A value equal to a bound belongs to the bucket below it: bounds are inclusive above.
        self._counts[bisect_left(self._metric.bounds, value)] += 1
        self._sum += value

    def point(self) -> MetricPoint:
        counts = tuple(self._counts)
        return MetricPoint(self._metric, HistogramValue(sum(counts), self._sum, counts))


class Totals:
    """What the rank's metrics stand at."""

    def __init__(self) -> None:
        """Start from zero."""
        self._duration = _Histogram(metrics.STEP_DURATION)
        self._input = _Histogram(metrics.INPUT_WAIT)
        self._num_steps = 0
        self._num_batches = 0
        self._checkpoint_ns = 0

    def add(self, records: Iterable[Record]) -> None:
        """Count in the records of a hand-over, delivered or not."""
        for record in records:
            if isinstance(record, StepRecord):
                self._num_steps += 1
                self._num_batches += record.num_batches
                self._input.add(record.input_ns * _NS)
                if not record.flags & StepFlag.FIRST:
                    self._duration.add(record.duration_ns * _NS)
            elif isinstance(record, CheckpointRecord):
                self._checkpoint_ns += record.duration_ns

    def points(self, num_lost: int) -> list[MetricPoint]:
        """Give every metric as it stands."""
        return [
            self._duration.point(),
            self._input.point(),
            MetricPoint(metrics.STEPS, self._num_steps),
            MetricPoint(metrics.BATCHES, self._num_batches),
            MetricPoint(metrics.CHECKPOINT_TIME, self._checkpoint_ns * _NS),
            MetricPoint(metrics.LOST_RECORDS, num_lost),
        ]
