"""POST to the sidecar over a unix socket: HTTP/1.1 by hand, every wait bounded.

The sidecar may be gone, silent, slow or lying. Connecting takes at most 0.2 s, a whole answer at
most 1 s and 16 KiB; :meth:`OtlpHttpClient.hurry` shortens what is under way. No retry: the caller
drops what was not delivered and counts it.
"""

from __future__ import annotations

import socket
import struct
import time
from dataclasses import dataclass

CONNECT_TIMEOUT_S = 0.2
ANSWER_TIMEOUT_S = 1.0
SLICE_S = 0.05
"""Longest single wait on the socket, and so the delay with which ``hurry`` is obeyed."""
MAX_ANSWER = 16_384
"""Bytes of an answer; an OTLP answer is empty or one short message."""
_SEND_CHUNK = 65_536


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: an HTTP status, or 0 and the reason why none did."""

    status: int
    body: bytes = b""
    reason: str = ""

    @property
    def is_ok(self) -> bool:
        """Whether the sidecar took it."""
        return 200 <= self.status < 300


class _NoAnswerError(Exception):
    """The exchange failed; the text says how."""


class OtlpHttpClient:
    """One keep-alive connection. For the export thread; ``hurry`` may be called from another."""

    def __init__(self, path: str) -> None:
        """Prepare to talk to the socket at ``path``; nothing is opened yet."""
        self._path = path
        self._socket: socket.socket | None = None
        self._limit = float("inf")
        self.num_connections = 0
        """Connections made so far. A new one may mean a new sidecar, which knows nothing."""
        self.peer: tuple[int, int] | None = None
        """Pid and user of the process at the other end of the newest connection."""

    def post(self, target: str, body: bytes) -> Answer:
        """Send a protobuf body and read the answer; never raises for what the network does."""
        head = (
            f"POST {target} HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Type: application/x-protobuf\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode("ascii")
        is_reused = self._socket is not None
        answer = self._exchange(head + body)
        if answer.status == 0 and is_reused and answer.reason == _CLOSED:
            # The server closed an idle connection before it saw this request.
            answer = self._exchange(head + body)
        return answer

    def hurry(self, limit: float) -> None:
        """Let nothing last beyond ``limit`` (``time.monotonic()``), also what is under way."""
        self._limit = limit

    def close(self) -> None:
        """Close the connection."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    def _exchange(self, request: bytes) -> Answer:
        try:
            connection = self._socket or self._connect()
            deadline = time.monotonic() + ANSWER_TIMEOUT_S
            self._send(connection, request, deadline)
            status, body, keeps_open = self._receive(connection, deadline)
        except _NoAnswerError as error:
            self.close()
            return Answer(0, reason=str(error))
        except OSError as error:
            self.close()
            is_closed = isinstance(error, (BrokenPipeError, ConnectionResetError))
            return Answer(0, reason=_CLOSED if is_closed else f"{type(error).__name__}: {error}")
        if not keeps_open:
            self.close()
        return Answer(status, body=body)

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(max(0.001, min(CONNECT_TIMEOUT_S, self._limit_left())))
            connection.connect(self._path)
        except OSError:
            connection.close()
            raise
        connection.settimeout(SLICE_S)
        self._socket = connection
        self.peer = _peer(connection)
        self.num_connections += 1
        return connection

    def _send(self, connection: socket.socket, request: bytes, deadline: float) -> None:
        view = memoryview(request)
        while view:
            self._check(deadline)
            try:
                view = view[connection.send(view[:_SEND_CHUNK]) :]
            except TimeoutError:
                continue

    def _receive(self, connection: socket.socket, deadline: float) -> tuple[int, bytes, bool]:
        raw = b""
        while b"\r\n\r\n" not in raw:
            raw += self._read_some(connection, deadline, len(raw))
        head, _, body = raw.partition(b"\r\n\r\n")
        status, length = _parse_head(head)
        if length is None:
            return status, b"", False
        while len(body) < length:
            body += self._read_some(connection, deadline, len(head) + len(body))
        keeps_open = len(body) == length and b"\r\nconnection: close" not in head.lower()
        return status, body[:length], keeps_open

    def _read_some(self, connection: socket.socket, deadline: float, num_read: int) -> bytes:
        if num_read >= MAX_ANSWER:
            raise _NoAnswerError(f"an answer of more than {MAX_ANSWER} bytes")
        while True:
            self._check(deadline)
            try:
                data = connection.recv(4096)
            except TimeoutError:
                continue
            if not data:
                raise _NoAnswerError(_CLOSED if num_read == 0 else "closed within an answer")
            return data

    def _check(self, deadline: float) -> None:
        now = time.monotonic()
        if now >= deadline or now >= self._limit:
            raise _NoAnswerError("no answer in time")

    def _limit_left(self) -> float:
        return self._limit - time.monotonic()


_CLOSED = "connection closed"


def _peer(connection: socket.socket) -> tuple[int, int]:
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", raw)
    return pid, uid


def _parse_head(head: bytes) -> tuple[int, int | None]:
    """Give status and body length; None where the body's end cannot be told."""
    lines = head.decode("latin-1").split("\r\n")
    words = lines[0].split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/1.") or not _is_number(words[1], 3):
        raise _NoAnswerError("the answer is not HTTP/1.1")
    status = int(words[1])
    lengths = [
        value.strip()
        for name, _, value in (line.partition(":") for line in lines[1:])
        if name.strip().lower() == "content-length"
    ]
    if status == 204:
        return status, 0
    if len(lengths) != 1 or not _is_number(lengths[0], 9):
        return status, None
    if int(lengths[0]) > MAX_ANSWER:
        raise _NoAnswerError(f"an answer of {lengths[0]} bytes, at most {MAX_ANSWER} are read")
    return status, int(lengths[0])


def _is_number(text: str, max_digits: int) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= max_digits
