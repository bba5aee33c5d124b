"""Metrics a rank sends to any OTLP backend: name, instrument, unit, and what they mean.

All are cumulative from the start of the process; rank, job and host stand on the resource.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class Instrument(str, Enum):
    """How a backend should read the numbers."""

    SUM = "sum"
    """Cumulative and monotonic."""
    HISTOGRAM = "histogram"
    """Explicit bounds, cumulative."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric's fixed description."""

    name: str
    instrument: Instrument
    unit: str
    """UCUM, as OpenTelemetry asks."""
    description: str
    bounds: tuple[float, ...] = ()
    """Upper bounds of the histogram's buckets, in ``unit``; the last bucket is open."""


_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)

STEP_DURATION = Metric(
    "tracecore.step.duration", Instrument.HISTOGRAM, "s", "Time of one step.", _SECONDS
)
INPUT_WAIT = Metric(
    "tracecore.input.wait",
    Instrument.HISTOGRAM,
    "s",
    "Time inside next(dataloader) during one step.",
    _SECONDS,
)
STEPS = Metric("tracecore.steps", Instrument.SUM, "{step}", "Steps ended.")
BATCHES = Metric("tracecore.batches", Instrument.SUM, "{batch}", "Batches taken from loaders.")
CHECKPOINT_TIME = Metric(
    "tracecore.checkpoint.time", Instrument.SUM, "s", "Time inside checkpoint calls."
)
LOST_RECORDS = Metric(
    "tracecore.records.lost", Instrument.SUM, "{record}", "Records this rank could not deliver."
)

METRICS = (STEP_DURATION, INPUT_WAIT, STEPS, BATCHES, CHECKPOINT_TIME, LOST_RECORDS)
"""The one visible list."""


@dataclass(frozen=True, slots=True)
class HistogramValue:
    """Cumulative state of a histogram; ``bucket_counts`` has one more item than the bounds."""

    count: int
    sum: float
    bucket_counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MetricPoint:
    """One value of a metric, cumulative since the process started."""

    metric: Metric
    value: int | float | HistogramValue
    attributes: Mapping[str, str | int] = field(default_factory=dict)
