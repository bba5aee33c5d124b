"""The OTLP intake, driven through ASGI."""

from __future__ import annotations

import gzip
import time

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)

from tests.support.intake import GZIP, PROTOBUF, Answer, Intake, batch_of
from tracecore_sidecar.intake import body as body_module
from tracecore_sidecar.intake.body import MAX_BODY_BYTES
from tracecore_sidecar.intake.forms import Form
from tracecore_sidecar.receiver import IntakeStats
from tracecore_train.errors import WireError
from tracecore_train.wire.otlp import encode_logs
from tracecore_train.wire.records import Batch, PhaseRecord


def rejection(answer: Answer) -> tuple[int, str]:
    response = ExportLogsServiceResponse()
    response.ParseFromString(answer.body)
    partial = response.partial_success
    return partial.rejected_log_records, partial.error_message


def test_a_batch_arrives() -> None:
    """A log request gives its batch and an empty response in the same content type."""
    intake = Intake()
    answer = intake.logs(encode_logs(batch_of()))
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["content-type"] == "application/x-protobuf"
    assert intake.batches == [batch_of()]
    assert intake.stats == IntakeStats(num_requests=1, num_batches=1, num_records=3)


@pytest.mark.parametrize("num_chunks", [2, 50])
def test_a_body_arrives_in_pieces(num_chunks: int) -> None:
    """A body in many pieces is the same body."""
    intake = Intake()
    raw = encode_logs(batch_of())
    size = len(raw) // num_chunks + 1
    chunks = [raw[i : i + size] for i in range(0, len(raw), size)]
    assert intake.call("POST", "/v1/logs", PROTOBUF, *chunks).status == 200
    assert intake.batches == [batch_of()]


def test_gzip_is_taken() -> None:
    """A gzip body is decompressed."""
    intake = Intake()
    assert intake.logs(gzip.compress(encode_logs(batch_of())), GZIP).status == 200
    assert intake.batches == [batch_of()]


def test_a_large_body_is_taken() -> None:
    """A body that is decoded beside the loop gives the same batch."""
    intake = Intake()
    large = batch_of(num_records=50_000)
    raw = encode_logs(large)
    assert len(raw) > Form.PROTOBUF.inline_bytes
    assert intake.logs(raw).status == 200
    assert intake.batches == [large]


def test_parameters_of_the_content_type_do_not_matter() -> None:
    """A charset behind the content type is ignored."""
    headers = {"content-type": "Application/X-Protobuf; charset=utf-8"}
    assert Intake().logs(encode_logs(batch_of()), headers).status == 200


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"\xff\xff garbage", PROTOBUF, 400),
        (b"not gzip", GZIP, 400),
        (gzip.compress(b"x" * 1000)[:-4], GZIP, 400),
        (gzip.compress(b"") + b"behind", GZIP, 400),
        (b"{", {"content-type": "text/plain"}, 415),
        (b"", {}, 415),
        (b"", PROTOBUF | {"content-encoding": "br"}, 415),
        (b"\x00" * (MAX_BODY_BYTES + 1), PROTOBUF, 413),
        (gzip.compress(b"\x00" * (MAX_BODY_BYTES + 1)), GZIP, 413),
    ],
    ids=[
        "garbage",
        "no-gzip",
        "cut-gzip",
        "behind-gzip",
        "text",
        "no-type",
        "brotli",
        "too-long",
        "bomb",
    ],
)
@pytest.mark.parametrize("path", ["/v1/logs", "/v1/metrics"])
def test_what_is_refused(path: str, body: bytes, headers: dict[str, str], status: int) -> None:
    """Garbage, unknown forms and oversize are refused with a reason, and counted."""
    intake = Intake()
    answer = intake.call("POST", path, headers, body)
    assert answer.status == status
    assert answer.body[:1] == b"\x12"
    assert len(answer.body) > 10
    assert intake.batches == []
    assert intake.stats.num_refused_requests == 1


def test_a_body_beyond_the_bound_is_not_read_to_its_end() -> None:
    """An endless body is refused right after the bound: a pause behind it is not waited for."""
    megabytes = [b"\x00" * (1 << 20)] * 17
    started = time.monotonic()
    assert Intake().call("POST", "/v1/logs", PROTOBUF, *megabytes, 60.0, b"").status == 413
    assert time.monotonic() - started < 5


def test_a_slow_body_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that does not end in time is refused with 408."""
    monkeypatch.setattr(body_module, "BODY_TIMEOUT_S", 0.05)
    assert Intake().call("POST", "/v1/logs", PROTOBUF, b"\n", 30.0, b"").status == 408


def test_a_client_that_hangs_up_is_no_error() -> None:
    """A connection that ends within the body raises nothing and gives no batch."""
    intake = Intake()
    intake.call("POST", "/v1/logs", PROTOBUF, encode_logs(batch_of())[:10], None)
    assert intake.batches == []
    assert intake.stats.num_refused_requests == 1


def test_another_job_is_refused_with_a_message() -> None:
    """Batches of another job are counted, not taken, and the message names both jobs."""
    intake = Intake()
    answer = intake.logs(encode_logs(batch_of("theirs")))
    assert answer.status == 200
    num_rejected, message = rejection(answer)
    assert num_rejected == 1
    assert "'job'" in message
    assert "'theirs'" in message
    assert intake.batches == []
    assert intake.stats.num_rejected == 1


def test_a_batch_the_state_refuses_is_a_partial_success() -> None:
    """A WireError of on_batch refuses that batch with its message."""

    def refuse(_: Batch) -> None:
        raise WireError("rank 1 of 1")

    assert rejection(Intake(refuse).logs(encode_logs(batch_of()))) == (1, "rank 1 of 1")


def test_good_records_beside_bad_ones_are_taken() -> None:
    """A malformed log record is refused and counted; the others of the request arrive."""
    phase = PhaseRecord(time_ns=1, rank=1, name="warm up", duration_ns=1)
    both = Batch(source=batch_of().source, records=(*batch_of().records, phase))
    request = ExportLogsServiceRequest.FromString(encode_logs(both))
    request.resource_logs[0].scope_logs[0].log_records[1].body.string_value = "nonsense"
    intake = Intake()
    num_rejected, message = rejection(intake.logs(request.SerializeToString()))
    assert num_rejected == 1
    assert message
    assert intake.batches == [batch_of()]
    assert (intake.stats.num_records, intake.stats.num_rejected) == (3, 1)


def test_metrics_are_counted() -> None:
    """A metrics request is answered and its points counted."""
    request = ExportMetricsServiceRequest()
    metric = request.resource_metrics.add().scope_metrics.add().metrics.add(name="m")
    for _ in range(4):
        metric.sum.data_points.add(as_int=1)
    intake = Intake()
    answer = intake.call("POST", "/v1/metrics", PROTOBUF, request.SerializeToString())
    assert (answer.status, answer.body) == (200, b"")
    assert intake.stats.num_metric_points == 4


def test_health_and_readiness_are_told_apart() -> None:
    """/healthz is 200 while the process lives; /readyz follows is_ready."""
    intake = Intake()
    intake.is_ready = False
    assert intake.call("GET", "/healthz", {}).status == 200
    assert intake.call("GET", "/readyz", {}).status == 503
    intake.is_ready = True
    assert intake.call("GET", "/readyz", {}).status == 200


def test_only_post_is_taken() -> None:
    """A GET of an intake path is 405, an unknown path 404."""
    assert Intake().call("GET", "/v1/logs", {}).status == 405
    assert Intake().call("POST", "/v1/profiles", PROTOBUF, b"").status == 404
