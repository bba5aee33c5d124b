"""Operations that began, by the rank that does them: which are still open, and which ended.

Written by the threads that send and receive, read once a second by the export thread, which still
runs while they wait inside torch. Nothing here holds a tensor or a torch work: of a work only its
end is noted. What does not fit is counted, never waited for.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tracecore_train.hooks.copied import copied
from tracecore_train.recorder.clock import now_ns
from tracecore_train.wire.records import CollectiveRecord

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_OPEN = 4_096
"""Operations that may be open at a time; further ones are counted and left out."""
MAX_ENDED = 4_096
"""Operations that may end between two hand-overs; further ones are counted and left out."""
MAX_ORDERS = 65_536
"""Pairs of group and direction that are numbered; operations of further ones are left out."""
MAX_TOLD_AGAIN = 512
"""Ended operations told once more after a hand-over failed: what the sidecar saw open must not
stay open for it."""
_DTYPES = {
    "float32": "Float",
    "float64": "Double",
    "float16": "Half",
    "bfloat16": "BFloat16",
    "int64": "Long",
    "int32": "Int",
    "int16": "Short",
    "int8": "Char",
    "uint8": "Byte",
    "bool": "Bool",
}
"""Types by the name the flight recorder gives them."""


@dataclass(slots=True)
class Operation:
    """One send or recv."""

    number: int
    """Order among those of this process, from 1."""
    pg_name: str
    op: str
    """As the flight recorder names it: ``send 0->1``, ranks counted inside the group."""
    order: int
    """Order among those of this group, pair and direction, from 1."""
    tag: int
    shape: tuple[int, ...]
    dtype: object
    began_ns: int
    ended_ns: int = 0
    is_told: bool = False

    def record(self, rank: int, time_ns: int) -> CollectiveRecord:
        """Tell it as the flight recorder would."""
        sizes, dtype = str([list(self.shape)]), str(self.dtype).rpartition(".")[2]
        dtypes = str([_DTYPES.get(dtype, dtype)])
        return CollectiveRecord(
            time_ns=time_ns,
            rank=rank,
            pg_name=self.pg_name,
            collective_seq_id=0,
            record_id=self.number,
            op=self.op,
            input_sizes=sizes,
            input_dtypes=dtypes,
            created_ns=self.began_ns,
            completed_ns=self.ended_ns,
            is_retired=bool(self.ended_ns),
            is_p2p=True,
            p2p_seq_id=self.order,
            output_sizes=sizes,
            output_dtypes=dtypes,
            tag=self.tag,
        )


class OpenOperations:
    """See the module."""

    def __init__(self) -> None:
        """Start with none."""
        self.num_lost = 0
        self._numbers = itertools.count(1)
        self._orders: dict[tuple[str, str], Iterator[int]] = {}
        self._open: dict[int, Operation] = {}
        self._ended: deque[Operation] = deque(maxlen=MAX_ENDED)
        self._told: deque[Operation] = deque(maxlen=MAX_TOLD_AGAIN)

    def begin(self, pg_name: str, op: str, tag: int, tensor: Any) -> Operation | None:
        """Note that one begins; None where there is no room."""
        order = self._order(pg_name, op)
        if not order or len(self._open) >= MAX_OPEN:
            self.num_lost += 1
            return None
        operation = Operation(
            number=next(self._numbers),
            pg_name=pg_name,
            op=op,
            order=order,
            tag=tag,
            shape=tuple(tensor.shape),
            dtype=tensor.dtype,
            began_ns=now_ns(),
        )
        self._open[operation.number] = operation
        return operation

    def end(self, operation: Operation, op: str = "") -> None:
        """Note that it finished, failed or was given up; ``op``: what it turned out to be."""
        if self._open.pop(operation.number, None) is None:
            return
        order = self._order(operation.pg_name, op) if op else 0
        if order:
            operation.op, operation.order = op, order
        operation.ended_ns = now_ns()
        if len(self._ended) >= MAX_ENDED:
            self.num_lost += 1
        self._ended.append(operation)

    def take(self, is_full: bool) -> list[Operation]:
        """Give those that opened or ended since the last time, in order; for one thread.

        With ``is_full`` all that are open, and the last that ended.
        """
        taken = list(self._told) if is_full else []
        for _ in range(len(self._ended)):
            with contextlib.suppress(IndexError):
                ended = self._ended.popleft()
                self._told.append(ended)
                taken.append(ended)
        for operation in copied(self._open.values()):
            if is_full or not operation.is_told:
                operation.is_told = True
                taken.append(operation)
        return sorted(taken, key=lambda operation: operation.number)

    def _order(self, pg_name: str, op: str) -> int:
        orders = self._orders.get((pg_name, op))
        if orders is None:
            if len(self._orders) >= MAX_ORDERS:
                return 0
            orders = self._orders.setdefault((pg_name, op), itertools.count(1))
        return next(orders)
