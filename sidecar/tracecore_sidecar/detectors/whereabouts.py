"""Where a rank is while others wait for it, and how long that place is nobody's fault.

Read from outside: the rank page, ``/proc``, the stack. A rank that saves a checkpoint, runs a
phase its user named, or is busy running code is given time before it is accused; one that is
stopped, dead, waiting for data or holding the GIL is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from tracecore_sidecar.detectors.frames import (
    first_frame,
    is_compiling,
    is_in_debugger,
    is_in_rendezvous,
    is_saving,
    top_frame,
    user_frames,
    waits_for_peer,
)
from tracecore_sidecar.detectors.naming import span_text
from tracecore_sidecar.state.view import UNKNOWN_EXIT
from tracecore_sidecar.verdicts import Evidence

if TYPE_CHECKING:
    from tracecore_sidecar.state.view import JobView
    from tracecore_train.wire.records import ProcessRecord, StackRecord

SECOND_NS = 1_000_000_000
OUT_STATES = frozenset("TZ-")
"""Process states in which nothing can be entered. ``t`` is not one: profilers stop for a moment."""


class Place(str, Enum):
    """What a rank is doing."""

    ENDED = "ended"
    STOPPED = "stopped"
    INPUT = "input"
    CHECKPOINT = "checkpoint"
    EXCEPTION = "exception"
    GIL = "gil"
    GC = "gc"
    DEBUGGER = "debugger"
    COMPILE = "compile"
    RENDEZVOUS = "rendezvous"
    PEER_WAIT = "peer_wait"
    PHASE = "phase"
    BUSY = "busy"
    DISK = "disk"
    CODE = "code"
    UNKNOWN = "unknown"


PLAIN_PLACES = frozenset({Place.ENDED, Place.STOPPED, Place.INPUT, Place.CHECKPOINT})
"""Places that need no stack to be believed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a rank may keep the others waiting, by what it does."""

    checkpoint_ns: int = 60 * SECOND_NS
    """Inside a checkpoint call: writing tens of GB to shared storage takes this long."""
    checkpoint_factor: int = 10
    """Times its longest checkpoint so far: storage that is ten times slower than ever hangs."""
    phase_ns: int = 60 * SECOND_NS
    """Inside a phase the user named: an evaluation or export on one rank. A pause announced with
    ``expect`` has the limit the user gave it."""
    compile_ns: int = 300 * SECOND_NS
    """Inside torch's or triton's compiler: a large model takes minutes."""
    gc_ns: int = 30 * SECOND_NS
    """Inside Python's garbage collector: a heap of tens of GB takes this long."""
    debugger_ns: int = 1_800 * SECOND_NS
    """Held in a debugger: somebody is at work."""
    busy_ns: int = 30 * SECOND_NS
    """Running code with its interpreter alive: sampling, compilation, garbage collection."""
    unknown_ns: int = 60 * SECOND_NS
    """Neither page, process nor stack could be read: it may be in a checkpoint."""
    busy_share: float = 0.5
    """Share of one core, measured between two looks at ``/proc``, above which it runs code."""
    heartbeat_ns: int = 3 * SECOND_NS
    """Age of a heartbeat, in missed one-second beats, from which the GIL counts as held."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Whereabouts:
    """Where one rank is."""

    rank: int
    place: Place
    text: str
    """Half a sentence that follows the rank's name: ``is stopped (state T)``."""
    accuse_after_ns: int
    """The moment from which this place is no excuse."""
    evidence: tuple[Evidence, ...]
    is_examined: bool
    """All there is to know has been asked for and answered, if only by a refusal."""
    is_certain: bool
    """The place was seen, not inferred from what was not seen."""


def locate(
    view: JobView, rank: int, *, stopped_ns: int, now: int, patience: Patience
) -> Whereabouts:
    """Say where a rank is; ``stopped_ns`` is when the job's progress stopped."""
    stack = main_stack(view, rank, stopped_ns)
    look = last_look(view, rank, stopped_ns)
    place, text, after = _place(view, rank, stack, look, stopped_ns, now, patience)
    evidence = [
        *_page_evidence(view, rank, now),
        *_stack_evidence(rank, stack),
        *_process_evidence(view, rank, stopped_ns),
        *_exit_evidence(view, rank),
    ]
    return Whereabouts(
        rank=rank,
        place=place,
        text=text,
        accuse_after_ns=after,
        evidence=tuple(evidence),
        is_examined=place in PLAIN_PLACES
        or (stack is not None and cpu_share(view, rank, stopped_ns) is not None),
        is_certain=place in PLAIN_PLACES or (stack is not None and not stack.error),
    )


