"""Looks at the connections of this node's ranks when a hang is suspected."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tracecore_sidecar.seldom import Seldom
from tracecore_sidecar.sources.beside import beside
from tracecore_sidecar.sources.connections import connections_of, read_connections

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tracecore_sidecar.state.view import JobView
    from tracecore_train.wire.records import Record

REPEAT_AFTER_NS = 10_000_000_000
"""A suspicion that lasts looks again only then."""
TIMEOUT_S = 3.0
"""A node with a hundred thousand connections takes a good part of a second."""


class ConnectionLooks:
    """Turns suspicions into ``connections`` records."""

    def __init__(self, on_records: Callable[[Sequence[Record], int], None]) -> None:
        """``on_records(records, attempt)`` is called on the event loop."""
        self._on_records = on_records
        self._seldom = Seldom(REPEAT_AFTER_NS)

    def request(self, view: JobView, now_ns: int) -> None:
        """Start looking, unless that was done a short while ago."""
        attempt = view.job.attempt
        if not self._seldom.is_due(attempt, now_ns):
            return
        pids = {rank: int(view.ranks.pid[rank]) for rank in view.pages}
        ranks_by_pid = {
            pid: rank for rank, pid in pids.items() if pid > 0 and not view.ranks.is_ended[rank]
        }
        if ranks_by_pid:
            self._seldom.start(attempt, now_ns, self._look(ranks_by_pid, attempt))

    async def close(self) -> None:
        """Stop what is under way."""
        await self._seldom.close()

    async def _look(self, ranks_by_pid: Mapping[int, int], attempt: int) -> None:
        now_ns = time.monotonic_ns()
        try:
            found = await beside(TIMEOUT_S, lambda: read_connections(ranks_by_pid, now_ns))
        except TimeoutError as problem:
            ranks = ranks_by_pid.values()
            found = [connections_of(rank, now_ns, (), str(problem)) for rank in ranks]
        self._on_records(found, attempt)
