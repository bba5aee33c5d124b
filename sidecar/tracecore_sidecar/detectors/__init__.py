"""Rules that judge. A detector is a function of a :class:`JobView`, its own state and ``now``.

No clock, no I/O, no thread and no logger inside. State is bounded plain data that the daemon
keeps between ticks. A detector is level-triggered: on each tick it returns every verdict that
holds now; ``incidents.py`` turns that into opened, updated and closed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from tracecore_sidecar.state.view import JobView
    from tracecore_sidecar.verdicts import Verdict

StateT = TypeVar("StateT")


class WantedKind(str, Enum):
    """Evidence a detector can ask the daemon for; it comes back as records."""

    COLLECTIVES = "collectives"
    """Pull the flight recorder: ``pull`` and ``collective`` records."""
    STACKS = "stacks"
    """``stack`` records of the ranks' threads."""
    PROCESS = "process"
    """A fresh ``process`` record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A wish for evidence about some ranks. Repeated wishes are merged by the daemon."""

    kind: WantedKind
    ranks: tuple[int, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings(Generic[StateT]):
    """What one evaluation gives."""

    verdicts: tuple[Verdict, ...]
    state: StateT
    wanted: tuple[Wanted, ...] = ()


class Detector(Protocol[StateT]):
    """A rule. ``pattern`` is its slug in the detector catalogue."""

    @property
    def pattern(self) -> str:
        """Slug of the catalogue."""
        ...

    def initial_state(self) -> StateT:
        """Give the state of a job nothing is known about."""
        ...

    def evaluate(self, view: JobView, state: StateT, now: int) -> Findings[StateT]:
        """Judge the job as it is at ``now`` (host monotonic nanoseconds)."""
        ...
