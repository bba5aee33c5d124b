"""A process group destroyed and made again: the former one's counters and collectives are over."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.support.recordings import START_NS, SimulatedJob
from tracecore_train.wire.records import (
    CollectiveRecord,
    GroupRecord,
    ProgressRecord,
    PullRecord,
    SourceKind,
)

NAME = "7"


def _group(rank: int, generation: int = 0, **changes: Any) -> GroupRecord:
    values: dict[str, Any] = {
        "time_ns": START_NS,
        "rank": rank,
        "pg_name": NAME,
        "pg_desc": "side",
        "backend": "gloo",
        "ranks": (0, 1),
        "generation": generation,
        "made_ns": START_NS + generation * 1_000,
    }
    return GroupRecord(**values | changes)


def _destroyed(rank: int, generation: int = 0) -> GroupRecord:
    return _group(rank, generation, is_destroyed=True)


def _entry(rank: int, seq_id: int, created_ns: int) -> CollectiveRecord:
    return CollectiveRecord(
        time_ns=START_NS,
        rank=rank,
        pg_name=NAME,
        collective_seq_id=seq_id,
        record_id=seq_id,
        op="all_reduce",
        input_sizes="[[4]]",
        input_dtypes="['Float']",
        created_ns=created_ns,
        completed_ns=0,
        is_retired=True,
    )


class _Job(SimulatedJob):
    def told(self, *records: GroupRecord | ProgressRecord) -> None:
        for record in records:
            self.apply(record.rank, record)

    def pulled(self, *entries: CollectiveRecord) -> None:
        for entry in entries:
            self.apply(entry.rank, entry, kind=SourceKind.SIDECAR)

    def last_seq(self) -> list[int]:
        return [int(seq) for seq in self.view().groups[NAME].last_seq]


def test_what_the_former_group_did_is_over() -> None:
    """As soon as one member makes the group again, nobody is measured by the former one."""
    job = _Job()
    job.told(_group(0), _group(1))
    job.pulled(_entry(0, 500, START_NS + 10), _entry(1, 500, START_NS + 10))
    job.told(_destroyed(0), _group(0, 1))
    assert job.last_seq() == [-1, -1]


def test_a_member_that_is_late_is_not_ahead() -> None:
    """Entries and counters of a member that has not made the group again yet are the former
    one's: it does not look 500 collectives ahead of those that have.
    """
    job = _Job()
    job.told(_group(0), _group(1))
    job.told(_destroyed(0), _group(0, 1))
    job.pulled(_entry(0, 1, START_NS + 1_010), _entry(1, 500, START_NS + 10))
    job.told(
        ProgressRecord(
            time_ns=START_NS, rank=1, pg_name=NAME, enqueued=500, started=-1, completed=500
        )
    )
    assert job.last_seq() == [1, -1]
    assert job.view().groups[NAME].enqueued.tolist() == [-1, -1]
    job.told(_group(1, 1))
    job.pulled(_entry(1, 1, START_NS + 1_020))
    assert job.last_seq() == [1, 1]


def test_entries_still_in_the_ring_belong_to_the_former_group() -> None:
    """What a member entered before it made the group again does not count for the new one."""
    job = _Job()
    job.told(_group(0), _group(1))
    job.told(_destroyed(0), _destroyed(1), _group(0, 1), _group(1, 1))
    job.pulled(_entry(0, 499, START_NS + 999), _entry(0, 2, START_NS + 1_000))
    assert job.last_seq() == [2, -1]


def test_the_second_member_does_not_clear_what_the_first_did() -> None:
    """The group is begun anew once, by whoever says so first."""
    job = _Job()
    job.told(_group(0), _group(1), _group(0, 1))
    job.pulled(_entry(0, 3, START_NS + 2_000))
    job.told(_group(1, 1))
    assert job.last_seq() == [3, -1]


def test_a_group_all_have_left_is_gone() -> None:
    """It stays while one member may still wait in it, and goes with the last."""
    job = _Job()
    job.told(_group(0), _group(1), _destroyed(0))
    assert NAME in job.view().groups
    job.told(_destroyed(1))
    assert NAME not in job.view().groups
    job.told(_destroyed(1))
    assert NAME not in job.view().groups


def test_an_old_word_changes_nothing() -> None:
    """A word about the former group that comes late is passed over."""
    job = _Job()
    job.told(_group(0), _group(1), _group(0, 1), _group(1, 1))
    job.pulled(_entry(0, 4, START_NS + 2_000))
    job.told(_group(0), _destroyed(0), _destroyed(1))
    assert job.last_seq() == [4, -1]


def test_backends_of_one_group_count_apart() -> None:
    """A group on two backends has two sequences; the same number in both is no mismatch."""
    job = _Job()
    job.told(_group(0), _group(0, pg_name=f"{NAME}:nccl", backend="nccl"))
    job.pulled(
        replace(_entry(0, 3, START_NS + 1), backend="gloo"),
        replace(_entry(0, 900, START_NS + 2), backend="nccl"),
    )
    groups = job.view().groups
    assert groups[NAME].last_seq.tolist() == [3, -1]
    assert groups[f"{NAME}:nccl"].last_seq.tolist() == [900, -1]


def test_a_read_that_left_a_recorder_out_is_not_a_fresh_one() -> None:
    """Only a read of every recorder moves the time up to which a rank is known."""
    job = _Job()
    before = int(job.view().ranks.pull_ns[0])
    pull = PullRecord(
        time_ns=START_NS + 5,
        rank=0,
        is_ok=True,
        reason="left out",
        num_entries=0,
        num_lost=0,
        is_whole=False,
    )
    job.apply(0, pull, kind=SourceKind.SIDECAR)
    assert int(job.view().ranks.pull_ns[0]) == before
