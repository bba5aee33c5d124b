"""Incidents as OTLP log events."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1 import logs_pb2

from tests.support.verdicts import JOB, SECOND, WALL_OFFSET_NS, event_of, hang
from tracecore_sidecar.sinks.otlp_events import MAX_TEXTS, OtlpEventSink
from tracecore_sidecar.verdicts import Cost, Severity, Verdict
from tracecore_train.wire.records import Source, SourceKind

if TYPE_CHECKING:
    from tracecore_sidecar.incidents import Change

SIDECAR = Source(
    kind=SourceKind.SIDECAR,
    host="a07",
    boot_id="boot",
    pid=7,
    job_id="job",
    attempt=0,
    wall_offset_ns=WALL_OFFSET_NS,
)


def told(verdict: Verdict, change: Change = "opened") -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The log record of one change, its attributes and its resource's."""
    bodies: list[bytes] = []
    sink = OtlpEventSink(
        lambda signal, body, num_items: bodies.append(body), SIDECAR, wall_offset_ns=WALL_OFFSET_NS
    )
    sink.on_event(event_of(verdict, change), JOB)
    (group,) = ExportLogsServiceRequest.FromString(bodies[0]).resource_logs
    (log,) = group.scope_logs[0].log_records
    return log, plain(log.attributes), plain(group.resource.attributes)


def plain(attributes: Any) -> dict[str, Any]:
    return {item.key: _value(item.value) for item in attributes}


def _value(value: Any) -> Any:
    form = value.WhichOneof("value")
    if form == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, form)


def test_an_opened_hang_is_one_event() -> None:
    """Name, severity, headline, suspect, cost and incident stand where a rule looks for them."""
    log, attributes, resource = told(hang(1))
    assert log.event_name == "tracecore.verdict"
    assert log.severity_text == "critical"
    assert log.body.string_value.startswith("HANG  rank 1 never joined all_reduce #482")
    assert log.time_unix_nano == 68 * SECOND + WALL_OFFSET_NS
    wanted = {
        "tracecore.incident.id": "c0ffee",
        "tracecore.incident.change": "opened",
        "tracecore.verdict.pattern": "hang",
        "tracecore.verdict.class": "never_entered",
        "tracecore.verdict.confidence": "full",
        "tracecore.verdict.since_ns": 60 * SECOND + WALL_OFFSET_NS,
        "tracecore.suspect.kind": "rank",
        "tracecore.suspect.rank": 1,
        "tracecore.suspect.host": "a07",
        "tracecore.suspect.ranks": [1],
        "tracecore.cost.waiting_ranks": 7,
        "tracecore.verdict.actions": ["look at the NFS mount of a07"],
    }
    assert wanted.items() <= attributes.items()
    assert len(attributes["tracecore.verdict.evidence"]) == 2
    assert resource["service.name"] == "tracecore_sidecar"
    assert (resource["tracecore.job.id"], resource["tracecore.world_size"]) == ("job", 8)


@pytest.mark.parametrize("change", ["opened", "updated", "closed"])
def test_every_change_is_told(change: Change) -> None:
    """Opened, updated and closed each give an event that says so."""
    assert told(hang(1), change)[1]["tracecore.incident.change"] == change


@pytest.mark.parametrize(
    ("severity", "number"),
    [
        (Severity.INFO, logs_pb2.SEVERITY_NUMBER_INFO),
        (Severity.WARNING, logs_pb2.SEVERITY_NUMBER_WARN),
        (Severity.CRITICAL, logs_pb2.SEVERITY_NUMBER_FATAL),
    ],
)
def test_severities_have_their_numbers(severity: Severity, number: int) -> None:
    """Each severity maps to the OTLP number of the same weight."""
    assert told(hang(1, severity=severity))[0].severity_number == number


def test_nobody_is_named_when_nobody_is_suspected() -> None:
    """A verdict without suspects says kind none and names no rank."""
    _, attributes, _ = told(hang())
    assert attributes["tracecore.suspect.kind"] == "none"
    assert not [name for name in attributes if name.startswith("tracecore.suspect.r")]


def test_hostile_content_is_bounded() -> None:
    """Many texts, control characters and no-numbers neither break nor swell the event."""
    actions = tuple(f"do \x1b[2J {number} " + "x" * 5000 for number in range(500))
    cost = Cost(text="c", gpu_hours=math.nan, seconds_per_step=math.inf)
    log, attributes, _ = told(hang(*range(500), actions=actions, cost=cost))
    assert len(attributes["tracecore.verdict.actions"]) == MAX_TEXTS
    assert "\x1b" not in attributes["tracecore.verdict.actions"][0]
    assert attributes["tracecore.suspect.count"] == 500
    assert not {"tracecore.cost.gpu_hours", "tracecore.cost.seconds_per_step"} & set(attributes)
    assert log.ByteSize() < 64_000
