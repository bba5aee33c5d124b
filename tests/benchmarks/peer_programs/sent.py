"""What ranks and benchmark agree on, without torch; counts what Python code of a rank sends.

The count is in a file that others may read meanwhile.
"""

from __future__ import annotations

import functools
import mmap
import socket
import struct
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

SENT = struct.Struct("<QQ")
"""Bytes sent, steps done."""
BURST = 100
"""Tiny steps without a pause; what a watch does every so many steps falls into each burst."""


class SentCounter:
    """Counts from its making until the process ends, for good; not what C++ code sends."""

    def __init__(self, path: Path) -> None:
        """Count into a new file."""
        self._num_bytes = 0
        self._num_steps = 0
        self._lock = threading.Lock()
        with path.open("w+b") as file:
            file.truncate(SENT.size)
            self._page = mmap.mmap(file.fileno(), SENT.size)
        for name in ("send", "sendall", "sendmsg", "sendto"):
            self._count(name)

    def step(self) -> int:
        """Note a step; gives the number of steps so far."""
        self._add(num_steps=1)
        return self._num_steps

    def _add(self, num_bytes: int = 0, num_steps: int = 0) -> None:
        with self._lock:
            self._num_bytes += num_bytes
            self._num_steps += num_steps
            SENT.pack_into(self._page, 0, self._num_bytes, self._num_steps)

    def _count(self, name: str) -> None:
        original = getattr(socket.socket, name)

        @functools.wraps(original)
        def send(sender: socket.socket, data: Any, *rest: Any) -> Any:
            sent = original(sender, data, *rest)
            # sendall gives nothing: all of it was sent.
            self._add(memoryview(data).nbytes if sent is None else sent)
            return sent

        setattr(socket.socket, name, send)
