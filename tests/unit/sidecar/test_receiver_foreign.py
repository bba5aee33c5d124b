"""Foreign telemetry at the intake: whose it is, when it is refused, what is handed on."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)

from tests.support.intake import PROTOBUF, Answer, Intake, batch_of
from tracecore_sidecar.intake.senders import BURST_BYTES, BYTES_PER_S, MAX_SENDERS, TokenBuckets
from tracecore_train.wire.metrics import STEPS, MetricPoint
from tracecore_train.wire.otlp import encode_logs
from tracecore_train.wire.otlp_metrics import encode_metrics


def metrics(num_points: int = 1, **attributes: str | int) -> bytes:
    """A request of one resource; ``_`` in a name stands for ``.``."""
    request = ExportMetricsServiceRequest()
    group = request.resource_metrics.add()
    for name, value in attributes.items():
        item = group.resource.attributes.add(key=name.replace("_", ".", 2))
        if isinstance(value, int):
            item.value.int_value = value
        else:
            item.value.string_value = value
    metric = group.scope_metrics.add().metrics.add(name="m")
    for _ in range(num_points):
        metric.gauge.data_points.add(as_int=1)
    return request.SerializeToString()


def post(intake: Intake, body: bytes, path: str = "/v1/metrics") -> Answer:
    return intake.call("POST", path, PROTOBUF, body)


def resource_of(body: bytes) -> dict[str, Any]:
    request = ExportMetricsServiceRequest.FromString(body)
    return {
        item.key: getattr(item.value, item.value.WhichOneof("value") or "")
        for item in request.resource_metrics[0].resource.attributes
    }


@pytest.mark.parametrize(
    "attributes",
    [
        {"tracecore_rank": "3"},
        {"nv_dl_rank": 3},
        {"nv_dl_rank": "3", "process_pid": 99},
        {"process_pid": 41},
    ],
    ids=["text", "nemo-lens", "nemo-lens-first", "process"],
)
def test_the_rank_is_written_on_the_resource(attributes: dict[str, str | int]) -> None:
    """A rank that can be told stands on the resource as an integer, with the job."""
    intake = Intake()
    intake.ranks_by_pid = {41: 3, 99: 7}
    assert post(intake, metrics(2, **attributes)).status == 200
    resource = resource_of(intake.forwarded[0][1])
    assert (resource["tracecore.rank"], resource["tracecore.job.id"]) == (3, "job")
    assert intake.stats.foreign_by_rank == {"3": 2}


def test_the_world_size_of_nemo_lens_is_understood() -> None:
    """nv.dl.world_size becomes tracecore.world_size."""
    request = ExportMetricsServiceRequest.FromString(metrics(nv_dl_rank=1))
    resource = request.resource_metrics[0].resource
    resource.attributes.add(key="nv.dl.world_size").value.int_value = 8
    intake = Intake()
    post(intake, request.SerializeToString())
    assert resource_of(intake.forwarded[0][1])["tracecore.world_size"] == 8


@pytest.mark.parametrize("rank", ["x", "-1", -1, 1 << 40, "٣" * 12, ""])
def test_a_rank_that_is_none_is_not_guessed(rank: str | int) -> None:
    """Nonsense in the rank leaves the request as it is."""
    intake = Intake()
    raw = metrics(nv_dl_rank=rank)
    post(intake, raw)
    assert intake.forwarded == [("metrics", raw, 1)]
    assert intake.stats.foreign_by_rank == {"unknown": 1}


def test_our_tables_are_not_handed_on() -> None:
    """Records stay here; a foreign log record beside them goes on without them."""
    intake = Intake()
    post(intake, encode_logs(batch_of()), "/v1/logs")
    assert intake.forwarded == []
    request = ExportLogsServiceRequest.FromString(encode_logs(batch_of()))
    request.resource_logs[0].scope_logs[0].log_records.add().body.string_value = "theirs"
    post(intake, request.SerializeToString(), "/v1/logs")
    ((_, body, num_items),) = intake.forwarded
    sent = ExportLogsServiceRequest.FromString(body)
    (log,) = sent.resource_logs[0].scope_logs[0].log_records
    assert (log.body.string_value, num_items) == ("theirs", 1)
    assert intake.batches == [batch_of(), batch_of()]


def test_verdicts_of_another_sidecar_are_handed_on() -> None:
    """A verdict event is no table: it is forwarded like anybody's log record."""
    request = ExportLogsServiceRequest()
    request.resource_logs.add().scope_logs.add().log_records.add(event_name="tracecore.verdict")
    intake = Intake()
    answer = post(intake, request.SerializeToString(), "/v1/logs")
    assert (answer.status, answer.body) == (200, b"")
    assert [item[0] for item in intake.forwarded] == ["logs"]


