"""The whole way from paths to an answer: what is at fault, what was read, what was not seen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tracecore_sidecar.detectors import hang_report
from tracecore_sidecar.detectors.frames import user_frames
from tracecore_sidecar.detectors.hang_diagnosis import diagnose, diagnose_aftermath, look
from tracecore_sidecar.detectors.naming import group_text, ranks_text
from tracecore_sidecar.detectors.whereabouts import Patience
from tracecore_sidecar.incidents import incident_id_of
from tracecore_sidecar.offline.content import Kind, recognise
from tracecore_sidecar.offline.job_records import DEFAULT_GROUP, JOB_ID, batch, job_records
from tracecore_sidecar.offline.jobs import jobs
from tracecore_sidecar.offline.log_records import exit_records, log_records
from tracecore_sidecar.offline.log_verdicts import verdicts_of
from tracecore_sidecar.offline.rank_name import rank_in_name
from tracecore_sidecar.offline.recorder_file import read_recorder
from tracecore_sidecar.offline.refused import RefusedError, UnknownKindError
from tracecore_sidecar.offline.walk import walk
from tracecore_sidecar.offline.watchdog_log import read_log
from tracecore_sidecar.replay import replay_path, verdict_json
from tracecore_sidecar.state.store import Store
from tracecore_sidecar.verdicts import Confidence, Evidence, JobInfo, to_json
from tracecore_train.errors import WireError
from tracecore_train.wire.records import StackRecord

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from tracecore_sidecar.detectors.hang_diagnosis import Diagnosis
    from tracecore_sidecar.offline.job_records import JobRecords
    from tracecore_sidecar.offline.jobs import JobFiles
    from tracecore_sidecar.offline.recorder_file import RecorderFile
    from tracecore_sidecar.offline.walk import Found
    from tracecore_sidecar.offline.watchdog_log import LogFacts
    from tracecore_sidecar.verdicts import Verdict

MAX_CALLS = 4
"""Operations, and ranks of each, whose place in the code is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """A file that was looked at."""

    path: Path
    kind: str
    status: str
    """``read``, ``not used`` or ``refused``."""
    detail: str
    """Why it was refused, or what it held."""
    rank: int | None = None


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """See the module."""

    told: tuple[Told, ...]
    inputs: tuple[Input, ...]
    not_measured: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Give the answer as ``tracecore diagnose --json`` prints it."""
        return {
            "verdicts": [told.json for told in self.told],
            "inputs": [
                {
                    "path": str(item.path),
                    "kind": item.kind,
                    "status": item.status,
                    "detail": item.detail,
                    "rank": item.rank,
                }
                for item in self.inputs
            ],
            "not_measured": list(self.not_measured),
        }


def diagnose_paths(paths: Iterable[Path]) -> Answer:
    """Read everything below some paths and judge it."""
    case = _Case()
    for found in walk(paths):
        if found.problem:
            case.refuse(found.path, found.problem)
        else:
            case.read(found)
    return case.answer()


class _Case:
    """What was read so far."""

    def __init__(self) -> None:
        self._inputs: list[Input] = []
        self._dumps: list[tuple[Path, int, RecorderFile]] = []
        self._logs: list[tuple[Path, LogFacts]] = []
        self._records: list[Path] = []

    def refuse(self, path: Path, reason: str, kind: str = "") -> None:
        self._inputs.append(Input(path=path, kind=kind, status="refused", detail=reason))

    def read(self, found: Found) -> None:
        """Read one file; whatever is wrong with it stays with it."""
        path = found.path
        try:
            self._read(path, found.num_bytes)
        except UnknownKindError as error:
            status = "refused" if found.is_given else "not used"
            self._inputs.append(Input(path=path, kind="", status=status, detail=str(error)))
        except (RefusedError, WireError) as error:
            self.refuse(path, str(error))
        except OSError as error:
            self.refuse(path, f"cannot be read: {error.strerror or error}")
        except MemoryError:
            self.refuse(path, "too large for the memory of this machine")

    def _read(self, path: Path, num_bytes: int) -> None:
        content = recognise(path, num_bytes)
        rank, detail, status = None, "", "read"
        if content.kind is Kind.RECORDER:
            file = read_recorder(content.value, str(path))
            named = rank_in_name(path)
            rank = file.rank if file.rank is not None else named
            if rank is None:
                raise RefusedError("a flight recorder dump of an unknown rank: put it in the name")
            detail = f"{len(file.entries)} entries, version {file.version}"
            if file.rank is not None and named is not None and named != file.rank:
                detail += f"; its content says rank {file.rank}, its name {named}"
            self._dumps.append((path.parent, rank, file))
        elif content.kind is Kind.RECORDS:
            if path.parent not in self._records:
                self._records.append(path.parent)
        elif content.kind is Kind.LOG:
            facts = read_log(path, content.value)
            if facts.num_facts:
                self._logs.append((path, facts))
                detail = f"{facts.num_facts} lines about timeouts and exits"
            else:
                status, detail = "not used", "no line about a timeout or an exit"
        else:
            status = "not used"
        self._inputs.append(
            Input(path=path, kind=content.kind.value, status=status, detail=detail, rank=rank)
        )

    def answer(self) -> Answer:
        """Judge what was read."""
        told: list[Told] = []
        gaps: list[str] = []
        covered: list[Path] = []
        for directory in self._records:
            replayed = self._replayed(directory)
            told += replayed
            if any(item.verdict.pattern == "hang" for item in replayed):
                covered.append(directory.parent)
        found = [job for job in jobs(self._dumps) if not _is_below(job, covered)]
        facts = [facts for _, facts in self._logs]
        for job in found:
            told += _judged_dumps(job, _facts_of(job, found, self._logs), gaps)
        if facts and not found and not told:
            ends_ns = max(path.stat().st_mtime_ns for path, _ in self._logs)
            if (records := log_records(facts, ends_ns)) is not None:
                gaps.append("times of log lines: taken from the date of the file")
                told += _judged(records, self._logs[0][0], gaps, is_log=True)
        told += _from_words(self._logs) if self._logs and not told else []
        if not (self._dumps or self._logs or self._records):
            gaps.append("everything: no file of a kind that is read here")
        return Answer(
            told=tuple(told), inputs=tuple(self._inputs), not_measured=tuple(dict.fromkeys(gaps))
        )

    def _replayed(self, directory: Path) -> list[Told]:
        latest: dict[str, Told] = {}
        try:
            for item in replay_path(directory):
                latest[item.event.incident_id] = Told(
                    verdict=item.event.verdict,
                    json=verdict_json(item),
                    now_ns=item.event.now_ns,
                    wall_offset_ns=item.wall_offset_ns,
                    about=str(directory),
                )
        except (WireError, OSError) as error:
            self.refuse(directory, str(error), Kind.RECORDS.value)
        return list(latest.values())


def _is_below(job: JobFiles, covered: Sequence[Path]) -> bool:
    """Say whether a job's dumps lie beside records that already told of the hang."""
    return any(path in (d, *d.parents) for path in covered for d in job.directories)


