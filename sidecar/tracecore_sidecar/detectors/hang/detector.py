"""When silence is a hang, and what is asked for meanwhile.

Two looks. Quiet for longer than the job's own pace allows raises a suspicion and asks for
evidence; a later look with that evidence, and still no progress, gives the verdict, which then
stays until something moves. Counters only say *that* nothing moves; who is behind is read from
ring entries by (group, sequence number), see ``wait_graph``. An excuse (a checkpoint, a named
phase, a busy rank) delays the verdict, see ``whereabouts``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from tracecore_sidecar.detectors import Findings, Wanted, WantedKind
from tracecore_sidecar.detectors.hang.diagnose import diagnose
from tracecore_sidecar.detectors.hang.diagnosis import Cause
from tracecore_sidecar.detectors.hang.last_seen import SECOND_NS, main_stack
from tracecore_sidecar.detectors.hang.report import report
from tracecore_sidecar.detectors.hang.scene import look
from tracecore_sidecar.detectors.hang.whereabouts import Patience, Place

if TYPE_CHECKING:
    from tracecore_sidecar.detectors.hang.diagnosis import Diagnosis
    from tracecore_sidecar.detectors.hang.scene import Scene
    from tracecore_sidecar.state.view import Bools, JobView
    from tracecore_sidecar.verdicts import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class HangSettings:
    """When silence is a hang."""

    min_quiet_ns: int = 5 * SECOND_NS
    """No shorter pause is looked at: garbage collection, a slow disk, a crowded node."""
    quiet_factor: int = 10
    """Times the job's median step: evaluation and logging steps are a few times the median."""
    usual_pause_factor: int = 2
    """Times the third-longest step seen: a pause that ended by itself three times is usual."""
    num_start_steps: int = 5
    """Steps that count as start-up: compilation, first allocations, first batches."""
    start_quiet_ns: int = 120 * SECOND_NS
    """Quiet allowed during start-up; compiling a large model takes a minute or two."""
    settle_ns: int = 2 * SECOND_NS
    """A pull counts as fresh when made this long after progress stopped: ranks hand over their
    counters once a second, so whatever still moved at the time of the pull has shown by then."""
    evidence_ns: int = 3 * SECOND_NS
    """How long evidence is waited for; a stopped rank's recorder never answers."""
    unsure_ns: int = 10 * SECOND_NS
    """The same where the evidence so far cannot tell who it is: a stack taken in motion or a late
    answer is there at the next try, and a verdict without a name helps nobody sooner."""
    nobody_waits_ns: int = 60 * SECOND_NS
    """Quiet before a verdict when nobody waits in a collective: such pauses are often meant."""
    nobody_waits_busy_ns: int = 300 * SECOND_NS
    """The same while some rank runs code: an evaluation or an export on every rank."""
    max_asked: int = 8
    """Ranks whose stacks are asked for at once: py-spy takes 15 to 40 ms for each."""
    stack_refresh_ns: int = 10 * SECOND_NS
    """Age from which a stack is asked for again while a verdict is pending."""
    patience: Patience = field(default_factory=Patience)
    """Excuses of the rank that keeps the others waiting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HangState:
    """What is remembered between ticks."""

    started_ns: int = 0
    """First evaluation with a living rank."""
    stopped_ns: int = 0
    """When progress stopped; 0: no suspicion."""
    suspected_ns: int = 0
    """When the suspicion was raised; 0: none."""
    verdicts: tuple[Verdict, ...] = ()
    """The verdicts of this hang, once there are any: one for each independent cause."""


class HangDetector:
    """See the module."""

    pattern = "hang"

    def __init__(self, settings: HangSettings | None = None) -> None:
        """Take settings; the defaults are meant for real jobs."""
        self.settings = settings or HangSettings()

    def initial_state(self) -> HangState:
        """Give the state of a job nothing is known about."""
        return HangState()

    def evaluate(self, view: JobView, state: HangState, now: int) -> Findings[HangState]:
        """Judge the job as it is at ``now``."""
        settings = self.settings
        live = view.ranks.is_seen & ~view.ranks.is_ended
        if not live.any():
            return Findings(verdicts=(), state=HangState(started_ns=state.started_ns))
        started_ns = state.started_ns or now
        progress_ns = max(started_ns, int(view.ranks.progress_ns[live].max()))
        if not state.suspected_ns or progress_ns > state.stopped_ns:
            quiet_ns, limit_ns = now - progress_ns, self._quiet_limit(view)
            if quiet_ns <= limit_ns:
                wanted = _ask(WantedKind.PROCESS, live) if quiet_ns > limit_ns // 2 else ()
                return Findings(verdicts=(), state=HangState(started_ns=started_ns), wanted=wanted)
            state = HangState(started_ns=started_ns, stopped_ns=progress_ns, suspected_ns=now)

        scene = look(
            view,
            stopped_ns=state.stopped_ns,
            fresh_after_ns=state.stopped_ns + settings.settle_ns,
            now=now,
            patience=settings.patience,
        )
        found = diagnose(scene)
        # Once a verdict stands, only ranks that still wait can change it: waits that time out
        # look like nobody waiting, and that is no news about who was missing.
        may_report = not state.verdicts or scene.graph.num_waiting > 0
        if found and may_report and self._is_due(scene, found, state):
            told = tuple(report(scene, diagnosis) for diagnosis in found)
            state = replace(state, verdicts=told)
        return Findings(
            verdicts=state.verdicts,
            state=state,
            wanted=self._wishes(scene, live, found, state),
        )

    def _quiet_limit(self, view: JobView) -> int:
        """Give the longest silence that fits this job's pace."""
        settings = self.settings
        limit = settings.min_quiet_ns
        longest = view.steps.duration_ns.max(axis=1, initial=0)
        durations = np.sort(longest[(view.steps.numbers >= 0) & (longest > 0)])
        if len(durations):
            limit = max(limit, settings.quiet_factor * int(np.median(durations)))
        if len(durations) >= 3:
            limit = max(limit, settings.usual_pause_factor * int(durations[-3]))
        if int(view.ranks.num_steps.max()) < settings.num_start_steps:
            limit = max(limit, settings.start_quiet_ns)
        return limit

    def _is_due(self, scene: Scene, found: tuple[Diagnosis, ...], state: HangState) -> bool:
        """Say whether this is a second look, with the evidence there is to have, and no excuse."""
        settings, now = self.settings, scene.now
        if now <= state.suspected_ns or now < max(d.accuse_after_ns for d in found):
            return False
        is_told_by_stacks = any(d.suspects and d.head is None for d in found)
        if not scene.graph.num_waiting and not is_told_by_stacks:
            is_busy = any(w.place is Place.BUSY for d in found for w in d.bystanders)
            limit = settings.nobody_waits_busy_ns if is_busy else settings.nobody_waits_ns
            return now - state.stopped_ns > limit
        ranks = scene.view.ranks
        is_missing = ranks.is_seen & ~scene.readings.is_fresh & ~scene.readings.is_out
        is_read = not is_missing.any()
        if all(d.cause is Cause.UNDETERMINED for d in found):
            is_complete = is_read and all(w.is_certain for d in found for w in d.bystanders)
            patience_ns = settings.evidence_ns if is_complete else settings.unsure_ns
            return now - state.suspected_ns >= patience_ns
        is_complete = is_read and all(w.is_examined for d in found for w in d.suspects)
        return is_complete or now - state.suspected_ns >= settings.evidence_ns

    def _wishes(
        self, scene: Scene, live: Bools, found: tuple[Diagnosis, ...], state: HangState
    ) -> tuple[Wanted, ...]:
        """Ask for what is missing or has grown old."""
        settings, view, now = self.settings, scene.view, scene.now
        readings = scene.readings
        is_first_look = now == state.suspected_ns
        unread = live & ~readings.is_out & (is_first_look | ~readings.is_fresh)
        wanted = list(_ask(WantedKind.COLLECTIVES, unread))
        looked_at = [w for d in found for w in d.suspects or d.bystanders]
        candidates = [w.rank for w in looked_at if not readings.is_out[w.rank]]
        oldest_ns = scene.stopped_ns
        if not state.verdicts:
            oldest_ns = max(oldest_ns, now - settings.stack_refresh_ns)
            if candidates:
                wanted.append(_wish(WantedKind.PROCESS, candidates[: settings.max_asked]))
        unseen = [rank for rank in candidates if main_stack(view, rank, oldest_ns) is None]
        unseen = unseen[: settings.max_asked]
        if unseen:
            wanted.append(_wish(WantedKind.STACKS, unseen))
        return tuple(wanted)


def _ask(kind: WantedKind, ranks: Bools) -> tuple[Wanted, ...]:
    chosen = np.flatnonzero(ranks).tolist()
    return (_wish(kind, chosen),) if chosen else ()


def _wish(kind: WantedKind, ranks: list[int]) -> Wanted:
    return Wanted(kind=kind, ranks=tuple(ranks), reason="nothing has moved for a while")
