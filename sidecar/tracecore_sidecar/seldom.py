"""An inquiry that is made seldom: one at a time, and the same again only after a while."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Coroutine


class Seldom:
    """See the module."""

    def __init__(self, repeat_after_ns: int) -> None:
        """Nothing was asked yet."""
        self._repeat_after_ns = repeat_after_ns
        self._asked_ns: dict[int, int] = {}
        self._running: asyncio.Task[None] | None = None

    def is_due(self, attempt: int, now_ns: int) -> bool:
        """Say whether to ask about an attempt now."""
        asked_ns = self._asked_ns.get(attempt)
        is_fresh = asked_ns is not None and now_ns - asked_ns < self._repeat_after_ns
        return not is_fresh and (self._running is None or self._running.done())

    def start(self, attempt: int, now_ns: int, inquiry: Coroutine[None, None, None]) -> None:
        """Ask."""
        self._asked_ns = {attempt: now_ns}
        self._running = asyncio.create_task(inquiry)

    async def close(self) -> None:
        """Stop what is under way."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
