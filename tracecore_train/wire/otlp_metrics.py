"""A rank's metric points to an OTLP metrics request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.metrics.v1 import metrics_pb2

from tracecore_train.errors import WireError
from tracecore_train.wire.metrics import HistogramValue, Instrument, MetricPoint
from tracecore_train.wire.otlp import SCOPE_NAME, key_values, resource_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tracecore_train.wire.records import Source


def encode_metrics(
    source: Source, points: Iterable[MetricPoint], *, start_ns: int, time_ns: int
) -> bytes:
    """Serialise metric points as an ``ExportMetricsServiceRequest``.

    ``start_ns`` and ``time_ns`` are wall-clock nanoseconds since the epoch.
    """
    request = ExportMetricsServiceRequest()
    resource_metrics = request.resource_metrics.add()
    resource_metrics.resource.CopyFrom(resource_of(source))
    scope_metrics = resource_metrics.scope_metrics.add()
    scope_metrics.scope.name = SCOPE_NAME
    for point in points:
        metric = scope_metrics.metrics.add(
            name=point.metric.name,
            unit=point.metric.unit,
            description=point.metric.description,
        )
        target: metrics_pb2.HistogramDataPoint | metrics_pb2.NumberDataPoint
        if isinstance(point.value, HistogramValue):
            metric.histogram.aggregation_temporality = (
                metrics_pb2.AGGREGATION_TEMPORALITY_CUMULATIVE
            )
            target = metric.histogram.data_points.add(
                count=point.value.count,
                sum=point.value.sum,
                bucket_counts=point.value.bucket_counts,
                explicit_bounds=point.metric.bounds,
            )
        elif point.metric.instrument is Instrument.SUM:
            metric.sum.aggregation_temporality = metrics_pb2.AGGREGATION_TEMPORALITY_CUMULATIVE
            metric.sum.is_monotonic = True
            target = metric.sum.data_points.add()
            if isinstance(point.value, int):
                target.as_int = point.value
            else:
                target.as_double = point.value
        else:
            raise WireError(f"{point.metric.name} needs a HistogramValue, not {point.value!r}")
        target.start_time_unix_nano = start_ns
        target.time_unix_nano = time_ns
        target.attributes.extend(key_values(point.attributes))
    return request.SerializeToString()
