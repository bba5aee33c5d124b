"""The client survives every sidecar: gone, silent, slow, lying."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tracecore_train.export import otlp_http
from tracecore_train.export.otlp_http import MAX_ANSWER, OtlpHttpClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Peer:
    """Accepts connections and treats each as ``behave`` says."""

    def __init__(self, path: Path, behave: Callable[[socket.socket], None]) -> None:
        self.num_connections = 0
        self._behave = behave
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.num_connections += 1
            with connection:
                try:
                    self._behave(connection)
                except OSError:
                    continue

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., OtlpHttpClient]]:
    peers: list[Peer] = []
    clients: list[OtlpHttpClient] = []

    def start(behave: Callable[[socket.socket], None]) -> OtlpHttpClient:
        peers.append(Peer(tmp_path / "s", behave))
        clients.append(OtlpHttpClient(str(tmp_path / "s")))
        return clients[-1]

    yield start
    for client in clients:
        client.close()
    for peer in peers:
        peer.close()


def _answering(*answers: bytes) -> Callable[[socket.socket], None]:
    def behave(connection: socket.socket) -> None:
        for answer in answers:
            connection.recv(65536)
            connection.sendall(answer)

    return behave


def test_answer_and_keep_alive(serve: Callable[..., OtlpHttpClient]) -> None:
    """Two requests use one connection, and each gets its own answer."""
    ok = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"
    busy = b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n"
    client = serve(_answering(ok, busy))
    first, second = client.post("/v1/logs", b"x"), client.post("/v1/logs", b"y")
    assert (first.status, first.body, first.is_ok) == (200, b"abc", True)
    assert (second.status, second.is_ok, client.num_connections) == (503, False, 1)


def test_connection_closed_while_idle_is_made_again(serve: Callable[..., OtlpHttpClient]) -> None:
    """A server that closes after each answer loses no request."""
    client = serve(_answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"))
    assert [client.post("/", b"x").status for _ in range(3)] == [200, 200, 200]
    assert client.num_connections == 3


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 2x0 OK\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n", "at most"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 2 * MAX_ANSWER, "more than"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", "closed"),
        (b"", "closed"),
    ],
)
def test_bad_answer_is_refused(
    serve: Callable[..., OtlpHttpClient], answer: bytes, reason: str
) -> None:
    """An answer that is not one is status 0 with the reason, not an exception."""
    got = serve(_answering(answer)).post("/v1/logs", b"x")
    assert got.status == 0
    assert reason in got.reason


@pytest.mark.parametrize("length", [b"", b"Content-Length: -5\r\n", b"Content-Length: 1e9\r\n"])
def test_answer_without_a_length_ends_the_connection(
    serve: Callable[..., OtlpHttpClient], length: bytes
) -> None:
    """A body whose end cannot be told is not read; the next request connects anew."""
    client = serve(_answering(b"HTTP/1.1 200 OK\r\n" + length + b"\r\njunk"))
    assert client.post("/", b"x").status == 200
    assert client.post("/", b"x").status == 200
    assert client.num_connections == 2


@pytest.mark.parametrize("pace_s", [None, 0.02])
def test_silent_or_dripping_server_costs_the_deadline(
    serve: Callable[..., OtlpHttpClient], pace_s: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No answer, or one byte at a time, ends at the deadline for the whole answer."""
    monkeypatch.setattr(otlp_http, "ANSWER_TIMEOUT_S", 0.3)
    is_done = threading.Event()

    def behave(connection: socket.socket) -> None:
        if pace_s is None:
            is_done.wait(20)
            return
        while not is_done.wait(pace_s):
            connection.sendall(b"H")

    client = serve(behave)
    began = time.monotonic()
    answer = client.post("/v1/logs", b"x")
    is_done.set()
    assert (answer.status, answer.reason) == (0, "no answer in time")
    assert 0.3 <= time.monotonic() - began < 5


def test_server_that_reads_nothing_costs_the_deadline(
    serve: Callable[..., OtlpHttpClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body larger than the socket's buffers does not block for ever."""
    monkeypatch.setattr(otlp_http, "ANSWER_TIMEOUT_S", 0.3)
    is_done = threading.Event()
    client = serve(lambda connection: is_done.wait(20))
    answer = client.post("/v1/logs", bytes(8_000_000))
    is_done.set()
    assert answer.reason == "no answer in time"


def test_hurry_shortens_what_is_under_way(serve: Callable[..., OtlpHttpClient]) -> None:
    """A request that waits gives up when told to, before its own deadline."""
    is_done = threading.Event()
    client = serve(lambda connection: is_done.wait(20))
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(client.post("/", b"x").reason))
    thread.start()
    client.hurry(time.monotonic())
    began = time.monotonic()
    thread.join(20)
    is_done.set()
    assert answers in (["no answer in time"], ["TimeoutError: timed out"])
    assert time.monotonic() - began < 0.9


@pytest.mark.parametrize("has_file", [True, False])
def test_no_server_is_an_answer(tmp_path: Path, has_file: bool) -> None:
    """A missing socket and a socket nobody listens on are status 0."""
    path = tmp_path / "s"
    if has_file:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    answer = OtlpHttpClient(str(path)).post("/v1/logs", b"x")
    assert (answer.status, answer.is_ok) == (0, False)
    assert "Error" in answer.reason
