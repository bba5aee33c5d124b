"""Who is at the other end of a connection, and the TCP door."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn

from tracecore_sidecar.intake import senders
from tracecore_sidecar.intake.listen import open_listener, parse_listen
from tracecore_sidecar.intake.senders import SenderProtocol
from tracecore_train.errors import ConfigError, TracecoreError

if TYPE_CHECKING:
    from pathlib import Path

REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\nx-forwarded-for: pid:1\r\n\r\n"


async def tell_client(scope: Any, receive: Any, send: Any) -> None:
    """An app that answers with its client's name."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["client"][0].encode()})


async def exchange(listener: socket.socket, client: socket.socket, request: bytes) -> bytes:
    """Serve one connection until it ends or answers."""
    server = uvicorn.Server(
        uvicorn.Config(
            tell_client, http=SenderProtocol, lifespan="off", log_level="error", proxy_headers=False
        )
    )
    serving = asyncio.create_task(server._serve(sockets=[listener]))
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    data = b""
    try:
        await loop.sock_connect(client, listener.getsockname())
        await loop.sock_sendall(client, request)
        with contextlib.suppress(ConnectionResetError):
            while b"\r\n0\r\n" not in data:
                chunk = await asyncio.wait_for(loop.sock_recv(client, 4096), 20)
                if not chunk:
                    break
                data += chunk
    finally:
        client.close()
        server.should_exit = True
        await asyncio.wait_for(serving, 20)
    return data


def unix_listener(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    return listener


def test_a_local_sender_is_a_process(tmp_path: Path) -> None:
    """On the unix socket the sender is the connecting process."""
    with unix_listener(tmp_path / "s") as listener, socket.socket(socket.AF_UNIX) as client:
        assert b"pid:%d" % os.getpid() in asyncio.run(exchange(listener, client, REQUEST))


def test_a_tcp_sender_cannot_pose_as_a_process() -> None:
    """On TCP the sender is its address, whatever it forwards."""
    with open_listener("127.0.0.1", 0) as listener, socket.socket() as client:
        answer = asyncio.run(exchange(listener, client, REQUEST))
    assert b"127.0.0.1" in answer
    assert b"pid:" not in answer


def test_a_connection_without_a_request_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sender that never gets to the end of its first head loses the connection."""
    monkeypatch.setattr(senders, "HEAD_TIMEOUT_S", 0.1)
    with unix_listener(tmp_path / "s") as listener, socket.socket(socket.AF_UNIX) as client:
        assert asyncio.run(exchange(listener, client, b"POST / HT")) == b""


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:4318", ("127.0.0.1", 4318)),
        ("localhost:0", ("127.0.0.1", 0)),
        ("[::1]:4318", ("::1", 4318)),
        ("127.9.9.9:1", ("127.9.9.9", 1)),
    ],
)
def test_loopback_addresses_are_accepted(text: str, address: tuple[str, int]) -> None:
    """Loopback of either family, by number or name."""
    assert parse_listen(text) == address


@pytest.mark.parametrize("text", ["0.0.0.0:4318", "10.0.0.1:4318", "[::]:4318"])
def test_other_addresses_are_refused_with_the_reason(text: str) -> None:
    """Anything beyond this host is refused, and the message says why."""
    with pytest.raises(ConfigError, match="not a loopback address"):
        parse_listen(text)


@pytest.mark.parametrize(
    "text", ["", "4318", "127.0.0.1", "127.0.0.1:", "host:1", "127.0.0.1:-1", "127.0.0.1:65536"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    """The message says what would be accepted."""
    with pytest.raises(ConfigError, match=r"give 127\.0\.0\.1:4318"):
        parse_listen(text)


def test_a_port_in_use_is_said() -> None:
    """A second listener on the same port is an error that names the port."""
    with open_listener("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(TracecoreError, match=str(port)):
            open_listener("127.0.0.1", port)
