"""The OTLP intake, driven through ASGI."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tracecore_sidecar.receiver import IntakeStats, create_app
from tracecore_train.wire.records import Batch, ProgressRecord, Source, SourceKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracecore_sidecar.otlp_signals import Signal

PROTOBUF = {"content-type": "application/x-protobuf"}
JSON = {"content-type": "application/json"}
GZIP = PROTOBUF | {"content-encoding": "gzip"}


def batch_of(job_id: str = "job", num_records: int = 3) -> Batch:
    source = Source(
        kind=SourceKind.RANK,
        host="a07",
        boot_id="boot",
        pid=7,
        job_id=job_id,
        attempt=0,
        wall_offset_ns=5,
        rank=1,
    )
    records = tuple(
        ProgressRecord(time_ns=n, rank=1, pg_name="0", enqueued=n, started=-1, completed=n)
        for n in range(num_records)
    )
    return Batch(source=source, records=records)


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


class Intake:
    """An app with what it took in."""

    def __init__(
        self, on_batch: Callable[[Batch], None] | None = None, client: tuple[str, int] | None = None
    ) -> None:
        self.batches: list[Batch] = []
        self.stats = IntakeStats()
        self.is_ready = True
        self.is_open = True
        self.forwarded: list[tuple[str, bytes, int]] = []
        self.is_full = False
        self.ranks_by_pid: dict[int, int] = {}
        self._client = client
        self.app = create_app(
            job_id="job",
            on_batch=on_batch or self.batches.append,
            is_ready=lambda: self.is_ready,
            stats=self.stats,
            is_open=lambda: self.is_open,
            forwarding=_Forwarding(self),
            rank_of=lambda _host, pid: self.ranks_by_pid.get(pid),
        )

    def call(
        self, method: str, path: str, headers: dict[str, str], *chunks: bytes | float | None
    ) -> Answer:
        """Send the chunks of a body; a number is a pause, None hangs up."""
        return asyncio.run(self._call(method, path, headers, chunks))

    def logs(self, body: bytes, headers: dict[str, str] = PROTOBUF) -> Answer:
        return self.call("POST", "/v1/logs", headers, body)

    async def _call(
        self, method: str, path: str, headers: dict[str, str], chunks: tuple[Any, ...]
    ) -> Answer:
        messages = list(chunks)
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            if messages and isinstance(messages[0], float):
                await asyncio.sleep(messages.pop(0))
            if messages and messages[0] is None:
                return {"type": "http.disconnect"}
            body = messages.pop(0) if messages else b""
            return {"type": "http.request", "body": body, "more_body": bool(messages)}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": b"",
            "client": self._client,
            "headers": [(k.encode(), v.encode()) for k, v in headers.items()],
        }
        await self.app(scope, receive, send)
        start = sent[0]
        return Answer(
            status=start["status"],
            headers={k.decode(): v.decode() for k, v in start["headers"]},
            body=b"".join(message.get("body", b"") for message in sent[1:]),
        )


class _Forwarding:
    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    def is_full(self, _: Signal) -> bool:
        return self._intake.is_full

    def offer(self, signal: Signal, body: bytes, num_items: int) -> None:
        self._intake.forwarded.append((signal.name, body, num_items))
