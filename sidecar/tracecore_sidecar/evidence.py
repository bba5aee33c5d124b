"""Fetches evidence about ranks: flight-recorder pulls and stacks, beside the event loop.

Nothing is asked twice at the same time, repeated wishes wait a little, and every read has a
deadline, so a rank that cannot answer costs one thread for two seconds and nothing else. Each
kind has its own places: stacks do not queue behind the pulls of ranks that do not answer.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from tracecore_sidecar.connection_looks import ConnectionLooks
from tracecore_sidecar.detectors import Wanted, WantedKind
from tracecore_sidecar.pull_pace import PullPace
from tracecore_sidecar.pull_policy import NcclPull, PullPlan, PullPolicy
from tracecore_sidecar.ras_asking import RasAsking
from tracecore_sidecar.sources.flight_recorder import FlightRecorderReader
from tracecore_sidecar.sources.process import read_process
from tracecore_sidecar.sources.stacks import dump_stacks
from tracecore_train import runtime
from tracecore_train.wire.records import ProcessRecord, PullRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from tracecore_sidecar.state.view import JobView
    from tracecore_train.wire.records import Record

MAX_PARALLEL = 8
"""Reads of one kind at the same time: one per rank of a usual node."""
REPEAT_AFTER_NS = {
    WantedKind.COLLECTIVES: 1_000_000_000,
    WantedKind.STACKS: 10_000_000_000,
    WantedKind.PROCESS: 0,
}
"""A wish about the same rank is fulfilled again only after this time."""


class EvidenceFetcher:
    """Turns wishes for evidence into records."""

    def __init__(
        self,
        job_dir: Path,
        *,
        on_records: Callable[[Sequence[Record], int], None],
        wall_offset_ns: int,
        on_pull: Callable[[bool, int], None] = lambda _is_ok, _duration_ns: None,
        look_closely: Callable[[int, int, int], ProcessRecord] = read_process,
        nccl_pull: NcclPull = NcclPull.NEVER,
    ) -> None:
        """``on_records(records, attempt)`` is called on the event loop with what was found.

        So is ``on_pull(is_ok, duration_ns)`` after each read of a flight recorder. ``nccl_pull``:
        see ``pull_policy``.
        """
        self._nccl_pull = nccl_pull
        self._job_dir = job_dir
        self._on_records = on_records
        self._on_pull = on_pull
        self._look_closely = look_closely
        self._wall_offset_ns = wall_offset_ns
        self._reader = FlightRecorderReader()
        self._places = {kind: asyncio.Semaphore(MAX_PARALLEL) for kind in WantedKind}
        self._last_ns: dict[tuple[WantedKind, int, int], int] = {}
        self._running: dict[tuple[WantedKind, int], asyncio.Task[None]] = {}
        self._pace = PullPace(wall_offset_ns)
        self._num_local = 0
        self._ras = RasAsking(on_records)
        self._connections = ConnectionLooks(on_records)

    def request(self, wishes: Iterable[Wanted], view: JobView, now_ns: int) -> None:
        """Start fetching what is wanted and not already under way or fresh."""
        policy = PullPolicy(view, self._nccl_pull)
        for wish in wishes:
            for rank in wish.ranks:
                self._start(wish.kind, rank, view, now_ns, policy.plan(rank, is_suspicion=True))
            if wish.kind is WantedKind.COLLECTIVES:
                self._ras.request(policy, view, now_ns)
                self._connections.request(view, now_ns)

    def pull_on_schedule(self, interval_s: float, view: JobView, now_ns: int) -> None:
        """Read every local rank's recorder at wall-clock multiples; see ``pull_pace``."""
        if not self._pace.is_due(interval_s, self._num_local, now_ns):
            return
        local = runtime.rank_pages(self._job_dir, view.job.attempt)
        self._num_local = len(local)
        policy = PullPolicy(view, self._nccl_pull)
        for rank in local:
            if rank < view.world_size and not view.ranks.is_ended[rank]:
                plan = policy.plan(rank, is_suspicion=False)
                self._start(WantedKind.COLLECTIVES, rank, view, now_ns, plan)

    async def close(self) -> None:
        """Stop what is under way."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._ras.close()
        await self._connections.close()

    def _start(
        self, kind: WantedKind, rank: int, view: JobView, now_ns: int, plan: PullPlan
    ) -> None:
        attempt, pid = view.job.attempt, int(view.ranks.pid[rank])
        last_ns = self._last_ns.get((kind, attempt, rank))
        is_fresh = last_ns is not None and now_ns - last_ns < REPEAT_AFTER_NS[kind]
        if pid <= 0 or is_fresh or (kind, rank) in self._running:
            return
        self._last_ns[kind, attempt, rank] = now_ns
        task = asyncio.create_task(self._fetch(kind, rank, pid, attempt, plan))
        self._running[kind, rank] = task
        task.add_done_callback(lambda _: self._running.pop((kind, rank), None))

    async def _fetch(
        self, kind: WantedKind, rank: int, pid: int, attempt: int, plan: PullPlan
    ) -> None:
        records: Sequence[Record]
        async with self._places[kind]:
            now_ns = time.monotonic_ns()
            if kind is WantedKind.COLLECTIVES:
                records = await asyncio.to_thread(self._pull, rank, pid, attempt, now_ns, plan)
                pull = records[0]
                if isinstance(pull, PullRecord):
                    self._pace.pulled(pull)
                    self._on_pull(pull.is_ok, time.monotonic_ns() - now_ns)
            elif kind is WantedKind.STACKS:
                records = await dump_stacks(rank, pid, now_ns)
            else:
                records = [self._look_closely(rank, pid, now_ns)]
        self._on_records(records, attempt)

    def _pull(
        self, rank: int, pid: int, attempt: int, now_ns: int, plan: PullPlan
    ) -> Sequence[Record]:
        path = runtime.worker_server_socket(self._job_dir, attempt, rank)
        pull, *changed = self._reader.pull(
            rank,
            path,
            pid=pid,
            wall_offset_ns=self._wall_offset_ns,
            now_ns=now_ns,
            handlers=plan.handlers,
        )
        if plan.left_out and isinstance(pull, PullRecord) and pull.is_ok:
            pull = replace(pull, is_whole=False, reason=plan.left_out)
        return [pull, *changed]
