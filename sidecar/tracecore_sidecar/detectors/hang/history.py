"""What should have come next: an operation sequence predicted from its own past.

Training repeats itself. Where two sides disagree and neither is the majority, the side that
departs from what all of them did so far is the odd one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

MIN_CONTEXT = 2
"""Operations before that must have been the same, too."""
MAX_CONTEXT = 64

_Item = TypeVar("_Item", bound="Hashable")


def expected_next(past: Sequence[_Item]) -> _Item | None:
    """Give what followed the last time the same operations came before; None where none did.

    Of all earlier places the one with the longest common run before it counts, and of equal ones
    the latest.
    """
    best, best_length = -1, MIN_CONTEXT - 1
    end = len(past)
    for place in range(end - 1, MIN_CONTEXT - 1, -1):
        length = 0
        limit = min(place, MAX_CONTEXT)
        while length < limit and past[place - 1 - length] == past[end - 1 - length]:
            length += 1
        if length > best_length:
            best, best_length = place, length
            if length >= MAX_CONTEXT:
                break
    return past[best] if best >= 0 else None