def _facts_of(
    job: JobFiles, found: Sequence[JobFiles], logs: Sequence[tuple[Path, LogFacts]]
) -> list[LogFacts]:
    """Give the logs of a job: all of them where there is one job, else those beside its dumps."""
    if len(found) == 1:
        return [facts for _, facts in logs]
    places = {place for directory in job.directories for place in (directory, directory.parent)}
    shared = {d.parent for other in found if other is not job for d in other.directories}
    return [facts for path, facts in logs if path.parent in places - shared]


def _judged_dumps(job: JobFiles, facts: Sequence[LogFacts], gaps: list[str]) -> list[Told]:
    records = job_records(job.by_rank)
    exits = [e for e in exit_records(facts, records.now_ns) if e.rank < records.world_size]
    if exits:
        more = batch(exits, records.world_size)
        records = replace(records, batches=(*records.batches, more))
    missing = [r for r in range(records.world_size) if r not in job.by_rank]
    if missing:
        whose = "it" if len(missing) == 1 else "them"
        gaps.append(f"{ranks_text(missing)}: no dump of {whose} was given")
    versions = sorted({f.version for files in job.by_rank.values() for f in files})
    if len(versions) > 1:
        gaps.append(f"comparison of versions: the dumps are of {', '.join(versions)}")
    return _judged(records, job.directories[0], gaps, has_versions=len(versions) > 1)


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
        verdict = hang_report.report(replace(scene, stopped_ns=began), diagnosis)
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


def _from_words(logs: Sequence[tuple[Path, LogFacts]]) -> list[Told]:
    """Give what logs say outright, where nothing else told."""
    job = JobInfo(job_id=JOB_ID, attempt=0, world_size=0, node_rank=0, host="")
    verdicts = verdicts_of(facts for _, facts in logs)
    return [_told(verdict, job, 0, logs[0][0]) for verdict in verdicts]
