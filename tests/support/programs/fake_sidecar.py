"""A sidecar that only keeps what it is sent: takes the options of `tracecore sidecar`.

Writes under ``--output``: ``argv.json`` (arguments, environment, pid), ``NNNN.body`` per request,
``asked`` when told to end.
FAKE_SIDECAR chooses a misbehaviour: ``exit`` (ends at once), ``deaf`` (never listens), ``stubborn``
(ignores SIGTERM).
"""

import http.server
import json
import os
import signal
import socketserver
import sys
import threading
from pathlib import Path

OPTIONS = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
MODE = os.environ.get("FAKE_SIDECAR", "")
OUTPUT = Path(OPTIONS["--output"])
is_over = threading.Event()
bodies: list[Path] = []


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        path = OUTPUT / f"{len(bodies):04}.body"
        bodies.append(path)
        partial = path.with_suffix(".partial")
        partial.write_bytes(body)
        partial.rename(path)
        is_ours = self.headers["Content-Type"] == "application/x-protobuf"
        self.send_response(200 if is_ours and self.path == "/v1/logs" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_: object) -> None:
        pass


def stop(*_: object) -> None:
    (OUTPUT / "asked").touch()
    if MODE != "stubborn":
        is_over.set()


def main() -> int:
    if MODE == "exit":
        return 3
    signal.signal(signal.SIGTERM, stop)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    about = {"options": OPTIONS, "environ": dict(os.environ), "pid": os.getpid()}
    (OUTPUT / "argv.json").write_text(json.dumps(about))
    if MODE != "deaf":
        socket_path = Path(OPTIONS["--job-dir"]) / "otlp.sock"
        server = socketserver.UnixStreamServer(str(socket_path), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
    while not is_over.wait(0.1):
        if os.getppid() != int(OPTIONS["--parent-pid"]):
            return 1
    sys.stdout.write("fake sidecar: summary\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
