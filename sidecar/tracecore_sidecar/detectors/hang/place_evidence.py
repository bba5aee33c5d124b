"""The evidence for where a rank is: its page, its stack, its process, its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracecore_sidecar.detectors.frames import user_frames
from tracecore_sidecar.detectors.hang.last_seen import (
    SECOND_NS,
    busy_share,
    cpu_share,
    exit_text,
    heartbeat_age,
    last_look,
)
from tracecore_sidecar.detectors.naming import span_text
from tracecore_sidecar.verdicts import Evidence

if TYPE_CHECKING:
    from tracecore_sidecar.state.view import JobView
    from tracecore_train.wire.records import StackRecord


MIN_QUEUED = 0.05
"""Share of the time in the run queue from which it is worth a word."""


def place_evidence(
    view: JobView, rank: int, stack: StackRecord | None, *, stopped_ns: int, now: int
) -> tuple[Evidence, ...]:
    """Give all that was seen of a rank since progress stopped."""
    return (
        *_page_evidence(view, rank, now),
        *_stack_evidence(rank, stack),
        *_process_evidence(view, rank, stopped_ns),
        *_exit_evidence(view, rank),
    )


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
    queued = (busy_share(view, rank, after_ns) or 0.0) - (share or 0.0)
    if queued >= MIN_QUEUED:
        used += f", queued for {queued:.0%}"
    held = " (held by a debugger or tracer)" if look.state == "t" else ""
    return [
        Evidence(
            kind="process",
            source="/proc",
            time_ns=look.time_ns,
            rank=rank,
            text=f"process {look.pid} of rank {rank} is in state {look.state}{held}{used}",
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
