"""OTLP/HTTP intake: requests of ranks, launchers and anybody's OpenTelemetry SDK.

``/v1/logs``, ``/v1/metrics`` and ``/v1/traces`` take protobuf or JSON, plain or gzip, and answer
in kind. Our tables become batches; everything else is foreign telemetry of the job: counted, given
its rank and handed on. What a request may cost is bounded, so a hostile one ends in a refusal
(400, 405, 408, 413, 415, 429 or 503) or in a partial success. ``GET /healthz`` says that the
process lives, ``/readyz`` that it serves.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tracecore_sidecar.intake.body import read_body
from tracecore_sidecar.intake.forms import (
    MAX_REASON,
    Form,
    decode,
    encode,
    encode_status,
    form_of,
)
from tracecore_sidecar.intake.ranks import Tagged, tag_ranks
from tracecore_sidecar.intake.refusal import RefusedError
from tracecore_sidecar.intake.senders import LOCAL_PREFIX, TokenBuckets, is_local
from tracecore_sidecar.otlp_signals import LOGS, METRICS, SIGNALS, TRACES, Signal
from tracecore_train.errors import WireError
from tracecore_train.wire.otlp import DecodedLogs, decode_log_request, is_table

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from starlette.types import Receive, Scope, Send

    from tracecore_train.wire.records import Batch

FULL_RETRY_S = 30
"""Told to foreign senders while the forward queue is full. Longer than an SDK's whole deadline:
it gives up at once instead of holding up its process."""
CLOSING_RETRY_S = 5
"""Told while this sidecar stops: another may come."""
MAX_RANKS_COUNTED = 4096


class Forwarding(Protocol):
    """Where accepted telemetry goes. Neither method waits."""

    def is_full(self, signal: Signal) -> bool:
        """Say whether something would have to be dropped for one more body."""
        ...

    def offer(self, signal: Signal, body: bytes, num_items: int) -> None:
        """Take a serialised request of ``num_items`` items."""
        ...


@dataclass(slots=True)
class IntakeStats:
    """What came in so far."""

    num_requests: int = 0
    num_refused_requests: int = 0
    """Answered with a status of 400 or above."""
    num_throttled_requests: int = 0
    """Of those, with 429: a sender's bucket was empty or the forward queue full."""
    num_batches: int = 0
    num_records: int = 0
    num_foreign: int = 0
    """Log records, spans and metric points of others: taken, handed on where configured."""
    num_rejected: int = 0
    """Log records refused: malformed, of another job, or not accepted by the state."""
    num_metric_points: int = 0
    num_spans: int = 0
    foreign_by_rank: dict[str, int] = field(default_factory=dict)
    """Items of others by the rank they come from, ``unknown`` where nobody can tell."""

    def as_dict(self) -> dict[str, Any]:
        """Give the counters by name."""
        return asdict(self)


def create_app(
    *,
    job_id: str,
    on_batch: Callable[[Batch], None],
    is_ready: Callable[[], bool],
    stats: IntakeStats,
    is_open: Callable[[], bool] = lambda: True,
    forwarding: Forwarding | None = None,
    rank_of: Callable[[str | None, int], int | None] = lambda _host, _pid: None,
) -> Starlette:
    """Make the intake of one job.

    ``on_batch`` is called on the event loop with each batch of ``job_id``; a :class:`WireError`
    from it refuses the batch. ``is_open`` false answers 503. ``rank_of`` gives the rank of one of
    the job's processes by host name and pid; it is called from any thread.
    """
    intake = _Intake(job_id, on_batch, stats, is_open, forwarding, rank_of)

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("alive\n")

    async def readyz(_: Request) -> Response:
        ready = is_ready()
        return PlainTextResponse(
            "ready\n" if ready else "not ready\n", status_code=200 if ready else 503
        )

    endpoints = {signal.path: intake.endpoint(signal) for signal in SIGNALS}
    return _App(
        endpoints,
        routes=[
            *(Route(path, take, methods=["POST"]) for path, take in endpoints.items()),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
        ],
    )


class _App(Starlette):
    """Takes what ranks post without a way through middleware and routes, which have no part in it
    and cost as much as decoding; everything else goes through them.
    """

    def __init__(
        self,
        endpoints: Mapping[str, Callable[[Request], Awaitable[Response]]],
        *,
        routes: Sequence[Route],
    ) -> None:
        super().__init__(routes=routes)
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        take = self._endpoints.get(scope["path"]) if is_post else None
        if take is None:
            await super().__call__(scope, receive, send)
            return
        response = await take(Request(scope, receive))
        await response(scope, receive, send)


@dataclass(frozen=True, slots=True)
class _Read:
    """A request, decoded."""

    logs: DecodedLogs
    """Our tables."""
    foreign: Tagged
    """What is left without them."""
    body: bytes
    """The same, serialised."""


_NO_LOGS = DecodedLogs((), 0, 0, "")
_NOTHING_FOREIGN = Tagged()


