"""A simulated job with a meter beside it, and its /metrics page taken apart."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette

from tracecore_sidecar.receiver import IntakeStats
from tracecore_sidecar.telemetry.exposition import Page
from tracecore_sidecar.telemetry.meter import Meter
from tracecore_train.wire.records import Batch, Source, SourceKind

if TYPE_CHECKING:
    from prometheus_client.samples import Sample

    from tests.support.recordings import SimulatedJob
    from tracecore_train.wire.records import Record


class Metered:
    """A meter over the store of a simulated job, on a clock that tests set."""

    def __init__(self, job: SimulatedJob) -> None:
        self.now = job.now
        self.intake = IntakeStats()
        self.lanes: dict[str, dict[str, Any]] = {}
        self.meter = Meter(
            job.store,
            intake=self.intake.as_dict,
            forward=lambda: self.lanes,
            num_lost={"records": lambda: 3},
            clock=lambda: self.now,
        )
        self._app = Starlette(routes=[self.meter.route()])

    def apply(
        self,
        *records: Record,
        kind: SourceKind = SourceKind.RANK,
        rank: int | None = None,
        attempt: int = 0,
    ) -> None:
        """Hand records to the meter only."""
        source = Source(
            kind=kind,
            host="a07",
            boot_id="b",
            pid=1,
            job_id="simulated",
            attempt=attempt,
            wall_offset_ns=0,
            rank=rank,
        )
        self.meter.apply(Batch(source=source, records=records))

    def text(self) -> str:
        """The page as a scraper gets it: one for a second."""
        return asyncio.run(self.get({}))[2].decode()

    def samples(self) -> list[Sample]:
        """Every sample of a fresh page."""
        page = Page(self.meter.collect, clock=lambda: self.now)
        families = text_string_to_metric_families(page.text("")[0].decode())
        return [sample for family in families for sample in family.samples]

    def series(self, name: str, **labels: str) -> list[Sample]:
        """The samples of one name that have these labels."""
        return [
            sample
            for sample in self.samples()
            if sample.name == name and labels.items() <= sample.labels.items()
        ]

    def value(self, name: str, **labels: str) -> float:
        """The value of the one sample there is."""
        (sample,) = self.series(name, **labels)
        return float(sample.value)

    async def get(self, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        """GET /metrics: status, headers, body."""
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "GET",
            "path": "/metrics",
            "query_string": b"",
            "headers": [(key.encode(), value.encode()) for key, value in headers.items()],
        }
        await self._app(scope, receive, send)
        told = {key.decode(): value.decode() for key, value in sent[0]["headers"]}
        body = b"".join(message.get("body", b"") for message in sent[1:])
        return sent[0]["status"], told, body
