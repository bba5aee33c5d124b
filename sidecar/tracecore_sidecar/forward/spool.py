"""Bodies that wait on disk: a directory of segments, bounded, oldest dropped.

A segment is written whole under another name and then renamed, so a reader finds all of it or
nothing. Its name carries the order and how many items it holds: ``<number>-<items>.otlpq``.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import zlib
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MAX_SEGMENTS = 4096
MAX_SEGMENT_BYTES = 64 << 20
"""Uncompressed, when read back; a writer stays below."""
_NAME = re.compile(r"(\d{12})-(\d{1,12})\.otlpq\Z", re.ASCII)
_TEMPORARY = "segment.tmp"
_HEAD = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class Entry:
    """One serialised OTLP request."""

    body: bytes
    num_items: int
    """Data points, log records or spans in it."""


@dataclass(frozen=True, slots=True)
class _Segment:
    path: Path
    num_bytes: int
    num_items: int


class Spool:
    """One signal's segments. Not thread-safe: one thread reads and writes."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        """Find what an earlier sidecar left; nothing is made yet."""
        self._directory = directory
        self._max_bytes = max_bytes
        self._segments: deque[_Segment] = deque()
        self._next = 0
        self.num_bytes = 0
        """On disk."""
        self.num_dropped = 0
        """Items that had to make room, or were damaged."""
        for name in sorted(_names(directory)):
            match = _NAME.match(name)
            if match is not None:
                self._next = int(match[1]) + 1
                self._add(directory / name, int(match[2]))

    def __len__(self) -> int:
        """Give the number of segments."""
        return len(self._segments)

    @property
    def oldest(self) -> Path | None:
        """Name the oldest segment."""
        return self._segments[0].path if self._segments else None

    def append(self, entries: Sequence[Entry]) -> None:
        """Write entries as the newest segment; older ones make room. Raises ``OSError``."""
        data = zlib.compress(b"".join(map(_framed, entries)), 1)
        num_items = sum(entry.num_items for entry in entries)
        if len(data) > self._max_bytes:
            self.num_dropped += num_items
            return
        while self._segments and (
            self.num_bytes + len(data) > self._max_bytes or len(self) >= MAX_SEGMENTS
        ):
            self.num_dropped += self._segments[0].num_items
            self.remove_oldest()
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = self._directory / _TEMPORARY
        path = self._directory / f"{self._next:012d}-{num_items}.otlpq"
        try:
            temporary.write_bytes(data)
            temporary.rename(path)
        except OSError:
            # What a full disk took of it must not stay behind.
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        self._next += 1
        self._add(path, num_items)

    def read_oldest(self) -> list[Entry]:
        """Read the oldest segment; it stays until :meth:`remove_oldest`. Empty: it was damaged."""
        segment = self._segments[0]
        try:
            return _parse(segment.path.read_bytes())
        except (OSError, ValueError, zlib.error):
            self.num_dropped += segment.num_items
            return []

    def remove_oldest(self) -> None:
        """Forget the oldest segment."""
        segment = self._segments.popleft()
        self.num_bytes -= segment.num_bytes
        # A disk turned read-only keeps it: the next sidecar sends it again.
        with contextlib.suppress(OSError):
            segment.path.unlink(missing_ok=True)

    def _add(self, path: Path, num_items: int) -> None:
        try:
            num_bytes = path.stat().st_size
        except OSError:
            return
        self._segments.append(_Segment(path, num_bytes, num_items))
        self.num_bytes += num_bytes


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _framed(entry: Entry) -> bytes:
    return _HEAD.pack(entry.num_items, len(entry.body)) + entry.body


def _parse(data: bytes) -> list[Entry]:
    inflate = zlib.decompressobj()
    raw = inflate.decompress(data, MAX_SEGMENT_BYTES)
    if not inflate.eof:
        raise ValueError("too long, or cut off")
    entries: list[Entry] = []
    at = 0
    while at < len(raw):
        if len(raw) - at < _HEAD.size:
            raise ValueError("cut off")
        num_items, length = _HEAD.unpack_from(raw, at)
        at += _HEAD.size
        if len(raw) - at < length:
            raise ValueError("cut off")
        entries.append(Entry(raw[at : at + length], num_items))
        at += length
    return entries
