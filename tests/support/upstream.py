"""An OTLP endpoint that keeps what it gets and answers as told."""

from __future__ import annotations

import gzip
import http.server
import ssl
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord


@dataclass
class Told:
    """One answer."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass
class Received:
    """One request, decompressed."""

    path: str
    headers: dict[str, str]
    body: bytes


class UpstreamServer:
    """Serves on loopback in threads; ``answers`` are given in turn, then 200 for ever."""

    def __init__(
        self,
        *answers: Told,
        certificate: tuple[Path, Path] | None = None,
        client_certificate: Path | None = None,
    ) -> None:
        """``certificate`` is a PEM file and its key: TLS. Clients then need the other one."""
        self.answers = list(answers)
        self.received: list[Received] = []
        upstream = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                headers = {name.lower(): value for name, value in self.headers.items()}
                told = upstream.answers.pop(0) if upstream.answers else Told()
                upstream.received.append(Received(self.path, headers, body))
                self.send_response(told.status)
                for name, value in told.headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(told.body)))
                self.end_headers()
                self.wfile.write(told.body)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            if client_certificate is not None:
                context.verify_mode = ssl.CERT_REQUIRED
                context.load_verify_locations(client_certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port: int = self._server.server_address[1]
        scheme = "http" if certificate is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> UpstreamServer:
        self._thread.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def logs(self) -> list[LogRecord]:
        """Every log record so far."""
        requests = [
            ExportLogsServiceRequest.FromString(r.body)
            for r in list(self.received)
            if r.path == "/v1/logs"
        ]
        return [
            log
            for request in requests
            for group in request.resource_logs
            for scope in group.scope_logs
            for log in scope.log_records
        ]

    def metric_resources(self) -> list[tuple[str, dict[str, object]]]:
        """Each metric's name so far, with the attributes of its resource."""
        return [
            (
                metric.name,
                {
                    item.key: getattr(item.value, item.value.WhichOneof("value") or "string_value")
                    for item in group.resource.attributes
                },
            )
            for r in list(self.received)
            if r.path == "/v1/metrics"
            for group in ExportMetricsServiceRequest.FromString(r.body).resource_metrics
            for scope in group.scope_metrics
            for metric in scope.metrics
        ]
