"""What a rank says about itself at a hand-over: who it is, what it cannot see, what failed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracecore_train.hooks import PolledHook
from tracecore_train.recorder.clock import now_ns
from tracecore_train.wire.records import GapRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracecore_train.guard import Guard
    from tracecore_train.hooks import Hook
    from tracecore_train.identity import Identity
    from tracecore_train.wire.records import Record


class SelfReport:
    """Polled by the export thread. Sees later changes of the lists it was given."""

    def __init__(
        self,
        identity: Identity,
        *,
        blind: Sequence[str],
        hooks: Sequence[tuple[Hook, Guard]],
        guards: Sequence[Guard],
    ) -> None:
        """Report about a rank: fixed blind spots, its hooks, and every guard of ours."""
        self._identity = identity
        self._blind = blind
        self._hooks = hooks
        self._guards = guards
        self._blind_told: list[str] | None = None
        self._failures_told: dict[str, int] = {}

    def __call__(self, is_full: bool) -> list[Record]:
        """Give what is new, or with ``is_full`` everything that still holds."""
        records = self._from_hooks(is_full)
        return [*self._introduction(is_full), *records, *self._failures()]

    def _introduction(self, is_full: bool) -> list[Record]:
        blind = list(self._blind)
        for hook, guard in self._hooks:
            if not guard.num_failures:
                with guard:
                    blind.extend(hook.blind())
        blind.extend(
            f"{guard.name}: switched off after {guard.reason}"
            for guard in self._guards
            if guard.num_failures
        )
        if blind == self._blind_told and not is_full:
            return []
        self._blind_told = blind
        return [self._identity.record(blind)]

    def _from_hooks(self, is_full: bool) -> list[Record]:
        records: list[Record] = []
        for hook, guard in self._hooks:
            if isinstance(hook, PolledHook) and guard.is_open:
                with guard:
                    records.extend(hook.poll(is_full))
        return records

    def _failures(self) -> list[Record]:
        gaps: list[Record] = []
        for guard in self._guards:
            num_new = guard.num_failures - self._failures_told.get(guard.name, 0)
            if num_new:
                self._failures_told[guard.name] = guard.num_failures
                gap = GapRecord(
                    time_ns=now_ns(),
                    rank=self._identity.rank,
                    where=guard.name,
                    num_lost=num_new,
                    reason=guard.reason,
                )
                gaps.append(gap)
        return gaps
