"""Running totals of every rank's steps: what a counter needs and a window forgets.

Totals belong to one attempt; the first record of a later attempt starts them anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracecore_train.wire.records import SourceKind, StepFlag, StepRecord

if TYPE_CHECKING:
    from tracecore_train.wire.records import Batch

MAX_RANKS = 16_384
"""Ranks totalled; a node has far fewer."""


@dataclass(slots=True)
class RankTotals:
    """Sums over the steps of one rank whose duration is known."""

    num_steps: int = 0
    step_ns: int = 0
    input_ns: int = 0
    checkpoint_ns: int = 0


class StepTotals:
    """Totals of all ranks of the newest attempt."""

    def __init__(self) -> None:
        """Start empty."""
        self.attempt = -1
        self.ranks: dict[int, RankTotals] = {}

    def apply(self, batch: Batch) -> None:
        """Add the steps of a batch of this job."""
        source = batch.source
        if source.attempt < self.attempt:
            return
        if source.attempt > self.attempt:
            self.attempt, self.ranks = source.attempt, {}
        if source.kind is SourceKind.SIDECAR:
            return  # what it gathers itself, collectives by the hundred, holds no steps
        for record in batch.records:
            if not isinstance(record, StepRecord) or record.flags & StepFlag.FIRST:
                continue
            if source.kind is not SourceKind.RANK or source.rank == record.rank:
                self._add(record)

    def _add(self, record: StepRecord) -> None:
        totals = self.ranks.get(record.rank)
        if totals is None:
            if len(self.ranks) >= MAX_RANKS:
                return
            totals = self.ranks[record.rank] = RankTotals()
        totals.num_steps += 1
        totals.step_ns += max(0, record.duration_ns)
        totals.input_ns += max(0, record.input_ns)
        totals.checkpoint_ns += max(0, record.checkpoint_ns)
