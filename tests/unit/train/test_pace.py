"""A pace lets a fixed number through in each second."""

from __future__ import annotations

from tracecore_train.recorder.pace import SECOND_NS, Pace


def test_each_second_lets_as_many_through() -> None:
    """Of four that ask in one second two pass, and two more in the next one."""
    pace = Pace(2)
    asked = [SECOND_NS + i for i in range(4)] + [2 * SECOND_NS + i for i in range(4)]
    assert [pace.allows(now) for now in asked] == [True, True, False, False] * 2
