"""What a file holds, told by its content: not by its name."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from tracecore_sidecar.offline.plain_pickle import load_plain
from tracecore_sidecar.offline.recorder_file import is_recorder_dump
from tracecore_sidecar.offline.refused import COPY_AGAIN, RefusedError, UnknownKindError
from tracecore_train.recorder.page import MAGIC

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES = 256 << 20
"""Of one file, and of what it unpacks to; a ring of 20,000 entries is 10 MB of JSON."""
MAX_LOG_BYTES = 4 << 30
"""Of a text file, which is read line by line."""
MAX_DEPTH = 64
"""Brackets within brackets in JSON; dumps and verdicts have six."""
_HEAD = 4_096
_GZIP, _ZIP = b"\x1f\x8b", b"PK\x03\x04"
_RANK_PAGE = MAGIC.to_bytes(8, "little")


class Kind(str, Enum):
    """What is known here."""

    RECORDER = "flight recorder dump"
    RECORDS = "tracecore records"
    OURS = "tracecore output"
    LOG = "log"


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """A recognised file; ``value`` is a loaded dump, or the bytes of a log that was in memory."""

    kind: Kind
    value: Any = None


def recognise(path: Path, num_bytes: int) -> Content:
    """Tell what a file is and load a dump; raise :class:`RefusedError` with the reason if not."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        raise RefusedError("empty: its writer was ended before it wrote, or the disk was full")
    if head.startswith(_RANK_PAGE):
        return Content(kind=Kind.OURS)
    if head.startswith(_ZIP):
        raise RefusedError("a zip archive (a checkpoint of torch?): unpack it if it holds dumps")
    if head.startswith(_GZIP):
        inner = _inflated(path.read_bytes() if num_bytes <= MAX_BYTES else head, _HEAD)
        if _is_record_line(inner):
            return Content(kind=Kind.RECORDS)
        _check_size(num_bytes)
        return _loaded(_inflated(path.read_bytes(), MAX_BYTES + 1))
    if _looks_like_text(head) and not head.lstrip().startswith((b"{", b"[")):
        if num_bytes > MAX_LOG_BYTES:
            raise RefusedError(f"{num_bytes:,} bytes of text; at most {MAX_LOG_BYTES:,} are read")
        return Content(kind=Kind.LOG)
    _check_size(num_bytes)
    return _loaded(path.read_bytes())


def _check_size(num_bytes: int) -> None:
    if num_bytes > MAX_BYTES:
        raise RefusedError(
            f"{num_bytes:,} bytes; at most {MAX_BYTES:,} are read: dump again with a smaller ring"
        )


def _loaded(data: bytes) -> Content:
    _check_size(len(data))
    if data[:1] == b"\x80":
        value = load_plain(data)
        if is_recorder_dump(value):
            return Content(kind=Kind.RECORDER, value=value)
        raise RefusedError("a pickle, but no flight recorder dump: it has no version and entries")
    start = data[:_HEAD].lstrip()
    if start.startswith((b"{", b"[")):
        return _json(data)
    if _looks_like_text(data[:_HEAD]):
        return Content(kind=Kind.LOG, value=data)
    raise RefusedError("no kind that is known here: neither a dump, nor our output, nor a log")


def _json(data: bytes) -> Content:
    if _depth(data) > MAX_DEPTH:
        raise RefusedError(f"JSON nested more than {MAX_DEPTH} deep: not loaded")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        first = data.split(b"\n", 1)[0]
        if _is_our_line(first):
            return Content(kind=Kind.OURS)
        if _looks_like_text(data[:_HEAD]) and b"\n" in data:
            # A log of JSON lines, or one that begins with a bracket.
            return Content(kind=Kind.LOG, value=data)
        raise RefusedError(f"damaged JSON of {len(data):,} bytes{COPY_AGAIN}") from None
    if is_recorder_dump(value):
        return Content(kind=Kind.RECORDER, value=value)
    if isinstance(value, dict) and _is_ours(value):
        return Content(kind=Kind.OURS)
    raise UnknownKindError("JSON, but no flight recorder dump: it has no version and entries")


def _depth(data: bytes) -> int:
    """Give how deep brackets nest; those inside texts count too, which errs on the safe side."""
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return 0
    deepest = depth = 0
    for byte in data.translate(None, delete=_NO_BRACKETS):
        depth += 1 if byte in b"[{" else -1
        deepest = max(deepest, depth)
        if deepest > MAX_DEPTH:
            break
    return deepest


_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")


def _inflated(data: bytes, limit: int) -> bytes:
    inflate = zlib.decompressobj(wbits=31)
    try:
        found = inflate.decompress(data, limit)
    except zlib.error as error:
        raise RefusedError(f"damaged gzip: {error}") from None
    if limit > MAX_BYTES and len(found) == limit:
        raise RefusedError(f"unpacks to more than {MAX_BYTES:,} bytes: not read")
    if limit > MAX_BYTES and not inflate.eof:
        raise RefusedError(f"damaged gzip: it ends in the middle{COPY_AGAIN}")
    return found


def _looks_like_text(head: bytes) -> bool:
    return b"\0" not in head and sum(byte < 9 for byte in head) == 0


def _is_record_line(inner: bytes) -> bool:
    return inner.startswith(b'{"at":') and any(
        key in inner for key in (b'"tick":', b'"kind":', b'"source":')
    )


def _is_our_line(line: bytes) -> bool:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and _is_ours(value)


def _is_ours(value: dict[str, Any]) -> bool:
    return "incident_id" in value or "schema_version" in value or "tracecore" in value
