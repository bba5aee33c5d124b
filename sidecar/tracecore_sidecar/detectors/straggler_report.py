"""Puts a straggler into words: what it costs, where its time goes, what was not measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracecore_sidecar.detectors.naming import group_text, ranks_text, span_text, suspect_of
from tracecore_sidecar.detectors.unseen import unseen_texts
from tracecore_sidecar.verdicts import Confidence, Cost, Evidence, Severity, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tracecore_sidecar.detectors.straggler import Candidate, Finding
    from tracecore_sidecar.state.view import JobView

MIN_COVERAGE = 0.2
"""Share of the steps that must have been sampled for full confidence."""
ORDINARY_SHARE = 0.1
"""Part of the lateness below which the input wait counts as ordinary."""
WANTED = (
    "steps",
    "step_parts",
    "device_time",
    "input",
    "checkpoint",
    "gc",
    "process_groups",
    "collectives.entries",
)
"""Signals of a rank that tell where its time goes; without one of them it is told with less."""
HOST = "host side, not in input or checkpoint: forward, backward or other code"
_ACTIONS = {
    "input": "look at the input of {rank}: its storage, loader workers and shard sizes",
    "checkpoint": "look at what {rank} saves in every step, or save less often",
    HOST: "compare the host of {rank} with its peers: processor share and limits, other "
    "processes, power; then profile its forward and backward",
}


def report(view: JobView, candidate: Candidate) -> Verdict:
    """Make the verdict about one rank."""
    finding = candidate.finding
    rank = finding.rank
    shares, ordinary = _attribution(view, candidate)
    missing = _not_measured(view, candidate)
    cost = _cost(view, candidate)
    main = max(shares, key=lambda part: shares[part])
    return Verdict(
        pattern="straggler",
        class_="late_arrival",
        severity=Severity.WARNING,
        confidence=_confidence(view, candidate),
        summary=f"rank {rank} costs {finding.cost_share:.0%} of every step",
        suspects=(suspect_of(view, rank),),
        since_ns=candidate.since_ns,
        evidence=(_arrival_evidence(view, candidate), _share_evidence(candidate, shares)),
        contradicting=ordinary,
        not_measured=missing,
        actions=(_ACTIONS[main].format(rank=f"rank {rank}"),),
        cost=cost,
    )


def report_together(view: JobView, candidates: Sequence[Candidate]) -> Verdict:
    """Make the verdict about ranks of different groups that are late at once: nobody is named.

    Send/recv between them is not seen, so one of them may only pass on what another causes.
    """
    ranks = [c.finding.rank for c in candidates]
    first = max(candidates, key=lambda c: c.finding.removable_ns)
    return Verdict(
        pattern="straggler",
        class_="late_arrival",
        severity=Severity.WARNING,
        confidence=Confidence.PARTIAL,
        summary=f"{ranks_text(ranks)} arrive late in different groups; one may delay the others",
        suspects=(),
        since_ns=min(c.since_ns for c in candidates),
        evidence=tuple(_arrival_evidence(view, c) for c in candidates),
        not_measured=("send/recv: who waits for whom between these ranks is not measured",),
        actions=("compare the step times of these ranks by phase (`tracecore_train.phase`)",),
        cost=_cost(view, first),
    )


def lost_by(view: JobView, ranks: Iterable[int]) -> int:
    """Count the records ranks have lost so far."""
    return sum(view.num_lost.get(rank, 0) for rank in ranks)


def _confidence(view: JobView, candidate: Candidate) -> Confidence:
    finding = candidate.finding
    has_lost_more = lost_by(view, finding.cohort) > candidate.num_lost
    is_blurred = has_lost_more or _is_on_device(view, finding) or not finding.is_whole
    if is_blurred or finding.coverage < MIN_COVERAGE:
        return Confidence.PARTIAL
    return Confidence.FULL


def _is_on_device(view: JobView, finding: Finding) -> bool:
    devices = {view.identities[r].device for r in finding.cohort if r in view.identities}
    return devices != {"cpu"}


def _cost(view: JobView, candidate: Candidate) -> Cost:
    finding = candidate.finding
    num_steps = max(0, int(view.ranks.num_steps[finding.rank]) - candidate.since_step)
    hours = finding.removable_ns * num_steps * view.world_size / 3.6e12
    identity = view.identities.get(finding.rank)
    unit = "CPU rank-hours" if identity is not None and identity.device == "cpu" else "GPU-hours"
    saved = finding.step_ns - finding.removable_ns
    text = (
        f"{span_text(finding.step_ns)} a step, {span_text(saved)} without it; "
        f"{hours:.2g} {unit} so far"
    )
    return Cost(
        text=text,
        seconds_per_step=finding.removable_ns / 1e9,
        share_of_step=finding.cost_share,
        gpu_hours=hours if unit == "GPU-hours" else None,
    )


def _arrival_evidence(view: JobView, candidate: Candidate) -> Evidence:
    finding = candidate.finding
    others = [rank for rank in finding.cohort if rank != finding.rank]
    text = (
        f"rank {finding.rank} is last to arrive in {finding.share_last:.0%} of "
        f"{finding.num_steps} sampled steps, {span_text(finding.lateness_ns)} after "
        f"{ranks_text(others)} (median), in {finding.num_collectives} collectives of "
        f"{group_text(view.groups[finding.pg_name])}; slow since step {candidate.since_step}, "
        f"still at step {finding.last_step}"
    )
    return Evidence(
        kind="collective",
        source="flight recorder",
        time_ns=finding.last_ns,
        rank=finding.rank,
        text=text,
        data={
            "pg_name": finding.pg_name,
            "share_last": round(finding.share_last, 3),
            "lateness_ns": finding.lateness_ns,
            "removable_ns": finding.removable_ns,
            "step_ns": finding.step_ns,
            "num_steps": finding.num_steps,
            "num_collectives": finding.num_collectives,
            "since_step": candidate.since_step,
            "last_step": finding.last_step,
        },
    )


def _share_evidence(candidate: Candidate, shares: dict[str, float]) -> Evidence:
    parts = [f"{share:.0%} {part}" for part, share in shares.items() if share >= 0.005]
    return Evidence(
        kind="step",
        source="step records",
        time_ns=candidate.finding.last_ns,
        rank=candidate.finding.rank,
        text=f"of its lateness: {', '.join(parts)}",
        data={"shares": {part: round(share, 3) for part, share in shares.items()}},
    )


def _attribution(
    view: JobView, candidate: Candidate
) -> tuple[dict[str, float], tuple[Evidence, ...]]:
    """Split the lateness by what the step records know; what speaks against input comes along."""
    finding, steps = candidate.finding, view.steps
    rank = finding.rank
    others = [other for other in finding.cohort if other != rank]
    first = max(finding.first_step, candidate.since_step)
    rows = (steps.numbers >= first) & (steps.numbers <= finding.last_step)
    rows &= (steps.end_ns[:, list(finding.cohort)] > 0).all(axis=1)
    if not rows.any():
        return {HOST: 1.0}, ()

    def excess(column: np.ndarray) -> float:
        usual = np.median(column[rows][:, others], axis=1)
        return max(0.0, float(np.median(column[rows, rank] - usual)))

    lateness = max(1.0, float(finding.lateness_ns))
    share_input = min(1.0, excess(steps.input_ns) / lateness)
    share_checkpoint = min(1.0 - share_input, excess(steps.checkpoint_ns) / lateness)
    shares = {
        "input": share_input,
        "checkpoint": share_checkpoint,
        HOST: 1.0 - share_input - share_checkpoint,
    }
    if share_input >= ORDINARY_SHARE:
        return shares, ()
    own = int(np.median(steps.input_ns[rows, rank]))
    usual = int(np.median(steps.input_ns[rows][:, others]))
    ordinary = Evidence(
        kind="step",
        source="step records",
        time_ns=finding.last_ns,
        rank=rank,
        text=f"its input wait is ordinary ({span_text(own)} a step, "
        f"{ranks_text(others)}: {span_text(usual)})",
        data={"input_ns": own, "others_ns": usual},
    )
    return shares, (ordinary,)


def _not_measured(view: JobView, candidate: Candidate) -> tuple[str, ...]:
    finding = candidate.finding
    missing = ["step_parts: forward and backward are not compared between ranks yet"]
    if _is_on_device(view, finding):
        missing.append("device time: arrival is when the host enters, not when the device starts")
    if not finding.is_whole:
        missing.append("ranks on other hosts: their clocks are not compared")
    lost = lost_by(view, finding.cohort) - candidate.num_lost
    if lost > 0:
        missing.append(f"collectives: {lost} records were lost while this was measured")
    if finding.coverage < MIN_COVERAGE:
        missing.append(f"other steps: only {finding.coverage:.0%} of the steps were sampled")
    missing += unseen_texts(view, finding.cohort, WANTED)
    return tuple(missing)
