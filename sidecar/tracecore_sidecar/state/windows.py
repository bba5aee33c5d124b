"""Bounded windows of numpy rows: the rings behind the job view.

A window keeps the last ``slots`` row numbers; row ``n`` lives in slot ``n % slots``. A row older
than what its slot holds is refused, a newer one clears the slot first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracecore_sidecar.state.view import GroupView, StepWindow, read_only

if TYPE_CHECKING:
    from tracecore_sidecar.state.view import Ints
    from tracecore_train.wire.records import CollectiveRecord, GroupRecord, StepRecord

CELL_BUDGET = 4_000_000
"""Cells (slots x ranks) one array may have: 32 MB of int64 at any world size."""
MAX_OPS = 4_096
"""Different operation signatures kept per group; further ones share the entry ``other``."""


def slots_for(width: int, wanted: int) -> int:
    """Give the number of slots for a window ``width`` columns wide, at least 16."""
    return max(16, min(wanted, CELL_BUDGET // max(1, width)))


class _Ring:
    """Row numbers by slot, and which arrays to clear when a slot is taken over."""

    def __init__(self, slots: int) -> None:
        self.numbers: Ints = np.full(slots, -1, dtype=np.int64)

    def slot_of(self, number: int) -> int | None:
        """Give the slot of a row, taking it over if the row is newer; None if it is too old."""
        slot = number % len(self.numbers)
        held = int(self.numbers[slot])
        if number < held or number < 0:
            return None
        if number > held:
            self.clear(slot)
            self.numbers[slot] = number
        return slot

    def clear(self, slot: int) -> None:
        raise NotImplementedError


class StepRows(_Ring):
    """The last steps of every rank."""

    def __init__(self, world_size: int, slots: int = 1024) -> None:
        """Make an empty window."""
        slots = slots_for(world_size, slots)
        super().__init__(slots)
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

    def clear(self, slot: int) -> None:
        """Empty a slot."""
        for column in self._columns.values():
            column[slot] = 0

    def add(self, record: StepRecord) -> None:
        """Store one rank's step."""
        slot = self.slot_of(record.step)
        if slot is None:
            return
        rank = record.rank
        columns = self._columns
        columns["end_ns"][slot, rank] = record.time_ns
        columns["duration_ns"][slot, rank] = record.duration_ns
        columns["input_ns"][slot, rank] = record.input_ns
        columns["checkpoint_ns"][slot, rank] = record.checkpoint_ns
        columns["num_batches"][slot, rank] = record.num_batches
        columns["flags"][slot, rank] = record.flags

    def view(self) -> StepWindow:
        """Share the window, read-only."""
        columns = {name: read_only(column) for name, column in self._columns.items()}
        return StepWindow(numbers=read_only(self.numbers), **columns)


class GroupRows(_Ring):
    """The last collectives of one process group."""

    def __init__(self, group: GroupRecord, slots: int = 4096) -> None:
        """Make an empty window for a group's members."""
        members = tuple(dict.fromkeys(group.ranks))
        slots = slots_for(len(members), slots)
        super().__init__(slots)
        self.group = group
        self.members = members
        self._column_of = {rank: index for index, rank in enumerate(members)}
        shape = (slots, len(members))
        self._created_ns = np.zeros(shape, dtype=np.int64)
        self._is_retired = np.zeros(shape, dtype=np.bool_)
        self._op = np.full(shape, -1, dtype=np.int32)
        self._last_seq = np.full(len(members), -1, dtype=np.int64)
        self._ops: dict[str, int] = {}

    def clear(self, slot: int) -> None:
        """Empty a slot."""
        self._created_ns[slot] = 0
        self._is_retired[slot] = False
        self._op[slot] = -1

    def add(self, record: CollectiveRecord) -> None:
        """Store one member's entry; a rank that is no member is ignored."""
        column = self._column_of.get(record.rank)
        slot = self.slot_of(record.collective_seq_id)
        if column is None or slot is None:
            return
        self._created_ns[slot, column] = record.created_ns
        self._is_retired[slot, column] = record.is_retired
        self._op[slot, column] = self._op_index(record)
        self._last_seq[column] = max(int(self._last_seq[column]), record.collective_seq_id)

    def view(self) -> GroupView:
        """Share the window, read-only."""
        return GroupView(
            pg_name=self.group.pg_name,
            pg_desc=self.group.pg_desc,
            backend=self.group.backend,
            members=self.members,
            seq_ids=read_only(self.numbers),
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
