"""OTLP/HTTP intake: requests of ranks and launchers become batches.

``POST /v1/logs`` carries our records, ``/v1/metrics`` is checked and counted; both take protobuf,
plain or gzip. What a request may hold is bounded while it is read, so a hostile one costs a
refusal: 400, 408, 413 or 415, or a partial success that counts the refused log records.
``GET /healthz`` says that the process lives, ``/readyz`` that it serves.
"""

from __future__ import annotations

import asyncio
import zlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, TypeVar

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceResponse,
)
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tracecore_train.errors import WireError
from tracecore_train.wire.otlp import count_metric_points, decode_logs_partially

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracecore_train.wire.records import Batch

MAX_BODY_BYTES = 16 << 20
"""Of one request, as sent and after decompression; a busy rank sends some 30 kB a second."""
BODY_TIMEOUT_S = 10.0
"""For the whole body; a rank sends its own in one piece."""
INLINE_BYTES = 256 << 10
"""Larger bodies are decoded in a worker thread, so that they do not hold up the others."""
MEDIA_TYPE = "application/x-protobuf"
_MAX_REASON = 500

DecodedT = TypeVar("DecodedT")


@dataclass(slots=True)
class IntakeStats:
    """What came in so far."""

    num_requests: int = 0
    num_refused_requests: int = 0
    """Answered with a status of 400 or above."""
    num_batches: int = 0
    num_records: int = 0
    num_foreign: int = 0
    """Log records that are not ours: taken and dropped."""
    num_rejected: int = 0
    """Log records refused: malformed, of another job, or not accepted by the state."""
    num_metric_points: int = 0

    def as_dict(self) -> dict[str, int]:
        """Give the counters by name."""
        return asdict(self)


def create_app(
    *,
    job_id: str,
    on_batch: Callable[[Batch], None],
    is_ready: Callable[[], bool],
    stats: IntakeStats,
) -> Starlette:
    """Make the intake of one job.

    ``on_batch`` is called on the event loop with each batch of ``job_id``; a :class:`WireError`
    from it refuses the batch.
    """
    intake = _Intake(job_id, on_batch, stats)

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("alive\n")

    async def readyz(_: Request) -> Response:
        ready = is_ready()
        return PlainTextResponse(
            "ready\n" if ready else "not ready\n", status_code=200 if ready else 503
        )

    return Starlette(
        routes=[
            Route("/v1/logs", intake.logs, methods=["POST"]),
            Route("/v1/metrics", intake.metrics, methods=["POST"]),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
        ]
    )


class _RefusedError(Exception):
    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _Intake:
    def __init__(self, job_id: str, on_batch: Callable[[Batch], None], stats: IntakeStats) -> None:
        self._job_id = job_id
        self._on_batch = on_batch
        self._stats = stats

    async def logs(self, request: Request) -> Response:
        try:
            decoded = await self._decoded(request, decode_logs_partially)
        except _RefusedError as refusal:
            return self._refuse(refusal)
        num_rejected, reason = decoded.num_rejected, decoded.reason
        for batch in decoded.batches:
            if refused := self._accept(batch):
                # A log record holds all records of one kind (wire/otlp.py).
                num_rejected += len({record.kind for record in batch.records})
                reason = reason or refused
        self._stats.num_foreign += decoded.num_foreign
        self._stats.num_rejected += num_rejected
        answer = ExportLogsServiceResponse()
        if reason:
            answer.partial_success.rejected_log_records = num_rejected
            answer.partial_success.error_message = reason[:_MAX_REASON]
        return Response(answer.SerializeToString(), media_type=MEDIA_TYPE)

    async def metrics(self, request: Request) -> Response:
        try:
            self._stats.num_metric_points += await self._decoded(request, count_metric_points)
        except _RefusedError as refusal:
            return self._refuse(refusal)
        answer = ExportMetricsServiceResponse()
        return Response(answer.SerializeToString(), media_type=MEDIA_TYPE)

    def _accept(self, batch: Batch) -> str:
        """Hand a batch over; give the reason where it is refused."""
        theirs = batch.source.job_id
        if theirs != self._job_id:
            return f"this sidecar serves job {self._job_id!r}, not {theirs[:100]!r}"
        try:
            self._on_batch(batch)
        except WireError as error:
            return str(error)
        self._stats.num_batches += 1
        self._stats.num_records += len(batch.records)
        return ""

    def _refuse(self, refusal: _RefusedError) -> Response:
        self._stats.num_refused_requests += 1
        body = _status_message(str(refusal))
        return Response(body, status_code=refusal.status, media_type=MEDIA_TYPE)

    async def _decoded(self, request: Request, decode: Callable[[bytes], DecodedT]) -> DecodedT:
        self._stats.num_requests += 1
        raw = await _read_body(request)
        try:
            if len(raw) <= INLINE_BYTES:
                return decode(raw)
            return await asyncio.to_thread(decode, raw)
        except WireError as error:
            raise _RefusedError(400, str(error)) from None


async def _read_body(request: Request) -> bytes:
    """Read the body in its bounds and undo its compression."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != MEDIA_TYPE:
        raise _RefusedError(415, f"content type {media_type[:100]!r}; send {MEDIA_TYPE}")
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in {"identity", "gzip"}:
        raise _RefusedError(415, f"content encoding {encoding[:100]!r}; send gzip or none")
    try:
        body = await asyncio.wait_for(_read_bounded(request), BODY_TIMEOUT_S)
    except asyncio.TimeoutError:
        raise _RefusedError(408, f"the body took more than {BODY_TIMEOUT_S:g} s") from None
    except ClientDisconnect:
        raise _RefusedError(400, "the client hung up before the end of the body") from None
    return _gunzip(body) if encoding == "gzip" else body


async def _read_bounded(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise _RefusedError(413, f"a body of more than {MAX_BODY_BYTES} bytes")
    return bytes(body)


def _gunzip(body: bytes) -> bytes:
    inflate = zlib.decompressobj(wbits=31)
    try:
        raw = inflate.decompress(body, MAX_BODY_BYTES + 1)
    except zlib.error as error:
        raise _RefusedError(400, f"the body is not gzip: {error}") from None
    if len(raw) > MAX_BODY_BYTES:
        raise _RefusedError(413, f"more than {MAX_BODY_BYTES} bytes after decompression")
    if not inflate.eof or inflate.unused_data:
        raise _RefusedError(400, "the gzip body is cut off or has something behind its end")
    return raw


def _status_message(reason: str) -> bytes:
    """Encode a ``google.rpc.Status`` that holds a message only, as OTLP asks for in errors."""
    text = reason[: _MAX_REASON // 4].encode("utf-8", "replace")
    size = len(text)
    length = bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])
    return b"\x12" + length + text
