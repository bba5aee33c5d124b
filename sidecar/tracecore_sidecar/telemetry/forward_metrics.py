"""The way upstream as series: what was sent, what was not and why, what waits.

OpenTelemetry has names for an exporter's items; ``error_type`` is empty for what the endpoint
took. What an exporter has no name for is ``tracecore.sidecar.forward.*``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tracecore_sidecar.telemetry.families import Described, Kind, numbers

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from prometheus_client.core import Metric

_ITEM = {"metrics": "metric_data_point", "logs": "log", "traces": "span"}
"""OpenTelemetry's word for one item of a signal."""
_OUTCOMES = {
    "num_sent": "",
    "num_rejected": "rejected",
    "num_refused": "refused",
    "num_dropped": "queue_full",
}
"""Counter of the forwarder -> ``error_type``: refused one by one, as a whole, no room to wait."""

EXPORTED = tuple(
    Described(
        f"otel.sdk.exporter.{item}.exported",
        Kind.COUNTER,
        f"{{{item}}}",
        "Items whose way upstream has ended, by error_type; empty: taken by the endpoint.",
        ("error_type",),
    )
    for item in _ITEM.values()
)
REQUESTS = Described(
    "tracecore.sidecar.forward.requests", Kind.COUNTER, "{request}", "Requests sent.", ("signal",)
)
RETRIES = Described(
    "tracecore.sidecar.forward.retries",
    Kind.COUNTER,
    "{request}",
    "Requests the endpoint did not take and may take later.",
    ("signal",),
)
WAITING = Described(
    "tracecore.sidecar.forward.queue.usage",
    Kind.GAUGE,
    "By",
    "What waits for the endpoint, in memory and on disk.",
    ("signal",),
)

FORWARD_METRICS = (*EXPORTED, REQUESTS, RETRIES, WAITING)
"""The one visible list. Shown for signals that are forwarded."""


def forward_families(lanes: Mapping[str, Mapping[str, Any]]) -> list[Metric]:
    """Turn the forwarder's counts by signal into families."""
    if not lanes:
        return []
    exported = [
        numbers(
            described,
            (((why,), lanes[signal][name]) for name, why in _OUTCOMES.items()),
        )
        for signal, described in zip(_ITEM, EXPORTED, strict=True)
        if signal in lanes
    ]
    return [
        *exported,
        numbers(REQUESTS, _by_signal(lanes, "num_requests")),
        numbers(RETRIES, _by_signal(lanes, "num_retries")),
        numbers(WAITING, _by_signal(lanes, "waiting_bytes")),
    ]


def _by_signal(
    lanes: Mapping[str, Mapping[str, Any]], name: str
) -> Iterable[tuple[tuple[str], float]]:
    return (((signal,), counts[name]) for signal, counts in lanes.items())
