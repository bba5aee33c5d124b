"""Files below the given paths, within limits; links are not followed and nothing is waited for."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracecore_sidecar.offline.refused import unreadable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

MAX_FILES = 100_000
"""Files looked at: a dump for each of 16,384 ranks, and their logs."""
MAX_DEPTH = 12
"""Directories below a given path."""
_SKIPPED = frozenset({".git", "__pycache__", "node_modules"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A file, or why a path gives none."""

    path: Path
    num_bytes: int = 0
    is_given: bool = False
    """Named by the user, not found in a directory."""
    problem: str = ""


def walk(paths: Iterable[Path]) -> Iterator[Found]:
    """Give every file once, in order of name."""
    seen: set[tuple[int, int]] = set()
    for path in paths:
        for found in _below(path, 0, is_given=True):
            if not found.problem:
                try:
                    status = found.path.stat()
                except OSError as error:
                    yield Found(path=found.path, problem=unreadable(error))
                    continue
                identity = (status.st_dev, status.st_ino)
                if identity in seen:
                    continue
                seen.add(identity)
                if len(seen) > MAX_FILES:
                    yield Found(
                        path=path, problem=f"more than {MAX_FILES:,} files; the rest is left"
                    )
                    return
            yield found


def _below(path: Path, depth: int, *, is_given: bool = False) -> Iterator[Found]:
    try:
        status = path.stat() if is_given else path.lstat()
        if stat.S_ISDIR(status.st_mode):
            if depth > MAX_DEPTH:
                yield Found(path=path, problem=f"more than {MAX_DEPTH} directories deep: not read")
                return
            for name in sorted(os.listdir(path)):
                if name not in _SKIPPED:
                    yield from _below(path / name, depth + 1)
        elif stat.S_ISREG(status.st_mode):
            yield Found(path=path, num_bytes=status.st_size, is_given=is_given)
        elif not stat.S_ISLNK(status.st_mode):
            yield Found(path=path, problem="no regular file: not opened")
    except OSError as error:
        yield Found(path=path, problem=unreadable(error))
