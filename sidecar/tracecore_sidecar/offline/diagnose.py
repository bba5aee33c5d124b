"""The whole way from paths to an answer: what is at fault, what was read, what was not seen."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tracecore_sidecar.offline.content import Kind
from tracecore_sidecar.offline.inputs import read_paths
from tracecore_sidecar.offline.jobs import jobs
from tracecore_sidecar.offline.judged import Told, judged_dumps, judged_logs, told_by_logs
from tracecore_sidecar.replay import replay_path, verdict_json
from tracecore_train.errors import WireError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from tracecore_sidecar.offline.inputs import Input, Inputs
    from tracecore_sidecar.offline.jobs import JobFiles
    from tracecore_sidecar.offline.watchdog_log import LogFacts


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
    """Read everything below some paths and judge it.

    Records of ours have seen the most: dumps that lie beside them, and logs, are judged where
    nothing else told of a hang.
    """
    with _without_collection():
        return _diagnosed(read_paths(paths))


@contextmanager
def _without_collection() -> Iterator[None]:
    """Keep the collector from walking over millions of plain values again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _diagnosed(inputs: Inputs) -> Answer:
    told: list[Told] = []
    gaps: list[str] = []
    covered: list[Path] = []
    for directory in inputs.records:
        replayed = _replayed(directory, inputs)
        told += replayed
        if any(item.verdict.pattern == "hang" for item in replayed):
            covered.append(directory.parent)
    found = [job for job in jobs(inputs.dumps) if not _is_below(job, covered)]
    for job in found:
        told += judged_dumps(job, _facts_of(job, found, inputs.logs), gaps)
    if inputs.logs and not found and not told:
        told += judged_logs(inputs.logs, gaps)
    if inputs.logs and not told:
        told += told_by_logs(inputs.logs)
    if not (inputs.dumps or inputs.logs or inputs.records):
        gaps.append("everything: no file of a kind that is read here")
    return Answer(
        told=tuple(told), inputs=tuple(inputs.listed), not_measured=tuple(dict.fromkeys(gaps))
    )


def _replayed(directory: Path, inputs: Inputs) -> list[Told]:
    """Judge a recorded run again; give the last word on each incident."""
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
        inputs.refuse(directory, str(error), Kind.RECORDS.value)
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
