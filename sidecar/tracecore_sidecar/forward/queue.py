"""What waits for one signal's upstream: newest in memory, older on disk, oldest dropped.

``offer`` is for the event loop and only appends. The sending thread takes some, and then either
is done with them or gives them back. ``close`` may come while that thread is stuck in a send.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

from tracecore_sidecar.forward.spool import Entry, Spool

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MEMORY_BYTES = 8 << 20
"""Beyond, the oldest in memory are dropped: the disk is slower than what comes in."""
SPILL_BYTES = 2 << 20
"""Beyond, memory goes to disk in one segment."""
DISK_BYTES = 64 << 20
"""Compressed, per signal; hours of a node's metrics."""


class ForwardQueue:
    """First in, first out."""

    def __init__(
        self, directory: Path, *, memory_bytes: int = MEMORY_BYTES, disk_bytes: int = DISK_BYTES
    ) -> None:
        """Start with what an earlier sidecar left in ``directory``."""
        self._spool = Spool(directory, disk_bytes)
        self._memory_limit = memory_bytes
        self._spill_limit = min(SPILL_BYTES, memory_bytes // 2)
        self._disk_limit = disk_bytes
        self._changed = threading.Condition()
        self._disk = threading.RLock()
        """Held, before ``_changed``, by whoever touches the spool."""
        self._is_woken = False
        self._is_closed = False
        self._memory: deque[Entry] = deque()
        self._memory_bytes = 0
        self._loaded: deque[Entry] = deque()
        """Of the oldest segment, which is on disk until all of it is done."""
        self._taken: list[Entry] = []
        self._is_taken_from_disk = False
        self._num_dropped = 0
        self.spill_error = ""
        """Why the last spill failed; empty when it did not."""

    @property
    def num_bytes(self) -> int:
        """Waiting, in memory and on disk."""
        return self._memory_bytes + self._spool.num_bytes

    @property
    def num_dropped(self) -> int:
        """Items that found no room."""
        return self._num_dropped + self._spool.num_dropped

    @property
    def is_full(self) -> bool:
        """Whether something would have to be dropped for more."""
        return (
            self._memory_bytes >= self._memory_limit
            or self._spool.num_bytes + self._memory_bytes >= self._disk_limit
        )

    def offer(self, entry: Entry) -> None:
        """Add one; never waits for the disk."""
        with self._changed:
            if self._is_closed:
                self._num_dropped += entry.num_items
                return
            self._memory.append(entry)
            self._memory_bytes += len(entry.body)
            # A single body may be longer than the bound: it is kept until the next comes.
            while self._memory_bytes > self._memory_limit and len(self._memory) > 1:
                self._num_dropped += self._pop_memory().num_items
            self._changed.notify()

    def wake(self) -> None:
        """End a :meth:`wait` under way, and every later one."""
        with self._changed:
            self._is_woken = True
            self._changed.notify()

    def wait(self, timeout_s: float) -> bool:
        """Wait for something to send; say whether there is."""
        with self._changed:
            if not self._has_any() and not self._is_woken:
                self._changed.wait(timeout_s)
            return self._has_any()

    def take(self, max_bytes: int, max_entries: int) -> Sequence[Entry]:
        """Take the oldest, at least one if there are any; end with `done` or `give_back`."""
        with self._disk:
            if self._is_closed:
                return ()
            while not self._loaded and len(self._spool):
                self._loaded.extend(self._spool.read_oldest())
                if not self._loaded:
                    self._spool.remove_oldest()
            self._is_taken_from_disk = bool(self._loaded)
            num_bytes = 0
            with self._changed:
                waiting = self._loaded or self._memory
                while waiting and len(self._taken) < max_entries:
                    num_bytes += len(waiting[0].body)
                    if self._taken and num_bytes > max_bytes:
                        break
                    self._taken.append(
                        waiting.popleft() if self._is_taken_from_disk else self._pop_memory()
                    )
            return self._taken

    def done(self) -> None:
        """Forget what was taken."""
        with self._disk:
            self._taken = []
            if self._is_taken_from_disk and not self._loaded and not self._is_closed:
                self._spool.remove_oldest()

    def give_back(self) -> None:
        """Put what was taken where it was."""
        with self._disk, self._changed:
            if self._is_taken_from_disk:
                self._loaded.extendleft(reversed(self._taken))
            elif not self._is_closed:
                self._memory.extendleft(reversed(self._taken))
                self._memory_bytes += sum(len(entry.body) for entry in self._taken)
            self._taken = []

    def relieve(self) -> None:
        """Spill when memory holds much."""
        if self._memory_bytes > self._spill_limit:
            self.spill()

    def spill(self) -> None:
        """Write everything in memory to disk; where that fails, it stays."""
        with self._disk:
            with self._changed:
                entries, self._memory = list(self._memory), deque()
                num_bytes, self._memory_bytes = self._memory_bytes, 0
            if not entries:
                return
            oldest = self._spool.oldest
            try:
                self._spool.append(entries)
            except OSError as error:
                self.spill_error = error.strerror or str(error)
                with self._changed:
                    self._memory.extendleft(reversed(entries))
                    self._memory_bytes += num_bytes
                return
            self.spill_error = ""
            if self._loaded and self._spool.oldest != oldest:
                # It made room; what was loaded of it goes with it, and is counted.
                self._loaded.clear()

    def close(self) -> None:
        """Write what is in memory to disk for the next sidecar; count what does not go there."""
        with self._disk:
            self.give_back()
            self.spill()
            self._is_closed = True
            with self._changed:
                self._num_dropped += sum(entry.num_items for entry in self._memory)
                self._memory.clear()
                self._memory_bytes = 0

    def _has_any(self) -> bool:
        return bool(self._loaded or len(self._spool) or self._memory)

    def _pop_memory(self) -> Entry:
        entry = self._memory.popleft()
        self._memory_bytes -= len(entry.body)
        return entry
