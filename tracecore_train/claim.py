"""One process speaks for a rank.

Children of a rank inherit its environment: spawned loader workers, helper programs. The first
process that records a rank claims it by a file next to the rank page; others stay inert while the
claimant lives. A claim of a process that is gone is taken over.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tracecore_train.identity import start_ticks

if TYPE_CHECKING:
    from pathlib import Path


class Claim:
    """The claim file of one rank, ``r<rank>.claim``."""

    def __init__(self, directory: Path, rank: int) -> None:
        """Prepare a claim in the attempt's private directory."""
        self._path = directory / f"r{rank}.claim"
        self._mine = f"{os.getpid()} {start_ticks(os.getpid())}"

    def take(self) -> int:
        """Claim the rank: 0 when it is ours now, else the pid of the living claimant.

        Raises ``OSError`` when the file can be neither made nor read.
        """
        temporary = self._path.with_suffix(f".{os.getpid()}.tmp")
        try:
            temporary.write_text(self._mine, encoding="ascii")
            while not self._link(temporary):
                holder = self._holder()
                if holder:
                    return 0 if holder == os.getpid() else holder
                self._path.unlink(missing_ok=True)
            return 0
        finally:
            temporary.unlink(missing_ok=True)

    def release(self) -> None:
        """Give the rank up, if it is ours."""
        try:
            if self._path.read_text(encoding="ascii", errors="replace") == self._mine:
                self._path.unlink(missing_ok=True)
        except OSError:
            return

    def _link(self, temporary: Path) -> bool:
        """Put the claim in place with its content, unless there is one already."""
        try:
            os.link(temporary, self._path)
        except FileExistsError:
            return False
        return True

    def _holder(self) -> int:
        """Give the pid of the living claimant; 0 when there is none."""
        try:
            with self._path.open("rb") as file:
                words = file.read(64).split()
        except FileNotFoundError:
            return 0
        if len(words) != 2 or not all(word.isdigit() for word in words):
            return 0
        pid, ticks = int(words[0]), int(words[1])
        is_alive = ticks != 0 and start_ticks(pid) == ticks
        return pid if is_alive else 0
