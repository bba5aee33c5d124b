"""The job as series: every rank's steps, input, progress and memory, and the open verdicts.

What is shown is what is true now. A rank that ended keeps one series, which says how it ended. A
rank that is silent keeps ``up`` at 0 and its ages, which grow; its other series go, so that a
reader sees a gap and never a last value that stands still. Counters belong to one attempt, which
is a label: after a restart they are new series.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from tracecore_sidecar.state.view import UNKNOWN_EXIT
from tracecore_sidecar.telemetry import job_names as name
from tracecore_sidecar.telemetry.families import numbers, summaries
from tracecore_sidecar.verdicts import Severity

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from prometheus_client.core import Metric

    from tracecore_sidecar.state.view import Bools, JobView
    from tracecore_sidecar.telemetry.step_totals import RankTotals
    from tracecore_sidecar.verdicts import Verdict

MAX_RANKS = 256
"""Ranks shown one by one: some 3,900 series; a node has 8 to 72. Of more, the lowest are shown."""
MAX_VERDICTS = 100
"""Series of open verdicts, one for each suspect; the most severe are shown."""
SILENT_AFTER_NS = 90_000_000_000
"""Without a heartbeat and without progress: longer than the longest flush interval (60 s)."""
STALE_AFTER_NS = 15_000_000_000
"""Age at which a look at ``/proc`` is no longer told as the present; they come once a second."""

_SEVERITIES = (Severity.INFO, Severity.WARNING, Severity.CRITICAL)
_Labels: TypeAlias = "tuple[str, ...]"


@dataclass(slots=True)
class JobSeries:
    """The families of the job, and how much of it found no room in them."""

    families: list[Metric] = field(default_factory=list)
    num_ranks_omitted: int = 0
    num_verdicts_omitted: int = 0


def job_series(
    view: JobView,
    totals: Mapping[int, RankTotals],
    verdicts: Iterable[Verdict],
    num_opened: Mapping[str, int],
    now_ns: int,
) -> JobSeries:
    """Turn the job as it is at ``now_ns`` into families."""
    seen = np.flatnonzero(view.ranks.is_seen)
    shown = [int(rank) for rank in seen[:MAX_RANKS]]
    is_up = _is_up(view, now_ns)
    found = JobSeries(num_ranks_omitted=len(seen) - len(shown))
    found.families += _rank_families(view, totals, shown, is_up, now_ns)
    found.families.append(numbers(name.RANKS, _state_counts(view, is_up).items()))
    rows = _verdict_rows(view, verdicts)
    found.num_verdicts_omitted = max(0, len(rows) - MAX_VERDICTS)
    found.families.append(
        numbers(name.VERDICT_OPEN, ((labels, 1) for labels in rows[:MAX_VERDICTS]))
    )
    job_id = view.job.job_id
    found.families.append(
        numbers(
            name.INCIDENTS, (((job_id, pattern), count) for pattern, count in num_opened.items())
        )
    )
    return found


def _is_up(view: JobView, now_ns: int) -> Bools:
    heard_ns = np.maximum(view.ranks.heartbeat_ns, view.ranks.progress_ns)
    is_up: Bools = view.ranks.is_seen & ~view.ranks.is_ended & (heard_ns > now_ns - SILENT_AFTER_NS)
    return is_up


def _rank_families(
    view: JobView, totals: Mapping[int, RankTotals], shown: list[int], is_up: Bools, now_ns: int
) -> list[Metric]:
    ranks = view.ranks
    labels = {rank: _rank_labels(view, rank) for rank in shown}
    alive = [rank for rank in shown if not ranks.is_ended[rank]]
    up = [rank for rank in alive if is_up[rank]]
    paged = [rank for rank in up if ranks.page_ns[rank]]
    stepped = [(labels[rank], totals[rank]) for rank in up if rank in totals]
    processes = [
        (labels[rank], view.processes[rank][-1])
        for rank in alive
        if rank in view.processes and now_ns - view.processes[rank][-1].time_ns < STALE_AFTER_NS
    ]

    def age_s(since_ns: int) -> float:
        return max(0, now_ns - since_ns) / 1e9

    def inside_s(since_ns: int) -> float:
        return age_s(since_ns) if since_ns else 0.0

    return [
        numbers(name.UP, ((labels[rank], float(is_up[rank])) for rank in alive)),
        numbers(
            name.ENDED,
            (
                ((*labels[rank], _outcome(int(ranks.exit_code[rank]))), 1)
                for rank in shown
                if ranks.is_ended[rank]
            ),
        ),
        numbers(name.STEPS, ((labels[rank], int(ranks.num_steps[rank])) for rank in up)),
        numbers(name.BATCHES, ((labels[rank], int(ranks.num_batches[rank])) for rank in paged)),
        summaries(
            name.STEP_DURATION, {key: (sums.num_steps, sums.step_ns) for key, sums in stepped}
        ),
        summaries(name.INPUT_WAIT, {key: (sums.num_steps, sums.input_ns) for key, sums in stepped}),
        numbers(name.CHECKPOINT_TIME, ((key, sums.checkpoint_ns / 1e9) for key, sums in stepped)),
        numbers(
            name.INPUT_CURRENT,
            ((labels[rank], inside_s(int(ranks.input_since_ns[rank]))) for rank in paged),
        ),
        numbers(
            name.CHECKPOINT_CURRENT,
            ((labels[rank], inside_s(int(ranks.checkpoint_since_ns[rank]))) for rank in paged),
        ),
        numbers(
            name.PROGRESS_AGE,
            (
                (labels[rank], age_s(int(ranks.progress_ns[rank])))
                for rank in alive
                if ranks.progress_ns[rank]
            ),
        ),
        numbers(
            name.HEARTBEAT_AGE,
            (
                (labels[rank], age_s(int(ranks.heartbeat_ns[rank])))
                for rank in alive
                if ranks.heartbeat_ns[rank]
            ),
        ),
        numbers(
            name.MEMORY, ((key, look.rss_bytes) for key, look in processes if look.start_ticks)
        ),
        numbers(
            name.CPU_TIME, ((key, look.cpu_ns / 1e9) for key, look in processes if look.start_ticks)
        ),
        numbers(name.LOST, ((labels[rank], view.num_lost.get(rank, 0)) for rank in up)),
    ]


def _rank_labels(view: JobView, rank: int) -> _Labels:
    index = int(view.ranks.host_index[rank])
    host = view.hosts[index] if 0 <= index < len(view.hosts) else ""
    return (view.job.job_id, str(view.job.attempt), host, str(rank))


def _outcome(exit_code: int) -> str:
    if exit_code == UNKNOWN_EXIT:
        return "unknown"
    if exit_code == 0:
        return "ok"
    return "signal" if exit_code < 0 else "failed"


def _state_counts(view: JobView, is_up: Bools) -> dict[_Labels, float]:
    ranks, job = view.ranks, (view.job.job_id, str(view.job.attempt))
    is_known = ranks.is_seen | ranks.is_ended
    return {
        (*job, "up"): float(is_up.sum()),
        (*job, "silent"): float((ranks.is_seen & ~ranks.is_ended & ~is_up).sum()),
        (*job, "ended"): float(ranks.is_ended.sum()),
        (*job, "unseen"): float((~is_known).sum()),
    }


def _verdict_rows(view: JobView, verdicts: Iterable[Verdict]) -> list[_Labels]:
    """Give the labels of every open verdict and suspect once, most severe first."""
    ordered = sorted(verdicts, key=lambda verdict: -_SEVERITIES.index(verdict.severity))
    job = (view.job.job_id, str(view.job.attempt))
    rows = [
        (*job, *who, verdict.pattern, verdict.class_, *_weight(verdict))
        for verdict in ordered
        for who in _who(verdict)
    ]
    return list(dict.fromkeys(rows))


def _weight(verdict: Verdict) -> tuple[str, str]:
    return verdict.severity.value, verdict.confidence.value


def _who(verdict: Verdict) -> list[tuple[str, str]]:
    """Give host and rank of every suspect; one empty pair where there is none."""
    return [
        (suspect.host or "", "" if suspect.rank is None else str(suspect.rank))
        for suspect in verdict.suspects
    ] or [("", "")]
