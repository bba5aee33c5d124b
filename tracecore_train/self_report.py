"""What a rank says about itself at a hand-over: who it is, what it cannot see, what failed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracecore_train import refusals
from tracecore_train.hooks import PolledHook
from tracecore_train.recorder.clock import now_ns
from tracecore_train.wire import signals
from tracecore_train.wire.records import GapRecord

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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
        off: Sequence[str],
        hooks: Sequence[tuple[Hook, Guard]],
        guards: Sequence[Guard],
    ) -> None:
        """Report about a rank: fixed blind spots, signals that are off, hooks, every guard."""
        self._identity = identity
        self._blind = blind
        self._off = off
        self._hooks = hooks
        self._guards = guards
        self._given = tuple(signals.given_by(signals.PAGE))
        self._num_hooks = 0
        self._polled: tuple[tuple[PolledHook, Guard], ...] = ()
        self._told: tuple[int, tuple[str, ...]] | None = None
        self._failures_told: dict[str, int] = {}

    def __call__(self, is_full: bool) -> list[Record]:
        """Give what is new, or with ``is_full`` everything that still holds."""
        if len(self._hooks) != self._num_hooks:
            self._look_at_hooks()
        records = self._from_hooks(is_full)
        return [*self._introduction(is_full), *records, *self._failures(), *self._refused()]

    def _look_at_hooks(self) -> None:
        """Sort out once which hooks are polled; asking a protocol takes 5 to 20 µs each time."""
        hooks = list(self._hooks)
        self._polled = tuple((h, guard) for h, guard in hooks if isinstance(h, PolledHook))
        self._given = (
            *signals.given_by(signals.PAGE),
            *(name for hook, _ in hooks for name in signals.given_by(hook.name)),
        )
        self._num_hooks = len(hooks)

    def _introduction(self, is_full: bool) -> list[Record]:
        blind = tuple(dict.fromkeys(self._blind_now()))
        seen = (len(self._given), blind)
        if seen == self._told and not is_full:
            return []
        self._told = seen
        measured = signals.measured_among(self._given, blind=blind, off=self._off)
        return [self._identity.record(measured=measured, blind=blind, off=tuple(self._off))]

    def _blind_now(self) -> Iterator[str]:
        yield from self._blind
        for hook, guard in self._hooks:
            texts: list[str] = []
            if guard.is_open:
                with guard:
                    texts = hook.blind()
            yield from texts
        for guard in self._guards:
            if guard.num_failures:
                reason = f"{guard.name} is switched off after {guard.reason}"
                yield from signals.explain(signals.given_by(guard.name) or (guard.name,), reason)

    def _from_hooks(self, is_full: bool) -> list[Record]:
        records: list[Record] = []
        for hook, guard in self._polled:
            if guard.is_open:
                with guard:
                    records.extend(hook.poll(is_full))
        return records

    def _refused(self) -> list[Record]:
        return [gap for some in refusals.ALL for gap in some.new(self._identity.rank)]

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
