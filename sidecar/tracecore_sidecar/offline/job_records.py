"""Recorder files of one job, turned into the records a sidecar would have made of them.

A process group is its name and its members: two groups of one name with different members are
two groups. Where a dump does not tell the members (gloo), they are the ranks whose dumps mention
the group, and all ranks for the default group; that is said, because a member that never entered
anything is not found this way.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING

from tracecore_train.wire.records import (
    Batch,
    GroupRecord,
    ProgressRecord,
    PullRecord,
    Source,
    SourceKind,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tracecore_sidecar.offline.recorder_file import RecorderFile
    from tracecore_train.wire.records import Record

JOB_ID = "offline"
DEFAULT_GROUP = "default_pg"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecords:
    """What a set of recorder files says about one job."""

    world_size: int
    batches: Iterable[Batch]
    """Made as they are taken, once: a large job has millions of records."""
    now_ns: int
    """Just after the last thing that is known; wall clock."""
    inferred: frozenset[str]
    """Process groups whose members were not told."""
    frames: Mapping[tuple[str, int, int], tuple[str, ...]] = field(default_factory=dict)
    """Stack of the call of unfinished collectives, by group, sequence number and rank."""


def job_records(files: Mapping[int, Sequence[RecorderFile]]) -> JobRecords:
    """Turn the recorder files of each rank into batches."""
    told = {
        rank for found in files.values() for f in found for m in f.members.values() for rank in m
    }
    world_size = max(told | files.keys()) + 1
    naming = _Naming(files, world_size)
    last_ns = max((e.created_ns for fs in files.values() for f in fs for e in f.entries), default=0)
    now_ns = last_ns + 1
    frames = {
        (naming.of(file, pg_name), seq_id, rank): found
        for rank, each in files.items()
        for file in each
        for (pg_name, seq_id), found in file.frames.items()
    }
    return JobRecords(
        world_size=world_size,
        batches=chain(
            [batch(naming.group_records(now_ns), world_size)],
            (
                _of_rank(rank, found, naming, now_ns, world_size)
                for rank, found in sorted(files.items())
            ),
        ),
        now_ns=now_ns,
        inferred=frozenset(naming.inferred),
        frames=frames,
    )


def _of_rank(
    rank: int, files: Sequence[RecorderFile], naming: _Naming, now_ns: int, world_size: int
) -> Batch:
    """Give what the recorders of a rank say, after the word that they were read."""
    records: list[Record] = [
        PullRecord(
            time_ns=now_ns,
            rank=rank,
            is_ok=True,
            reason="",
            num_entries=sum(len(file.entries) for file in files),
            num_lost=sum(file.has_lost_unfinished for file in files),
            is_active_only=all(file.is_active_only for file in files),
            is_truncated=any(file.is_truncated for file in files),
        )
    ]
    for file in files:
        records += [
            ProgressRecord(
                time_ns=now_ns,
                rank=rank,
                pg_name=naming.of(file, name),
                enqueued=enqueued,
                started=started,
                completed=completed,
            )
            for name, (enqueued, started, completed) in file.counters.items()
        ]
        renamed = {name: naming.of(file, name) for name in file.backends}
        if all(name == unique for name, unique in renamed.items()):
            records += file.entries
        else:
            records += [replace(entry, pg_name=renamed[entry.pg_name]) for entry in file.entries]
    return batch(records, world_size)


class _Naming:
    """Finds the groups, and the name each has within the job."""

    def __init__(self, files: Mapping[int, Sequence[RecorderFile]], world_size: int) -> None:
        members: dict[str, dict[tuple[int, ...], None]] = {}
        mentions: dict[str, set[int]] = {}
        self._descriptions: dict[str, str] = {}
        self._backends: dict[str, str] = {}
        for rank, found in files.items():
            for file in found:
                self._descriptions |= {k: v for k, v in file.descriptions.items() if v}
                for name, ranks in file.members.items():
                    if rank in ranks:
                        members.setdefault(name, {})[ranks] = None
                for name, backend in file.backends.items():
                    mentions.setdefault(name, set()).add(rank)
                    self._backends.setdefault(name, backend)
        self.inferred: set[str] = set()
        self._groups: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._names: dict[tuple[str, tuple[int, ...]], str] = {}
        for name, known in members.items():
            for ranks in known:
                unique = name if len(known) == 1 else f"{name}@{ranks[0]}"
                self._names[name, ranks] = unique
                self._groups[unique] = (name, ranks)
        for name, ranks_seen in mentions.items():
            if name not in members:
                is_default = self._descriptions.get(name) == DEFAULT_GROUP
                everybody = range(world_size) if is_default else sorted(ranks_seen)
                self._groups[name] = (name, tuple(everybody))
                self.inferred.add(name)

    def of(self, file: RecorderFile, name: str) -> str:
        """Give the name that is unique in the job."""
        ranks = file.members.get(name)
        return name if ranks is None else self._names.get((name, ranks), name)

    def group_records(self, now_ns: int) -> list[Record]:
        """Give one record for each group."""
        return [
            GroupRecord(
                time_ns=now_ns,
                rank=ranks[0],
                pg_name=unique,
                pg_desc=self._descriptions.get(name, ""),
                backend=self._backends.get(name, ""),
                ranks=ranks,
            )
            for unique, (name, ranks) in self._groups.items()
        ]


def batch(records: Sequence[Record], world_size: int) -> Batch:
    """Give a batch of records from nobody in particular."""
    source = Source(
        kind=SourceKind.SIDECAR,
        host="",
        boot_id="",
        pid=0,
        job_id=JOB_ID,
        attempt=0,
        wall_offset_ns=0,
        world_size=world_size,
    )
    return Batch(source=source, records=tuple(records))
