"""Incidents as OTLP log events, for whatever the site already alerts from.

Each change of an incident is one log record with ``EventName`` ``tracecore.verdict``: severity,
the verdict's headline as body, and what a rule or a dashboard selects by as attributes.
``docs/otlp.md`` lists them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.logs.v1 import logs_pb2

from tracecore_sidecar.otlp_signals import LOGS, Signal
from tracecore_sidecar.render import MAX_SUSPECTS, clean_text, render_text
from tracecore_sidecar.verdicts import Severity
from tracecore_train.wire import attributes as attr
from tracecore_train.wire.otlp import service_instance_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import TypeAlias

    from tracecore_sidecar.incidents import IncidentEvent
    from tracecore_sidecar.verdicts import JobInfo, Verdict
    from tracecore_train.wire.records import Source

    Value: TypeAlias = "str | int | float | Sequence[str] | Sequence[int] | None"

SERVICE_NAME = "tracecore_sidecar"
SCOPE_NAME = "tracecore_sidecar"
MAX_TEXTS = 16
"""Items of evidence, actions and the like that go into one event."""
_SEVERITY = {
    Severity.INFO: logs_pb2.SEVERITY_NUMBER_INFO,
    Severity.WARNING: logs_pb2.SEVERITY_NUMBER_WARN,
    Severity.CRITICAL: logs_pb2.SEVERITY_NUMBER_FATAL,
}


class OtlpEventSink:
    """Hands each change to ``offer`` as a serialised request of one log record."""

    def __init__(
        self, offer: Callable[[Signal, bytes, int], None], source: Source, *, wall_offset_ns: int
    ) -> None:
        """``source`` is this sidecar."""
        self._offer = offer
        self._source = source
        self._wall_offset_ns = wall_offset_ns

    def on_event(self, event: IncidentEvent, job: JobInfo) -> None:
        """Hand one change over."""
        request = ExportLogsServiceRequest()
        group = request.resource_logs.add()
        group.resource.attributes.extend(_key_values(self._resource(job)))
        scope = group.scope_logs.add()
        scope.scope.name = SCOPE_NAME
        verdict, offset = event.verdict, self._wall_offset_ns
        text = render_text(verdict, now_ns=event.now_ns, wall_offset_ns=offset)
        log = scope.log_records.add(
            event_name=attr.VERDICT_EVENT,
            time_unix_nano=max(0, event.now_ns + offset),
            observed_time_unix_nano=max(0, event.now_ns + offset),
            severity_number=_SEVERITY[verdict.severity],
            severity_text=verdict.severity.value,
        )
        log.body.string_value = text.split("\n", 1)[0]
        log.attributes.extend(_key_values(_attributes(event, offset)))
        self._offer(LOGS, request.SerializeToString(), 1)

    def close(self) -> None:
        """Nothing is kept here."""

    def _resource(self, job: JobInfo) -> dict[str, Value]:
        return {
            attr.SERVICE_NAME: SERVICE_NAME,
            attr.SERVICE_INSTANCE_ID: service_instance_id(self._source),
            attr.HOST_NAME: job.host,
            attr.JOB_ID: job.job_id,
            attr.JOB_ATTEMPT: job.attempt,
            attr.NODE_RANK: job.node_rank,
            attr.WORLD_SIZE: job.world_size,
        }


def _attributes(event: IncidentEvent, wall_offset_ns: int) -> dict[str, Value]:
    verdict = event.verdict
    return {
        "tracecore.incident.id": event.incident_id,
        "tracecore.incident.change": event.change,
        "tracecore.verdict.pattern": verdict.pattern,
        "tracecore.verdict.class": verdict.class_,
        "tracecore.verdict.severity": verdict.severity.value,
        "tracecore.verdict.confidence": verdict.confidence.value,
        "tracecore.verdict.summary": clean_text(verdict.summary),
        "tracecore.verdict.since_ns": verdict.since_ns + wall_offset_ns,
        "tracecore.verdict.evidence": _texts(item.text for item in verdict.evidence),
        "tracecore.verdict.contradicting": _texts(item.text for item in verdict.contradicting),
        "tracecore.verdict.not_measured": _texts(verdict.not_measured),
        "tracecore.verdict.actions": _texts(verdict.actions),
        **_suspects(verdict),
        **_cost(verdict),
    }


def _suspects(verdict: Verdict) -> dict[str, Value]:
    """Name the first suspect in single values, as most verdicts have one, and all ranks."""
    if not verdict.suspects:
        return {"tracecore.suspect.kind": "none"}
    first = verdict.suspects[0]
    ranks = [suspect.rank for suspect in verdict.suspects if suspect.rank is not None]
    return {
        "tracecore.suspect.kind": first.kind.value,
        "tracecore.suspect.rank": first.rank,
        "tracecore.suspect.local_rank": first.local_rank,
        "tracecore.suspect.host": first.host,
        "tracecore.suspect.pid": first.pid,
        "tracecore.suspect.gpu_uuid": first.gpu_uuid,
        "tracecore.suspect.ranks": ranks[: MAX_SUSPECTS * 8],
        "tracecore.suspect.count": len(verdict.suspects),
    }


def _cost(verdict: Verdict) -> dict[str, Value]:
    cost = verdict.cost
    if cost is None:
        return {}
    return {
        "tracecore.cost.text": clean_text(cost.text),
        "tracecore.cost.seconds_per_step": cost.seconds_per_step,
        "tracecore.cost.share_of_step": cost.share_of_step,
        "tracecore.cost.waiting_ranks": cost.waiting_ranks,
        "tracecore.cost.gpu_hours": cost.gpu_hours,
    }


def _texts(texts: Iterable[str]) -> list[str]:
    return [clean_text(text) for text, _ in zip(texts, range(MAX_TEXTS), strict=False)]


def _key_values(values: Mapping[str, Value]) -> list[KeyValue]:
    """Leave out what is not known."""
    return [
        KeyValue(key=key, value=_any_value(value))
        for key, value in values.items()
        if value is not None
        and value != []
        and not (isinstance(value, float) and not math.isfinite(value))
    ]


def _any_value(value: str | float | Sequence[str] | Sequence[int]) -> AnyValue:
    if isinstance(value, str):
        return AnyValue(string_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    return AnyValue(array_value=ArrayValue(values=[_any_value(item) for item in value]))
