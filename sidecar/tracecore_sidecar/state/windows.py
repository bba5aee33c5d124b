"""Bounded windows of numpy rows: the rings behind the job view.

A window keeps the last ``slots`` row numbers; row ``n`` lives in slot ``n % slots``. A row older
than what its slot holds is refused, a newer one clears the slot first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracecore_sidecar.state.points import PointRows
from tracecore_sidecar.state.view import OTHER_OP, GroupView, StepWindow, read_only

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracecore_sidecar.state.view import Ints
    from tracecore_train.wire.records import CollectiveRecord, GroupRecord, StepRecord

CELL_BUDGET = 4_000_000
"""Cells (slots x ranks) one array may have: 32 MB of int64 at any world size."""
MAX_OPS = 4_096
"""Different operation signatures kept per group; further ones share ``OTHER_OP``."""
FIRST_SLOTS = 16
"""Slots of a window that holds nothing yet."""
INT64_MAX = np.iinfo(np.int64).max
_GROUP_ARRAYS: dict[str, int] = {
    "_seq_ids": -1,
    "_created_ns": 0,
    "_is_retired": False,
    "_is_started": False,
    "_op": -1,
}
"""Arrays of a group's window, with what stands in an empty slot."""


def slots_for(width: int, wanted: int) -> int:
    """Give the number of slots for a window ``width`` columns wide, at least 16."""
    return max(16, min(wanted, CELL_BUDGET // max(1, width)))


class StepRows:
    """The last steps of every rank."""

    def __init__(self, world_size: int, slots: int = 1024) -> None:
        """Make an empty window."""
        slots = slots_for(world_size, slots)
        self._numbers: Ints = np.full(slots, -1, dtype=np.int64)
        self._columns = {
            name: np.zeros((slots, world_size), dtype=np.int64)
            for name in (
                "end_ns",
                "duration_ns",
                "input_ns",
                "checkpoint_ns",
                "num_batches",
                "flags",
            )
        }

    def add(self, record: StepRecord) -> None:
        """Store one rank's step."""
        slot = record.step % len(self._numbers)
        held = int(self._numbers[slot])
        if record.step < max(held, 0):
            return
        rank = record.rank
        columns = self._columns
        if record.step > held:
            self._numbers[slot] = record.step
            for column in columns.values():
                column[slot] = 0
        columns["end_ns"][slot, rank] = record.time_ns
        columns["duration_ns"][slot, rank] = record.duration_ns
        columns["input_ns"][slot, rank] = record.input_ns
        columns["checkpoint_ns"][slot, rank] = record.checkpoint_ns
        columns["num_batches"][slot, rank] = record.num_batches
        columns["flags"][slot, rank] = record.flags

    def view(self) -> StepWindow:
        """Share the window, read-only."""
        columns = {name: read_only(column) for name, column in self._columns.items()}
        return StepWindow(numbers=read_only(self._numbers), **columns)


class GroupRows:
    """The last collectives of one process group. The window grows with what it holds."""

    def __init__(self, group: GroupRecord, slots: int = 4096) -> None:
        """Make an empty window for a group's members."""
        members = tuple(dict.fromkeys(group.ranks))
        self._max_slots = slots_for(len(members), slots)
        self._seq_ids: Ints = np.full(min(FIRST_SLOTS, self._max_slots), -1, dtype=np.int64)
        self.group = group
        self.members = members
        self._column_of = {rank: index for index, rank in enumerate(members)}
        shape = (len(self._seq_ids), len(members))
        self._created_ns = np.zeros(shape, dtype=np.int64)
        self._is_retired = np.zeros(shape, dtype=np.bool_)
        self._is_started = np.zeros(shape, dtype=np.bool_)
        self._op = np.full(shape, -1, dtype=np.int32)
        self._last_seq = np.full(len(members), -1, dtype=np.int64)
        self._enqueued = np.full(len(members), -1, dtype=np.int64)
        self._completed = np.full(len(members), -1, dtype=np.int64)
        self._has_plain_counters: bool | None = None
        self._has_gaps = self._has_points = False
        self._ops: dict[str, int] = {}
        self._points = PointRows(len(members))
        self._shared: GroupView | None = None

    def count(self, rank: int, enqueued: int, completed: int) -> None:
        """Store the counters of one member; a rank that is no member is ignored."""
        column = self._column_of.get(rank)
        if column is not None:
            self._enqueued[column], self._completed[column] = enqueued, completed

    def add(self, rank: int, records: Sequence[CollectiveRecord]) -> None:
        """Store entries of one member, in order; a rank that is no member is ignored."""
        column = self._column_of.get(rank)
        if column is None:
            return
        self._shared = None
        points = [record for record in records if record.is_p2p]
        if points:
            self._points.add(column, points, self._op_index)
            self._has_plain_counters, self._has_points = False, True
            records = [record for record in records if not record.is_p2p]
        is_plain = all(0 < record.op_id == record.collective_seq_id for record in records)
        if not is_plain:
            self._has_gaps |= any(0 < r.collective_seq_id < r.op_id for r in records)
        if records:
            self._has_plain_counters = is_plain and self._has_plain_counters is not False
        # Column by column: a routine pull brings hundreds of entries from each rank.
        # Rows that would share a slot go one after the other.
        for begin in range(0, len(records), self._max_slots):
            part = records[begin : begin + self._max_slots]
            seq_ids = np.array([record.collective_seq_id for record in part], dtype=np.int64)
            self._make_room(seq_ids)
            if int(seq_ids.max()) - int(seq_ids.min()) < len(self._seq_ids):
                self._add(column, part, seq_ids)
            else:
                for index, record in enumerate(part):
                    self._add(column, [record], seq_ids[index : index + 1])

    def _make_room(self, seq_ids: Ints) -> None:
        """Double the window until the new rows displace none, or it is as large as may be."""
        held = self._seq_ids[self._seq_ids >= 0]
        first = min(int(seq_ids.min()), int(held.min(initial=INT64_MAX)))
        span = max(int(seq_ids.max()), int(held.max(initial=0))) - first + 1
        slots = len(self._seq_ids)
        if span <= slots or slots >= self._max_slots:
            return
        while slots < span and slots < self._max_slots:
            slots = min(2 * slots, self._max_slots)
        old_slots = np.flatnonzero(self._seq_ids >= 0)
        old_slots = old_slots[np.argsort(held)]
        new_slots = self._seq_ids[old_slots] % slots
        for name, empty in _GROUP_ARRAYS.items():
            old = getattr(self, name)
            new = np.full((slots, *old.shape[1:]), empty, dtype=old.dtype)
            new[new_slots] = old[old_slots]
            setattr(self, name, new)

    def _add(self, column: int, records: Sequence[CollectiveRecord], seq_ids: Ints) -> None:
        slots = seq_ids % len(self._seq_ids)
        held = self._seq_ids[slots]
        is_newer = seq_ids > held
        if is_newer.any():
            taken = slots[is_newer]
            self._created_ns[taken] = 0
            self._is_retired[taken] = False
            self._is_started[taken] = False
            self._op[taken] = -1
            self._seq_ids[taken] = seq_ids[is_newer]
        is_kept = seq_ids >= np.maximum(held, 0)
        if not is_kept.all():
            records = [record for record, keep in zip(records, is_kept, strict=True) if keep]
            slots, seq_ids = slots[is_kept], seq_ids[is_kept]
            if not records:
                return
        self._created_ns[slots, column] = [record.created_ns for record in records]
        self._is_retired[slots, column] = [record.is_retired for record in records]
        self._is_started[slots, column] = [record.is_started for record in records]
        self._op[slots, column] = [self._op_index(record) for record in records]
        self._last_seq[column] = max(int(self._last_seq[column]), int(seq_ids.max()))

    def view(self) -> GroupView:
        """Share the window, read-only."""
        if self._shared is None:
            self._shared = GroupView(
                pg_name=self.group.pg_name,
                pg_desc=self.group.pg_desc,
                backend=self.group.backend,
                members=self.members,
                seq_ids=read_only(self._seq_ids),
                created_ns=read_only(self._created_ns),
                is_retired=read_only(self._is_retired),
                op=read_only(self._op),
                ops=tuple(self._ops),
                last_seq=read_only(self._last_seq),
                is_started=read_only(self._is_started),
                enqueued=read_only(self._enqueued),
                completed=read_only(self._completed),
                has_plain_counters=bool(self._has_plain_counters),
                has_unrecorded=self._has_gaps and not self._has_points,
                points=self._points.view(),
                has_entries=bool(self._ops),
            )
        return self._shared

    def _op_index(self, record: CollectiveRecord) -> int:
        name = f"{record.op} {record.input_sizes} {record.input_dtypes}"
        if record.output_sizes and "all_to_all" in record.op:
            name += f" -> {record.output_sizes}"
        if name not in self._ops and len(self._ops) >= MAX_OPS:
            name = OTHER_OP
        return self._ops.setdefault(name, len(self._ops))
