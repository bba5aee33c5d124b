"""One signal's way upstream, against a real HTTP server."""

from __future__ import annotations

import socket
import time
from contextlib import contextmanager
from email.utils import formatdate
from typing import TYPE_CHECKING

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)

from tests.support.fake_sidecar import wait_until
from tests.support.upstream import Told, UpstreamServer
from tracecore_sidecar.forward import lane as lane_module
from tracecore_sidecar.forward.lane import Lane
from tracecore_sidecar.forward.settings import load_settings
from tracecore_sidecar.forward.spool import Entry
from tracecore_sidecar.otlp_signals import LOGS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BACKOFF_S = 0.05


def log(text: str) -> Entry:
    request = ExportLogsServiceRequest()
    records = request.resource_logs.add().scope_logs.add().log_records
    records.add().body.string_value = text
    return Entry(request.SerializeToString(), 1)


@contextmanager
def lane_to(url: str, directory: Path, *, linger_s: float = 0.0, **extra: str) -> Iterator[Lane]:
    variables = {f"OTEL_EXPORTER_OTLP_{name}": value for name, value in extra.items()}
    settings, _ = load_settings({"OTEL_EXPORTER_OTLP_ENDPOINT": url} | variables)
    lane = Lane(LOGS, settings["logs"], directory, linger_s=linger_s, first_backoff_s=BACKOFF_S)
    lane.start()
    yield lane
    lane.stop()
    lane.join(time.monotonic() + 1)


def texts(upstream: UpstreamServer) -> list[str]:
    return [record.body.string_value for record in upstream.logs()]


def test_a_body_arrives_compressed_with_its_headers(tmp_path: Path) -> None:
    """Protobuf, gzip and the configured headers reach the endpoint; the bytes are the same."""
    with (
        UpstreamServer() as upstream,
        lane_to(upstream.url, tmp_path, HEADERS="authorization=Bearer%20x") as lane,
    ):
        lane.offer(log("a"))
        wait_until(lambda: lane.stats.num_sent == 1)
    (received,) = upstream.received
    assert received.path == "/v1/logs"
    assert received.body == log("a").body
    assert received.headers["content-type"] == "application/x-protobuf"
    assert received.headers["content-encoding"] == "gzip"
    assert received.headers["authorization"] == "Bearer x"


def test_compression_can_be_turned_off(tmp_path: Path) -> None:
    """With OTEL_EXPORTER_OTLP_COMPRESSION=none the body goes as it is."""
    with (
        UpstreamServer() as upstream,
        lane_to(upstream.url, tmp_path, COMPRESSION="none") as lane,
    ):
        lane.offer(log("a"))
        wait_until(lambda: lane.stats.num_sent == 1)
    assert "content-encoding" not in upstream.received[0].headers


def test_what_waits_is_sent_in_one_request(tmp_path: Path) -> None:
    """Bodies that come together arrive as one valid request, in order."""
    with UpstreamServer() as upstream, lane_to(upstream.url, tmp_path, linger_s=0.5) as lane:
        for text in "abcde":
            lane.offer(log(text))
        wait_until(lambda: lane.stats.num_sent == 5)
    assert len(upstream.received) == 1
    assert texts(upstream) == list("abcde")


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_retryable_status_is_tried_again(tmp_path: Path, status: int) -> None:
    """The same body is sent again until it is taken, once."""
    with (
        UpstreamServer(Told(status), Told(status)) as upstream,
        lane_to(upstream.url, tmp_path) as lane,
    ):
        lane.offer(log("a"))
        wait_until(lambda: lane.stats.num_sent == 1)
    assert len(upstream.received) == 3
    assert lane.stats.num_retries == 2
    assert lane.queue.num_bytes == 0


@pytest.mark.parametrize("status", [302, 400, 401, 404, 413, 500, 501])
def test_any_other_error_drops_the_body_and_counts_it(tmp_path: Path, status: int) -> None:
    """What would be refused again is not sent again, and does not hold up the next."""
    with UpstreamServer(Told(status)) as upstream, lane_to(upstream.url, tmp_path) as lane:
        lane.offer(log("a"))
        wait_until(lambda: lane.stats.num_refused == 1)
        assert str(status) in lane.stats.last_problem
        lane.offer(log("b"))
        wait_until(lambda: lane.stats.num_sent == 1)
    assert texts(upstream) == ["a", "b"]


