"""When the recorders of all ranks are read: at wall-clock multiples, as seldom as is good enough.

Multiples of the wall clock make the windows of different nodes overlap. A node with many ranks
leaves out every second one where the rings bear it: the detectors' part of the cost comes once
per round, and a straggler is still named within a minute. Suspicion does not wait for a round.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracecore_train.wire.records import PullRecord

MANY_RANKS = 16
"""Up to here a round costs too little to be spared."""
MAX_ENTRIES = 500
"""New entries of one rank in one interval up to which the next may be left out: with it they are
half of the 2,000 a ring holds."""


class PullPace:
    """Decides for each tick whether a round is due."""

    def __init__(self, wall_offset_ns: int) -> None:
        """``wall_offset_ns`` is wall clock minus monotonic clock."""
        self._wall_offset_ns = wall_offset_ns
        self._slot = 0
        self._round_slot = 0
        self._slots_passed = 1
        self._most_entries = MAX_ENTRIES + 1
        self._has_lost = False

    def is_due(self, interval_s: float, num_ranks: int, now_ns: int) -> bool:
        """Say whether a round should begin now; asked at every tick."""
        slot = int((now_ns + self._wall_offset_ns) / 1e9 / interval_s)
        if slot == self._slot:
            return False
        self._slot = slot
        is_spared = num_ranks > MANY_RANKS and not self._has_lost and self._is_slow
        # Even numbers, on every node.
        if is_spared and slot % 2 and slot - self._round_slot < 2:
            return False
        self._slots_passed = max(1, slot - self._round_slot) if self._round_slot else 1
        self._round_slot = slot
        self._most_entries = 0
        return True

    def pulled(self, pull: PullRecord) -> None:
        """Note what one rank's recorder gave."""
        self._most_entries = max(self._most_entries, pull.num_entries)
        self._has_lost = self._has_lost or pull.num_lost > 0

    @property
    def _is_slow(self) -> bool:
        """Whether in the last round no rank had more than the ring bears."""
        return self._most_entries <= MAX_ENTRIES * self._slots_passed
