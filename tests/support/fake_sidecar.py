"""A sidecar that only takes notes: OTLP/HTTP on a unix socket, or the ways one can be broken."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING, TypeVar

from tracecore_sidecar.otlp_signals import METRICS
from tracecore_train.wire.otlp import decode_logs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from tracecore_train.wire.records import Batch, Record

RecordT = TypeVar("RecordT", bound="Record")
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


class FakeSidecar:
    """Serves ``<job>/otlp.sock`` in a thread. ``answer`` None: takes everything, says nothing."""

    def __init__(self, job: Path, answer: bytes | None = OK) -> None:
        job.mkdir(mode=0o700, exist_ok=True)
        self.path = job / "otlp.sock"
        self.endpoint = f"unix:{self.path}"
        self.batches: list[Batch] = []
        self.num_metric_points = 0
        self.num_connections = 0
        self.answer = answer
        self._connections: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> FakeSidecar:
        self._thread.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop like a sidecar that died: connections break, the socket file stays."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def records(self, record_type: type[RecordT]) -> list[RecordT]:
        """Everything of one kind that came so far."""
        found = [record for batch in list(self.batches) for record in batch.records]
        return [record for record in found if isinstance(record, record_type)]

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.num_connections += 1
            self._connections.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection.makefile("rb") as stream:
                while request_line := stream.readline():
                    length = 0
                    while (line := stream.readline().strip()) != b"":
                        name, _, value = line.partition(b":")
                        if name.lower() == b"content-length":
                            length = int(value)
                    self._note(request_line.split()[1], stream.read(length))
                    if self.answer is not None:
                        connection.sendall(self.answer)
        except (OSError, ValueError):
            return

    def _note(self, target: bytes, body: bytes) -> None:
        if target == b"/v1/logs":
            self.batches.extend(decode_logs(body))
        elif target == b"/v1/metrics":
            groups = METRICS.resource_groups(METRICS.request.FromString(body))
            self.num_metric_points += sum(map(METRICS.num_items, groups))


def wait_until(condition: Callable[[], object], timeout_s: float = 30.0) -> None:
    """Wait for a condition, or fail naming how long was waited."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not so after {timeout_s:.0f} s"
        time.sleep(0.02)
