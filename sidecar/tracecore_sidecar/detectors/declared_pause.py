"""Declared pause: a rank is longer in a pause than its user announced.

``tracecore_train.expect("export", at_most=600)`` puts the limit on the rank page, so the finding
needs no threshold of ours. Who is named is another matter: a rank inside a pause may wait there
for a peer, and then the peer is the cause. A rank is named only when it was looked at after its
limit and does not wait; where all ranks that take part are over the limit, nobody is singled out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tracecore_sidecar.detectors import Findings, Wanted, WantedKind
from tracecore_sidecar.detectors.frames import first_frame, waits_for_peer
from tracecore_sidecar.detectors.naming import ranks_text, span_text, suspect_of
from tracecore_sidecar.verdicts import Confidence, Evidence, Severity, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tracecore_sidecar.state.view import GroupView, JobView
    from tracecore_train.wire.records import RankPageRecord, StackRecord

SECOND_NS = 1_000_000_000
_REASON = "a pause lasts longer than announced"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredPauseSettings:
    """When an overrun is told; how long a pause may last is the user's to say."""

    evidence_ns: int = 15 * SECOND_NS
    """Time for the stack that tells a rank at work from one that waits: stacks are fetched once
    in 10 s, with a deadline of 5 s. Then the overrun is told without naming anybody."""
    max_looks: int = 8
    """Ranks that are looked at: more of them over the limit are hardly each at fault."""
    max_listed: int = 16
    """Ranks with a line of evidence of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredPauseState:
    """What is remembered between ticks."""

    told: Mapping[str, tuple[tuple[tuple[int, int], ...], tuple[int, ...]]] = field(
        default_factory=dict
    )
    """By pause, the ranks that were over their limit, with the limit, and who of them was named:
    as long as they are the same, so is the verdict."""


class DeclaredPauseDetector:
    """See the module."""

    pattern = "declared_pause"

    def __init__(self, settings: DeclaredPauseSettings | None = None) -> None:
        """Take settings."""
        self.settings = settings or DeclaredPauseSettings()

    def initial_state(self) -> DeclaredPauseState:
        """Give the state of a job nothing is known about."""
        return DeclaredPauseState()

    def evaluate(
        self, view: JobView, state: DeclaredPauseState, now: int
    ) -> Findings[DeclaredPauseState]:
        """Judge the job as it is at ``now``."""
        verdicts: list[Verdict] = []
        wanted: set[int] = set()
        told: dict[str, tuple[tuple[tuple[int, int], ...], tuple[int, ...]]] = {}
        for name, pages in _overruns(view, now).items():
            key = tuple((page.rank, page.expect_until_ns) for page in pages)
            known = state.told.get(name)
            if known is not None and known[0] == key:
                named = known[1]
            else:
                unseen = [page.rank for page in pages if not _is_examined(view, page)]
                latest_ns = max(page.expect_until_ns for page in pages)
                if unseen and now - latest_ns < self.settings.evidence_ns:
                    wanted.update(unseen[: self.settings.max_looks])
                    if known is None:
                        continue
                is_open = not _is_everybody(view, pages)
                named = tuple(p.rank for p in pages if is_open and _is_at_work(view, p))
            told[name] = (key, named)
            verdicts.append(self._report(view, name, pages, named, now))
        wishes = tuple(
            Wanted(kind=kind, ranks=tuple(sorted(wanted)), reason=_REASON)
            for kind in (WantedKind.STACKS, WantedKind.COLLECTIVES)
            if wanted
        )
        return Findings(
            verdicts=tuple(verdicts), state=DeclaredPauseState(told=told), wanted=wishes
        )

    def _report(
        self,
        view: JobView,
        name: str,
        pages: tuple[RankPageRecord, ...],
        named: tuple[int, ...],
        now: int,
    ) -> Verdict:
        ranks = tuple(page.rank for page in pages)
        oldest = min(pages, key=lambda page: page.expect_until_ns)
        for_ns = now - oldest.phase_since_ns
        limit_ns = oldest.expect_until_ns - oldest.phase_since_ns
        who = ranks_text(named or ranks)
        have = "has" if len(named or ranks) == 1 else "have"
        everybody = "all " if not named and _is_everybody(view, pages) else ""
        unseen = [gap for page in pages for gap in _unseen(view, page)]
        return Verdict(
            pattern=self.pattern,
            class_="overrun" if named else "overrun_nobody_named",
            severity=Severity.WARNING,
            confidence=Confidence.PARTIAL if unseen else Confidence.FULL,
            summary=(
                f"{everybody}{who} {have} been in {name!r} for {span_text(for_ns)},"
                f" announced: at most {span_text(limit_ns)}"
            ),
            suspects=tuple(suspect_of(view, rank) for rank in named),
            since_ns=oldest.expect_until_ns,
            evidence=tuple(self._evidence(view, pages, now)),
            not_measured=tuple(unseen[: self.settings.max_listed]),
            actions=_actions(name, named),
        )

    def _evidence(
        self, view: JobView, pages: tuple[RankPageRecord, ...], now: int
    ) -> list[Evidence]:
        found: list[Evidence] = []
        for page in pages[: self.settings.max_listed]:
            found.append(
                Evidence(
                    kind="rank_page",
                    source="rank page",
                    time_ns=page.time_ns,
                    rank=page.rank,
                    text=f"rank {page.rank} is in {page.phase!r} since"
                    f" {span_text(now - page.phase_since_ns)}; its limit passed"
                    f" {span_text(now - page.expect_until_ns)} ago",
                    data={"since_ns": page.phase_since_ns, "until_ns": page.expect_until_ns},
                )
            )
            stack = _stack(view, page)
            if stack is not None and not stack.error:
                does = "waits for another rank" if waits_for_peer(stack) else "is"
                found.append(
                    Evidence(
                        kind="stack",
                        source="py-spy",
                        time_ns=stack.time_ns,
                        rank=page.rank,
                        text=f"rank {page.rank} {does} in {first_frame(stack)}",
                        data={"frames": list(stack.frames[:20])},
                    )
                )
        return found


def _overruns(view: JobView, now: int) -> dict[str, tuple[RankPageRecord, ...]]:
    """Give by pause the pages, read after it, of ranks whose announced limit has passed."""
    found: dict[str, list[RankPageRecord]] = {}
    for rank, page in sorted(view.pages.items()):
        # A rank says where it is until it leaves or dies: a page read before tells nothing.
        if 0 < page.expect_until_ns < min(now, page.time_ns) and not view.ranks.is_ended[rank]:
            found.setdefault(page.phase, []).append(page)
    return {name: tuple(pages) for name, pages in found.items()}


def _is_everybody(view: JobView, pages: tuple[RankPageRecord, ...]) -> bool:
    """Say whether all ranks that run are in it: one that cannot be seen may be in it too."""
    running = int((~view.ranks.is_ended).sum())
    num_seen = int(np.count_nonzero((view.ranks.page_ns > 0) & ~view.ranks.is_ended))
    return len(pages) > 1 and len(pages) >= min(running, num_seen)


def _stack(view: JobView, page: RankPageRecord) -> StackRecord | None:
    """Give the stack of the main thread, or why there is none, if taken after the limit."""
    fresh = [s for s in view.stacks.get(page.rank, ()) if s.time_ns > page.expect_until_ns]
    return next((s for s in fresh if s.thread == "MainThread"), fresh[0] if fresh else None)


def _is_examined(view: JobView, page: RankPageRecord) -> bool:
    """Say whether it was looked at after its limit as far as that is possible."""
    has_answer = _has_fresh_pull(view, page) or view.ranks.pull_failed_ns[page.rank] > 0
    return _stack(view, page) is not None and bool(has_answer or not _groups(view, page.rank))


def _is_at_work(view: JobView, page: RankPageRecord) -> bool:
    """Say whether it was seen not to wait for a peer: its stack and its collectives show it."""
    stack = _stack(view, page)
    if stack is None or stack.error or waits_for_peer(stack):
        return False
    groups = _groups(view, page.rank)
    if any(group.is_blind for group in groups) or (groups and not _has_fresh_pull(view, page)):
        return False
    return not any(_is_inside(group, page.rank) for group in groups)


def _unseen(view: JobView, page: RankPageRecord) -> Iterator[str]:
    rank, stack, groups = page.rank, _stack(view, page), _groups(view, page.rank)
    if stack is None or stack.error:
        yield f"stack of rank {rank}: {'not taken' if stack is None else stack.error}"
    if any(group.is_blind for group in groups):
        yield f"collectives of rank {rank}: their recorder is not read"
    elif groups and not _has_fresh_pull(view, page):
        yield f"collectives of rank {rank}: not read since its limit"


def _groups(view: JobView, rank: int) -> list[GroupView]:
    """Give the groups in which it can wait for somebody."""
    return [g for g in view.groups.values() if rank in g.members and len(g.members) > 1]


def _has_fresh_pull(view: JobView, page: RankPageRecord) -> bool:
    return int(view.ranks.pull_ns[page.rank]) > page.expect_until_ns


def _is_inside(group: GroupView, rank: int) -> bool:
    """Say whether it entered a collective that is not over."""
    column = group.members.index(rank)
    entered = (group.seq_ids >= 0) & (group.created_ns[:, column] > 0)
    return bool((entered & ~group.is_retired[:, column]).any())


def _actions(name: str, named: tuple[int, ...]) -> tuple[str, ...]:
    if named:
        return (
            f"look at the stack: what does {ranks_text(named)} do in {name!r}?",
            "if it always takes this long, announce more (at_most)",
        )
    return (
        f"see which rank the others wait for in {name!r}, if any",
        "if it always takes this long, announce more (at_most)",
    )
