"""Telemetry through a real sidecar to an upstream endpoint."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from tests.support.fake_sidecar import wait_until
from tests.support.jobs import run_job
from tests.support.real_sidecar import RealSidecar
from tests.support.upstream import UpstreamServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@contextmanager
def sidecar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **otlp: str
) -> Iterator[tuple[RealSidecar, str]]:
    """A sidecar that forwards as told, and the URL of its TCP door."""
    (tmp_path / "job").mkdir(exist_ok=True, mode=0o700)
    with monkeypatch.context() as environment:
        for name, value in otlp.items():
            environment.setenv(f"OTEL_EXPORTER_OTLP_{name}", value)
        running = RealSidecar(tmp_path / "job", tmp_path / "out", "--listen", "127.0.0.1:0")
    with running:
        wait_until(lambda: "OTLP also on" in running.errors)
        found = re.search(r"OTLP also on (http://127\.0\.0\.1:\d+);", running.errors)
        assert found is not None
        yield running, found[1]


def send_with_sdk(url: str, *, rank: int) -> None:
    """Send a metric, a log record and a span with OpenTelemetry's own SDK."""
    resource = Resource({"service.name": "theirs", "nv.dl.rank": rank, "nv.dl.world_size": 8})
    exporter = OTLPMetricExporter(endpoint=f"{url}/v1/metrics")
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=3_600_000)
    meters = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
    meters.get_meter("theirs").create_counter("their.tokens").add(5)
    meters.shutdown()
    tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{url}/v1/traces")))
    with tracers.get_tracer("theirs").start_as_current_span("their.step"):
        pass
    tracers.shutdown()
    loggers = LoggerProvider(resource=resource, shutdown_on_exit=False)
    loggers.add_log_record_processor(SimpleLogRecordProcessor(OTLPLogExporter(f"{url}/v1/logs")))
    loggers.get_logger("theirs").emit(body="hello")
    loggers.shutdown()


def certificate(tmp_path: Path, name: str = "cert") -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that nobody else signed, and its key."""
    cert, key = tmp_path / f"{name}.pem", tmp_path / f"{name}-key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    return cert, key


def test_a_users_sdk_reaches_a_tls_upstream_with_its_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All three signals of the SDK pass the sidecar; metrics and logs carry the rank."""
    cert, key = certificate(tmp_path)
    with (
        UpstreamServer(certificate=(cert, key)) as upstream,
        sidecar(
            tmp_path,
            monkeypatch,
            ENDPOINT=upstream.url,
            CERTIFICATE=str(cert),
            HEADERS="x-tenant=research%20a",
        ) as (running, url),
    ):
        send_with_sdk(url, rank=3)
        wait_until(lambda: len({r.path for r in upstream.received}) == 3)
        assert running.end() == 0
    ((name, resource),) = upstream.metric_resources()
    assert (name, resource["tracecore.rank"]) == ("their.tokens", 3)
    assert (resource["tracecore.world_size"], resource["service.name"]) == (8, "theirs")
    assert [log.body.string_value for log in upstream.logs()] == ["hello"]
    assert {r.headers["x-tenant"] for r in upstream.received} == {"research a"}
    assert running.summary["intake"]["foreign_by_rank"] == {"3": 3}
    assert running.summary["forward"]["traces"]["num_sent"] == 1


def test_an_upstream_with_another_certificate_gets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the certificate's authority the connection is refused and the data kept."""
    with (
        UpstreamServer(certificate=certificate(tmp_path)) as upstream,
        sidecar(tmp_path, monkeypatch, ENDPOINT=upstream.url) as (running, url),
    ):
        send_with_sdk(url, rank=0)
        wait_until(lambda: "CERTIFICATE_VERIFY_FAILED" in running.errors)
        assert running.end() == 0
        assert upstream.received == []
    assert running.summary["forward"]["logs"]["waiting_bytes"] > 0


