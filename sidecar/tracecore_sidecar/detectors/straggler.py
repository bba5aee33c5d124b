"""Straggler: one rank keeps arriving last, and the others pay for it in most steps.

Claimed only where it is plain: late in at least three quarters of the sampled steps and more
often than chance, at a cost of a tenth of the step or more, in several evaluations over some
time. Slowness that changes sides, single pauses and two ranks equally slow accuse nobody. Once
named, a rank is cleared by steps that show it, not by steps that are missing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from tracecore_sidecar.detectors import Findings, straggler_report
from tracecore_sidecar.detectors.lateness import Cohort, Lateness, cohorts, measure

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tracecore_sidecar.detectors.lateness import Floats
    from tracecore_sidecar.state.view import Ints, JobView
    from tracecore_sidecar.verdicts import Verdict

MILLISECOND_NS = 1_000_000
SECOND_NS = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class StragglerSettings:
    """When a late rank is a straggler."""

    warmup_steps: int = 5
    """First steps left out: compilation, allocation and caches differ between ranks."""
    windows: tuple[int, ...] = (30, 60, 120)
    """Numbers of last sampled steps that are judged, each by itself: the shortest notices a new
    straggler soon, the longest a small steady one. Fewer steps than the shortest say nothing."""
    min_lateness_ns: int = 2 * MILLISECOND_NS
    """Lower quartile of the lateness: below, scheduling noise of a busy host."""
    noise_factor: float = 0.5
    """The same in units of the rank's own spread (1.4826 MAD)."""
    min_late_share: float = 0.75
    """Share of sampled steps in which the rank is late."""
    num_sigmas: float = 5.0
    """How far the number of late steps exceeds that of a fair coin: 3e-7 for each look."""
    min_cost_share: float = 0.10
    """Removable share of the step; less is within what equal machines differ."""
    clip_factor: float = 3.0
    """A single step counts at most this many medians in the mean cost: one pause is no habit."""
    hold_ns: int = 20 * SECOND_NS
    """All of this must hold, in each look with new data, for this long: slowness that moves on to
    another rank within seconds (a noisy neighbour, alternating work) has no straggler."""
    clear_factor: float = 0.5
    """A named rank is cleared below this part of the thresholds."""
    clear_steps: int = 30
    """Steps, the last ones, that must show it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What the window says about one rank; times in nanoseconds a step."""

    rank: int
    pg_name: str
    cohort: tuple[int, ...]
    is_whole: bool
    is_late: bool
    is_clear: bool
    lateness_ns: int
    removable_ns: int
    step_ns: int
    share_last: float
    num_steps: int
    num_collectives: int
    coverage: float
    first_step: int
    last_step: int
    last_ns: int
    since_step: int
    since_ns: int

    @property
    def cost_share(self) -> float:
        """Share of the step that would be saved."""
        return self.removable_ns / max(1, self.step_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A rank that is late, and since when it was found so."""

    first_ns: int
    """Evaluation in which it was found late first."""
    since_step: int
    since_ns: int
    num_lost: int
    """Records its cohort had lost by then."""
    finding: Finding
    is_named: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StragglerState:
    """What is remembered between ticks."""

    read_ns: Mapping[str, int] = field(default_factory=dict)
    """By cohort, how far its collectives had been read."""
    candidates: Mapping[tuple[str, int], Candidate] = field(default_factory=dict)
    """By cohort and rank."""


class StragglerDetector:
    """See the module."""

    pattern = "straggler"

    def __init__(self, settings: StragglerSettings | None = None) -> None:
        """Take settings; the defaults are meant for real jobs."""
        self.settings = settings or StragglerSettings()

    def initial_state(self) -> StragglerState:
        """Give the state of a job nothing is known about."""
        return StragglerState()

    def evaluate(self, view: JobView, state: StragglerState, now: int) -> Findings[StragglerState]:
        """Judge the job as it is at ``now``."""
        read_ns = dict(state.read_ns)
        candidates = {
            key: candidate
            for key, candidate in state.candidates.items()
            if not view.ranks.is_ended[key[1]] and candidate.finding.pg_name in view.groups
        }
        for cohort in cohorts(view):
            pulled_ns = int(view.ranks.pull_ns[list(cohort.ranks)].min())
            if pulled_ns <= read_ns.get(cohort.key, 0):
                continue
            read_ns[cohort.key] = pulled_ns
            self._look(view, cohort, candidates, now)
        return Findings(
            verdicts=self._verdicts(view, candidates),
            state=StragglerState(read_ns=read_ns, candidates=candidates),
        )

    def _look(
        self,
        view: JobView,
        cohort: Cohort,
        candidates: dict[tuple[str, int], Candidate],
        now: int,
    ) -> None:
        settings = self.settings
        lateness = measure(
            view, cohort, first_step=settings.warmup_steps, max_steps=max(settings.windows)
        )
        if lateness is None or len(lateness.numbers) < min(settings.windows):
            return
        for column, rank in enumerate(cohort.ranks):
            key = (cohort.key, rank)
            known = candidates.get(key)
            finding = _find(cohort, lateness, column, settings)
            if known is None and finding.is_late:
                candidates[key] = Candidate(
                    first_ns=now,
                    since_step=finding.since_step,
                    since_ns=finding.since_ns,
                    num_lost=straggler_report.lost_by(view, cohort.ranks),
                    finding=finding,
                )
            elif known is not None and (finding.is_late or known.is_named):
                if known.is_named and finding.is_clear:
                    del candidates[key]
                    continue
                is_named = known.is_named or now - known.first_ns >= settings.hold_ns
                candidates[key] = replace(known, finding=finding, is_named=is_named)
            elif known is not None:
                del candidates[key]

    def _verdicts(
        self, view: JobView, candidates: Mapping[tuple[str, int], Candidate]
    ) -> tuple[Verdict, ...]:
        worst: dict[int, Candidate] = {}
        for (_, rank), candidate in sorted(candidates.items()):
            if candidate.is_named and (
                rank not in worst
                or candidate.finding.removable_ns > worst[rank].finding.removable_ns
            ):
                worst[rank] = candidate
        by_host: dict[int, list[Candidate]] = {}
        for rank, candidate in worst.items():
            by_host.setdefault(int(view.ranks.host_index[rank]), []).append(candidate)
        verdicts: list[Verdict] = []
        for together in by_host.values():
            if len({c.finding.cohort for c in together}) > 1:
                verdicts.append(straggler_report.report_together(view, together))
            else:
                verdicts += [straggler_report.report(view, c) for c in together]
        return tuple(verdicts)


def _find(cohort: Cohort, lateness: Lateness, column: int, settings: StragglerSettings) -> Finding:
    late = lateness.lateness_ns[:, column]
    removable = lateness.removable_ns[:, column]
    duration = lateness.duration_ns
    count = len(late)
    recent = slice(-settings.clear_steps, None)
    is_clear = _median(late[recent]) <= settings.clear_factor * settings.min_lateness_ns or _cost(
        removable[recent], settings
    ) <= settings.clear_factor * settings.min_cost_share * _median(duration[recent])
    onset = _onset(late, min(settings.windows))
    return Finding(
        rank=cohort.ranks[column],
        pg_name=cohort.group.pg_name,
        cohort=cohort.ranks,
        is_whole=cohort.is_whole,
        is_late=any(
            _is_late(late[-n:], removable[-n:], duration[-n:], settings)
            for n in settings.windows
            if n <= count
        ),
        is_clear=is_clear,
        lateness_ns=int(_median(late[onset:])),
        removable_ns=int(_cost(removable[onset:], settings)),
        step_ns=int(_median(duration[onset:])),
        share_last=float((removable[onset:] > 0).mean()),
        num_steps=count,
        num_collectives=lateness.num_collectives,
        coverage=lateness.coverage,
        first_step=int(lateness.numbers[0]),
        last_step=int(lateness.numbers[-1]),
        last_ns=int(lateness.end_ns[-1]),
        since_step=int(lateness.numbers[onset]),
        since_ns=int(lateness.end_ns[onset] - lateness.duration_ns[onset]),
    )


def _is_late(late: Floats, removable: Floats, duration: Ints, settings: StragglerSettings) -> bool:
    """Say whether a rank is late in these steps, plainly and at a price."""
    count = len(late)
    spread = 1.4826 * _median(np.abs(late - _median(late)))
    floor = max(settings.min_lateness_ns, settings.noise_factor * spread)
    num_needed = max(
        settings.min_late_share * count, count / 2 + settings.num_sigmas * count**0.5 / 2
    )
    return (
        _lower_quartile(late) > floor
        and int((late > 0).sum()) >= num_needed
        and _cost(removable, settings) >= settings.min_cost_share * _median(duration)
    )


def _onset(late: Floats, num_recent: int) -> int:
    """Give the row where the cumulated lateness, less half its recent level, is lowest."""
    level = _median(late[-num_recent:])
    lowest = int(np.argmin(np.concatenate([[0.0], np.cumsum(late - level / 2)])))
    return min(lowest, len(late) - 1)


def _cost(removable: Floats, settings: StragglerSettings) -> float:
    """Give the cost of a usual step: the lower of the median and the clipped mean."""
    median = _median(removable)
    return min(median, float(np.minimum(removable, settings.clip_factor * median).mean()))


def _median(values: Floats | Ints) -> float:
    """Give the median: of a few dozen values numpy's own takes five times as long."""
    ordered = np.sort(values)
    half = len(ordered) // 2
    return float(ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2)


def _lower_quartile(values: Floats) -> float:
    """Give the value below which a quarter lies, between two values in proportion."""
    place, rest = divmod(len(values) - 1, 4)
    first, second = np.sort(values)[[place, min(place + 1, len(values) - 1)]].tolist()
    return float(first + (second - first) * rest / 4)
