"""The job as one look finds it: everything a judgement is made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracecore_sidecar.detectors.hang.readings import readings_of
from tracecore_sidecar.detectors.hang.wait_graph import build
from tracecore_sidecar.detectors.hang.whereabouts import locate

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tracecore_sidecar.detectors.hang.readings import Readings
    from tracecore_sidecar.detectors.hang.wait_graph import WaitGraph
    from tracecore_sidecar.detectors.hang.whereabouts import Patience, Whereabouts
    from tracecore_sidecar.state.view import JobView

MAX_LOCATED = 64
"""Ranks whose whereabouts are worked out in one look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """See the module."""

    view: JobView
    graph: WaitGraph
    readings: Readings
    stopped_ns: int
    now: int
    patience: Patience
    is_live: bool = True
    """There is a job to look at further; False for files from elsewhere."""

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


def look(
    view: JobView,
    *,
    stopped_ns: int,
    fresh_after_ns: int,
    now: int,
    patience: Patience,
    is_live: bool = True,
) -> Scene:
    """Take the evidence as it stands."""
    readings = readings_of(view, stopped_ns=stopped_ns, fresh_after_ns=fresh_after_ns)
    return Scene(
        view=view,
        graph=build(view, readings),
        readings=readings,
        stopped_ns=stopped_ns,
        now=now,
        patience=patience,
        is_live=is_live,
    )
