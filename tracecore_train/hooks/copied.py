"""Reading what other threads change, without a lock that they would wait for."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable

_T = TypeVar("_T")
_NUM_TRIES = 5


def copied(items: Iterable[_T]) -> list[_T]:
    """Copy a dict, or a view of one, that may change size meanwhile; empty where it never holds."""
    for _ in range(_NUM_TRIES):
        with contextlib.suppress(RuntimeError):
            return list(items)
    return []
