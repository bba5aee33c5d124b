"""A bounded buffer with one writer and one reader that never wait for each other.

The writer fills a slot and then publishes it by advancing ``_head``; the reader empties slots
up to the published head and then frees them by advancing ``_tail``. Each index has one writer,
so no lock is needed, with or without a GIL. A full ring drops the new row and counts it.
"""

from __future__ import annotations


class Ring:
    """Rows of one thread, waiting for the export thread."""

    __slots__ = ("_capacity", "_head", "_slots", "_tail", "num_dropped")

    def __init__(self, capacity: int) -> None:
        """Make a ring for ``capacity`` rows; the memory is taken now."""
        if capacity < 1:
            raise ValueError(f"a ring needs room for at least one row, got {capacity}")
        self._capacity = capacity
        self._slots: list[tuple[object, ...] | None] = [None] * capacity
        self._head = 0
        self._tail = 0
        self.num_dropped = 0
        """Rows refused so far because the ring was full; written by the writer only."""

    def __len__(self) -> int:
        """Rows waiting."""
        return self._head - self._tail

    def append(self, row: tuple[object, ...]) -> None:
        """Store a row, or count it as dropped. For the thread that owns the ring."""
        head = self._head
        if head - self._tail >= self._capacity:
            self.num_dropped += 1
            return
        self._slots[head % self._capacity] = row
        self._head = head + 1

    def drain(self, limit: int) -> list[tuple[object, ...]]:
        """Take up to ``limit`` rows, oldest first. For the export thread."""
        tail = self._tail
        end = min(self._head, tail + limit)
        rows: list[tuple[object, ...]] = []
        slots, capacity = self._slots, self._capacity
        for index in range(tail, end):
            row = slots[index % capacity]
            slots[index % capacity] = None
            if row is not None:
                rows.append(row)
        self._tail = end
        return rows
