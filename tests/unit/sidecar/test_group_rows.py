"""The window of one process group: it grows, keeps what it holds, and sets messages apart."""

from __future__ import annotations

from typing import Any

import numpy as np

from tracecore_sidecar.state.points import MAX_POINTS
from tracecore_sidecar.state.windows import FIRST_SLOTS, GroupRows
from tracecore_train.wire.records import CollectiveRecord, GroupRecord

GROUP = GroupRecord(time_ns=1, rank=0, pg_name="g", pg_desc="", backend="nccl", ranks=(4, 7))


def entry(seq: int, op: str = "all_reduce", **more: Any) -> CollectiveRecord:
    return CollectiveRecord(
        **{
            "time_ns": 1,
            "rank": 4,
            "pg_name": "g",
            "collective_seq_id": seq,
            "record_id": seq,
            "op": op,
            "input_sizes": "[[4]]",
            "input_dtypes": "['Float']",
            "created_ns": 100 + seq,
            "completed_ns": 0,
            "is_retired": False,
            "op_id": seq,
            **more,
        }
    )


def test_a_window_grows_and_keeps_what_it_holds() -> None:
    """Many more sequence numbers than first slots: none is lost below the limit."""
    rows = GroupRows(GROUP, slots=256)
    num = 10 * FIRST_SLOTS
    for seq in range(1, num):
        rows.add(4, [entry(seq)])
        rows.add(7, [entry(seq, rank=7)])
    view = rows.view()
    assert sorted(s for s in view.seq_ids.tolist() if s >= 0) == list(range(1, num))
    slot = int(np.flatnonzero(view.seq_ids == 3)[0])
    assert view.created_ns[slot].tolist() == [103, 103]


def test_a_full_window_drops_the_oldest() -> None:
    """Past the limit a new row takes the place of the oldest."""
    rows = GroupRows(GROUP, slots=32)
    rows.add(4, [entry(seq) for seq in range(1, 101)])
    held = sorted(s for s in rows.view().seq_ids.tolist() if s >= 0)
    assert held == list(range(69, 101))


def test_an_earlier_view_stays_as_it_was_shared() -> None:
    """Growing does not pull the arrays away under a reader."""
    rows = GroupRows(GROUP)
    rows.add(4, [entry(1)])
    earlier = rows.view()
    rows.add(4, [entry(1 + 5 * FIRST_SLOTS)])
    assert earlier.created_ns[earlier.seq_ids == 1, 0].tolist() == [101]
    assert rows.view().last_seq.tolist() == [1 + 5 * FIRST_SLOTS, -1]


def test_messages_are_kept_apart_from_collectives() -> None:
    """They have no sequence number of the group, and make its counters count something else."""
    rows = GroupRows(GROUP)
    rows.add(4, [entry(1), entry(1, "send 0->1", is_p2p=True, record_id=2)])
    view = rows.view()
    assert view.points.member.tolist() == [0]
    assert view.points.peer.tolist() == [1]
    assert view.points.is_send.tolist() == [True]
    assert view.last_seq.tolist() == [1, -1]
    assert not view.has_plain_counters


def test_messages_that_are_not_understood_are_left_out() -> None:
    """A peer outside the group, oneself, or another form of name."""
    rows = GroupRows(GROUP)
    names = ("send 0->2", "send 0->0", "recv from anywhere", "coalesced")
    rows.add(4, [entry(0, name, is_p2p=True, record_id=i) for i, name in enumerate(names)])
    assert not len(rows.view().points.member)


def test_only_the_newest_messages_are_kept() -> None:
    """And it is said that older ones are gone: counting them would mislead."""
    rows = GroupRows(GROUP)
    rows.add(4, [entry(0, "send 0->1", is_p2p=True, record_id=i) for i in range(MAX_POINTS + 5)])
    points = rows.view().points
    assert len(points.member) == MAX_POINTS
    assert points.record_id.min() == 5
    assert not points.is_whole


def test_counters_are_plain_only_where_entries_show_it() -> None:
    """An operation number that runs ahead of the sequence number hides sends and receives."""
    rows = GroupRows(GROUP)
    rows.count(7, 9, 8)
    assert not rows.view().has_plain_counters
    rows.add(4, [entry(1)])
    assert rows.view().has_plain_counters
    assert rows.view().enqueued.tolist() == [-1, 9]
    rows.add(4, [entry(2, op_id=3)])
    assert not rows.view().has_plain_counters
