"""A request that is not taken: the status, why, and when to try again."""

from __future__ import annotations


class RefusedError(Exception):
    """The request ends here; the text says why."""

    def __init__(self, status: int, reason: str, *, retry_after_s: int | None = None) -> None:
        """``retry_after_s`` goes with 429 and 503: when the sender may come again."""
        super().__init__(reason)
        self.status = status
        self.retry_after_s = retry_after_s
