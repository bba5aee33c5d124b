"""Carries the launcher's records to the sidecar, from one small daemon thread.

torchrun never waits for it: the thread looks at the workers, keeps a bounded number of records
and posts them with short timeouts; while the sidecar is starting or gone they stay queued, and
the oldest are dropped and counted when too many pile up.
"""

from __future__ import annotations

import http.client
import os
import socket
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from tracecore_train import runtime
from tracecore_train.wire.records import Batch, Source, SourceKind

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tracecore_integrations.worker_watch import Sighting

LOOK_INTERVAL_S = 0.05
"""Seconds between two looks at the workers: how late an exit is stamped at most."""
RETRY_INTERVAL_S = 0.5
"""Seconds until the next attempt after the sidecar did not take a record."""
POST_TIMEOUT_S = 1.0
"""Seconds one socket operation may take."""
MAX_PENDING = 1_024
"""Records that wait for the sidecar: hundreds of restarts of one host."""


class LauncherReports:
    """Queue and thread between the worker watch and the sidecar."""

    def __init__(
        self,
        socket_path: Path,
        *,
        job_id: str,
        sidecar_exit_code: Callable[[], int | None],
        say: Callable[[str], None],
    ) -> None:
        """Prepare; ``say`` tells the user, in one line, when the sidecar ended on its own."""
        self._socket_path = socket_path
        self._job_id = job_id
        self._sidecar_exit_code = sidecar_exit_code
        self._say = say
        self._pending: deque[Sighting] = deque(maxlen=MAX_PENDING)
        self._num_dropped = 0
        self._stop = threading.Event()
        self._stop_by = 0.0
        self._thread = threading.Thread(target=self._run, name="tracecore-launcher", daemon=True)

    def start(self, look: Callable[[], None]) -> None:
        """Start the thread, which calls ``look`` before each look at the queue."""
        self._look = look
        self._thread.start()

    def emit(self, sighting: Sighting) -> None:
        """Queue a record; never waits."""
        if len(self._pending) == MAX_PENDING:
            self._num_dropped += 1
        self._pending.append(sighting)

    def close(self, timeout_s: float) -> None:
        """Look once more and hand over what is left, for at most ``timeout_s``."""
        self._stop_by = time.monotonic() + timeout_s
        self._stop.set()
        self._thread.join(timeout_s)
        num_lost = self._num_dropped + len(self._pending)
        exit_code = self._sidecar_exit_code()
        if exit_code is not None:
            self._say(f"the sidecar ended before the job ({_ending(exit_code)})")
        elif num_lost:
            self._say(f"{num_lost} records about workers did not reach the sidecar")

    def _run(self) -> None:
        retry_at = 0.0
        while not self._stop.wait(LOOK_INTERVAL_S):
            self._look()
            if self._pending and time.monotonic() >= retry_at and not self._send():
                retry_at = time.monotonic() + RETRY_INTERVAL_S
        self._look()
        while not self._send() and time.monotonic() < self._stop_by:
            if self._sidecar_exit_code() is not None:
                return
            time.sleep(LOOK_INTERVAL_S)

    def _send(self) -> bool:
        """Hand over what is queued, oldest first; False when the sidecar does not take it now."""
        while self._pending:
            sighting = self._pending[0]
            status = self._post(sighting)
            if status is None or status >= http.client.INTERNAL_SERVER_ERROR:
                return False
            if status != http.client.OK:
                self._num_dropped += 1  # refused: it would be refused again
            # Only this thread takes from the left, but a full queue drops there.
            if self._pending and self._pending[0] is sighting:
                self._pending.popleft()
        return True

    def _post(self, sighting: Sighting) -> int | None:
        """Post one record; give the HTTP status, or None where there was no answer."""
        from tracecore_train.wire.otlp import encode_logs

        body = encode_logs(self._batch(sighting))
        connection = _UnixConnection(self._socket_path)
        try:
            connection.request(
                "POST", "/v1/logs", body=body, headers={"Content-Type": "application/x-protobuf"}
            )
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def _batch(self, sighting: Sighting) -> Batch:
        source = Source(
            kind=SourceKind.LAUNCHER,
            host=socket.gethostname(),
            boot_id=runtime.boot_id(),
            pid=os.getpid(),
            job_id=self._job_id,
            attempt=sighting.attempt,
            wall_offset_ns=time.time_ns() - time.monotonic_ns(),
            node_rank=sighting.node_rank,
            world_size=sighting.world_size,
        )
        return Batch(source=source, records=(sighting.record,))


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=POST_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(POST_TIMEOUT_S)
        self.sock.connect(os.fspath(self._path))


def _ending(exit_code: int) -> str:
    return f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"
