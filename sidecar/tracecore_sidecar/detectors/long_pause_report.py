"""A long pause as a verdict: how long, how long it took before, who is at work, what it costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracecore_sidecar.detectors.long_pause_limit import usual_ns
from tracecore_sidecar.detectors.naming import ranks_text, span_text, suspect_of
from tracecore_sidecar.detectors.pauses import is_everybody, look_evidence, unseen_texts
from tracecore_sidecar.verdicts import Confidence, Cost, Evidence, Severity, Verdict
from tracecore_train.wire.records import RecordKind

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from tracecore_sidecar.detectors.pauses import Overrun, Told
    from tracecore_sidecar.state.view import JobView, PauseKind

_CLASSES = {
    RecordKind.CHECKPOINT: "checkpoint",
    RecordKind.PHASE: "phase",
    RecordKind.GC: "garbage_collection",
}


def report(
    view: JobView,
    kind: PauseKind,
    told: Told,
    inside: Collection[int],
    *,
    now: int,
    max_listed: int,
) -> Verdict:
    """Make the verdict about the pauses of one kind that last too long."""
    overruns, named = told.overruns, told.named
    listed = sorted(overruns, key=lambda o: o.rank not in named)[:max_listed]
    oldest = min(overruns, key=lambda o: (o.rank not in named if named else False, o.since_ns))
    past = view.past_pauses[oldest.rank][kind]
    ranks = named or tuple(overrun.rank for overrun in overruns)
    have = "has" if len(ranks) == 1 else "have"
    everybody = "all " if not named and is_everybody(view, ranks) else ""
    unseen = [*_lost_texts(view, listed), *unseen_texts(view, listed)]
    return Verdict(
        pattern="long_pause",
        class_=_CLASSES[kind[0]],
        severity=Severity.WARNING,
        confidence=Confidence.PARTIAL if unseen else Confidence.FULL,
        summary=(
            f"{everybody}{ranks_text(ranks)} {have} been in {_place(kind)}"
            f" for {span_text(now - oldest.since_ns)},"
            f" longest of {past.num} before: {span_text(past.longest_ns)}"
        ),
        suspects=tuple(suspect_of(view, rank) for rank in named),
        since_ns=oldest.since_ns,
        evidence=tuple(item for o in listed for item in _evidence(view, kind, o, now)),
        not_measured=tuple(unseen),
        actions=_actions(kind, named),
        cost=_cost(view, oldest, inside, named, usual_ns(past), now),
    )


def _place(kind: PauseKind) -> str:
    if kind[0] is RecordKind.CHECKPOINT:
        return "a checkpoint call"
    return repr(kind[1]) if kind[0] is RecordKind.PHASE else "the garbage collector"


def _evidence(view: JobView, kind: PauseKind, overrun: Overrun, now: int) -> Iterator[Evidence]:
    rank = overrun.rank
    past = view.past_pauses[rank][kind]
    shortest, longest = min(past.recent_ns), max(past.recent_ns)
    yield Evidence(
        kind="rank_page",
        source="rank page",
        time_ns=int(view.ranks.page_ns[rank]),
        rank=rank,
        text=f"rank {rank} has been in it for {span_text(now - overrun.since_ns)}; its last"
        f" {len(past.recent_ns)} took {span_text(shortest)} to {span_text(longest)}"
        f" (median {span_text(usual_ns(past))})",
        data={
            "since_ns": overrun.since_ns,
            "limit_ns": overrun.until_ns - overrun.since_ns,
            "num_past": past.num,
            "longest_ns": past.longest_ns,
            "median_ns": usual_ns(past),
        },
    )
    yield from look_evidence(view, overrun, now)


def _lost_texts(view: JobView, overruns: Sequence[Overrun]) -> Iterator[str]:
    """Say of which ranks earlier pauses may be missing."""
    ranks = [o.rank for o in overruns if view.num_lost.get(o.rank, 0) > 0]
    if ranks:
        yield f"earlier pauses of {ranks_text(ranks)}: records were lost"


def _cost(
    view: JobView,
    oldest: Overrun,
    inside: Collection[int],
    named: tuple[int, ...],
    usual: int,
    now: int,
) -> Cost:
    """Count the ranks in the pause, and the others that have not moved since it began."""
    live = view.ranks.is_seen & ~view.ranks.is_ended
    still = live & (view.ranks.progress_ns <= oldest.until_ns)
    still[list(inside)] = True
    num_still = int(still.sum())
    lost_ns = num_still * max(0, now - oldest.since_ns - usual)
    devices = {view.identities[r].device for r in inside if r in view.identities}
    is_gpu = bool(devices) and "cpu" not in devices
    unit = "GPU-seconds" if is_gpu else "CPU rank-seconds"
    return Cost(
        text=f"{num_still} of {int(live.sum())} ranks stand still; {lost_ns / 1e9:,.0f} {unit}"
        f" so far beyond the usual {span_text(usual)}",
        waiting_ranks=num_still - len(named),
        gpu_hours=lost_ns / 3.6e12 if is_gpu else None,
    )


def _actions(kind: PauseKind, named: tuple[int, ...]) -> tuple[str, ...]:
    who = f"what does {ranks_text(named)} do there" if named else "who waits there for whom"
    if kind[0] is RecordKind.CHECKPOINT:
        return (
            f"see the stack: {who}? Then look at the storage it writes to: free space, load, mount",
            "if this checkpoint is meant to take longer, announce it: tracecore_train.expect",
        )
    if kind[0] is RecordKind.GC:
        return (
            "look at the number of objects and the memory of the host: is it swapping?",
            "call gc.freeze() after start-up, or collect at moments of your own",
        )
    return (
        f"see the stack: {who}?",
        f"if it is meant to take longer, announce it: tracecore_train.expect({kind[1]!r}, ...)",
    )
