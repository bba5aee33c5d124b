"""The clock of every record: the host's monotonic clock, in integer nanoseconds.

The wall clock is read only to anchor the monotonic one; nothing is ever ordered by it.
"""

from __future__ import annotations

import time

now_ns = time.monotonic_ns
"""Host monotonic clock. Shared by all processes of a host, so ranks on one host compare."""


def wall_offset_ns(num_samples: int = 5) -> int:
    """Give wall clock minus monotonic clock, from the tightest of a few readings."""
    best_width, best_offset = 0, 0
    for sample in range(num_samples):
        before = time.monotonic_ns()
        wall = time.time_ns()
        width = time.monotonic_ns() - before
        if sample == 0 or width < best_width:
            best_width, best_offset = width, wall - before - width // 2
    return best_offset
