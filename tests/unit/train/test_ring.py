"""The ring against a list: what goes in comes out, in order, and every loss is counted."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracecore_train.recorder.ring import Ring

OPERATIONS = st.lists(st.one_of(st.none(), st.integers(0, 20)), max_size=200)


@given(capacity=st.integers(1, 9), operations=OPERATIONS)
def test_ring_behaves_like_a_bounded_list(capacity: int, operations: list[int | None]) -> None:
    """Appends (None) and drains (limit) give what a list that refuses when full would give."""
    ring, num_dropped, number = Ring(capacity), 0, 0
    model: list[tuple[object, ...]] = []
    for operation in operations:
        if operation is None:
            number += 1
            ring.append((number,))
            if len(model) < capacity:
                model.append((number,))
            else:
                num_dropped += 1
        else:
            expected, model = model[:operation], model[operation:]
            assert ring.drain(operation) == expected
        assert len(ring) == len(model)
        assert ring.num_dropped == num_dropped


def test_ring_forgets_drained_rows() -> None:
    """A drained ring keeps no reference to the rows it handed over."""
    ring = Ring(4)
    ring.append(("large",))
    ring.drain(10)
    assert ring._slots == [None] * 4


def test_ring_without_room_is_refused() -> None:
    """A ring of capacity 0 is an error that names the number."""
    with pytest.raises(ValueError, match="got 0"):
        Ring(0)


def test_writer_and_reader_threads_lose_only_what_is_counted() -> None:
    """Rows drained by another thread plus rows dropped are all rows written, in order."""
    ring, num_rows = Ring(64), 50_000
    seen: list[Any] = []
    is_done = threading.Event()

    def read() -> None:
        while not is_done.is_set() or len(ring):
            seen.extend(row[0] for row in ring.drain(100))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(num_rows):
        ring.append((number,))
    is_done.set()
    reader.join(60)
    assert not reader.is_alive()
    assert len(seen) + ring.num_dropped == num_rows
    assert seen == sorted(set(seen))
