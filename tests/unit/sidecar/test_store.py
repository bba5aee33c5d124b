"""The store takes in records and shares columns."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.support.rank_pages import rank_page
from tracecore_sidecar.state.early_entries import MAX_ENTRIES, MAX_KEYS
from tracecore_sidecar.state.store import MAX_WORLD_SIZE, Store
from tracecore_train.wire.records import (
    Batch,
    CollectiveRecord,
    GroupRecord,
    IdentityRecord,
    ProcessRecord,
    ProgressRecord,
    RankPageRecord,
    Record,
    RendezvousRecord,
    Source,
    SourceKind,
    StepRecord,
    WorkerExitRecord,
)

if TYPE_CHECKING:
    from tracecore_sidecar.state.view import JobView

SIDECAR = Source(
    kind=SourceKind.SIDECAR,
    host="a07",
    boot_id="boot",
    pid=1,
    job_id="job",
    attempt=0,
    wall_offset_ns=0,
    world_size=2,
)
START = RendezvousRecord(time_ns=1, world_size=2, ranks=(0, 1), pids=(10, 11))


def store_with(*records: Record, source: Source = SIDECAR) -> Store:
    store = Store(job_id="job", node_rank=0, host="a07", boot_id="boot")
    store.apply(Batch(source=source, records=(START, *records)))
    return store


def view_of(store: Store) -> JobView:
    view = store.view()
    assert view is not None
    return view


def step(rank: int, number: int, time_ns: int) -> StepRecord:
    return StepRecord(
        time_ns=time_ns,
        rank=rank,
        step=number,
        duration_ns=100,
        input_ns=10,
        num_batches=1,
        checkpoint_ns=0,
        flags=0,
    )


def page(rank: int = 0, **changes: object) -> RankPageRecord:
    return rank_page(50, pid=10, rank=rank, **changes)


def collective(
    rank: int, seq: int, *, retired: bool = True, op: str = "all_reduce", pg_name: str = "0"
) -> CollectiveRecord:
    return CollectiveRecord(
        time_ns=99,
        rank=rank,
        pg_name=pg_name,
        collective_seq_id=seq,
        record_id=seq,
        op=op,
        input_sizes="[[4]]",
        input_dtypes="['Float']",
        created_ns=1000 + seq,
        completed_ns=0,
        is_retired=retired,
    )


GROUP = GroupRecord(
    time_ns=2, rank=0, pg_name="0", pg_desc="default_pg", backend="gloo", ranks=(0, 1)
)


def test_nothing_is_shared_before_the_size_of_the_job_is_known() -> None:
    """A store that saw no world size has no view, and says what it dropped."""
    store = Store(job_id="job", node_rank=0, host="a07", boot_id="boot")
    source = dataclasses.replace(SIDECAR, world_size=None)
    store.apply(Batch(source=source, records=(step(0, 0, 5),)))
    assert store.view() is None
    assert store.num_dropped["world size unknown"] == 1


@pytest.mark.parametrize("size", [0, -1, MAX_WORLD_SIZE + 1])
def test_an_absurd_world_size_is_refused(size: int) -> None:
    """No arrays are made for a size no job has."""
    store = Store(job_id="job", node_rank=0, host="a07", boot_id="boot")
    source = dataclasses.replace(SIDECAR, world_size=size)
    store.apply(Batch(source=source, records=(step(0, 0, 5),)))
    assert store.view() is None


def test_steps_fill_the_window_and_the_rank_columns() -> None:
    """A step record sets number, end and progress of its rank only."""
    view = view_of(store_with(step(1, 7, 500)))
    slot = int(np.flatnonzero(view.steps.numbers == 7)[0])
    assert view.steps.end_ns[slot].tolist() == [0, 500]
    assert view.ranks.num_steps.tolist() == [0, 8]
    assert view.ranks.progress_ns.tolist() == [1, 500]


def test_an_old_step_does_not_overwrite_a_newer_one() -> None:
    """A late record older than its slot's row is dropped."""
    store = store_with(step(0, 5000, 500), step(0, 5000 - 1024, 400))
    numbers = view_of(store).steps.numbers
    assert 5000 in numbers
    assert 5000 - 1024 not in numbers


def test_counters_that_stand_still_are_no_progress() -> None:
    """Only a changed counter moves the rank's progress time."""

    def counters(time_ns: int, enqueued: int) -> ProgressRecord:
        return ProgressRecord(
            time_ns=time_ns, rank=0, pg_name="0", enqueued=enqueued, started=-1, completed=0
        )

    store = store_with(counters(100, 4), counters(200, 4))
    assert view_of(store).ranks.progress_ns[0] == 100
    store.apply(Batch(source=SIDECAR, records=(counters(300, 5),)))
    assert view_of(store).ranks.progress_ns[0] == 300


def test_a_page_that_stands_still_is_no_progress() -> None:
    """Reading the same page again moves nothing but the time it was read."""
    store = store_with(page(step=3, step_time_ns=40, input_since_ns=45))
    store.apply(
        Batch(
            source=SIDECAR, records=(page(time_ns=90, step=3, step_time_ns=40, input_since_ns=45),)
        )
    )
    ranks = view_of(store).ranks
    assert ranks.page_ns[0] == 90
    assert ranks.progress_ns[0] == 45
    assert ranks.input_since_ns[0] == 45


def test_a_rank_cannot_speak_for_another() -> None:
    """A rank's batch about a different rank is counted and dropped."""
    source = dataclasses.replace(SIDECAR, kind=SourceKind.RANK, rank=0)
    store = store_with(step(1, 3, 500), source=source)
    assert view_of(store).ranks.num_steps.tolist() == [0, 0]
    assert store.num_dropped["rank speaks for another rank"] == 1


