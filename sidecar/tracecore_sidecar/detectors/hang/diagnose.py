"""From the wait-for graph to causes: who is missing, who is stuck, who disagrees, or why none."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tracecore_sidecar.detectors.hang.diagnosis import Cause, Diagnosis
from tracecore_sidecar.detectors.hang.judge_knots import judge_knot
from tracecore_sidecar.detectors.hang.judge_quiet import judge_quiet
from tracecore_sidecar.detectors.hang.judge_ranks import judge_sinks, judge_stuck
from tracecore_sidecar.detectors.hang.mismatch import mismatch_at

if TYPE_CHECKING:
    from tracecore_sidecar.detectors.hang.scene import Scene

MAX_KNOTS = 16
"""Independent knots that are told one by one."""


def diagnose(scene: Scene) -> tuple[Diagnosis, ...]:
    """Give the independent causes, the one that explains most first; none: nothing to say."""
    graph = scene.graph
    if not graph.num_waiting:
        return judge_quiet(scene)
    found: list[Diagnosis] = []
    found += judge_sinks(scene)
    found += judge_stuck(scene)
    unsure: list[Diagnosis] = []
    for knot in graph.knots:
        diagnosis = judge_knot(scene, knot)
        if _is_through_lost(scene, diagnosis):
            diagnosis = replace(diagnosis, cause=Cause.UNDETERMINED, suspects=(), reason="")
        # Of a message whose order is not certain, both sides may be of different messages.
        is_paired = diagnosis.head is None or diagnosis.head.is_certain or len(knot) > 1
        # A member that was not read and has entered may itself wait for somebody else.
        is_told = diagnosis.cause is not Cause.UNDETERMINED and not diagnosis.presumed
        if not is_told or not is_paired:
            unsure.append(diagnosis)
        elif len(found) < MAX_KNOTS:
            found.append(diagnosis)
    found = _merged(found)
    # What leads to a rank that was not read, or to one that waits unseen, is no cause of its own.
    if not any(d.cause is not Cause.UNDETERMINED for d in found):
        found += unsure
        found = sorted(found, key=_weight)[:1]
    return tuple(sorted(found, key=_weight))


def _is_through_lost(scene: Scene, diagnosis: Diagnosis) -> bool:
    """Say whether a circle closes only through ranks whose oldest waits a dump has lost."""
    if scene.is_live or len(diagnosis.heads) < 2:
        return False
    lost = scene.view.num_lost
    return any(all(lost.get(r, 0) for r in head.waiters) for head in diagnosis.heads)


def diagnose_aftermath(scene: Scene) -> tuple[Diagnosis, ...]:
    """Judge dumps in which nobody waits any more, because what they waited in has failed.

    Gloo calls an operation over when it timed out. Where the last operations of a group are over
    on every member and disagree, that is what they failed of; a job that went on has later ones.
    """
    found: list[Diagnosis] = []
    graph = scene.graph
    for index, group in enumerate(graph.found.groups):
        last = int(group.last_seq.max(initial=-1))
        if graph.found.is_device[index] or last < 0 or (group.last_seq != last).any():
            continue
        odd = mismatch_at(group, last)
        if odd is not None:
            suspects = scene.locate(odd.odd)
            found.append(
                Diagnosis(cause=Cause.MISMATCH, suspects=suspects, mismatch=odd, reason=odd.reason)
            )
    return tuple(found)


def _merged(found: list[Diagnosis]) -> list[Diagnosis]:
    """Leave one diagnosis for each disagreement, however many heads show it."""
    kept: list[Diagnosis] = []
    seen: set[tuple[str, int]] = set()
    for diagnosis in found:
        if diagnosis.mismatch is not None:
            key = (diagnosis.mismatch.group.pg_name, diagnosis.mismatch.seq_id)
            if key in seen:
                continue
            seen.add(key)
        kept.append(diagnosis)
    return kept


def _weight(diagnosis: Diagnosis) -> tuple[bool, int]:
    return diagnosis.cause is Cause.UNDETERMINED, -diagnosis.num_explained
