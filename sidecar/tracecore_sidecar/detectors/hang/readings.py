"""Which facts about the ranks are good enough to reason from.

A hang is judged by what was read after progress stopped: what a flight recorder said before, or
what the page of a rank showed then, may have changed since.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracecore_sidecar.detectors.hang.last_seen import OUT_STATES, last_look

if TYPE_CHECKING:
    from tracecore_sidecar.state.view import Bools, JobView


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """One value per rank."""

    is_fresh: Bools
    """The flight recorder was read while nothing moved."""
    is_out: Bools
    """It cannot enter anything: it ended, is stopped, a zombie or gone."""
    is_elsewhere: Bools
    """Its training thread is known to be outside collectives (input, checkpoint)."""
    has_told: Bools
    """What it tells itself, its sends and receives among it, is as fresh; without a page it counts
    as such. A rank that holds the GIL tells nothing, though its recorder can be read."""

    @property
    def may_wait(self) -> Bools:
        """What it has not finished, it waits in."""
        return self.is_fresh & ~self.is_out & ~self.is_elsewhere


def readings_of(view: JobView, *, stopped_ns: int, fresh_after_ns: int) -> Readings:
    """Sort out which facts about each rank are good enough to reason from."""
    ranks = view.ranks
    is_out = ranks.is_ended.copy()
    for rank in view.processes:
        seen = last_look(view, rank, stopped_ns)
        if seen is not None and seen.state in OUT_STATES:
            is_out[rank] = True
    has_page = ranks.page_ns > stopped_ns
    is_inside = (ranks.input_since_ns > 0) | (ranks.checkpoint_since_ns > 0)
    return Readings(
        is_fresh=(ranks.pull_ns > fresh_after_ns) & ~ranks.is_ended,
        is_out=is_out,
        is_elsewhere=has_page & is_inside,
        has_told=~has_page | (ranks.heartbeat_ns > fresh_after_ns),
    )