def test_a_rank_outside_the_job_is_dropped() -> None:
    """Ranks at or past the world size, and negative ones, never index a column."""
    store = store_with(step(2, 3, 500), step(-1, 3, 500))
    assert store.num_dropped["rank outside the job"] == 2


def test_collectives_are_lined_up_by_sequence_number() -> None:
    """Both members' entries of one sequence number share a slot; the late one stays 0."""
    view = view_of(
        store_with(GROUP, collective(0, 1), collective(1, 1), collective(0, 2, retired=False))
    )
    group = view.groups["0"]
    slot = int(np.flatnonzero(group.seq_ids == 2)[0])
    assert group.last_seq.tolist() == [2, 1]
    assert group.created_ns[slot].tolist() == [1002, 0]
    assert group.op_name(slot, 0) == "all_reduce"
    assert group.op_name(slot, 1) == ""


def test_collectives_read_before_their_group_is_told_wait_for_it() -> None:
    """Entries of a group nobody has told yet are there once it is told, in order and latest."""
    store = store_with(collective(0, 1, retired=False), collective(1, 1))
    store.apply(Batch(source=SIDECAR, records=(collective(0, 1), collective(0, 2))))
    assert not view_of(store).groups
    store.apply(Batch(source=SIDECAR, records=(GROUP, collective(1, 2, retired=False))))
    group = view_of(store).groups["0"]
    assert group.last_seq.tolist() == [2, 2]
    slots = [int(np.flatnonzero(group.seq_ids == seq)[0]) for seq in (1, 2)]
    assert group.is_retired[slots].tolist() == [[True, True], [True, False]]


def test_collectives_of_groups_never_told_are_bounded_and_counted() -> None:
    """Each rank's latest entries of a bounded number of groups are kept; others are counted."""
    store = store_with()
    entries = [collective(0, seq) for seq in range(1, 2 * MAX_ENTRIES + 1)]
    store.apply(Batch(source=SIDECAR, records=tuple(entries)))
    assert store.num_dropped["collective of an unknown group"] == MAX_ENTRIES
    others = [collective(0, 1, pg_name=f"p{number}") for number in range(MAX_KEYS)]
    store.apply(Batch(source=SIDECAR, records=tuple(others)))
    assert store.num_dropped["collective of an unknown group"] == 2 * MAX_ENTRIES
    store.apply(Batch(source=SIDECAR, records=(GROUP,)))
    assert view_of(store).groups["0"].last_seq.tolist() == [-1, -1]


def test_an_entry_that_retires_later_is_updated() -> None:
    """The same entry pulled again as retired replaces the earlier look."""
    store = store_with(GROUP, collective(0, 1, retired=False))
    store.apply(Batch(source=SIDECAR, records=(collective(0, 1, retired=True),)))
    group = view_of(store).groups["0"]
    assert bool(group.is_retired[int(np.flatnonzero(group.seq_ids == 1)[0]), 0])


def test_a_later_attempt_starts_empty_and_an_earlier_one_is_dropped() -> None:
    """Restarting the job forgets the state of the attempt before."""
    store = store_with(step(0, 9, 500))
    second = dataclasses.replace(SIDECAR, attempt=1)
    store.apply(Batch(source=second, records=(START,)))
    view = view_of(store)
    assert view.job.attempt == 1
    assert view.ranks.num_steps.tolist() == [0, 0]
    store.apply(Batch(source=SIDECAR, records=(step(0, 10, 600),)))
    assert view_of(store).ranks.num_steps.tolist() == [0, 0]
    assert store.num_dropped["earlier attempt"] == 1


def test_records_of_another_job_are_dropped() -> None:
    """One store serves one job."""
    store = store_with()
    foreign = dataclasses.replace(SIDECAR, job_id="other")
    store.apply(Batch(source=foreign, records=(step(0, 1, 5),)))
    assert store.num_dropped["other job"] == 1


def test_an_exit_by_signal_is_kept_as_a_negative_number() -> None:
    """exit_code follows the convention of subprocess."""
    store = store_with(WorkerExitRecord(time_ns=70, rank=1, pid=11, exit_code=None, signal=9))
    ranks = view_of(store).ranks
    assert ranks.exit_code[1] == -9
    assert ranks.is_ended.tolist() == [False, True]


def test_a_vanished_process_ends_its_rank() -> None:
    """A pid that is gone means the rank ended, with an unknown exit code."""
    gone = ProcessRecord(
        time_ns=80, rank=0, pid=10, start_ticks=0, state="-", cpu_ns=0, rss_bytes=0, wchan=""
    )
    ranks = view_of(store_with(gone)).ranks
    assert bool(ranks.is_ended[0])
    assert ranks.exit_code[0] == -1000


def test_a_view_cannot_be_written_through() -> None:
    """Detectors share the store's arrays and cannot change them."""
    view = view_of(store_with(step(0, 1, 5)))
    with pytest.raises(ValueError, match="read-only"):
        view.ranks.num_steps[0] = 9


def test_what_a_rank_cannot_give_is_kept() -> None:
    """The blind list of an identity is part of the view."""
    identity = IdentityRecord(
        time_ns=3,
        rank=0,
        local_rank=0,
        node_rank=0,
        world_size=2,
        pid=10,
        start_ticks=1,
        device="cpu",
        gpu_uuid=None,
        torch_version="2.13.0",
        blind=("collectives: recorder is off",),
    )
    assert view_of(store_with(identity)).blind[0] == ("collectives: recorder is off",)
