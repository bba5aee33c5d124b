"""What the store keeps of processes and checkpoints."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tracecore_sidecar.state.store import Store
from tracecore_train.wire.records import (
    Batch,
    CheckpointRecord,
    ProcessRecord,
    Record,
    Source,
    SourceKind,
)

if TYPE_CHECKING:
    from tracecore_sidecar.state.view import JobView

SECOND = 1_000_000_000


def view_of(*records: Record) -> JobView:
    store = Store(job_id="j", node_rank=0, host="a", boot_id="b")
    source = Source(
        kind=SourceKind.SIDECAR,
        host="a",
        boot_id="b",
        pid=1,
        job_id="j",
        attempt=0,
        wall_offset_ns=0,
        node_rank=0,
        world_size=2,
    )
    store.apply(Batch(source=source, records=records))
    view = store.view()
    assert view is not None
    return view


def look(time_ns: int, wait_ns: int = -1) -> ProcessRecord:
    return ProcessRecord(
        time_ns=time_ns,
        rank=0,
        pid=10,
        start_ticks=1,
        state="S",
        cpu_ns=0,
        rss_bytes=0,
        wchan="",
        main_cpu_ns=wait_ns,
        main_wait_ns=wait_ns,
    )


def checkpoint(duration_ns: int, *, is_blocking: bool) -> CheckpointRecord:
    return CheckpointRecord(
        time_ns=9, rank=0, call="torch.save", duration_ns=duration_ns, is_blocking=is_blocking
    )


def test_close_looks_outlive_the_light_ones_between_them() -> None:
    """The last two close looks stay though lighter ones came after; those are the latest looks."""
    looks = [look(1, 100), look(2), look(3, 200), look(4), look(5, 300), look(6), look(7)]
    view = view_of(*(replace(item, time_ns=item.time_ns * SECOND) for item in looks))
    assert [record.time_ns // SECOND for record in view.close_looks[0]] == [3, 5]
    assert [record.time_ns // SECOND for record in view.processes[0]] == [6, 7]


def test_looks_that_come_together_leave_one_that_is_apart() -> None:
    """A share needs some time between two looks: the one before the last near ones stays."""
    times_ms = (1_000, 2_000, 2_010, 2_150)
    view = view_of(*(look(time_ms * 1_000_000, 100) for time_ms in times_ms))
    for looks in (view.close_looks[0], view.processes[0]):
        assert [record.time_ns // 1_000_000 for record in looks] == [1_000, 2_150]


def test_patience_grows_only_with_checkpoints_that_training_waited_for() -> None:
    """An hour of writing beside the training says nothing of how long a rank may stand still."""
    view = view_of(checkpoint(50, is_blocking=True), checkpoint(3_600, is_blocking=False))
    assert view.ranks.longest_checkpoint_ns[0] == 50