def test_an_upstream_that_asks_for_a_client_certificate_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With CLIENT_CERTIFICATE and CLIENT_KEY mutual TLS works."""
    cert, key = certificate(tmp_path)
    client_cert, client_key = certificate(tmp_path, "client")
    with (
        UpstreamServer(certificate=(cert, key), client_certificate=client_cert) as upstream,
        sidecar(
            tmp_path,
            monkeypatch,
            ENDPOINT=upstream.url,
            CERTIFICATE=str(cert),
            CLIENT_CERTIFICATE=str(client_cert),
            CLIENT_KEY=str(client_key),
        ) as (running, url),
    ):
        send_with_sdk(url, rank=1)
        wait_until(lambda: len({r.path for r in upstream.received}) == 3)
        assert running.end() == 0


def test_an_upstream_that_asks_for_a_client_certificate_gets_nothing_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sidecar without a certificate of its own is turned away, and the data kept."""
    cert, key = certificate(tmp_path)
    client_cert, _ = certificate(tmp_path, "client")
    with (
        UpstreamServer(certificate=(cert, key), client_certificate=client_cert) as upstream,
        sidecar(tmp_path, monkeypatch, ENDPOINT=upstream.url, CERTIFICATE=str(cert)) as (
            running,
            url,
        ),
    ):
        send_with_sdk(url, rank=1)
        wait_until(lambda: "forward" in running.errors)
        assert running.end() == 0
        assert upstream.received == []
    assert running.summary["forward"]["logs"]["waiting_bytes"] > 0


def test_what_an_upstream_missed_arrives_after_a_restart_of_the_sidecar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Telemetry for a dead endpoint waits in the output directory for the next sidecar."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        dead = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with sidecar(tmp_path, monkeypatch, ENDPOINT=dead) as (running, url):
        send_with_sdk(url, rank=0)
        assert running.end() == 0
    with (
        UpstreamServer() as upstream,
        sidecar(tmp_path, monkeypatch, ENDPOINT=upstream.url) as (running, _),
    ):
        wait_until(lambda: len({r.path for r in upstream.received}) == 3)
        assert running.end() == 0
    assert not list((tmp_path / "out" / "0" / "forward-queue").rglob("*.otlpq"))


def test_a_hang_reaches_the_upstream_as_events(tmp_path: Path) -> None:
    """A job's ranks' metrics and the verdict about one of them arrive; its records do not."""
    with UpstreamServer() as upstream:
        job = run_job(
            tmp_path,
            *("--steps", "80", "--step-ms", "45"),
            fault=("hang:rank=1,at=40,for=14",),
            env={
                "OTEL_EXPORTER_OTLP_ENDPOINT": upstream.url,
                "TRACECORE_LISTEN": "127.0.0.1:0",
            },
        )
    assert job.returncode == 0, job.stderr
    assert "OTLP also on http://127.0.0.1:" in job.stderr
    assert f"forwarding metrics, logs, traces to {upstream.url}" in job.stderr
    events = [log for log in upstream.logs() if log.event_name == "tracecore.verdict"]
    assert len(events) == len(upstream.logs())
    told = [{a.key: a.value for a in event.attributes} for event in events]
    assert [t["tracecore.incident.change"].string_value for t in told] == ["opened", "closed"]
    assert {t["tracecore.suspect.rank"].int_value for t in told} == {1}
    assert {t["tracecore.verdict.pattern"].string_value for t in told} == {"hang"}
    steps = [
        r["tracecore.rank"] for name, r in upstream.metric_resources() if name == "tracecore.steps"
    ]
    assert set(steps) == {0, 1}


def test_an_address_beyond_this_host_is_refused(tmp_path: Path) -> None:
    """`tracecore sidecar --listen 0.0.0.0:4318` ends with a usage error that says why."""
    done = subprocess.run(
        [sys.executable, "-m", "tracecore_sidecar", "sidecar", "--listen", "0.0.0.0:4318"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert "--listen" in done.stderr
    assert "not a loopback address" in done.stderr
