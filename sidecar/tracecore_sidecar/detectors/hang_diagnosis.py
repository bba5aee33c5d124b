"""From the wait-for graph to one cause: who is missing, or why nobody can be named."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from tracecore_sidecar.detectors.wait_graph import Readings
from tracecore_sidecar.detectors.whereabouts import (
    OUT_STATES,
    PLAIN_PLACES,
    Patience,
    Place,
    last_look,
    locate,
)
from tracecore_sidecar.state.view import UNKNOWN_EXIT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tracecore_sidecar.detectors.wait_graph import Head, WaitGraph
    from tracecore_sidecar.detectors.whereabouts import Whereabouts
    from tracecore_sidecar.state.view import JobView

MAX_LOCATED = 64
"""Ranks whose whereabouts are worked out in one look."""


class Cause(str, Enum):
    """What the evidence comes down to; the verdict's class."""

    NEVER_ENTERED = "never_entered"
    """A member never joined what the others wait in."""
    NONE_COMPLETED = "none_completed"
    """Every member entered, and it does not complete."""
    NOT_COLLECTIVE = "not_collective"
    """Nothing moves and nobody waits in a collective."""
    UNDETERMINED = "undetermined"
    """Somebody is waited for, and the evidence does not say who."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What one look at the evidence says."""

    cause: Cause
    head: Head | None = None
    """The collective the verdict speaks of."""
    suspects: tuple[Whereabouts, ...] = ()
    bystanders: tuple[Whereabouts, ...] = ()
    """Ranks that were looked at and are not accused."""
    cycle: tuple[Head, ...] = ()
    """Collectives that hold each other up in a circle."""

    @property
    def accuse_after_ns(self) -> int:
        """The moment from which nobody involved has an excuse."""
        return max((w.accuse_after_ns for w in (*self.suspects, *self.bystanders)), default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """The job as one look finds it."""

    view: JobView
    graph: WaitGraph
    readings: Readings
    stopped_ns: int
    now: int
    patience: Patience

    def locate(self, ranks: Iterable[int]) -> tuple[Whereabouts, ...]:
        """Say where ranks are."""
        return tuple(
            locate(
                self.view,
                rank,
                stopped_ns=self.stopped_ns,
                now=self.now,
                patience=self.patience,
            )
            for rank in list(ranks)[:MAX_LOCATED]
        )


def read(view: JobView, *, stopped_ns: int, fresh_after_ns: int) -> Readings:
    """Sort out which facts about each rank are good enough to reason from."""
    ranks = view.ranks
    is_out = ranks.is_ended.copy()
    for rank in view.processes:
        look = last_look(view, rank, stopped_ns)
        if look is not None and look.state in OUT_STATES:
            is_out[rank] = True
    has_page = ranks.page_ns > stopped_ns
    is_inside = (ranks.input_since_ns > 0) | (ranks.checkpoint_since_ns > 0)
    return Readings(
        is_fresh=(ranks.pull_ns > fresh_after_ns) & ~ranks.is_ended,
        is_out=is_out,
        is_elsewhere=has_page & is_inside,
    )


def diagnose(scene: Scene) -> Diagnosis | None:
    """Give the cause; None when there is nothing to say, as at the end of a job."""
    graph = scene.graph
    if not graph.heads:
        return _nobody_waits(scene)
    sinks = scene.locate(graph.sinks)
    # A rank may wait in a group nobody reads; only where it is for certain elsewhere is it named.
    may_wait_unseen = scene.view.is_in_blind_group()
    suspects = tuple(
        w
        for w in sinks
        if w.place is not Place.PEER_WAIT
        and (not may_wait_unseen[w.rank] or w.place in PLAIN_PLACES)
    )
    peers = tuple(w for w in sinks if w not in suspects)
    if suspects:
        head = graph.head_blocked_by(suspects[0].rank)
        has_entered = head is not None and all(w.rank in head.held_up for w in suspects)
        return Diagnosis(
            cause=Cause.NONE_COMPLETED if has_entered else Cause.NEVER_ENTERED,
            head=head,
            suspects=suspects,
            bystanders=peers,
        )
    if peers:
        head = graph.head_blocked_by(peers[0].rank)
        return Diagnosis(cause=Cause.UNDETERMINED, head=head, bystanders=peers)
    for head in graph.heads:
        if len(head.waiters) == len(scene.view.groups[head.pg_name].members):
            places = scene.locate(head.waiters)
            return Diagnosis(cause=Cause.NONE_COMPLETED, head=head, bystanders=places)
    for index, head in enumerate(graph.heads):
        cycle = graph.cycle_from(index)
        if cycle:
            return Diagnosis(cause=Cause.NEVER_ENTERED, head=head, cycle=cycle)
    head = next((h for h in graph.heads if h.unknown), graph.heads[0])
    return Diagnosis(cause=Cause.UNDETERMINED, head=head, bystanders=scene.locate(head.unknown))


def _nobody_waits(scene: Scene) -> Diagnosis | None:
    ranks = scene.view.ranks
    has_finished = ranks.is_ended & np.isin(ranks.exit_code, (0, UNKNOWN_EXIT))
    if has_finished.any():
        # Ranks end one by one; the last one may tidy up for as long as it likes.
        return None
    live = ranks.is_seen & ~ranks.is_ended
    is_blind = live & scene.view.is_in_blind_group()
    is_unread = live & ~scene.readings.is_fresh & ~scene.readings.is_out
    return Diagnosis(
        cause=Cause.UNDETERMINED if (is_unread | is_blind).any() else Cause.NOT_COLLECTIVE,
        bystanders=scene.locate(np.flatnonzero(live).tolist()),
    )
