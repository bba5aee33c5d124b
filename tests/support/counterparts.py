"""The real programs our formats are for: Prometheus, VictoriaMetrics, an OpenTelemetry Collector.

``.ci/counterparts`` fetches them; a test that needs one that is not there is skipped with the
reason.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 40.0
"""For a program to start or a number to arrive; the machine may be busy."""


def find(name: str) -> str | None:
    """Give the path of a counterpart, if it is here."""
    ours = ROOT / ".counterparts" / "bin" / name
    return str(ours) if ours.exists() else shutil.which(name)


def program(name: str) -> str:
    """Give the path of a counterpart, or skip the test."""
    found = find(name)
    if found is None:
        how = ".ci/counterparts otelcol" if name == "otelcol" else ".ci/counterparts"
        pytest.skip(f"{name} is not here; `{how}` fetches it where it can")
    return found


def free_port() -> int:
    """Give a loopback TCP port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running(command: list[str], log: Path, ready_url: str) -> Iterator[None]:
    """Run a program until the block ends; it serves ``ready_url`` when the block begins."""
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as child:
        try:
            wait_for(lambda: _answers(ready_url) or _fail_if_gone(child, log), command[0])
            yield
        finally:
            child.kill()


@contextlib.contextmanager
def victoria_metrics(base: Path) -> Iterator[str]:
    """Run VictoriaMetrics; gives its address."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [program("victoria-metrics"), f"-httpListenAddr=127.0.0.1:{port}"]
    # By default fresh points are hidden for 30 s.
    command += ["-search.latencyOffset=0s", "-opentelemetry.usePrometheusNaming"]
    command += [f"-storageDataPath={base / 'victoria'}"]
    with running(command, base / "victoria.log", f"{url}/health"):
        yield url


@contextlib.contextmanager
def otel_collector(base: Path, upstream: str | None = None) -> Iterator[tuple[str, Path]]:
    """Run a Collector that prints what it gets, and sends it on; gives its address and its log."""
    collector, port = program("otelcol"), free_port()
    config, log, url = base / "otelcol.yml", base / "otelcol.log", f"http://127.0.0.1:{port}"
    exporters: dict[str, dict[str, Any]] = {"debug": {"verbosity": "detailed"}}
    if upstream is not None:
        exporters["otlp_http"] = {"endpoint": upstream, "sending_queue": {"enabled": False}}
    pipeline = {"receivers": ["otlp"], "exporters": list(exporters)}
    settings = {
        "receivers": {"otlp": {"protocols": {"http": {"endpoint": f"127.0.0.1:{port}"}}}},
        "exporters": exporters,
        "service": {
            "telemetry": {"metrics": {"level": "none"}},
            "pipelines": {"metrics": pipeline, "logs": pipeline},
        },
    }
    config.write_text(json.dumps(settings))  # JSON is YAML
    with running([collector, f"--config=file:{config}"], log, f"{url}/v1/metrics"):
        yield url, log


@contextlib.contextmanager
def tcp_door(unix_socket: Path) -> Iterator[int]:
    """Open a loopback TCP port whose connections lead to a unix socket."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stopped = threading.Event()
        listener.settimeout(0.2)

        def serve() -> None:
            while not stopped.is_set():
                with contextlib.suppress(OSError):
                    connection, _ = listener.accept()
                    threading.Thread(target=_join, args=(connection, unix_socket)).start()

        server = threading.Thread(target=serve)
        server.start()
        try:
            yield listener.getsockname()[1]
        finally:
            stopped.set()
            server.join()


def get(url: str, timeout_s: float = 10) -> str:
    """Fetch a page."""
    with urllib.request.urlopen(url, timeout=timeout_s) as answer:
        body: bytes = answer.read()
        return body.decode()


def post(url: str, body: bytes, content_type: str = "application/x-protobuf") -> int:
    """Post a body; give the status."""
    request = urllib.request.Request(url, body, {"content-type": content_type}, method="POST")
    with urllib.request.urlopen(request, timeout=10) as answer:
        return int(answer.status)


def query(base_url: str, promql: str) -> list[dict[str, Any]]:
    """Ask a Prometheus API; give ``{metric, value}`` items."""
    page = get(f"{base_url}/api/v1/query?{urllib.parse.urlencode({'query': promql})}")
    found: list[dict[str, Any]] = json.loads(page)["data"]["result"]
    return found


def wait_for(condition: Any, what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Wait until a condition gives something true, and give that."""
    deadline = time.monotonic() + deadline_s
    while True:
        if found := condition():
            return found
        assert time.monotonic() < deadline, f"{what}: not within {deadline_s:g} s"
        time.sleep(0.1)


def _answers(url: str) -> bool:
    try:
        get(url, 2)
    except urllib.error.HTTPError:
        return True  # it serves, only not this
    except OSError:
        return False
    return True


def _fail_if_gone(child: subprocess.Popen[bytes], log: Path) -> bool:
    assert child.poll() is None, log.read_text()[-2000:]
    return False


def _join(connection: socket.socket, unix_socket: Path) -> None:
    """Carry bytes both ways until either side ends."""
    with connection, socket.socket(socket.AF_UNIX) as inner:
        try:
            inner.connect(str(unix_socket))
        except OSError:
            return
        back = threading.Thread(target=_carry, args=(inner, connection))
        back.start()
        _carry(connection, inner)
        back.join()


def _carry(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
