"""One HTTP connection to an OTLP endpoint: POST a body, read a short answer.

The endpoint may be gone, slow or lying: connecting and every read have the configured timeout,
an answer is read up to its bound, redirects are not followed. One thread uses a client; another
may :meth:`Upstream.abort` it.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import time
import zlib
from dataclasses import dataclass
from datetime import timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from tracecore_train.__about__ import __version__

if TYPE_CHECKING:
    from tracecore_sidecar.forward.settings import UpstreamSettings

MAX_ANSWER = 64 << 10
"""Bytes of an answer that are read; an OTLP answer is empty or one short message."""
RETRY_STATUSES = frozenset({429, 502, 503, 504})
"""OTLP's list; every other error means that the same body would fail again."""
GZIP_LEVEL = 1
USER_AGENT = f"tracecore-sidecar/{__version__}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: a status, or 0 and the reason why none did."""

    status: int
    body: bytes = b""
    retry_after_s: float | None = None
    reason: str = ""

    @property
    def is_ok(self) -> bool:
        """Whether the endpoint took the body, or most of it."""
        return 200 <= self.status < 300

    @property
    def is_worth_a_retry(self) -> bool:
        """Whether the same body may be taken later."""
        return self.status == 0 or self.status in RETRY_STATUSES


class Upstream:
    """A keep-alive connection, made when needed."""

    def __init__(self, settings: UpstreamSettings) -> None:
        """Open nothing yet."""
        self._settings = settings
        self._connection: http.client.HTTPConnection | None = None
        self._headers = {
            **settings.headers,
            "content-type": "application/x-protobuf",
            "user-agent": settings.headers.get("user-agent", USER_AGENT),
        }
        if settings.is_gzip:
            self._headers["content-encoding"] = "gzip"

    def post(self, body: bytes) -> Answer:
        """Send a serialised request; never raises for what the network does."""
        if self._settings.is_gzip:
            body = _gzip(body)
        is_reused = self._connection is not None
        try:
            try:
                return self._exchange(body)
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                if not is_reused:
                    raise
                # The server had closed an idle connection before it saw this request.
                self.close()
                return self._exchange(body)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            return Answer(0, reason=f"{type(error).__name__}: {error}"[:300])

    def abort(self) -> None:
        """Break an exchange that is under way in another thread."""
        connection = self._connection
        sock = None if connection is None else connection.sock
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _exchange(self, body: bytes) -> Answer:
        settings = self._settings
        if self._connection is None:
            self._connection = (
                http.client.HTTPSConnection(
                    settings.host, settings.port, timeout=settings.timeout_s, context=settings.tls
                )
                if settings.is_tls
                else http.client.HTTPConnection(
                    settings.host, settings.port, timeout=settings.timeout_s
                )
            )
        self._connection.request("POST", settings.target, body, self._headers)
        response = self._connection.getresponse()
        answer = response.read(MAX_ANSWER + 1)
        if len(answer) > MAX_ANSWER or not response.isclosed():
            self.close()
        return Answer(
            response.status,
            body=answer[:MAX_ANSWER],
            retry_after_s=_retry_after_s(response.getheader("retry-after")),
            reason=f"status {response.status}",
        )


def _gzip(body: bytes) -> bytes:
    deflate = zlib.compressobj(GZIP_LEVEL, wbits=31)
    return deflate.compress(body) + deflate.flush()


def _retry_after_s(text: str | None) -> float | None:
    """Read seconds or a date; None for anything else."""
    if text is None or len(text) > 100:
        return None
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return max(0.0, moment.timestamp() - time.time())
