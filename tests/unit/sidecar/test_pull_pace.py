"""When rounds of recorder pulls are due."""

from __future__ import annotations

from tracecore_sidecar.pull_pace import MANY_RANKS, MAX_ENTRIES, PullPace
from tracecore_train.wire.records import PullRecord

SECOND_NS = 1_000_000_000
INTERVAL_S = 5.0


def rounds(
    num_ranks: int, *, num_entries: int = 0, lost_at_s: int = -1, offset_ns: int = 0
) -> list[int]:
    """Tick once a second for two minutes; give the wall-clock seconds at which rounds began."""
    pace = PullPace(offset_ns)
    began, last_s = [], 0
    for second in range(1, 121):
        if pace.is_due(INTERVAL_S, num_ranks, second * SECOND_NS - offset_ns):
            entries = num_entries * (second - last_s) // 5
            last_s = second
            began.append(second)
            pace.pulled(
                PullRecord(
                    time_ns=0,
                    rank=0,
                    is_ok=True,
                    reason="",
                    num_entries=entries,
                    num_lost=int(second == lost_at_s),
                )
            )
    return began


def test_few_ranks_are_read_at_every_multiple() -> None:
    """A usual node reads every five seconds, however little happens."""
    assert rounds(MANY_RANKS) == list(range(5, 121, 5))


def test_many_ranks_with_slow_rings_are_read_at_every_second() -> None:
    """After the first round a large node leaves out every second multiple, of the wall clock."""
    assert rounds(MANY_RANKS + 1, num_entries=MAX_ENTRIES)[1:] == list(range(10, 121, 10))


def test_many_ranks_with_fast_rings_are_read_at_every_multiple() -> None:
    """A ring that would be more than half overwritten in two intervals is read in each."""
    assert rounds(MANY_RANKS + 1, num_entries=MAX_ENTRIES + 10) == list(range(5, 121, 5))


def test_lost_entries_end_the_sparing() -> None:
    """A ring smaller than assumed is read at every multiple once it lost something."""
    began = rounds(MANY_RANKS + 1, num_entries=10, lost_at_s=60)
    assert began[-13:] == list(range(60, 121, 5))


def test_multiples_are_of_the_wall_clock() -> None:
    """Two nodes with different monotonic clocks read at the same wall-clock seconds."""
    assert rounds(72) == rounds(72, offset_ns=-123_456 * SECOND_NS)
