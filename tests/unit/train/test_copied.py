"""Copies of what another thread changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracecore_train.hooks.copied import copied

if TYPE_CHECKING:
    from collections.abc import Iterator


class Changing:
    """A dict that changes while it is copied, so many times."""

    def __init__(self, num_changes: int) -> None:
        self._num_changes = num_changes

    def __iter__(self) -> Iterator[int]:
        yield 1
        if self._num_changes:
            self._num_changes -= 1
            raise RuntimeError("dictionary changed size during iteration")
        yield 2


def test_a_copy_is_tried_again_and_given_up() -> None:
    """Two changes cost two more tries; one that changes for ever gives nothing, and no error."""
    assert copied(Changing(2)) == [1, 2]
    assert copied(Changing(1_000)) == []
