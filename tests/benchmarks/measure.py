"""Rows of the overhead table, the statistics behind them, and clocks that see single threads.

A spread is a 95 % bootstrap interval of the median, or the lowest and highest value where it says
so. Processor time comes from the kernel's per-process and per-thread clocks (nanoseconds), not
from the 10 ms ticks of ``/proc``.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

NUM_RESAMPLES = 2_000
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table; values in ``unit``."""

    group: str
    what: str
    unit: str
    measured: float
    low: float
    high: float
    num_samples: int
    budget: float | None = None
    """Highest value that is within the budget; None: stated, not judged."""
    note: str = ""

    @property
    def is_within(self) -> bool | None:
        """Whether the measured value is within the budget; None where there is none."""
        return None if self.budget is None else self.measured <= self.budget


def row(
    group: str,
    what: str,
    unit: str,
    values: Sequence[float],
    *,
    budget: float | None = None,
    note: str = "",
) -> Row:
    """Make a row of the median of ``values`` and its interval."""
    low, high = interval(values)
    return Row(
        group=group,
        what=what,
        unit=unit,
        measured=statistics.median(values),
        low=low,
        high=high,
        num_samples=len(values),
        budget=budget,
        note=note,
    )


def extremes(
    group: str,
    what: str,
    unit: str,
    values: Sequence[float],
    *,
    budget: float | None = None,
    note: str = "",
) -> Row:
    """Make a row of the mean of ``values`` between the lowest and the highest."""
    return Row(
        group=group,
        what=what,
        unit=unit,
        measured=statistics.fmean(values),
        low=min(values),
        high=max(values),
        num_samples=len(values),
        budget=budget,
        note="; ".join(filter(None, ("mean, min to max", note))),
    )


def missing(group: str, what: str, reason: str) -> Row:
    """Make a row that says why nothing was measured."""
    return Row(
        group=group,
        what=what,
        unit="",
        measured=0,
        low=0,
        high=0,
        num_samples=0,
        note=f"not measured: {reason}",
    )


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Give the 95 % bootstrap interval of the median."""
    if len(values) < 2:
        return values[0], values[0]
    chance = random.Random(seed)
    medians = sorted(
        statistics.median(chance.choices(values, k=len(values))) for _ in range(NUM_RESAMPLES)
    )
    return medians[int(0.025 * NUM_RESAMPLES)], medians[int(0.975 * NUM_RESAMPLES) - 1]


def process_cpu_ns(pid: int) -> int:
    """Give the processor time of all threads of a process, ended ones included."""
    return time.clock_gettime_ns((~pid << 3) | 2)


def thread_cpu_ns(tid: int) -> int:
    """Give the processor time of one thread of this process."""
    return time.clock_gettime_ns((~tid << 3) | 6)


def memory_bytes(pid: int, field: str = "VmRSS") -> int:
    """Give a memory figure of a process: ``VmRSS`` now, ``VmHWM`` at its highest."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/{pid}/status has no {field}")


def load() -> float:
    """Give the machine's load average of the last minute."""
    return os.getloadavg()[0]
