"""The OTLP intake's JSON form and the signals besides records."""

from __future__ import annotations

import json
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.intake import JSON, PROTOBUF, Intake
from tracecore_sidecar.intake.forms import MAX_JSON_BYTES

TRACE_ID = "5b8efff798038103d269b633813fc60c"
SPAN_ID = "eee19b7ec3c1b174"


def trace(**span: Any) -> dict[str, Any]:
    """A request with one span, as the specification's example writes it."""
    fields = {
        "traceId": TRACE_ID,
        "spanId": SPAN_ID,
        "name": "step",
        "kind": 2,
        "startTimeUnixNano": "1544712660000000000",
        "attributes": [{"key": "my.count", "value": {"intValue": "7"}}],
    }
    return {"resourceSpans": [{"resource": {}, "scopeSpans": [{"spans": [fields | span]}]}]}


def post(intake: Intake, path: str, document: Any) -> tuple[int, Any]:
    answer = intake.call("POST", path, JSON, json.dumps(document).encode())
    assert answer.headers["content-type"] == "application/json"
    return answer.status, json.loads(answer.body)


def test_json_spans_are_forwarded_as_protobuf() -> None:
    """A JSON trace is answered in JSON and handed on as protobuf with its binary ids."""
    intake = Intake()
    assert post(intake, "/v1/traces", trace()) == (200, {})
    ((name, body, num_items),) = intake.forwarded
    request = ExportTraceServiceRequest.FromString(body)
    span = request.resource_spans[0].scope_spans[0].spans[0]
    assert (name, num_items, intake.stats.num_spans) == ("traces", 1, 1)
    assert (span.trace_id.hex(), span.span_id.hex()) == (TRACE_ID, SPAN_ID)
    assert (span.start_time_unix_nano, span.kind) == (1544712660000000000, 2)
    assert span.attributes[0].value.int_value == 7


@pytest.mark.parametrize("time", ["1544712660000000000", 1544712660000000000])
def test_json_metrics_are_counted(time: str | int) -> None:
    """Integers may be text or numbers."""
    points = [{"asInt": "4", "timeUnixNano": time}, {"asDouble": 0.5}]
    metric = {"name": "m", "gauge": {"dataPoints": points}}
    intake = Intake()
    document = {"resourceMetrics": [{"scopeMetrics": [{"metrics": [metric]}]}]}
    assert post(intake, "/v1/metrics", document) == (200, {})
    assert intake.stats.num_metric_points == 2


def test_json_log_records_are_foreign() -> None:
    """A log record without a name of ours is counted as foreign and handed on."""
    log = {"body": {"stringValue": "hello"}, "severityNumber": 9, "traceId": "", "newField": 1}
    intake = Intake()
    document = {"resourceLogs": [{"scopeLogs": [{"logRecords": [log]}]}]}
    assert post(intake, "/v1/logs", document) == (200, {})
    assert intake.stats.num_foreign == 1
    assert intake.stats.foreign_by_rank == {"unknown": 1}
    assert [item[0] for item in intake.forwarded] == ["logs"]


def test_a_partial_success_is_told_in_json() -> None:
    """What is refused of a JSON request is counted in the JSON answer, as text."""
    log = {"eventName": "tracecore.nonsense", "body": {"stringValue": "x"}}
    document = {"resourceLogs": [{"scopeLogs": [{"logRecords": [log]}]}]}
    status, answer = post(Intake(), "/v1/logs", document)
    assert status == 200
    assert answer["partialSuccess"]["rejectedLogRecords"] == "1"
    assert answer["partialSuccess"]["errorMessage"]


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"\xff",
        b'{"resourceSpans": 3}',
        json.dumps(trace(traceId="xyz")).encode(),
        json.dumps(trace(startTimeUnixNano=-1)).encode(),
        b'{"resourceSpans":' * 5000 + b"1" + b"}" * 5000,
        b'{"a":' * 200 + b"1" + b"}" * 200,
    ],
    ids=["cut", "list", "no-text", "wrong-type", "bad-id", "negative", "very-deep", "deep"],
)
def test_bad_json_is_refused_in_json(body: bytes) -> None:
    """JSON that is no such request is 400 with a status message in JSON."""
    intake = Intake()
    answer = intake.call("POST", "/v1/traces", JSON, body)
    assert answer.status == 400
    assert json.loads(answer.body)["message"]
    assert intake.forwarded == []


def test_json_is_held_shorter() -> None:
    """A JSON body beyond its own bound is 413."""
    body = b" " * (MAX_JSON_BYTES + 1)
    assert Intake().call("POST", "/v1/traces", JSON, body).status == 413


def test_unmodified_bytes_are_handed_on() -> None:
    """A protobuf request in which nothing is added goes on byte for byte, unknown fields too."""
    request = ExportTraceServiceRequest()
    request.resource_spans.add().scope_spans.add().spans.add(name="x")
    raw = request.SerializeToString() + b"\xfa\x3e\x03new"
    intake = Intake()
    assert intake.call("POST", "/v1/traces", PROTOBUF, raw).status == 200
    assert intake.forwarded == [("traces", raw, 1)]
