"""The pure core of the sidecar: records in, incident events and wishes for evidence out.

A detector that fails is switched off, said once, and reported as blind; the others go on.

The daemon drives it with live records and the real clock, ``replay`` with recorded ones and the
recorded clock: the same records and ticks give the same verdicts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tracecore_sidecar.detectors.precedence import leading
from tracecore_sidecar.incidents import IncidentEvent, Incidents
from tracecore_train.guard import Guard

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tracecore_sidecar.detectors import Detector, Wanted
    from tracecore_sidecar.state.store import Store
    from tracecore_sidecar.state.view import JobView
    from tracecore_sidecar.verdicts import Verdict
    from tracecore_train.wire.records import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """What one evaluation of all detectors gave."""

    view: JobView | None
    verdicts: tuple[Verdict, ...] = ()
    """Every verdict that holds now and whose story no other one tells."""
    events: tuple[IncidentEvent, ...] = ()
    """What changed since the last tick."""
    wanted: tuple[Wanted, ...] = ()
    detector_ns: Mapping[str, int] = field(default_factory=dict)
    """How long each detector took, by pattern; all 0 without a clock."""


class Engine:
    """Store, detectors and incidents of one job on one node."""

    def __init__(
        self,
        store: Store,
        detectors: Sequence[Detector[Any]],
        *,
        wall_offset_ns: int,
        clock: Callable[[], int] = lambda: 0,
    ) -> None:
        """Start with an empty state; ``clock`` only measures, no judgement depends on it."""
        self.store = store
        self._detectors = [
            (detector, Guard(f"detector {detector.pattern}")) for detector in detectors
        ]
        self._wall_offset_ns = wall_offset_ns
        self._clock = clock
        self._attempt = -1
        self._states: list[Any] = []
        self._incidents: Incidents | None = None

    def apply(self, batch: Batch) -> None:
        """Take in records."""
        self.store.apply(batch)

    def tick(self, now_ns: int) -> Tick:
        """Judge the job as it is now."""
        view = self.store.view()
        if view is None:
            return Tick(view=None)
        events: list[IncidentEvent] = []
        if self._incidents is None or view.job.attempt != self._attempt:
            events += self.close(now_ns)
            self._attempt = view.job.attempt
            self._states = [detector.initial_state() for detector, _ in self._detectors]
            self._incidents = Incidents(view.job, wall_offset_ns=self._wall_offset_ns)
        verdicts: list[Verdict] = []
        wanted: list[Wanted] = []
        detector_ns: dict[str, int] = {}
        for index, (detector, guard) in enumerate(self._detectors):
            began_ns = self._clock()
            if guard.is_open:
                with guard:
                    findings = detector.evaluate(view, self._states[index], now_ns)
                    self._states[index] = findings.state
                    verdicts += findings.verdicts
                    wanted += findings.wanted
            detector_ns[detector.pattern] = self._clock() - began_ns
        told = leading(verdicts)
        events += self._incidents.update(told, now_ns)
        return Tick(
            view=view,
            verdicts=told,
            events=tuple(events),
            wanted=tuple(wanted),
            detector_ns=detector_ns,
        )

    def blind(self) -> tuple[str, ...]:
        """Give the detectors that failed and judge no more, each as ``detector x: reason``."""
        return tuple(
            f"{guard.name}: switched off after a failure of its own ({guard.reason})"
            for _, guard in self._detectors
            if not guard.is_open
        )

    def close(self, now_ns: int) -> list[IncidentEvent]:
        """Close what is open, at the end of an attempt or of the job."""
        return [] if self._incidents is None else self._incidents.close_all(now_ns)
