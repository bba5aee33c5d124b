"""What the sidecar measures about its own work: counts, sums and a few buckets, nothing else."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

TICK_BOUNDS_NS = tuple(
    int(seconds * 1e9) for seconds in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
)
"""A tick of 8 ranks takes some milliseconds; one above the tick interval (1 s) is trouble."""


class Durations:
    """Durations counted, summed and sorted into buckets; no bounds, no buckets."""

    __slots__ = ("_bounds_ns", "_counts", "count", "total_ns")

    def __init__(self, bounds_ns: tuple[int, ...] = ()) -> None:
        """Start empty; ``bounds_ns`` are upper bounds, ascending."""
        self._bounds_ns = bounds_ns
        self._counts = [0] * (len(bounds_ns) + 1)
        self.count = 0
        self.total_ns = 0

    def add(self, duration_ns: int) -> None:
        """Count one duration."""
        self.count += 1
        self.total_ns += duration_ns
        self._counts[bisect.bisect_left(self._bounds_ns, duration_ns)] += 1

    def buckets(self) -> list[tuple[str, float]]:
        """Give ``(upper bound in seconds, how many are at or below it)``, ending in ``+Inf``."""
        names = [*(repr(bound / 1e9) for bound in self._bounds_ns), "+Inf"]
        num_below, found = 0, []
        for name, count in zip(names, self._counts, strict=True):
            num_below += count
            found.append((name, float(num_below)))
        return found


@dataclass(slots=True)
class WorkTimes:
    """How long the sidecar's own work took so far."""

    tick: Durations = field(default_factory=lambda: Durations(TICK_BOUNDS_NS))
    detectors: dict[str, Durations] = field(default_factory=dict)
    """By pattern."""
    pulls: dict[bool, Durations] = field(
        default_factory=lambda: {True: Durations(), False: Durations()}
    )
    """Reads of a rank's flight recorder, by whether they worked."""

    def ticked(self, duration_ns: int, detector_ns: Mapping[str, int]) -> None:
        """Count one tick and its evaluations."""
        self.tick.add(duration_ns)
        for pattern, took_ns in detector_ns.items():
            self.detectors.setdefault(pattern, Durations()).add(took_ns)

    def pulled(self, is_ok: bool, duration_ns: int) -> None:
        """Count one read of a flight recorder."""
        self.pulls[is_ok].add(duration_ns)
