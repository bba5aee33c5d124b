"""Collectives read before anybody said who is in their process group.

A recorder is read as soon as its rank's process is known; the rank tells its groups when it hands
over next, a second later, or longer after a restart of the sidecar. An entry is read once, so
what came early waits here. Bounded: per group and rank the latest entries stay.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracecore_train.wire.records import CollectiveRecord

MAX_ENTRIES = 64
"""Latest entries kept of one group and rank; a hang is judged by the last ones."""
MAX_KEYS = 512
"""Pairs of group and rank kept."""


class EarlyEntries:
    """See the module."""

    def __init__(self) -> None:
        """Start with none."""
        self._waiting: dict[tuple[str, int], deque[CollectiveRecord]] = {}

    def keep(self, pg_name: str, rank: int, entries: Sequence[CollectiveRecord]) -> int:
        """Take entries in, oldest first; give how many, of these or older ones, had no room."""
        num_left = 0
        key = (pg_name, rank)
        if key not in self._waiting and len(self._waiting) >= MAX_KEYS:
            # Most likely of a group that is gone.
            num_left = len(self._waiting.pop(next(iter(self._waiting))))
        held = self._waiting.setdefault(key, deque(maxlen=MAX_ENTRIES))
        num_left += max(0, len(held) + len(entries) - MAX_ENTRIES)
        held.extend(entries)
        return num_left

    def take(self, pg_name: str) -> list[CollectiveRecord]:
        """Hand out what waits for a group, each rank's entries in order.

        A group with several backends is told as ``name`` and ``name:backend``.
        """
        names = (pg_name, pg_name.rpartition(":")[0])
        keys = [key for key in self._waiting if key[0] in names]
        return [entry for key in keys for entry in self._waiting.pop(key)]
