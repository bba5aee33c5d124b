"""Declared pause: a rank is longer in a pause than its user announced.

``tracecore_train.expect("export", at_most=600)`` puts the limit on the rank page, so the finding
needs no threshold of ours. Who is named is another matter, see ``pauses``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tracecore_sidecar.detectors import Findings, Wanted, WantedKind
from tracecore_sidecar.detectors.naming import ranks_text, span_text, suspect_of
from tracecore_sidecar.detectors.pauses import (
    LookSettings,
    Overrun,
    Told,
    is_everybody,
    judge,
    look_evidence,
    unseen_texts,
)
from tracecore_sidecar.verdicts import Confidence, Evidence, Severity, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tracecore_sidecar.state.view import JobView

_REASON = "a pause lasts longer than announced"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredPauseSettings:
    """When an overrun is told; how long a pause may last is the user's to say."""

    looks: LookSettings = field(default_factory=LookSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredPauseState:
    """What is remembered between ticks."""

    told: Mapping[str, Told] = field(default_factory=dict)
    """By pause."""


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
        told: dict[str, Told] = {}
        for name, overruns in _overruns(view, now).items():
            judged = judge(
                view,
                overruns,
                [overrun.rank for overrun in overruns],
                state.told.get(name),
                now=now,
                settings=self.settings.looks,
            )
            wanted.update(judged.wanted)
            if judged.told is not None:
                told[name] = judged.told
                verdicts.append(self._report(view, name, judged.told, now))
        wishes = tuple(
            Wanted(kind=kind, ranks=tuple(sorted(wanted)), reason=_REASON)
            for kind in (WantedKind.STACKS, WantedKind.COLLECTIVES)
            if wanted
        )
        return Findings(
            verdicts=tuple(verdicts), state=DeclaredPauseState(told=told), wanted=wishes
        )

    def _report(self, view: JobView, name: str, told: Told, now: int) -> Verdict:
        overruns, named = told.overruns, told.named
        listed = overruns[: self.settings.looks.max_listed]
        ranks = tuple(overrun.rank for overrun in overruns)
        oldest = min(overruns, key=lambda overrun: overrun.until_ns)
        who = ranks_text(named or ranks)
        have = "has" if len(named or ranks) == 1 else "have"
        everybody = "all " if not named and is_everybody(view, ranks) else ""
        unseen = unseen_texts(view, listed)
        return Verdict(
            pattern=self.pattern,
            class_="overrun" if named else "overrun_nobody_named",
            severity=Severity.WARNING,
            confidence=Confidence.PARTIAL if unseen else Confidence.FULL,
            summary=(
                f"{everybody}{who} {have} been in {name!r} for {span_text(now - oldest.since_ns)},"
                f" announced: at most {span_text(oldest.until_ns - oldest.since_ns)}"
            ),
            suspects=tuple(suspect_of(view, rank) for rank in named),
            since_ns=oldest.until_ns,
            evidence=tuple(item for o in listed for item in _evidence(view, name, o, now)),
            not_measured=tuple(unseen),
            actions=_actions(name, named),
        )


def _overruns(view: JobView, now: int) -> dict[str, tuple[Overrun, ...]]:
    """Give by pause the ranks whose announced limit has passed, by pages read after it."""
    found: dict[str, list[Overrun]] = {}
    for rank, page in sorted(view.pages.items()):
        # A rank says where it is until it leaves or dies: a page read before tells nothing.
        if 0 < page.expect_until_ns < min(now, page.time_ns) and not view.ranks.is_ended[rank]:
            found.setdefault(page.phase, []).append(
                Overrun(rank=rank, since_ns=page.phase_since_ns, until_ns=page.expect_until_ns)
            )
    return {name: tuple(overruns) for name, overruns in found.items()}


def _evidence(view: JobView, name: str, overrun: Overrun, now: int) -> Iterator[Evidence]:
    yield Evidence(
        kind="rank_page",
        source="rank page",
        time_ns=int(view.ranks.page_ns[overrun.rank]),
        rank=overrun.rank,
        text=f"rank {overrun.rank} has been in {name!r} for {span_text(now - overrun.since_ns)};"
        f" its limit passed {span_text(now - overrun.until_ns)} ago",
        data={"since_ns": overrun.since_ns, "until_ns": overrun.until_ns},
    )
    yield from look_evidence(view, overrun, now)


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
