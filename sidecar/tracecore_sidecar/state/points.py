"""The last sends and receives of one process group, by member.

Torch names them ``send 0->3`` and ``recv 3<-0``, with ranks counted inside the group. Entries of
that kind have no sequence number that two ranks share: what belongs together is told by pair,
direction and order.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tracecore_sidecar.state.view import PointColumns, read_only

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tracecore_train.wire.records import CollectiveRecord

MAX_POINTS = 512
"""Kept of one member: pipeline schedules have a few dozen in flight."""
_NAME = re.compile(r"(send|recv) (\d{1,9})(->|<-)(\d{1,9})\Z")


class _Point(NamedTuple):
    peer: int
    is_send: bool
    created_ns: int
    is_done: bool
    is_started: bool
    op: int
    tag: int


class PointRows:
    """See the module."""

    def __init__(self, num_members: int) -> None:
        """Start empty."""
        self._num_members = num_members
        self._rows: dict[int, dict[int, _Point]] = {}
        self._is_whole = True
        self._shared: PointColumns | None = None

    def add(
        self,
        column: int,
        records: Sequence[CollectiveRecord],
        op_index: Callable[[CollectiveRecord], int],
    ) -> None:
        """Store entries of one member; names that are not understood are left out."""
        rows = self._rows.setdefault(column, {})
        for record in records:
            match = _NAME.match(record.op)
            peer = int(match[4]) if match else -1
            if match is None or not 0 <= peer < self._num_members or peer == column:
                continue
            rows[record.record_id] = _Point(
                peer=peer,
                is_send=match[1] == "send",
                created_ns=record.created_ns,
                is_done=record.is_retired,
                is_started=record.is_started,
                op=op_index(record),
                tag=record.tag,
            )
        for record_id in sorted(rows)[:-MAX_POINTS]:
            del rows[record_id]
            self._is_whole = False
        self._shared = None

    def view(self) -> PointColumns:
        """Share the rows, read-only, in the order in which each member entered them."""
        if not self._rows:
            return _NONE
        if self._shared is None:
            flat = [
                (column, record_id, *point)
                for column, rows in sorted(self._rows.items())
                for record_id, point in sorted(rows.items())
            ]
            table = np.array(flat, dtype=np.int64).reshape(len(flat), 9)
            self._shared = PointColumns(
                member=read_only(table[:, 0]),
                record_id=read_only(table[:, 1]),
                peer=read_only(table[:, 2]),
                is_send=read_only(table[:, 3].astype(np.bool_)),
                created_ns=read_only(table[:, 4]),
                is_done=read_only(table[:, 5].astype(np.bool_)),
                is_started=read_only(table[:, 6].astype(np.bool_)),
                op=read_only(table[:, 7]),
                tag=read_only(table[:, 8]),
                is_whole=self._is_whole,
            )
        return self._shared


_NO_INTS = read_only(np.zeros(0, dtype=np.int64))
_NO_BOOLS = read_only(np.zeros(0, dtype=np.bool_))
_NONE = PointColumns(
    member=_NO_INTS,
    record_id=_NO_INTS,
    peer=_NO_INTS,
    is_send=_NO_BOOLS,
    created_ns=_NO_INTS,
    is_done=_NO_BOOLS,
    is_started=_NO_BOOLS,
    op=_NO_INTS,
    tag=_NO_INTS,
    is_whole=True,
)
"""Of a group without sends and receives: most have none."""
