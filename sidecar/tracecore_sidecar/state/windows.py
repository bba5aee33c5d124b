"""Bounded windows of numpy rows: the rings behind the job view.

A window keeps the last ``slots`` row numbers; row ``n`` lives in slot ``n % slots``. A row older
than what its slot holds is refused, a newer one clears the slot first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracecore_sidecar.state.view import GroupView, StepWindow, read_only

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracecore_sidecar.state.view import Ints
    from tracecore_train.wire.records import CollectiveRecord, GroupRecord, StepRecord

CELL_BUDGET = 4_000_000
"""Cells (slots x ranks) one array may have: 32 MB of int64 at any world size."""
MAX_OPS = 4_096
"""Different operation signatures kept per group; further ones share the entry ``other``."""


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
    """The last collectives of one process group."""

    def __init__(self, group: GroupRecord, slots: int = 4096) -> None:
        """Make an empty window for a group's members."""
        members = tuple(dict.fromkeys(group.ranks))
        slots = slots_for(len(members), slots)
        self._seq_ids: Ints = np.full(slots, -1, dtype=np.int64)
        self.group = group
        self.members = members
        self._column_of = {rank: index for index, rank in enumerate(members)}
        shape = (slots, len(members))
        self._created_ns = np.zeros(shape, dtype=np.int64)
        self._is_retired = np.zeros(shape, dtype=np.bool_)
        self._op = np.full(shape, -1, dtype=np.int32)
        self._last_seq = np.full(len(members), -1, dtype=np.int64)
        self._ops: dict[str, int] = {}

    def add(self, rank: int, records: Sequence[CollectiveRecord]) -> None:
        """Store entries of one member, in order; a rank that is no member is ignored."""
        column = self._column_of.get(rank)
        if column is None:
            return
        # Column by column: a routine pull brings hundreds of entries from each rank.
        # Rows that would share a slot go one after the other.
        num_slots = len(self._seq_ids)
        for begin in range(0, len(records), num_slots):
            part = records[begin : begin + num_slots]
            seq_ids = np.array([record.collective_seq_id for record in part], dtype=np.int64)
            if int(seq_ids.max()) - int(seq_ids.min()) < num_slots:
                self._add(column, part, seq_ids)
            else:
                for index, record in enumerate(part):
                    self._add(column, [record], seq_ids[index : index + 1])

    def _add(self, column: int, records: Sequence[CollectiveRecord], seq_ids: Ints) -> None:
        slots = seq_ids % len(self._seq_ids)
        held = self._seq_ids[slots]
        is_newer = seq_ids > held
        if is_newer.any():
            taken = slots[is_newer]
            self._created_ns[taken] = 0
            self._is_retired[taken] = False
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
        self._op[slots, column] = [self._op_index(record) for record in records]
        self._last_seq[column] = max(int(self._last_seq[column]), int(seq_ids.max()))

    def view(self) -> GroupView:
        """Share the window, read-only."""
        return GroupView(
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
        )

    def _op_index(self, record: CollectiveRecord) -> int:
        name = f"{record.op} {record.input_sizes} {record.input_dtypes}"
        if name not in self._ops and len(self._ops) >= MAX_OPS:
            name = "other"
        return self._ops.setdefault(name, len(self._ops))
