"""The state of one job on this node. ``Store.apply(batch)`` is the only thing that changes it.

The store follows the newest attempt: the first record of a later attempt starts an empty state,
records of an earlier one are counted and dropped. What one attempt knows is in ``attempt``; of
the earlier ones only ``pauses`` is kept, unless the number of ranks has changed.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from tracecore_sidecar.state.attempt import AttemptState
from tracecore_sidecar.state.pauses import PauseHistory
from tracecore_sidecar.verdicts import JobInfo
from tracecore_train.wire import records as rec

if TYPE_CHECKING:
    from tracecore_sidecar.state.view import JobView
    from tracecore_train.wire.records import Batch

MAX_WORLD_SIZE = 131_072
"""Ranks in one job; a larger number is refused as garbage."""


class Store:
    """Everything known about one job, from the records applied so far."""

    def __init__(self, *, job_id: str, node_rank: int, host: str, boot_id: str) -> None:
        """Start with nothing known; ``host`` and ``boot_id`` are this sidecar's own."""
        self.job_id = job_id
        self.node_rank = node_rank
        self.host = host
        self.boot_id = boot_id
        self.attempt = -1
        self.num_dropped: Counter[str] = Counter()
        """Records not applied, by reason."""
        self._attempt_state: AttemptState | None = None
        self._pauses = PauseHistory()
        self._pauses_world_size = 0

    def apply(self, batch: Batch) -> None:
        """Take in one batch."""
        source = batch.source
        if source.job_id != self.job_id:
            self.num_dropped["other job"] += len(batch.records)
            return
        if source.attempt < self.attempt:
            self.num_dropped["earlier attempt"] += len(batch.records)
            return
        if source.attempt > self.attempt:
            self.attempt = source.attempt
            self._attempt_state = None
        if self._attempt_state is None:
            world_size = _world_size(batch)
            if not 1 <= world_size <= MAX_WORLD_SIZE:
                self.num_dropped["world size unknown"] += len(batch.records)
                return
            if world_size != self._pauses_world_size:
                self._pauses, self._pauses_world_size = PauseHistory(), world_size
            self._attempt_state = AttemptState(world_size, self.num_dropped, self._pauses)
        self._attempt_state.apply(batch)

    def view(self) -> JobView | None:
        """Share the state, read-only; None while the size of the job is unknown."""
        if self._attempt_state is None:
            return None
        job = JobInfo(
            job_id=self.job_id,
            attempt=self.attempt,
            world_size=self._attempt_state.world_size,
            node_rank=self.node_rank,
            host=self.host,
        )
        return self._attempt_state.view(job)


def _world_size(batch: Batch) -> int:
    for record in batch.records:
        if isinstance(record, (rec.RendezvousRecord, rec.IdentityRecord)):
            return record.world_size
    return batch.source.world_size or 0
