"""How long a pause may last, told from how long the same kind took before.

Three bounds, the largest holds. Durations of one kind are close to lognormal where storage or
data decide, so their spread is taken on the logarithms, robustly: a kind that varies much gets a
wider bound. The longest ever counts with a factor, which also lets a checkpoint grow with the run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracecore_sidecar.state.view import PastPauses

SECOND_NS = 1_000_000_000
_SIGMA_PER_MAD = 1.4826


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSettings:
    """From when a pause is longer than its own kind's history.

    Of 1,000 simulated jobs with 60 lognormal pauses each, 30 s in the median, none had a finding
    at a spread (sigma) of 0.3, 13 at 0.5, 67 at 0.8. With a factor of 2 and no bound by spread it
    were 12, 124 and 419.
    """

    min_past: int = 4
    """Pauses of the kind before a history speaks: the next of five exceeds the four before it in
    one case of five even if nothing is wrong; the factors do the rest."""
    longest_factor: int = 3
    """Times the longest before it."""
    min_excess_ns: int = 10 * SECOND_NS
    """Beyond the longest before it: a shorter loss is not worth a word."""
    spread_factor: float = 4.0
    """Times the robust spread of the logarithms, above their median."""


def limit_ns(past: PastPauses, settings: LimitSettings) -> int | None:
    """Give the duration from which a pause is too long; None: too little is known."""
    if past.num < settings.min_past or len(past.recent_ns) < settings.min_past:
        return None
    return max(
        settings.longest_factor * past.longest_ns,
        past.longest_ns + settings.min_excess_ns,
        _spread_bound(past.recent_ns, settings.spread_factor),
    )


def usual_ns(past: PastPauses) -> int:
    """Give how long such a pause usually takes."""
    return int(median(past.recent_ns))


def _spread_bound(recent_ns: Sequence[int], factor: float) -> int:
    logs = [math.log(max(duration, 1)) for duration in recent_ns]
    middle = median(logs)
    mad = median([abs(log - middle) for log in logs])
    # Beyond e^45 ns, a thousand years, the sum is no number of nanoseconds to compare with.
    return int(math.exp(min(middle + factor * _SIGMA_PER_MAD * mad, 45.0)))