def test_a_full_queue_refuses_foreign_telemetry() -> None:
    """429 with a Retry-After, and nothing is counted as taken."""
    intake = Intake()
    intake.is_full = True
    answer = post(intake, metrics())
    assert (answer.status, answer.headers["retry-after"]) == (429, "30")
    assert intake.forwarded == []
    assert (intake.stats.num_throttled_requests, intake.stats.num_metric_points) == (1, 0)


def test_a_full_queue_takes_our_own_ranks_metrics() -> None:
    """A rank's standard metrics are taken all the same: the queue drops its oldest."""
    point = MetricPoint(STEPS, 7)
    raw = encode_metrics(batch_of().source, [point], start_ns=1, time_ns=2)
    intake = Intake()
    intake.is_full = True
    assert post(intake, raw).status == 200
    assert intake.forwarded == [("metrics", raw, 1)]
    assert intake.stats.num_foreign == 0


def test_a_full_queue_takes_records_and_counts_the_rest_as_rejected() -> None:
    """A request with both keeps its records; the foreign part is a partial success."""
    request = ExportLogsServiceRequest.FromString(encode_logs(batch_of()))
    request.resource_logs.add().scope_logs.add().log_records.add(severity_text="theirs")
    intake = Intake()
    intake.is_full = True
    answer = post(intake, request.SerializeToString(), "/v1/logs")
    partial = ExportLogsServiceResponse.FromString(answer.body).partial_success
    assert (answer.status, partial.rejected_log_records) == (200, 1)
    assert "full" in partial.error_message
    assert intake.batches == [batch_of()]


def test_a_closing_sidecar_answers_503() -> None:
    """Once closed, requests are 503 with a Retry-After."""
    intake = Intake()
    intake.is_open = False
    answer = post(intake, metrics())
    assert (answer.status, answer.headers["retry-after"]) == (503, "5")


def test_records_over_tcp_are_refused() -> None:
    """Who comes by TCP is not known to be the job: its records are a partial success of none."""
    intake = Intake(client=("127.0.0.1", 5))
    answer = post(intake, encode_logs(batch_of()), "/v1/logs")
    partial = ExportLogsServiceResponse.FromString(answer.body).partial_success
    assert partial.rejected_log_records == 1
    assert "unix socket" in partial.error_message
    assert intake.batches == []


def test_metrics_that_pose_as_ours_over_tcp_get_no_privilege() -> None:
    """A resource that says tracecore.source over TCP is refused when the queue is full."""
    raw = encode_metrics(batch_of().source, [MetricPoint(STEPS, 7)], start_ns=1, time_ns=2)
    intake = Intake(client=("127.0.0.1", 5))
    intake.is_full = True
    assert post(intake, raw).status == 429


def test_a_sender_beyond_its_bucket_waits() -> None:
    """An emptied bucket asks for the time it takes to fill above zero, others are not held up."""
    buckets = TokenBuckets()
    buckets.spend("pid:1", BURST_BYTES + 3 * BYTES_PER_S, 100.0)
    assert buckets.wait_s("pid:1", 100.0) == 3
    assert buckets.wait_s("pid:2", 100.0) == 0
    assert buckets.wait_s("pid:1", 103.5) == 0


def test_the_number_of_buckets_is_bounded() -> None:
    """Beyond the bound the longest unused sender is forgotten, and so has a full bucket again."""
    buckets = TokenBuckets()
    buckets.spend("first", 2 * BURST_BYTES, 0.0)
    for number in range(MAX_SENDERS):
        buckets.spend(f"pid:{number}", 1, 0.0)
    assert buckets.wait_s("first", 0.0) == 0


def test_an_empty_bucket_is_429(monkeypatch: pytest.MonkeyPatch) -> None:
    """The intake asks the bucket before it reads a body."""
    monkeypatch.setattr(TokenBuckets, "wait_s", lambda *_: 4)
    answer = post(Intake(), metrics())
    assert (answer.status, answer.headers["retry-after"]) == (429, "4")
