"""The doors of the intake: the job's unix socket, and a loopback TCP one where asked for.

Two uvicorn servers of one app, so that whatever comes over TCP takes no connection from the
ranks. Signals stay the daemon's.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from typing import TYPE_CHECKING, Any

import uvicorn

from tracecore_sidecar.intake.listen import open_listener
from tracecore_sidecar.intake.senders import SenderProtocol
from tracecore_train import runtime
from tracecore_train.errors import TracecoreError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LISTEN_BACKLOG = 128
DATE_INTERVAL_S = 1.0
"""How often the Date header of answers is renewed."""
STOP_TIMEOUT_S = 2.0
"""How long requests under way may take after the doors closed."""


class Doors:
    """Opens the sockets, then serves an app on them."""

    def __init__(self, job_dir: Path, tcp: tuple[str, int] | None, *, must_have_tcp: bool) -> None:
        """Open what was asked for.

        Raises :class:`TracecoreError` when the unix socket cannot be had, or the TCP one where it
        must be; otherwise a missing TCP door is said in :attr:`tcp_text`.
        """
        self._job_dir = job_dir
        self.tcp_text = ""
        """What the start line says of the TCP door; empty when none was asked for."""
        self._listeners = [*self._open_tcp(tcp, must_have_tcp)]
        try:
            self._listeners.insert(0, listen(job_dir))
        except TracecoreError:
            for listener in self._listeners:
                listener.close()
            raise
        self._servers: list[_Server] = []
        self._serving: list[asyncio.Task[None]] = []

    def open(self, app: Any) -> None:
        """Begin to serve ``app``; needs a running event loop."""
        for listener in self._listeners:
            server = _server(app)
            self._servers.append(server)
            self._serving.append(asyncio.create_task(server.serve(sockets=[listener])))

    @property
    def is_open(self) -> bool:
        """Whether the unix socket is being served."""
        return bool(self._serving) and not self._serving[0].done()

    async def close(self) -> None:
        """Take no more, let requests under way end, and remove the unix socket."""
        for server in self._servers:
            server.end()
        if self._serving:
            await asyncio.wait(self._serving, timeout=STOP_TIMEOUT_S)
        runtime.sidecar_socket(self._job_dir).unlink(missing_ok=True)

    def _open_tcp(self, tcp: tuple[str, int] | None, must_have: bool) -> Iterator[socket.socket]:
        if tcp is None:
            return
        try:
            listener = open_listener(*tcp)
        except TracecoreError as error:
            if must_have:
                raise
            # Two jobs of one node inherit the same address; the second is watched all the same.
            self.tcp_text = f"no TCP intake: {error}"
            return
        host, port = listener.getsockname()[:2]
        self.tcp_text = f"OTLP also on http://{f'[{host}]' if ':' in host else host}:{port}"
        yield listener


def listen(job_dir: Path) -> socket.socket:
    """Open the intake socket of a job; refuse to take it from a living sidecar."""
    runtime.make_private_dir(job_dir)
    path = runtime.checked_socket_path(runtime.sidecar_socket(job_dir))
    probe = socket.socket(socket.AF_UNIX)
    probe.settimeout(1)
    try:
        probe.connect(str(path))
    except OSError:
        path.unlink(missing_ok=True)
    else:
        raise TracecoreError(
            f"another sidecar already serves {path}; stop it, or give this job another id "
            "(--job-id or TRACECORE_JOB_ID)"
        )
    finally:
        probe.close()
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
        listener.listen(LISTEN_BACKLOG)
    except OSError as error:
        listener.close()
        raise TracecoreError(f"cannot listen on {path}: {error.strerror}") from None
    listener.setblocking(False)
    return listener


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, which are the daemon's, and without its 10 Hz look
    for an exit, which was a tenth of an idle sidecar's cost.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._is_over = asyncio.Event()

    def end(self) -> None:
        """Take no more connections."""
        self.should_exit = True
        self._is_over.set()

    async def main_loop(self) -> None:
        over = asyncio.ensure_future(self._is_over.wait())
        while not await self.on_tick(0):  # refreshes the Date header
            # At multiples of the host's clock, when the ranks wake this process anyway.
            left_s = DATE_INTERVAL_S - time.monotonic() % DATE_INTERVAL_S
            await asyncio.wait({over}, timeout=left_s)
        over.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _server(app: Any) -> _Server:
    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        lifespan="off",
        http=SenderProtocol,
        proxy_headers=False,  # X-Forwarded-For would let a TCP sender pose as a local process
        limit_concurrency=1024,
        timeout_keep_alive=75,
    )
    return _Server(config)
