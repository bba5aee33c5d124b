"""What was last seen of a rank from outside: its stack, its process, its heartbeat, its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracecore_sidecar.state.view import MIN_APART_NS, UNKNOWN_EXIT
from tracecore_train.wire.records import NOT_MEASURED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracecore_sidecar.state.view import JobView
    from tracecore_train.wire.records import ProcessRecord, StackRecord

SECOND_NS = 1_000_000_000
OUT_STATES = frozenset("TZ-")
"""Process states in which nothing can be entered. ``t`` is not one: profilers stop for a moment."""


def main_stack(view: JobView, rank: int, after_ns: int) -> StackRecord | None:
    """Give the stack of the training thread if it was taken after ``after_ns``."""
    stacks = [s for s in view.stacks.get(rank, ()) if s.time_ns > after_ns]
    return next((s for s in stacks if s.thread == "MainThread"), stacks[0] if stacks else None)


def last_look(view: JobView, rank: int, after_ns: int) -> ProcessRecord | None:
    """Give the last look at the process if it was taken after ``after_ns``."""
    looks = view.processes.get(rank, ())
    return looks[-1] if looks and looks[-1].time_ns > after_ns else None


def cpu_share(view: JobView, rank: int, after_ns: int) -> float | None:
    """Give the share of a core a process used between two looks after ``after_ns``."""
    pair = _pair(view.processes.get(rank, ()), after_ns)
    return None if pair is None else _used(*pair)


def busy_share(view: JobView, rank: int, after_ns: int) -> float | None:
    """Give the share of that time a process ran code, or would have on an idle machine.

    On a crowded one the main thread waits for a processor instead, in the kernel's run queue,
    which close looks show. Two that are too near each other say nothing yet.
    """
    looks = view.close_looks.get(rank, ())
    if len(looks) < 2 or looks[1].time_ns <= after_ns:
        return cpu_share(view, rank, after_ns)
    pair = _pair(looks, after_ns)
    if pair is None:
        return None
    first, second = pair
    is_told = min(first.main_wait_ns, second.main_wait_ns) != NOT_MEASURED
    waited_ns = second.main_wait_ns - first.main_wait_ns if is_told else 0
    return _used(first, second) + waited_ns / (second.time_ns - first.time_ns)


def _pair(
    looks: Sequence[ProcessRecord], after_ns: int
) -> tuple[ProcessRecord, ProcessRecord] | None:
    """Give the last two looks at one process, if both are recent and far enough apart."""
    if len(looks) < 2 or looks[0].time_ns < after_ns or looks[0].pid != looks[1].pid:
        return None
    is_apart = looks[1].time_ns - looks[0].time_ns >= MIN_APART_NS
    return (looks[0], looks[1]) if is_apart else None


def _used(first: ProcessRecord, second: ProcessRecord) -> float:
    return (second.cpu_ns - first.cpu_ns) / (second.time_ns - first.time_ns)


def heartbeat_age(view: JobView, rank: int) -> int:
    """Give how old the heartbeat was when the page was read."""
    return int(view.ranks.page_ns[rank] - view.ranks.heartbeat_ns[rank])


def is_heartbeat_stale(view: JobView, rank: int, limit_ns: int) -> bool:
    """Say whether a rank missed beats that its peers, with the same interval, gave."""
    ranks = view.ranks
    others = (ranks.page_ns > 0) & ~ranks.is_ended
    others[rank] = False
    ages = (ranks.page_ns - ranks.heartbeat_ns)[others]
    usual = int(np.median(ages)) if len(ages) else 0
    return heartbeat_age(view, rank) > max(limit_ns, 2 * usual)


def exit_text(view: JobView, rank: int) -> str:
    """Say how a rank ended."""
    code = int(view.ranks.exit_code[rank])
    if code == UNKNOWN_EXIT:
        return "its exit was not seen"
    return f"signal {-code}" if code < 0 else f"exit code {code}"
