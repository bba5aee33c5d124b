"""Follows the job and the sidecar's own work for ``/metrics``: what the daemon talks to."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from tracecore_sidecar.telemetry.durations import WorkTimes
from tracecore_sidecar.telemetry.exposition import Page, metrics_route
from tracecore_sidecar.telemetry.forward_metrics import forward_families
from tracecore_sidecar.telemetry.job_metrics import job_series
from tracecore_sidecar.telemetry.self_metrics import (
    counted_families,
    loss_families,
    process_families,
    work_families,
)
from tracecore_sidecar.telemetry.step_totals import StepTotals

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from prometheus_client.core import Metric
    from starlette.routing import Route

    from tracecore_sidecar.incidents import IncidentEvent
    from tracecore_sidecar.state.store import Store
    from tracecore_sidecar.verdicts import JobInfo, Verdict
    from tracecore_train.wire.records import Batch


class Meter:
    """Counts what happens and gives the page when asked. A sink, so that it sees incidents."""

    def __init__(
        self,
        store: Store,
        *,
        intake: Callable[[], Mapping[str, Any]],
        num_lost: Mapping[str, Callable[[], int]],
        forward: Callable[[], Mapping[str, Mapping[str, Any]]] = dict,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """``intake`` gives its counters by name, ``forward`` the forwarder's by signal.

        ``num_lost`` gives how many writes each sink lost.
        """
        self.times = WorkTimes()
        self._store = store
        self._intake = intake
        self._forward = forward
        self._num_lost = num_lost
        self._started_ns = clock()
        self._totals = StepTotals()
        self._open: dict[str, Verdict] = {}
        self._num_opened: Counter[str] = Counter()
        self._page = Page(self.collect, clock=clock)

    def apply(self, batch: Batch) -> None:
        """Take in records of this job."""
        self._totals.apply(batch)

    def on_event(self, event: IncidentEvent, job: JobInfo) -> None:
        """Remember which verdicts are open."""
        if event.change == "closed":
            self._open.pop(event.incident_id, None)
            return
        self._open[event.incident_id] = event.verdict
        if event.change == "opened":
            self._num_opened[event.verdict.pattern] += 1

    def close(self) -> None:
        """Nothing is held."""

    def route(self) -> Route:
        """Give the route of ``GET /metrics``."""
        return metrics_route(self._page)

    def collect(self, now_ns: int) -> list[Metric]:
        """Give every family as it is now."""
        omitted = {"ranks": 0, "verdicts": 0}
        families: list[Metric] = []
        view = self._store.view()
        if view is not None:
            is_current = self._totals.attempt == view.job.attempt
            totals = self._totals.ranks if is_current else {}
            job = job_series(view, totals, self._open.values(), self._num_opened, now_ns)
            omitted = {"ranks": job.num_ranks_omitted, "verdicts": job.num_verdicts_omitted}
            families += job.families
        lost = {name: count() for name, count in self._num_lost.items()}
        uptime_s = (now_ns - self._started_ns) / 1e9
        return [
            *families,
            *work_families(self.times),
            *counted_families("intake", self._intake()),
            *forward_families(self._forward()),
            *loss_families(self._store.num_dropped, lost, omitted),
            *process_families(uptime_s, self._store.job_id, self._store.host),
        ]
