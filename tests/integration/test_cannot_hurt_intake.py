"""Hostile requests to the real sidecar process: refused, bounded, and nobody else waits."""

from __future__ import annotations

import contextlib
import gzip
import os
import socket
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.ranks import JOB_ID
from tests.support.real_sidecar import RealSidecar
from tracecore_sidecar.intake.senders import HEAD_TIMEOUT_S
from tracecore_train.export.otlp_http import OtlpHttpClient
from tracecore_train.wire.otlp import encode_logs
from tracecore_train.wire.records import Batch, Source, SourceKind, StepRecord

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

MAX_GROWTH = 100 << 20
"""Bytes the sidecar may grow by: a few bodies of the largest size it takes, in flight at once."""
NUM_DRIPS = 20


@pytest.fixture
def sidecar(tmp_path: Path) -> Iterator[RealSidecar]:
    with RealSidecar(tmp_path / "j", tmp_path / "out") as started:
        yield started


def _batch(steps: range) -> bytes:
    records = tuple(
        StepRecord(
            time_ns=time.monotonic_ns(),
            rank=0,
            step=step,
            duration_ns=1_000_000,
            input_ns=0,
            num_batches=1,
            checkpoint_ns=0,
            flags=0,
        )
        for step in steps
    )
    source = Source(
        kind=SourceKind.RANK,
        host=os.uname().nodename,
        boot_id="",
        pid=os.getpid(),
        job_id=JOB_ID,
        attempt=0,
        wall_offset_ns=0,
        rank=0,
        local_rank=0,
        node_rank=0,
        world_size=1,
    )
    return encode_logs(Batch(source=source, records=records))


def _raw(sidecar: RealSidecar, *parts: bytes, is_cut: bool = False) -> bytes:
    """Send bytes as they are, hang up behind them if asked, and give what comes back."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        connection.connect(str(sidecar.socket_path))
        answer = b""
        # A server may answer and close before it has read everything.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for part in parts:
                connection.sendall(part)
            if is_cut:
                connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            while data := connection.recv(65_536):
                answer += data
                assert len(answer) < 1 << 20
        return answer


def _head(*lines: str, target: str = "/v1/logs") -> bytes:
    head = [f"POST {target} HTTP/1.1", "Host: x", "Connection: close", *lines]
    head += ["Content-Type: application/x-protobuf", "", ""]
    return "\r\n".join(head).encode()


def _post(body: bytes, *lines: str, target: str = "/v1/logs") -> bytes:
    return _head(f"Content-Length: {len(body)}", *lines, target=target) + body


def _status(answer: bytes) -> int:
    words = answer.split(b" ", 2)
    return int(words[1]) if answer.startswith(b"HTTP/1.1 ") else 0


def test_hostile_requests_are_refused_and_good_ones_still_taken(sidecar: RealSidecar) -> None:
    """Malformed, truncated, oversized and endless requests each end in a refusal or a closed
    connection; what was taken before stays, a good batch after is taken, memory stays bounded.
    """
    client = OtlpHttpClient(str(sidecar.socket_path))
    assert client.post("/v1/logs", _batch(range(10))).is_ok
    memory = sidecar.memory
    good = _batch(range(10, 20))
    bomb = gzip.compress(bytes(512 << 20), 9)
    chunked = _head("Transfer-Encoding: chunked")
    filler = b"x" * (1 << 20)
    chunk = b"100000\r\n" + filler + b"\r\n"
    attempts = {
        "malformed": _raw(sidecar, _post(b"\xff" * 1000)),
        "truncated": _raw(sidecar, _post(good[: len(good) // 2])),
        "cut off in flight": _raw(sidecar, _post(good)[:-10], is_cut=True),
        "gzip bomb": _raw(sidecar, _post(bomb, "Content-Encoding: gzip")),
        "cut gzip": _raw(sidecar, _post(gzip.compress(good)[:-9], "Content-Encoding: gzip")),
        "claims too much": _raw(sidecar, _head("Content-Length: 99999999999"), filler, is_cut=True),
        "sends too much": _raw(sidecar, _post(filler * 24)),
        "endless chunks": _raw(sidecar, chunked, *[chunk] * 40, is_cut=True),
        "bad chunks": _raw(sidecar, chunked, b"zz\r\nhello\r\n"),
        "negative length": _raw(sidecar, _head("Content-Length: -5"), b"hello"),
        "two lengths": _raw(sidecar, _head("Content-Length: 3", "Content-Length: 900"), b"abc"),
        "endless header": _raw(
            sidecar, b"POST /v1/logs HTTP/1.1\r\nx: ", *[filler] * 8, is_cut=True
        ),
        "no HTTP": _raw(sidecar, bytes(range(256)) * 64),
        "malformed metrics": _raw(sidecar, _post(b"\xff" * 99, target="/v1/metrics")),
    }
    taken = {name for name, answer in attempts.items() if 200 <= _status(answer) < 300}
    assert taken == set()
    failed = {name for name, answer in attempts.items() if _status(answer) == 500}
    assert failed == set()
    for name in ("malformed", "truncated", "cut gzip", "malformed metrics"):
        assert _status(attempts[name]) == 400, name
    for name in ("gzip bomb", "sends too much", "endless chunks"):
        assert _status(attempts[name]) in {0, 413}, name
    assert client.post("/v1/logs", good).is_ok
    client.close()
    assert sidecar.memory - memory < MAX_GROWTH
    assert sidecar.end() == 0
    steps = sorted(record.step for record in sidecar.records() if isinstance(record, StepRecord))
    assert steps == list(range(20))
    assert "Traceback" not in sidecar.errors


def test_dripping_requests_hold_up_nobody(sidecar: RealSidecar) -> None:
    """While many connections send a byte now and then a good batch is answered at once, and the
    sidecar ends in time though they are still open.
    """
    drips = [socket.socket(socket.AF_UNIX) for _ in range(NUM_DRIPS)]
    with contextlib.ExitStack() as stack:
        for drip in drips:
            stack.enter_context(drip)
            drip.connect(str(sidecar.socket_path))
            drip.sendall(_head("Content-Length: 5000"))
        client = OtlpHttpClient(str(sidecar.socket_path))
        for number in range(5):
            for drip in drips:
                drip.sendall(b"x")
            # The client itself gives up after one second.
            assert client.post("/v1/logs", _batch(range(number, number + 1))).is_ok
        client.close()
        began = time.monotonic()
        assert sidecar.end() == 0
        assert time.monotonic() - began < 10
    steps = sorted(record.step for record in sidecar.records() if isinstance(record, StepRecord))
    assert steps == list(range(5))


def test_a_second_request_that_never_gets_done_loses_its_connection(sidecar: RealSidecar) -> None:
    """A keep-alive connection that stops within a later head is closed; one that waits between
    two requests is not.
    """
    get = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    with socket.socket(socket.AF_UNIX) as stuck, socket.socket(socket.AF_UNIX) as patient:
        for connection in (stuck, patient):
            connection.settimeout(3 * HEAD_TIMEOUT_S)
            connection.connect(str(sidecar.socket_path))
            connection.sendall(get)
            assert _read_until(connection, b"alive\n").startswith(b"HTTP/1.1 200")
        stuck.sendall(get[:20])
        assert stuck.recv(4096) == b""
        patient.sendall(get)
        assert _read_until(patient, b"alive\n").startswith(b"HTTP/1.1 200")


def _read_until(connection: socket.socket, end: bytes) -> bytes:
    answer = b""
    while not answer.endswith(end):
        more = connection.recv(4096)
        assert more, f"closed after {answer!r}"
        answer += more
    return answer