def _place(
    view: JobView,
    rank: int,
    stack: StackRecord | None,
    look: ProcessRecord | None,
    stopped_ns: int,
    now: int,
    patience: Patience,
) -> tuple[Place, str, int]:
    ranks = view.ranks
    if ranks.is_ended[rank] or (look is not None and look.state in "Z-"):
        return Place.ENDED, f"has ended ({exit_text(view, rank)})", 0
    if look is not None and look.state == "T":
        return Place.STOPPED, "is stopped (process state T)", 0
    has_page = int(ranks.page_ns[rank]) > stopped_ns
    input_ns = int(ranks.input_since_ns[rank])
    checkpoint_ns = int(ranks.checkpoint_since_ns[rank])
    phase_ns = int(ranks.phase_since_ns[rank])
    if has_page and checkpoint_ns:
        longest = patience.checkpoint_factor * int(ranks.longest_checkpoint_ns[rank])
        text = f"has been inside a checkpoint call for {span_text(now - checkpoint_ns)}"
        return Place.CHECKPOINT, text, checkpoint_ns + max(patience.checkpoint_ns, longest)
    if has_page and input_ns:
        text = f"has been inside next(dataloader) for {span_text(now - input_ns)}"
        return Place.INPUT, text, 0
    if has_page and (exception := _exception(view, rank)):
        return Place.EXCEPTION, f"is handling an exception ({exception})", 0
    if stack is not None and is_in_debugger(stack):
        text = "is held in a debugger"
        return Place.DEBUGGER, text, stopped_ns + patience.debugger_ns
    if stack is not None and is_in_rendezvous(stack):
        text = f"is making a process group ({first_frame(stack)})"
        return Place.RENDEZVOUS, text, 0
    page = view.pages.get(rank)
    if has_page and page is not None and page.gc_since_ns:
        text = f"has been inside the garbage collector for {span_text(now - page.gc_since_ns)}"
        return Place.GC, text, page.gc_since_ns + patience.gc_ns
    if stack is not None and is_compiling(stack):
        text = f"is compiling ({top_frame(stack)})"
        return Place.COMPILE, text, stopped_ns + patience.compile_ns
    if stack is not None and is_saving(stack):
        text = f"is saving a checkpoint ({top_frame(stack)})"
        return Place.CHECKPOINT, text, stopped_ns + patience.checkpoint_ns
    if stack is not None and waits_for_peer(stack):
        return Place.PEER_WAIT, f"waits for another rank ({first_frame(stack)})", 0
    share = cpu_share(view, rank, stopped_ns)
    is_busy = share is not None and share > patience.busy_share
    if is_busy and has_page and is_heartbeat_stale(view, rank, patience):
        text = f"holds the GIL (busy, no heartbeat for {span_text(heartbeat_age(view, rank))})"
        return Place.GIL, text, 0
    busy_until_ns = stopped_ns + patience.busy_ns if is_busy else 0
    if has_page and phase_ns:
        name = view.phases.get(rank, "")
        text = f"has been in phase {name!r} for {span_text(now - phase_ns)}"
        announced_ns = view.pages[rank].expect_until_ns if rank in view.pages else 0
        until_ns = announced_ns or phase_ns + patience.phase_ns
        return Place.PHASE, text, max(until_ns, busy_until_ns)
    frame = top_frame(stack) if stack is not None else ""
    if is_busy:
        text = f"is running code{f': {frame}' if frame else ''}"
        return Place.BUSY, text, busy_until_ns
    if look is not None and look.state == "D":
        return Place.DISK, f"waits for a disk or file system{f' in {frame}' if frame else ''}", 0
    if frame:
        return Place.CODE, f"is in {frame}", 0
    if has_page:
        return Place.CODE, "is in code outside input, checkpoint and named phases", 0
    return Place.UNKNOWN, "could not be looked at", stopped_ns + patience.unknown_ns


