"""The three signals of OTLP: where each is posted, its messages, and how its items are counted.

Intake and forwarding treat metrics, logs and traces alike; what differs stands here as data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.logs.v1 import logs_service_pb2
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable

    from google.protobuf.message import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """One of metrics, logs, traces."""

    name: str
    request: type[Message]
    response: type[Message]
    groups: str
    """Field of the request: what one resource sent."""
    scopes: str
    items: str
    """Field of a scope: log records, spans, metrics."""
    rejected: str
    """Field of a partial success: how many items were refused."""

    @property
    def path(self) -> str:
        """Where the signal is posted."""
        return f"/v1/{self.name}"

    def resource_groups(self, request: Message) -> Iterable[Any]:
        """Give the request's groups, one per resource."""
        groups: Iterable[Any] = getattr(request, self.groups)
        return groups

    def num_items(self, group: Any) -> int:
        """Count a group's log records, spans or metric data points."""
        count = 0
        for scope in getattr(group, self.scopes):
            items = getattr(scope, self.items)
            count += sum(map(_num_points, items)) if self.items == "metrics" else len(items)
        return count


METRICS = Signal(
    name="metrics",
    request=metrics_service_pb2.ExportMetricsServiceRequest,
    response=metrics_service_pb2.ExportMetricsServiceResponse,
    groups="resource_metrics",
    scopes="scope_metrics",
    items="metrics",
    rejected="rejected_data_points",
)
LOGS = Signal(
    name="logs",
    request=logs_service_pb2.ExportLogsServiceRequest,
    response=logs_service_pb2.ExportLogsServiceResponse,
    groups="resource_logs",
    scopes="scope_logs",
    items="log_records",
    rejected="rejected_log_records",
)
TRACES = Signal(
    name="traces",
    request=trace_service_pb2.ExportTraceServiceRequest,
    response=trace_service_pb2.ExportTraceServiceResponse,
    groups="resource_spans",
    scopes="scope_spans",
    items="spans",
    rejected="rejected_spans",
)

SIGNALS = (METRICS, LOGS, TRACES)
"""The one visible list."""


def _num_points(metric: Any) -> int:
    kind = metric.WhichOneof("data")
    return len(getattr(metric, kind).data_points) if kind else 0
