"""So many a second, and no more."""

from __future__ import annotations

SECOND_NS = 1_000_000_000


class Pace:
    """Lets so many through in each second. For one thread; with more, some more get through."""

    __slots__ = ("_limit", "_num_asked", "_since_ns")

    def __init__(self, limit: int) -> None:
        """Let ``limit`` through in each second."""
        self._limit = limit
        self._since_ns = self._num_asked = 0

    def allows(self, now: int) -> bool:
        """Say whether one more may pass at ``now``."""
        if now - self._since_ns >= SECOND_NS:
            self._since_ns, self._num_asked = now, 0
        self._num_asked += 1
        return self._num_asked <= self._limit
