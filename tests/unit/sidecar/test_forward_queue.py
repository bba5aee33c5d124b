"""The forward queue: memory, disk, order, bounds, restarts."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tracecore_sidecar.forward.queue import ForwardQueue
from tracecore_sidecar.forward.spool import Entry

if TYPE_CHECKING:
    from pathlib import Path

MANY = 1000


def entry(number: int, num_bytes: int = 100) -> Entry:
    """A body that does not compress."""
    return Entry(number.to_bytes(4, "big") + os.urandom(num_bytes - 4), 1)


def numbers(queue: ForwardQueue) -> list[int]:
    """Drain a queue and give what was in it, in order."""
    found: list[int] = []
    while taken := queue.take(1 << 30, MANY):
        found += [int.from_bytes(one.body[:4], "big") for one in taken]
        queue.done()
    return found


def test_the_order_is_kept_between_disk_and_memory(tmp_path: Path) -> None:
    """What went to disk comes before what came later."""
    queue = ForwardQueue(tmp_path)
    for number in range(3):
        queue.offer(entry(number))
        queue.spill()
    queue.offer(entry(3))
    assert numbers(queue) == [0, 1, 2, 3]
    assert os.listdir(tmp_path) == []
    assert queue.num_bytes == 0


def test_a_restart_loses_nothing(tmp_path: Path) -> None:
    """A closed queue's entries are found by the next one, before what is new."""
    first = ForwardQueue(tmp_path)
    for number in range(5):
        first.offer(entry(number))
    first.take(1, 1)  # in flight when the sidecar ends
    first.close()
    second = ForwardQueue(tmp_path)
    second.offer(entry(5))
    assert second.wait(0)
    assert numbers(second) == [0, 1, 2, 3, 4, 5]
    assert first.num_dropped == second.num_dropped == 0


def test_what_is_given_back_comes_first_again(tmp_path: Path) -> None:
    """A failed batch is taken again, whole and in order, from memory and from disk."""
    queue = ForwardQueue(tmp_path)
    for number in range(4):
        queue.offer(entry(number))
    queue.take(250, MANY)
    queue.give_back()
    queue.spill()
    assert len(queue.take(250, MANY)) == 2
    queue.give_back()
    assert numbers(queue) == [0, 1, 2, 3]


def test_memory_is_bounded_and_drops_the_oldest(tmp_path: Path) -> None:
    """Beyond the bound the oldest go, counted, and the queue says that it is full."""
    queue = ForwardQueue(tmp_path, memory_bytes=1000)
    for number in range(12):
        queue.offer(entry(number))
    assert queue.is_full
    assert queue.num_bytes == 1000
    assert queue.num_dropped == 2
    assert numbers(queue) == list(range(2, 12))


def test_a_body_longer_than_the_bound_is_kept(tmp_path: Path) -> None:
    """One long body is not dropped for being long; the next that comes takes its place."""
    queue = ForwardQueue(tmp_path, memory_bytes=1000)
    queue.offer(entry(0, 5000))
    assert queue.num_dropped == 0
    queue.offer(entry(1))
    assert numbers(queue) == [1]


def test_disk_is_bounded_and_drops_the_oldest(tmp_path: Path) -> None:
    """Beyond the bound the oldest segments go, counted by their items."""
    queue = ForwardQueue(tmp_path, disk_bytes=5000)
    for number in range(8):
        queue.offer(entry(number, 1000))
        queue.spill()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 5000
    assert queue.is_full or queue.num_bytes > 4000
    left = numbers(queue)
    assert left == list(range(8 - len(left), 8))
    assert queue.num_dropped == 8 - len(left) > 0


def test_room_is_made_for_what_comes_while_the_oldest_is_being_sent(tmp_path: Path) -> None:
    """A segment that was loaded and then made room is not sent, and the rest is in order."""
    queue = ForwardQueue(tmp_path, disk_bytes=5000)
    for number in range(4):
        queue.offer(entry(number, 1000))
        queue.spill()
    queue.take(1, 1)
    queue.give_back()
    queue.offer(entry(9, 2000))
    queue.spill()
    assert numbers(queue) == [2, 3, 9]
    assert queue.num_dropped == 2


@pytest.mark.parametrize("damage", [b"", b"garbage", b"x" * 5000])
def test_a_damaged_segment_is_counted_and_passed_over(tmp_path: Path, damage: bytes) -> None:
    """What cannot be read back costs itself, not the queue."""
    first = ForwardQueue(tmp_path)
    for number in range(2):
        first.offer(entry(number))
        first.spill()
    sorted(tmp_path.iterdir())[0].write_bytes(damage)
    (tmp_path / "0001-evil.otlpq").write_bytes(damage)
    second = ForwardQueue(tmp_path)
    assert numbers(second) == [1]
    assert second.num_dropped == 1


def test_a_disk_that_refuses_keeps_memory(tmp_path: Path) -> None:
    """A failed spill loses nothing while memory has room; it is said, and ends counted."""
    place = tmp_path / "file"
    place.write_text("in the way")
    queue = ForwardQueue(place / "queue")
    queue.offer(entry(0))
    queue.spill()
    assert queue.spill_error
    assert queue.num_dropped == 0
    queue.close()
    assert queue.num_dropped == 1


def test_a_closed_queue_takes_nothing(tmp_path: Path) -> None:
    """What is offered after the end is counted as dropped."""
    queue = ForwardQueue(tmp_path)
    queue.close()
    queue.offer(entry(0))
    assert queue.num_dropped == 1
    assert queue.take(1, 1) == ()
