"""Sidecars that take a request and answer it in a way no server should."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

SLOW_S = 5.0
"""Seconds a slow sidecar takes to answer."""
BEHAVIOURS = ("slow", "garbage", "huge headers", "endless body", "wrong HTTP")


class BrokenSidecar:
    """Listens at ``<job>/otlp.sock`` and answers every request by one of :data:`BEHAVIOURS`."""

    def __init__(self, job: Path, behaviour: str) -> None:
        job.mkdir(mode=0o700, exist_ok=True)
        self.endpoint = f"unix:{job / 'otlp.sock'}"
        self.num_requests = 0
        self._behaviour = behaviour
        self._over = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(job / "otlp.sock"))
        self._listener.listen()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def __enter__(self) -> BrokenSidecar:
        self._threads[0].start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(1)
        with connection, contextlib.suppress(OSError):
            while not self._over.is_set():
                try:
                    if not connection.recv(1 << 20):
                        return
                except TimeoutError:
                    continue
                self.num_requests += 1
                for part in self._answer():
                    connection.sendall(part)
                    if self._over.is_set():
                        return

    def _answer(self) -> Iterator[bytes]:
        if self._behaviour == "slow":
            self._over.wait(SLOW_S)
            yield b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
        elif self._behaviour == "garbage":
            yield bytes(range(256)) * 256
        elif self._behaviour == "huge headers":
            yield b"HTTP/1.1 200 OK\r\n"
            while True:
                yield b"x-filler: " + b"y" * 65_536 + b"\r\n"
        elif self._behaviour == "endless body":
            yield b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
            while True:
                yield b"10000\r\n" + b"z" * 65_536 + b"\r\n"
        else:
            yield b"HTTP/1.1 100 Continue\r\n\r\nHTTP/2.0 999 Maybe\r\ncontent-length: -1\r\n\r\n"
