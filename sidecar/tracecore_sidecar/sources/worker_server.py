"""Asks torch's worker server: one HTTP exchange over a rank's unix socket, every wait bounded.

The answer is a ring of a megabyte, so its body goes straight into one buffer of the announced
length. Whatever else can be at the other end (a stopped rank, nobody, something that speaks no
HTTP) becomes a :class:`PullError` that says so.
"""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

import h11

if TYPE_CHECKING:
    from pathlib import Path

MAX_RESPONSE_BYTES = 64 << 20
"""A ring of 20,000 entries answers with 9.5 MB."""
_HEAD_CHUNK = 1 << 16


class PullError(Exception):
    """A flight recorder could not be read; the message says why."""


def fetch(path: Path, handler: str, timeout_s: float) -> bytes | bytearray:
    """Ask the worker server; the whole exchange ends within ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            connection.connect(str(path))
            status, body = _exchange(connection, handler, deadline)
    except FileNotFoundError:
        raise PullError("the rank has no worker server (no socket)") from None
    except ConnectionRefusedError:
        raise PullError("nobody listens on the worker server's socket any more") from None
    except BlockingIOError:
        # A unix socket says so at once when its backlog is full: the server stopped accepting.
        raise PullError("the worker server does not accept connections; is it stopped?") from None
    except TimeoutError:
        raise PullError(f"the worker server gave no answer within {timeout_s:g} s") from None
    except h11.RemoteProtocolError as error:
        raise PullError(f"the worker server does not speak HTTP: {error}") from None
    except OSError as error:
        raise PullError(f"the worker server's socket: {error.strerror or error}") from None
    if status == 404:
        raise PullError(f"this torch has no handler {handler}")
    if status != 200:
        raise PullError(f"{handler} answered with status {status}")
    return body


def _exchange(
    connection: socket.socket, handler: str, deadline: float
) -> tuple[int, bytes | bytearray]:
    client = h11.Connection(our_role=h11.CLIENT)
    headers = [("Host", "localhost"), ("Connection", "close"), ("Content-Length", "0")]
    request = h11.Request(method="POST", target=f"/handler/{handler}", headers=headers)
    sent = [client.send(request), client.send(h11.EndOfMessage())]
    connection.sendall(b"".join(part or b"" for part in sent))
    status, size, chunks = 0, 0, []
    while True:
        event = client.next_event()
        if event is h11.NEED_DATA:
            _wait(connection, deadline)
            client.receive_data(connection.recv(_HEAD_CHUNK))
        elif isinstance(event, h11.Response):
            status = event.status_code
            length = next((int(v) for k, v in event.headers if k == b"content-length"), None)
            if length is not None:
                return status, _body(connection, length, client.trailing_data[0], deadline)
        elif isinstance(event, h11.Data):
            size += len(event.data)
            _check_size(size)
            chunks.append(bytes(event.data))
        elif isinstance(event, h11.EndOfMessage):
            return status, b"".join(chunks)
        elif isinstance(event, h11.ConnectionClosed):
            raise PullError("the worker server hung up without an answer")


def _body(connection: socket.socket, length: int, begun: bytes, deadline: float) -> bytearray:
    """Read a body of known length, of which ``begun`` came with the head."""
    _check_size(length)
    body = bytearray(length)
    count = min(length, len(begun))
    body[:count] = begun[:count]
    with memoryview(body) as view:
        while count < length:
            _wait(connection, deadline)
            received = connection.recv_into(view[count:])
            if not received:
                raise PullError(f"the worker server hung up after {count} of {length} bytes")
            count += received
    return body


def _wait(connection: socket.socket, deadline: float) -> None:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError
    connection.settimeout(remaining)


def _check_size(size: int) -> None:
    if size > MAX_RESPONSE_BYTES:
        raise PullError(f"its answer has more than {MAX_RESPONSE_BYTES} bytes")
