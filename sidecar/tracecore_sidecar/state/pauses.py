"""How long pauses took: the past of each kind of pause of each rank, in bounded memory.

Told by the records of pauses that ended. It outlives the attempt: a job that was restarted saves
the same checkpoints, so the store keeps it for as long as the job has the same number of ranks.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

from tracecore_sidecar.state.view import PastPauses
from tracecore_train.wire import records as rec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tracecore_sidecar.state.view import PauseKind

MAX_KINDS = 32
"""Kinds kept of one rank. The one that was not seen for longest makes room: names with a number
in them come once."""
NUM_RECENT = 16
"""Durations kept of one kind, besides the longest ever."""
MIN_CHECKPOINT_NS = 1_000_000_000
"""A shorter saving call is hardly a checkpoint: metrics and sampler states are saved by the same
calls, and say nothing of how long a model takes."""
_NONE = PastPauses(num=0, longest_ns=0, recent_ns=())

Pause: TypeAlias = "rec.PhaseRecord | rec.CheckpointRecord | rec.GcRecord"


class PauseHistory:
    """See the module."""

    def __init__(self) -> None:
        """Start with no past."""
        self._by_rank: dict[int, dict[PauseKind, PastPauses]] = {}

    def add(self, record: Pause) -> None:
        """Note a pause that ended, if it tells how long such a pause takes."""
        if not _counts(record):
            return
        kind = (record.kind, record.name if isinstance(record, rec.PhaseRecord) else "")
        kinds = self._by_rank.setdefault(record.rank, {})
        past = kinds.pop(kind, _NONE)
        kinds[kind] = PastPauses(
            num=past.num + 1,
            longest_ns=max(past.longest_ns, record.duration_ns),
            recent_ns=(*past.recent_ns[1 - NUM_RECENT :], record.duration_ns),
        )
        if len(kinds) > MAX_KINDS:
            del kinds[next(iter(kinds))]

    def view(self) -> Mapping[int, Mapping[PauseKind, PastPauses]]:
        """Share it, read-only."""
        return MappingProxyType(self._by_rank)


def _counts(record: Pause) -> bool:
    """Leave out saves that failed, that training did not wait for, or that are too short."""
    if isinstance(record, rec.CheckpointRecord):
        is_whole = record.is_blocking and not record.error
        return is_whole and record.duration_ns >= MIN_CHECKPOINT_NS
    return record.duration_ns >= 0
