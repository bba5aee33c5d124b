"""Records of files, judged: through the store and the analysis of a running job, to verdicts.

What live evidence has and files have not is said beside each verdict: who was not given, what was
taken for granted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from tracecore_sidecar.detectors.frames import user_frames
from tracecore_sidecar.detectors.hang.diagnose import diagnose, diagnose_aftermath
from tracecore_sidecar.detectors.hang.report import report
from tracecore_sidecar.detectors.hang.scene import look
from tracecore_sidecar.detectors.hang.whereabouts import Patience
from tracecore_sidecar.detectors.naming import group_text, ranks_text
from tracecore_sidecar.incidents import incident_id_of
from tracecore_sidecar.offline.job_records import DEFAULT_GROUP, JOB_ID, batch, job_records
from tracecore_sidecar.offline.log_records import exit_records, log_records
from tracecore_sidecar.offline.log_verdicts import verdicts_of
from tracecore_sidecar.state.store import Store
from tracecore_sidecar.verdicts import Confidence, Evidence, JobInfo, to_json
from tracecore_train.wire.records import StackRecord

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tracecore_sidecar.detectors.hang.diagnosis import Diagnosis
    from tracecore_sidecar.offline.job_records import JobRecords
    from tracecore_sidecar.offline.jobs import JobFiles
    from tracecore_sidecar.offline.watchdog_log import LogFacts
    from tracecore_sidecar.verdicts import Verdict

MAX_CALLS = 4
"""Operations, and ranks of each, whose place in the code is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A verdict with what it takes to render it."""

    verdict: Verdict
    json: dict[str, Any]
    now_ns: int | None
    """When a recorded run gave it; None: it was made now, of what was left long ago."""
    wall_offset_ns: int
    about: str
    """Directory or file it comes from."""


def judged_dumps(job: JobFiles, facts: Sequence[LogFacts], gaps: list[str]) -> list[Told]:
    """Judge the dumps of a job, with what its logs say about exits; adds to ``gaps``."""
    records = job_records(job.by_rank)
    exits = [e for e in exit_records(facts, records.now_ns) if e.rank < records.world_size]
    if exits:
        more = batch(exits, records.world_size)
        records = replace(records, batches=chain(records.batches, [more]))
    missing = [r for r in range(records.world_size) if r not in job.by_rank]
    if missing:
        whose = "it" if len(missing) == 1 else "them"
        gaps.append(f"{ranks_text(missing)}: no dump of {whose} was given")
    lost = [r for r, files in job.by_rank.items() if any(f.has_lost_unfinished for f in files)]
    if lost:
        gaps.append(
            f"oldest unfinished operations of {ranks_text(lost)}: overwritten in the ring; "
            "TORCH_FR_BUFFER_SIZE makes it longer"
        )
    versions = sorted({f.version for files in job.by_rank.values() for f in files})
    if len(versions) > 1:
        gaps.append(f"comparison of versions: the dumps are of {', '.join(versions)}")
    return _judged(records, job.directories[0], gaps, has_versions=len(versions) > 1)


def judged_logs(logs: Sequence[tuple[Path, LogFacts]], gaps: list[str]) -> list[Told]:
    """Judge the operations that logs speak of; adds to ``gaps``."""
    ends_ns = max(path.stat().st_mtime_ns for path, _ in logs)
    records = log_records([facts for _, facts in logs], ends_ns)
    if records is None:
        return []
    gaps.append("times of log lines: taken from the date of the file")
    return _judged(records, logs[0][0], gaps, is_log=True)


def told_by_logs(logs: Sequence[tuple[Path, LogFacts]]) -> list[Told]:
    """Give what logs say outright, where nothing else told."""
    job = JobInfo(job_id=JOB_ID, attempt=0, world_size=0, node_rank=0, host="")
    verdicts = verdicts_of(facts for _, facts in logs)
    return [_told(verdict, job, 0, logs[0][0]) for verdict in verdicts]


def _judged(
    records: JobRecords,
    about: Path,
    gaps: list[str],
    *,
    is_log: bool = False,
    has_versions: bool = False,
) -> list[Told]:
    """Put records through the store and the analysis."""
    store = Store(job_id=JOB_ID, node_rank=0, host="", boot_id="")
    for each in records.batches:
        store.apply(each)
    view = store.view()
    if view is None:
        return []
    for name in sorted(records.inferred & view.groups.keys()):
        text = group_text(view.groups[name])
        taken = "all ranks" if text == DEFAULT_GROUP else "the ranks that speak of it"
        gaps.append(f"members of {text}: not told; taken to be {taken}")
    gaps.append("stacks, processes and hosts: files of this kind hold none")
    scene = look(
        view,
        stopped_ns=0,
        fresh_after_ns=0,
        now=records.now_ns,
        patience=Patience(),
        is_live=False,
    )
    found = diagnose(scene) if scene.graph.num_waiting else diagnose_aftermath(scene)
    told: list[Told] = []
    for diagnosis in found:
        began = min((head.created_ns for head in diagnosis.heads), default=records.now_ns)
        verdict = report(replace(scene, stopped_ns=began), diagnosis)
        names = {head.group.pg_name for head in diagnosis.heads}
        if is_log:
            heard = tuple(replace(item, source="training log") for item in verdict.evidence)
            verdict = replace(verdict, evidence=heard)
        if is_log or has_versions or names & records.inferred:
            verdict = replace(verdict, confidence=Confidence.PARTIAL)
        calls = tuple(_calls(records, diagnosis))
        verdict = replace(verdict, evidence=(*verdict.evidence, *calls))
        told.append(_told(verdict, view.job, records.now_ns, about))
    return told


def _calls(records: JobRecords, diagnosis: Diagnosis) -> Iterator[Evidence]:
    """Say where in the code the suspects, and one of the others, called what they are in."""
    suspects = [w.rank for w in diagnosis.suspects]
    for head in diagnosis.heads[:MAX_CALLS]:
        others = [rank for rank in head.waiters if rank not in suspects]
        for rank in [*(r for r in head.waiters if r in suspects), *others[:1]][:MAX_CALLS]:
            frames = records.frames.get((head.group.pg_name, head.seq_id, rank), ())
            if not frames:
                continue
            stack = StackRecord(
                time_ns=head.created_ns,
                rank=rank,
                pid=0,
                thread="",
                is_active=False,
                holds_gil=False,
                frames=frames,
                error="",
            )
            place = " < ".join((user_frames(stack) or frames)[:3])
            yield Evidence(
                kind="stack",
                source="flight recorder",
                time_ns=head.created_ns,
                rank=rank,
                text=f"rank {rank} called it from {place}",
                data={"frames": list(frames)},
            )


def _told(verdict: Verdict, job: JobInfo, now_ns: int, about: Path) -> Told:
    json = to_json(
        verdict,
        job,
        incident_id=incident_id_of(verdict, job, 0),
        emitted_ns=now_ns,
        wall_offset_ns=0,
    )
    return Told(verdict=verdict, json=json, now_ns=None, wall_offset_ns=0, about=str(about))
