"""Our failures stay ours: counted, said once, that hook (or detector) switched off.

Every piece of our code that runs inside a rank runs under a :class:`Guard`. The first exception
closes the guard; a hook whose guard is closed passes through. Training goes on. Tests set
``raise_in_tests`` so that a contained failure fails the test instead.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

raise_in_tests = False
"""Let exceptions of ours through; set by our own tests only."""
MAX_REASON = 300
"""Characters of an exception's text that are kept."""


class Guard:
    """Context manager around our code under one name. Reusable, reentrant, holds no lock."""

    __slots__ = ("is_open", "name", "num_failures", "reason")

    def __init__(self, name: str) -> None:
        """Open a guard; ``name`` is the hook's, as the user knows it."""
        self.name = name
        self.is_open = True
        """Whether the code behind this guard may still run. Ask before entering."""
        self.num_failures = 0
        self.reason = ""

    def __enter__(self) -> None:
        """Enter our code."""

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        """Contain an exception; what is not an ``Exception`` (Ctrl-C) belongs to the user."""
        if not isinstance(error, Exception) or raise_in_tests:
            return False
        self.contain(error)
        return True

    def contain(self, error: Exception) -> None:
        """Contain an exception that hot code caught itself: a ``with`` costs it 150 ns."""
        if raise_in_tests:
            raise error
        is_first = self.num_failures == 0
        if is_first:
            self.reason = _text_of(error)
            self.is_open = False
        # Counted last: the export thread reads the reason as soon as there is a failure.
        self.num_failures += 1
        if is_first:
            say(f"{self.name} failed and is switched off; the job goes on ({self.reason})")

    def close(self) -> None:
        """Switch off without a failure: uninstalled, or a forked child."""
        self.is_open = False


def say(text: str) -> None:
    """Write one line to stderr, or nothing where stderr is gone."""
    stream = sys.stderr
    if stream is None:
        return
    line = " ".join(text.split())
    try:
        stream.write(f"tracecore: {line}\n")
        stream.flush()
    except Exception:  # noqa: BLE001  (stderr may be an object of the user's, or busy below us)
        return


def _text_of(error: Exception) -> str:
    kind = type(error).__name__
    try:
        return f"{kind}: {error}"[:MAX_REASON]
    except Exception:  # noqa: BLE001  (an exception class of the user's that has no text)
        return kind[:MAX_REASON]