@pytest.mark.parametrize("is_date", [False, True])
def test_retry_after_is_honoured(tmp_path: Path, is_date: bool) -> None:
    """The endpoint's own pause, in seconds or as a date, wins over a shorter one of ours."""
    after = formatdate(time.time() + 3, usegmt=True) if is_date else "2"
    with (
        UpstreamServer(Told(503, {"retry-after": after})) as upstream,
        lane_to(upstream.url, tmp_path) as lane,
    ):
        lane.offer(log("a"))
        wait_until(lambda: upstream.received)
        started = time.monotonic()
        wait_until(lambda: lane.stats.num_sent == 1)
        assert time.monotonic() - started > 1.5


def test_an_absurd_retry_after_is_capped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint cannot silence a sidecar for years."""
    monkeypatch.setattr(lane_module, "MAX_RETRY_AFTER_S", 0.1)
    with (
        UpstreamServer(Told(429, {"retry-after": "9" * 30})) as upstream,
        lane_to(upstream.url, tmp_path) as lane,
    ):
        lane.offer(log("a"))
        wait_until(lambda: lane.stats.num_sent == 1, 10)


def test_a_partial_success_is_counted_and_not_sent_again(tmp_path: Path) -> None:
    """Rejected items are counted apart from those taken, with the endpoint's message."""
    response = ExportLogsServiceResponse()
    response.partial_success.rejected_log_records = 1
    response.partial_success.error_message = "too\x1b old"
    with (
        UpstreamServer(Told(200, body=response.SerializeToString())) as upstream,
        lane_to(upstream.url, tmp_path, linger_s=0.3) as lane,
    ):
        lane.offer(log("a"))
        lane.offer(log("b"))
        wait_until(lambda: lane.stats.num_sent == 1)
        time.sleep(4 * BACKOFF_S)
    assert lane.stats.num_rejected == 1
    assert lane.stats.last_problem == "too? old"
    assert len(upstream.received) == 1


def test_a_refused_batch_is_sent_one_by_one(tmp_path: Path) -> None:
    """One bad body among many costs itself only."""
    with (
        UpstreamServer(Told(400), Told(), Told(400), Told()) as upstream,
        lane_to(upstream.url, tmp_path, linger_s=0.3) as lane,
    ):
        for text in "abc":
            lane.offer(log(text))
        wait_until(lambda: lane.stats.num_sent == 2)
    assert lane.stats.num_refused == 1
    assert [len(received.body) for received in upstream.received][1:] == [len(log("a").body)] * 3


def test_an_unreachable_endpoint_costs_nothing_and_is_caught_up(tmp_path: Path) -> None:
    """What could not be sent waits on disk, over the end of the sidecar, and then arrives."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with lane_to(f"http://127.0.0.1:{port}", tmp_path) as lane:
        lane.offer(log("a"))
        wait_until(lambda: lane.stats.num_retries >= 2)
        lane.offer(log("b"))
        started = time.monotonic()
    assert time.monotonic() - started < 2
    assert [path.suffix for path in tmp_path.iterdir()] == [".otlpq"] * len(
        list(tmp_path.iterdir())
    )
    with UpstreamServer() as upstream, lane_to(upstream.url, tmp_path) as lane:
        wait_until(lambda: lane.stats.num_sent == 2)
    assert texts(upstream) == ["a", "b"]
    assert list(tmp_path.iterdir()) == []


def test_a_silent_endpoint_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """An endpoint that takes a request and says nothing delays the end by its deadline only."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with lane_to(f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path) as lane:
            lane.offer(log("a"))
            connection, _ = silent.accept()
            started = time.monotonic()
        assert time.monotonic() - started < 3
        connection.close()
    assert len(list(tmp_path.iterdir())) == 1


def test_an_answer_that_is_no_http_is_tried_again(tmp_path: Path) -> None:
    """Garbage instead of an answer is a failure like any other."""
    with (
        socket.create_server(("127.0.0.1", 0)) as lying,
        lane_to(f"http://127.0.0.1:{lying.getsockname()[1]}", tmp_path) as lane,
    ):
        lane.offer(log("a"))
        for _ in range(2):
            connection, _ = lying.accept()
            connection.sendall(b"SSH-2.0-nonsense\r\n")
            connection.close()
        wait_until(lambda: lane.stats.num_retries >= 2)
    assert lane.stats.num_sent == 0