class _Intake:
    def __init__(
        self,
        job_id: str,
        on_batch: Callable[[Batch], None],
        stats: IntakeStats,
        is_open: Callable[[], bool],
        forwarding: Forwarding | None,
        rank_of: Callable[[str | None, int], int | None],
    ) -> None:
        self._job_id = job_id
        self._on_batch = on_batch
        self._stats = stats
        self._is_open = is_open
        self._forwarding = forwarding
        self._rank_of = rank_of
        self._buckets = TokenBuckets()

    def endpoint(self, signal: Signal) -> Callable[[Request], Awaitable[Response]]:
        async def take(request: Request) -> Response:
            self._stats.num_requests += 1
            form = Form.PROTOBUF
            try:
                form = form_of(request)
                return await self._take(signal, form, request)
            except RefusedError as refusal:
                return self._refuse(refusal, form)

        return take

    async def _take(self, signal: Signal, form: Form, request: Request) -> Response:
        sender = LOCAL_PREFIX if request.client is None else request.client.host
        if not self._is_open():
            raise RefusedError(503, "this sidecar is stopping", retry_after_s=CLOSING_RETRY_S)
        if wait_s := self._buckets.wait_s(sender, time.monotonic()):
            raise RefusedError(429, "too many bytes from this sender", retry_after_s=wait_s)
        raw = await read_body(request, form.max_bytes)
        self._buckets.spend(sender, len(raw) * form.weight, time.monotonic())
        if len(raw) <= form.inline_bytes:
            read = self._read(signal, form, raw)
        else:
            read = await asyncio.to_thread(self._read, signal, form, raw)
        num_rejected, reason = self._hand_on(signal, read, sender)
        for batch in read.logs.batches:
            refused = self._accept(batch, sender)
            if refused:
                # A log record holds all records of one kind (wire/otlp.py).
                num_rejected += len({record.kind for record in batch.records})
                reason = reason or refused
        num_rejected += read.logs.num_rejected
        self._stats.num_rejected += num_rejected
        answer: Any = signal.response()
        if reason := read.logs.reason or reason:
            setattr(answer.partial_success, signal.rejected, num_rejected)
            answer.partial_success.error_message = reason[:MAX_REASON]
        return Response(encode(answer, form), media_type=form.value)

    def _read(self, signal: Signal, form: Form, raw: bytes) -> _Read:
        request: Any = decode(raw, form, signal.request)
        logs = _NO_LOGS
        if signal is LOGS:
            logs = decode_log_request(request)
            if not logs.num_foreign:
                return _Read(logs, _NOTHING_FOREIGN, b"")
            _remove_tables(request)
        foreign = tag_ranks(request, signal, job_id=self._job_id, rank_of=self._rank_of)
        has_tables = bool(logs.batches or logs.num_rejected)
        is_raw = form is Form.PROTOBUF and not (has_tables or foreign.is_modified)
        return _Read(logs, foreign, raw if is_raw else request.SerializeToString())

    def _hand_on(self, signal: Signal, read: _Read, sender: str) -> tuple[int, str]:
        """Count and forward what are not tables; give what is refused of it, and why."""
        foreign = read.foreign
        if not foreign.num_items:
            return 0, ""
        is_own = is_local(sender) and foreign.num_own == foreign.num_items
        if self._forwarding is not None:
            # Of our own ranks the newest is worth more than the oldest; they do not try again.
            if not is_own and self._forwarding.is_full(signal):
                reason = "the queue to the upstream endpoint is full"
                if read.logs.batches:
                    return foreign.num_items, reason
                raise RefusedError(429, reason, retry_after_s=FULL_RETRY_S)
            self._forwarding.offer(signal, read.body, foreign.num_items)
        if signal is METRICS:
            self._stats.num_metric_points += foreign.num_items
        elif signal is TRACES:
            self._stats.num_spans += foreign.num_items
        self._stats.num_foreign += foreign.num_items - foreign.num_own
        by_rank = self._stats.foreign_by_rank
        for name, num_items in foreign.by_rank.items():
            if name in by_rank or len(by_rank) < MAX_RANKS_COUNTED:
                by_rank[name] = by_rank.get(name, 0) + num_items
        return 0, ""

    def _accept(self, batch: Batch, sender: str) -> str:
        """Hand a batch over; give the reason where it is refused."""
        if not is_local(sender):
            return "records are taken on the unix socket only"
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

    def _refuse(self, refusal: RefusedError, form: Form) -> Response:
        self._stats.num_refused_requests += 1
        self._stats.num_throttled_requests += refusal.status == 429
        wait_s = refusal.retry_after_s
        return Response(
            encode_status(str(refusal), form),
            status_code=refusal.status,
            media_type=form.value,
            headers=None if wait_s is None else {"retry-after": str(wait_s)},
        )


def _remove_tables(request: Any) -> None:
    """Leave only what is not ours, in place."""
    for group in request.resource_logs:
        for scope in group.scope_logs:
            logs = scope.log_records
            foreign = [log for log in logs if not is_table(log)]
            if len(foreign) < len(logs):
                del logs[:]
                logs.extend(foreign)
