"""Where a rank is while others wait for it, and how long that place is nobody's fault.

Read from outside: the rank page, ``/proc``, the stack. A rank that saves a checkpoint, runs a
phase its user named, or is busy running code is given time before it is accused; one that is
stopped, dead, waiting for data or holding the GIL is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from tracecore_sidecar.detectors.debugger import is_held
from tracecore_sidecar.detectors.frames import (
    first_frame,
    is_compiling,
    is_in_rendezvous,
    is_saving,
    top_frame,
    waits_for_peer,
)
from tracecore_sidecar.detectors.hang.last_seen import (
    SECOND_NS,
    busy_share,
    exit_text,
    heartbeat_age,
    is_heartbeat_stale,
    last_look,
    main_stack,
)
from tracecore_sidecar.detectors.hang.place_evidence import place_evidence
from tracecore_sidecar.detectors.naming import span_text
from tracecore_train.wire.records import RecordKind

if TYPE_CHECKING:
    from tracecore_sidecar.state.view import JobView
    from tracecore_sidecar.verdicts import Evidence
    from tracecore_train.wire.records import ProcessRecord, StackRecord


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
    history_factor: int = 10
    """Times its longest checkpoint, or its longest phase of that name, so far: storage that is ten
    times slower than ever hangs. Far sooner, a long pause is told as one."""
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
    """Share of one core, used or waited for between two looks at ``/proc``, above which it runs
    code."""
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
    return Whereabouts(
        rank=rank,
        place=place,
        text=text,
        accuse_after_ns=after,
        evidence=place_evidence(view, rank, stack, stopped_ns=stopped_ns, now=now),
        is_examined=place in PLAIN_PLACES
        or (stack is not None and busy_share(view, rank, stopped_ns) is not None),
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
    if is_held(view, rank, stack, stopped_ns):
        text = "is held in a debugger"
        return Place.DEBUGGER, text, stopped_ns + patience.debugger_ns
    has_page = int(ranks.page_ns[rank]) > stopped_ns
    input_ns = int(ranks.input_since_ns[rank])
    checkpoint_ns = int(ranks.checkpoint_since_ns[rank])
    phase_ns = int(ranks.phase_since_ns[rank])
    if has_page and checkpoint_ns:
        longest = patience.history_factor * int(ranks.longest_checkpoint_ns[rank])
        text = f"has been inside a checkpoint call for {span_text(now - checkpoint_ns)}"
        return Place.CHECKPOINT, text, checkpoint_ns + max(patience.checkpoint_ns, longest)
    if has_page and input_ns:
        text = f"has been inside next(dataloader) for {span_text(now - input_ns)}"
        return Place.INPUT, text, 0
    if has_page and (exception := _exception(view, rank)):
        return Place.EXCEPTION, f"is handling an exception ({exception})", 0
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
    share = busy_share(view, rank, stopped_ns)
    is_busy = share is not None and share > patience.busy_share
    if is_busy and has_page and is_heartbeat_stale(view, rank, patience.heartbeat_ns):
        text = f"holds the GIL (busy, no heartbeat for {span_text(heartbeat_age(view, rank))})"
        return Place.GIL, text, 0
    busy_until_ns = stopped_ns + patience.busy_ns if is_busy else 0
    if has_page and phase_ns:
        name = view.phases.get(rank, "")
        text = f"has been in phase {name!r} for {span_text(now - phase_ns)}"
        announced_ns = view.pages[rank].expect_until_ns if rank in view.pages else 0
        past = view.past_pauses.get(rank, {}).get((RecordKind.PHASE, name))
        longest = patience.history_factor * past.longest_ns if past is not None else 0
        until_ns = announced_ns or phase_ns + max(patience.phase_ns, longest)
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