def _exception(view: JobView, rank: int) -> str:
    """Give the exception that ended the main thread of a rank that still runs, if one did."""
    page, record = view.pages.get(rank), view.exceptions.get(rank)
    if page is not None and page.exception_ns:
        return page.exception
    if record is not None and record.is_fatal:
        return f"{record.type_name} in {record.frame}" if record.frame else record.type_name
    return ""


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
    looks = view.processes.get(rank, ())
    if len(looks) < 2 or looks[0].time_ns < after_ns or looks[0].pid != looks[1].pid:
        return None
    elapsed = looks[1].time_ns - looks[0].time_ns
    # The kernel counts in ticks of 10 ms: a shorter time apart says nothing.
    return (looks[1].cpu_ns - looks[0].cpu_ns) / elapsed if elapsed >= SECOND_NS // 5 else None


def heartbeat_age(view: JobView, rank: int) -> int:
    """Give how old the heartbeat was when the page was read."""
    return int(view.ranks.page_ns[rank] - view.ranks.heartbeat_ns[rank])


def is_heartbeat_stale(view: JobView, rank: int, patience: Patience) -> bool:
    """Say whether a rank missed beats that its peers, with the same interval, gave."""
    ranks = view.ranks
    others = (ranks.page_ns > 0) & ~ranks.is_ended
    others[rank] = False
    ages = (ranks.page_ns - ranks.heartbeat_ns)[others]
    usual = int(np.median(ages)) if len(ages) else 0
    return heartbeat_age(view, rank) > max(patience.heartbeat_ns, 2 * usual)


def exit_text(view: JobView, rank: int) -> str:
    """Say how a rank ended."""
    code = int(view.ranks.exit_code[rank])
    if code == UNKNOWN_EXIT:
        return "its exit was not seen"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _page_evidence(view: JobView, rank: int, now: int) -> list[Evidence]:
    ranks = view.ranks
    time_ns = int(ranks.page_ns[rank])
    found: list[str] = []
    if since := int(ranks.input_since_ns[rank]):
        found.append(f"has been inside next(dataloader) for {span_text(now - since)}")
    if since := int(ranks.checkpoint_since_ns[rank]):
        found.append(f"has been inside a checkpoint call for {span_text(now - since)}")
    if since := int(ranks.phase_since_ns[rank]):
        name = view.phases.get(rank, "")
        found.append(f"has been in phase {name!r} for {span_text(now - since)}")
    if time_ns and heartbeat_age(view, rank) > SECOND_NS * 3 and not ranks.is_ended[rank]:
        found.append(
            f"gave its last heartbeat {span_text(now - int(ranks.heartbeat_ns[rank]))} ago"
        )
    return [
        Evidence(
            kind="rank_page",
            source="rank page",
            time_ns=time_ns,
            rank=rank,
            text=f"rank {rank} {text}",
        )
        for text in found
        if time_ns
    ]


def _stack_evidence(rank: int, stack: StackRecord | None) -> list[Evidence]:
    if stack is None or stack.error or not stack.frames:
        return []
    text = " < ".join((user_frames(stack) or stack.frames)[:3])
    return [
        Evidence(
            kind="stack",
            source="py-spy",
            time_ns=stack.time_ns,
            rank=rank,
            text=f"the stack of rank {rank}: {text}",
            data={"frames": list(stack.frames[:20]), "holds_gil": stack.holds_gil},
        )
    ]


def _process_evidence(view: JobView, rank: int, after_ns: int) -> list[Evidence]:
    look = last_look(view, rank, after_ns)
    if look is None:
        return []
    share = cpu_share(view, rank, after_ns)
    used = "" if share is None else f", used {share:.0%} of a core"
    return [
        Evidence(
            kind="process",
            source="/proc",
            time_ns=look.time_ns,
            rank=rank,
            text=f"process {look.pid} of rank {rank} is in state {look.state}{used}",
            data={"state": look.state, "wchan": look.wchan, "cpu_share": share},
        )
    ]


def _exit_evidence(view: JobView, rank: int) -> list[Evidence]:
    if not view.ranks.is_ended[rank]:
        return []
    return [
        Evidence(
            kind="worker_exit",
            source="launcher",
            time_ns=int(view.ranks.ended_ns[rank]),
            rank=rank,
            text=f"rank {rank} has ended ({exit_text(view, rank)})",
            data={"exit_code": int(view.ranks.exit_code[rank])},
        )
    ]
