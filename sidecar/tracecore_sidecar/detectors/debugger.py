"""Whether somebody holds a rank in a debugger: Python's, by its stack; any other, by its state.

A debugger or tracer from outside holds a process in state ``t``. A profiler that stops it for a
moment, ours included, shows the same; so both of the last two looks at it have to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracecore_sidecar.detectors.frames import is_in_debugger

if TYPE_CHECKING:
    from tracecore_sidecar.state.view import JobView
    from tracecore_train.wire.records import StackRecord

MIN_HELD_NS = 500_000_000
"""Between the two looks: a profiler holds a process for 1 to 50 ms, with native frames 1 s once."""


def is_held(view: JobView, rank: int, stack: StackRecord | None, after_ns: int) -> bool:
    """Say whether a debugger held it, as seen after that moment."""
    if stack is not None and is_in_debugger(stack):
        return True
    looks = [look for look in view.processes.get(rank, ()) if look.time_ns > after_ns]
    is_stopped = len(looks) == 2 and all(look.state == "t" for look in looks)
    return is_stopped and looks[1].time_ns - looks[0].time_ns >= MIN_HELD_NS
