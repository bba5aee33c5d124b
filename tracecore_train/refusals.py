"""What a user gave us and we could not take: counted, said once with the way out, reported.

Nothing is raised for it: a bad argument of ours must not end a training run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracecore_train.guard import MAX_REASON, say
from tracecore_train.recorder.clock import now_ns
from tracecore_train.wire.records import GapRecord

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_REASONS = 16
"""Different reasons said and reported by themselves; further ones count with the last."""


class Refusals:
    """Refused arguments of one public function. Any thread may add, the export thread reports."""

    def __init__(self, where: str) -> None:
        """Count for ``where``, the function as the user knows it."""
        self.where = where
        self._counts: dict[str, list[str | int]] = {}
        self._told: dict[str, int] = {}

    def add(self, what: str, reason: str) -> None:
        """Count one refusal of a kind ``what``; the first of each kind is said."""
        known = self._counts.get(what)
        if known is None:
            if len(self._counts) >= MAX_REASONS:
                known = next(reversed(self._counts.values()))
            else:
                known = self._counts[what] = [reason[:MAX_REASON], 0]
                say(f"{self.where}: {reason[:MAX_REASON]}")
        known[1] = int(known[1]) + 1

    def new(self, rank: int) -> Iterator[GapRecord]:
        """Give what was refused since the last call."""
        for what, (reason, count) in list(self._counts.items()):
            num_new = int(count) - self._told.get(what, 0)
            if num_new:
                self._told[what] = int(count)
                yield GapRecord(
                    time_ns=now_ns(),
                    rank=rank,
                    where=self.where,
                    num_lost=num_new,
                    reason=str(reason),
                )


log_refusals = Refusals("log()")
expect_refusals = Refusals("expect()")
ALL = (log_refusals, expect_refusals)
