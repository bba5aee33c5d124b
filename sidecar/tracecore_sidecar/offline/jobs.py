"""Which recorder files belong to one job, and which of them to use.

Files of one directory are one job. Directories are joined where their ranks are different and the
process groups of one name ranks of the other (one directory per node, or per rank), and where they
hold the same dumps in another form (a bundle). Of several dumps of one recorder of one rank the
newest is used, and of equally new ones the one that knows the members of its groups.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tracecore_sidecar.offline.recorder_file import RecorderFile


@dataclass(slots=True)
class JobFiles:
    """The dumps of one job."""

    directories: list[Path]
    by_rank: dict[int, list[RecorderFile]] = field(default_factory=dict)
    superseded: list[RecorderFile] = field(default_factory=list)
    """Dumps that were read and not used: an older or poorer one of the same recorder."""


def jobs(files: Iterable[tuple[Path, int, RecorderFile]]) -> list[JobFiles]:
    """Sort dumps, with directory and rank, into jobs."""
    by_directory: dict[Path, JobFiles] = {}
    for directory, rank, file in files:
        job = by_directory.setdefault(directory, JobFiles(directories=[directory]))
        _add(job, rank, file)
    found: list[JobFiles] = []
    for job in by_directory.values():
        other = next((known for known in found if _belong_together(known, job)), None)
        if other is None:
            found.append(job)
            continue
        other.directories += job.directories
        other.superseded += job.superseded
        for rank, dumps in job.by_rank.items():
            for file in dumps:
                _add(other, rank, file)
    return found


def _add(job: JobFiles, rank: int, file: RecorderFile) -> None:
    held = job.by_rank.setdefault(rank, [])
    for index, known in enumerate(held):
        is_same = bool(set(known.backends.values()) & set(file.backends.values()))
        if is_same or not known.entries or not file.entries:
            if _worth(file) > _worth(known):
                held[index] = file
                job.superseded.append(known)
            else:
                job.superseded.append(file)
            return
    held.append(file)


def _worth(file: RecorderFile) -> tuple[int, int, int]:
    newest = file.entries[-1].created_ns if file.entries else 0
    return newest, len(file.members), len(file.entries)


def _belong_together(one: JobFiles, other: JobFiles) -> bool:
    shared = one.by_rank.keys() & other.by_rank.keys()
    if shared:
        return all(_same(one.by_rank[rank], other.by_rank[rank]) for rank in shared)
    told = [_told(job) for job in (one, other)]
    if any(told):
        return bool(told[0] & other.by_rank.keys() or told[1] & one.by_rank.keys())
    return one.directories[0].parent == other.directories[0].parent


def _told(job: JobFiles) -> set[int]:
    """Give the ranks named as members of groups."""
    members = (m for files in job.by_rank.values() for file in files for m in file.members.values())
    return {rank for ranks in members if len(ranks) > 1 for rank in ranks}


def _same(one: list[RecorderFile], other: list[RecorderFile]) -> bool:
    return [_last(file) for file in one] == [_last(file) for file in other]


def _last(file: RecorderFile) -> tuple[int, int]:
    entry = file.entries[-1] if file.entries else None
    return (entry.record_id, entry.created_ns) if entry else (-1, 0)
