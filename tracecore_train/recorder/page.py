"""The rank page: one 4 KiB file per rank that can be read while the rank cannot speak.

Hooks write it on the training thread; the sidecar reads it at any time, also when the rank holds
the GIL, is stopped or has died. Numbers are single aligned 64-bit words, one store each (about
25 ns), so a reader never sees half a number and hooks need no lock. Each text (phase, last word,
OOM, exception) has two slots: a writer fills the slot that is not current and bumps its sequence
number last, a reader takes the slot with the higher number. Writes come from one thread at a time
for each field: words from the training thread, ``HEARTBEAT`` from the export thread.

The file is allocated before it is mapped: writing to a mapping on a full tmpfs would kill the
rank with SIGBUS, ``posix_fallocate`` answers ENOSPC instead.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
import time
from enum import IntEnum
from typing import TYPE_CHECKING

from tracecore_train.errors import WireError
from tracecore_train.wire.records import RankPageRecord

if TYPE_CHECKING:
    from pathlib import Path

PAGE_SIZE = 4096
PAGE_VERSION = 1
MAGIC = int.from_bytes(b"TCPAGE\r\n", "little")
"""First word; also tells a foreign byte order apart."""
TEXT_SLOT_SIZE = 256
MAX_TEXT = TEXT_SLOT_SIZE - 16
_WORDS = struct.Struct("<64q" if sys.byteorder == "little" else ">64q")
_TEXT_HEAD = struct.Struct("=qq")
"""Sequence number and length in bytes, before the text of a slot."""


class Word(IntEnum):
    """Index of each 64-bit word, in units of 8 bytes from the start of the page."""

    MAGIC = 0
    VERSION = 1
    PID = 2
    RANK = 3
    ATTEMPT = 4
    START_TICKS = 5
    WALL_OFFSET = 6
    STEP = 8
    STEP_TIME = 9
    NUM_BATCHES = 10
    INPUT_SINCE = 11
    CHECKPOINT_SINCE = 12
    PHASE_SINCE = 13
    HEARTBEAT = 16
    BACKWARD_SINCE = 17
    OPTIMIZER_SINCE = 18
    GC_SINCE = 19
    CAPTURE_SINCE = 20
    EXPECT_UNTIL = 21
    SIGTERM = 22
    NUM_OOMS = 23
    OOM_TIME = 24
    EXCEPTION_TIME = 25


class Text(IntEnum):
    """Byte offset of the two slots of each text."""

    PHASE = 512
    LAST_WORD = 1024
    OOM = 1536
    EXCEPTION = 2048


class RankPage:
    """The writing side, one per rank process.

    ``words`` is a view of the numbers: ``page.words[Word.STEP] = 7``. After :meth:`detach` (a
    forked child, or ``shutdown()``) writes go to private memory and change nothing.
    """

    def __init__(self, words: memoryview, data: memoryview) -> None:
        """Wrap the memory of a page; use :meth:`create`."""
        self.words = words
        self._data = data

    @classmethod
    def create(
        cls, path: Path, *, rank: int, attempt: int, start_ticks: int, wall_offset_ns: int
    ) -> RankPage:
        """Make the file, allocate its blocks, map it, and write the identity.

        A stale file of an earlier process is replaced. Raises ``OSError`` (for example ENOSPC on
        a full tmpfs, EACCES) without leaving a file behind.
        """
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, PAGE_SIZE)
                mapping = mmap.mmap(fd, PAGE_SIZE)
            finally:
                os.close(fd)
            data = memoryview(mapping)
            page = cls(data.cast("q"), data)
            words = page.words
            words[Word.VERSION] = PAGE_VERSION
            words[Word.PID] = os.getpid()
            words[Word.RANK] = rank
            words[Word.ATTEMPT] = attempt
            words[Word.START_TICKS] = start_ticks
            words[Word.WALL_OFFSET] = wall_offset_ns
            words[Word.HEARTBEAT] = time.monotonic_ns()
            words[Word.MAGIC] = MAGIC
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        return page

    @classmethod
    def in_memory(cls) -> RankPage:
        """Make a page nobody else sees, where no file can be had."""
        data = memoryview(bytearray(PAGE_SIZE))
        return cls(data.cast("q"), data)

    def write_text(self, text: Text, value: str) -> None:
        """Store a short text (cut at 240 bytes of UTF-8)."""
        raw = value.encode("utf-8", "replace")[:MAX_TEXT]
        sequences = [self.words[(text + i * TEXT_SLOT_SIZE) // 8] for i in (0, 1)]
        slot = 0 if sequences[0] <= sequences[1] else 1
        offset = text + slot * TEXT_SLOT_SIZE
        self.words[offset // 8 + 1] = len(raw)
        self._data[offset + 16 : offset + 16 + len(raw)] = raw
        self.words[offset // 8] = max(sequences) + 1

    def detach(self) -> None:
        """Send all later writes to private memory; the file keeps what it holds."""
        private = RankPage.in_memory()
        self.words, self._data = private.words, private._data


def read_page(path: Path, now_ns: int) -> RankPageRecord:
    """Read a rank page from outside, as of ``now_ns`` (this host's monotonic clock).

    Raises ``OSError`` when the file cannot be read and :class:`WireError` when it is no rank page
    of a version this reader knows.
    """
    with path.open("rb") as file:
        raw = file.read(PAGE_SIZE + 1)
    return parse_page(raw, now_ns)


def parse_page(raw: bytes, now_ns: int) -> RankPageRecord:
    """Read the bytes of a rank page; see :func:`read_page`."""
    if len(raw) != PAGE_SIZE:
        raise WireError(f"a rank page has {PAGE_SIZE} bytes, this one {len(raw)}")
    words = _WORDS.unpack_from(raw)
    if words[Word.MAGIC] != MAGIC:
        raise WireError("not a rank page (wrong first word)")
    if words[Word.VERSION] != PAGE_VERSION:
        raise WireError(f"rank page version {words[Word.VERSION]}, known is {PAGE_VERSION}")
    return RankPageRecord(
        time_ns=now_ns,
        rank=words[Word.RANK],
        pid=words[Word.PID],
        step=words[Word.STEP],
        step_time_ns=words[Word.STEP_TIME],
        num_batches=words[Word.NUM_BATCHES],
        input_since_ns=words[Word.INPUT_SINCE],
        checkpoint_since_ns=words[Word.CHECKPOINT_SINCE],
        phase=_read_text(raw, Text.PHASE),
        phase_since_ns=words[Word.PHASE_SINCE],
        heartbeat_ns=words[Word.HEARTBEAT],
        last_word=_read_text(raw, Text.LAST_WORD),
        backward_since_ns=words[Word.BACKWARD_SINCE],
        optimizer_since_ns=words[Word.OPTIMIZER_SINCE],
        gc_since_ns=words[Word.GC_SINCE],
        capture_since_ns=words[Word.CAPTURE_SINCE],
        expect_until_ns=words[Word.EXPECT_UNTIL],
        sigterm_ns=words[Word.SIGTERM],
        num_ooms=words[Word.NUM_OOMS],
        oom_ns=words[Word.OOM_TIME],
        oom=_read_text(raw, Text.OOM),
        exception_ns=words[Word.EXCEPTION_TIME],
        exception=_read_text(raw, Text.EXCEPTION),
        start_ticks=words[Word.START_TICKS],
    )


def _read_text(raw: bytes, text: Text) -> str:
    sequence, length = _TEXT_HEAD.unpack_from(raw, text)
    offset = text + _TEXT_HEAD.size
    other_sequence, other_length = _TEXT_HEAD.unpack_from(raw, text + TEXT_SLOT_SIZE)
    if other_sequence > sequence:
        offset, length = offset + TEXT_SLOT_SIZE, other_length
    return raw[offset : offset + max(0, min(length, MAX_TEXT))].decode("utf-8", "replace")
