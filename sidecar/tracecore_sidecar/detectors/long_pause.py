"""Long pause: a rank is in a pause for much longer than that kind ever took it before.

Kinds are checkpoint calls, phases by their name, and Python's garbage collector: what the rank
page shows while it lasts, and a record tells when it is over. The job itself says what is long,
see ``long_pause_limit``; with too few pauses before it nothing is said. A phase with a limit of
its user's (``expect``) is left to ``declared_pause``. Who is named: see ``pauses``. Somebody in a
debugger or a compiler at work inside the pause explains it, for a while.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tracecore_sidecar.detectors import Findings, Wanted, WantedKind
from tracecore_sidecar.detectors.debugger import is_held
from tracecore_sidecar.detectors.frames import is_compiling
from tracecore_sidecar.detectors.long_pause_limit import LimitSettings, limit_ns
from tracecore_sidecar.detectors.long_pause_report import report
from tracecore_sidecar.detectors.pauses import (
    SECOND_NS,
    LookSettings,
    Overrun,
    Told,
    judge,
    stack_after,
)
from tracecore_train.wire.records import RecordKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tracecore_sidecar.state.view import JobView, PauseKind
    from tracecore_train.wire.records import RankPageRecord

_REASON = "a pause lasts longer than before"


@dataclass(frozen=True, slots=True, kw_only=True)
class LongPauseSettings:
    """When a pause is told."""

    limits: LimitSettings = field(default_factory=LimitSettings)
    looks: LookSettings = field(default_factory=LookSettings)
    compile_ns: int = 300 * SECOND_NS
    """Beyond the limit, while a compiler of torch is at work inside the pause: a batch of a new
    shape in a validation compiles the model again."""
    debugger_ns: int = 1_800 * SECOND_NS
    """Beyond the limit, while it is held in a debugger: somebody is there and knows."""
    refresh_ns: int = 10 * SECOND_NS
    """Age from which the stack that excuses a pause is taken again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LongPauseState:
    """What is remembered between ticks."""

    told: Mapping[PauseKind, Told] = field(default_factory=dict)
    """By kind."""


class LongPauseDetector:
    """See the module."""

    pattern = "long_pause"

    def __init__(self, settings: LongPauseSettings | None = None) -> None:
        """Take settings."""
        self.settings = settings or LongPauseSettings()

    def initial_state(self) -> LongPauseState:
        """Give the state of a job nothing is known about."""
        return LongPauseState()

    def evaluate(self, view: JobView, state: LongPauseState, now: int) -> Findings[LongPauseState]:
        """Judge the job as it is at ``now``."""
        settings = self.settings
        told: dict[PauseKind, Told] = {}
        inside: dict[PauseKind, list[int]] = {}
        wanted: set[int] = set()
        for kind, overruns in self._overruns(view, state.told, inside, now).items():
            known = state.told.get(kind)
            judged = judge(view, overruns, inside[kind], known, now=now, settings=settings.looks)
            wanted.update(judged.wanted)
            if judged.told is None:
                continue
            excused = [o for o in overruns if known is None and self._is_excused(view, o, now)]
            if excused:
                wanted.update(o.rank for o in excused if self._is_old(view, o, now))
            else:
                told[kind] = judged.told
        verdicts = [
            report(view, kind, found, inside[kind], now=now, max_listed=settings.looks.max_listed)
            for kind, found in _causes(told)
        ]
        wishes = tuple(
            Wanted(kind=kind, ranks=tuple(sorted(wanted)), reason=_REASON)
            for kind in (WantedKind.STACKS, WantedKind.COLLECTIVES)
            if wanted
        )
        return Findings(verdicts=tuple(verdicts), state=LongPauseState(told=told), wanted=wishes)

    def _overruns(
        self,
        view: JobView,
        told: Mapping[PauseKind, Told],
        inside: dict[PauseKind, list[int]],
        now: int,
    ) -> dict[PauseKind, tuple[Overrun, ...]]:
        """Give by kind the ranks that are too long in it, each in the innermost of its pauses.

        What was told keeps its limit; ``inside`` gets all ranks in a pause, by kind.
        """
        known = {(kind, o.rank, o.since_ns): o for kind in told for o in told[kind].overruns}
        found: dict[PauseKind, list[Overrun]] = {}
        for rank, page in sorted(view.pages.items()):
            if view.ranks.is_ended[rank]:
                continue
            over: list[tuple[int, PauseKind, Overrun]] = []
            for kind, since_ns in _open_pauses(page):
                inside.setdefault(kind, []).append(rank)
                overrun = known.get((kind, rank, since_ns))
                if overrun is None:
                    # A rank says where it is until it leaves: a page read before tells nothing.
                    until_ns = self._until(view, rank, kind, since_ns, min(now, page.time_ns))
                    if until_ns is None:
                        continue
                    overrun = Overrun(rank=rank, since_ns=since_ns, until_ns=until_ns)
                over.append((since_ns, kind, overrun))
            if over:
                _, kind, overrun = max(over, key=lambda item: item[0])
                found.setdefault(kind, []).append(overrun)
        return {kind: tuple(overruns) for kind, overruns in found.items()}

    def _until(
        self, view: JobView, rank: int, kind: PauseKind, since_ns: int, seen_ns: int
    ) -> int | None:
        """Give the moment from which a pause is too long, if that moment has passed."""
        limits, past = self.settings.limits, view.past_pauses.get(rank, {}).get(kind)
        # Most pauses are over before the whole limit has to be worked out.
        if past is None or seen_ns - since_ns <= past.longest_ns + limits.min_excess_ns:
            return None
        limit = limit_ns(past, limits)
        return since_ns + limit if limit is not None and seen_ns - since_ns > limit else None

    def _is_excused(self, view: JobView, overrun: Overrun, now: int) -> bool:
        """Say whether a debugger or a compiler explains for now what it does."""
        stack = stack_after(view, overrun.rank, overrun.fresh_after_ns)
        beyond_ns = now - overrun.until_ns
        if is_held(view, overrun.rank, stack, overrun.since_ns):
            return beyond_ns < self.settings.debugger_ns
        is_at_compiler = stack is not None and is_compiling(stack)
        return is_at_compiler and beyond_ns < self.settings.compile_ns

    def _is_old(self, view: JobView, overrun: Overrun, now: int) -> bool:
        stack = stack_after(view, overrun.rank, overrun.fresh_after_ns)
        return stack is None or now - stack.time_ns > self.settings.refresh_ns


def _open_pauses(page: RankPageRecord) -> Iterator[tuple[PauseKind, int]]:
    """Give the pauses a rank is in, with their beginnings."""
    if page.phase and page.phase_since_ns and not page.expect_until_ns:
        yield (RecordKind.PHASE, page.phase), page.phase_since_ns
    if page.checkpoint_since_ns:
        yield (RecordKind.CHECKPOINT, ""), page.checkpoint_since_ns
    if page.gc_since_ns:
        yield (RecordKind.GC, ""), page.gc_since_ns


def _causes(told: Mapping[PauseKind, Told]) -> list[tuple[PauseKind, Told]]:
    """Leave out pauses in which nobody is named beside one in which somebody is, oldest first.

    Ranks that wait at the end of a phase for the one that saves inside it are its consequence.
    """
    named = {kind: found for kind, found in told.items() if found.named}
    return sorted(
        (named or told).items(), key=lambda item: min(o.since_ns for o in item[1].overruns)
    )
