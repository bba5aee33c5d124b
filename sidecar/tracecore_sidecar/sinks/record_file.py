"""Record files: every batch and every tick as it came, so that a run can be replayed exactly.

``records/000001.jsonl.gz`` and so on hold one JSON line per table or tick. A source is written
out where a segment first needs it and by its index after that, so each segment can be read alone.
Segments are rotated by size; past the budget the oldest go, except the first, in which the ranks
introduced themselves. Data reach the file at least every two seconds while ticks come, so a
killed sidecar leaves a file that reads up to there.

Reading treats the content as hostile: lines are bounded and every value is checked.
"""

from __future__ import annotations

import json
import logging
import os
import re
import zlib
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from tracecore_train.errors import WireError
from tracecore_train.wire.records import Batch, Source, SourceKind
from tracecore_train.wire.tables import INT64_MAX, INT64_MIN, MAX_ROWS, from_table, to_tables

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from tracecore_train.wire.records import Record

MAX_BYTES = 256 << 20
"""Budget of a directory: days of an 8-rank node."""
SEGMENTS_PER_BUDGET = 16
FLUSH_INTERVAL_NS = 1_000_000_000
RETRY_INTERVAL_NS = 10_000_000_000
"""After a disk refused."""
MAX_LINE_BYTES = 32 << 20
"""Of JSON; a ring of 20,000 entries is 4 MB."""
MAX_SOURCES = 4_096
"""Sources in one segment."""
MAX_SOURCE_TEXT = 4_096

_SEGMENT = re.compile(r"(\d{6,9})\.jsonl\.gz\Z")
_CHUNK = 1 << 16
_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode
_log = logging.getLogger(__name__)


class RecordWriter:
    """Writes the segments of one directory. Never raises because of the disk: it counts."""

    def __init__(self, directory: Path, max_bytes: int = MAX_BYTES) -> None:
        """Prepare; the first segment is made with the first record. Old segments are kept."""
        self._directory = directory
        self._max_bytes = max_bytes
        self._segment: _Segment | None = None
        self._retry_ns = INT64_MIN
        self.num_lost = 0
        """Batches and ticks the disk did not take."""

    def write_batch(self, batch: Batch, now_ns: int) -> None:
        """Write a batch, one line per kind of record."""
        if batch.records:
            self._write([(batch.source, line) for line in _table_lines(batch.records)], now_ns)

    def write_tick(self, now_ns: int) -> None:
        """Mark that the detectors ran at ``now_ns`` on everything written before."""
        self._write([(None, '"tick":true')], now_ns)

    def close(self) -> None:
        """Finish the last segment."""
        segment, self._segment = self._segment, None
        if segment is not None:
            try:
                segment.close()
            except OSError as error:
                segment.abandon()
                self._lose(error)

    def _write(self, lines: Sequence[tuple[Source | None, str]], now_ns: int) -> None:
        if now_ns < self._retry_ns:
            self.num_lost += 1
            return
        try:
            segment = self._segment or self._next_segment(now_ns)
            for source, line in lines:
                segment.write(source, line, now_ns)
            segment.flush_if_due(now_ns)
            is_full = segment.num_bytes >= self._max_bytes // SEGMENTS_PER_BUDGET
            if is_full or segment.num_sources >= MAX_SOURCES:
                segment.close()
                self._segment = None
                self._drop_oldest()
        except OSError as error:
            # The compressed stream has a hole now: what comes later needs a new segment.
            if self._segment is not None:
                self._segment.abandon()
                self._segment = None
            self._retry_ns = now_ns + RETRY_INTERVAL_NS
            self._lose(error)

    def _next_segment(self, now_ns: int) -> _Segment:
        self._directory.mkdir(parents=True, exist_ok=True)
        existing = segments(self._directory)
        number = int(existing[-1].name.partition(".")[0]) + 1 if existing else 1
        self._segment = _Segment(self._directory / f"{number:06d}.jsonl.gz", now_ns)
        return self._segment

    def _drop_oldest(self) -> None:
        existing = segments(self._directory)
        total = sum(path.stat().st_size for path in existing)
        room = self._max_bytes - self._max_bytes // SEGMENTS_PER_BUDGET
        for path in existing[1:]:
            if total <= room:
                break
            total -= path.stat().st_size
            path.unlink()

    def _lose(self, error: OSError) -> None:
        if self.num_lost == 0:
            reason = error.strerror or error
            _log.warning("cannot record to %s: %s; a replay has a hole", self._directory, reason)
        self.num_lost += 1


class _Segment:
    def __init__(self, path: Path, now_ns: int) -> None:
        self._path = path
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o644)
        self._deflate = zlib.compressobj(level=3, wbits=31)
        self._sources: dict[Source, int] = {}
        self._flushed_ns = now_ns
        self.num_bytes = 0

    @property
    def num_sources(self) -> int:
        return len(self._sources)

    def write(self, source: Source | None, line: str, now_ns: int) -> None:
        reference = ""
        if source is not None:
            index = self._sources.get(source)
            if index is None:
                self._sources[source] = len(self._sources)
            told = _encode(_source_json(source)) if index is None else index
            reference = f'"source":{told},'
        text = f'{{"at":{now_ns},{reference}{line}}}\n'
        self._put(self._deflate.compress(text.encode("ascii")))

    def flush_if_due(self, now_ns: int) -> None:
        if now_ns - self._flushed_ns >= FLUSH_INTERVAL_NS:
            self._flushed_ns = now_ns
            self._put(self._deflate.flush(zlib.Z_SYNC_FLUSH))

    def close(self) -> None:
        self._put(self._deflate.flush(zlib.Z_FINISH))
        self.abandon()

    def abandon(self) -> None:
        os.close(self._fd)
        if self.num_bytes == 0:
            self._path.unlink(missing_ok=True)

    def _put(self, data: bytes) -> None:
        written = os.write(self._fd, data) if data else 0
        self.num_bytes += written
        if written < len(data):
            raise OSError("the disk is full")


def segments(directory: Path) -> list[Path]:
    """List the segments of a directory, oldest first."""
    return sorted(directory / name for name in os.listdir(directory) if _SEGMENT.match(name))


def read_records(path: Path) -> Iterator[tuple[int, Batch | None]]:
    """Read a directory of segments, or one, as ``(time_ns, batch)``; None in place of a tick.

    A segment that was cut off ends where it was cut. Raises ``OSError`` where nothing can be
    opened and :class:`WireError`, naming file and line, for content no writer of ours makes.
    """
    for segment in [path] if path.is_file() else segments(path):
        sources: list[Source] = []
        for number, line in _lines(segment):
            if not line:
                continue
            try:
                yield _item(line, sources)
            except WireError as error:
                raise WireError(f"{segment}:{number}: {error}") from None


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    number, pending = 1, bytearray()
    for data in _inflated(path):
        head, *others = data.split(b"\n")
        pending += head
        for part in others:
            yield number, bytes(pending)
            number, pending = number + 1, bytearray(part)
        if len(pending) > MAX_LINE_BYTES:
            raise WireError(f"{path}:{number}: a line of more than {MAX_LINE_BYTES} bytes")


def _inflated(path: Path) -> Iterator[bytes]:
    inflate = zlib.decompressobj(wbits=31)
    with path.open("rb") as file:
        try:
            while data := inflate.unconsumed_tail or file.read(_CHUNK):
                if inflate.eof:
                    raise WireError(f"{path}: something stands behind the end of the gzip data")
                yield inflate.decompress(data, _CHUNK)
            yield inflate.flush()
        except zlib.error as error:
            raise WireError(f"{path}: not gzip, or damaged: {error}") from None
    if inflate.unused_data:
        raise WireError(f"{path}: something stands behind the end of the gzip data")
    if inflate.eof:
        yield b"\n"  # a whole file's last line counts also without a line end


def _table_lines(records: Sequence[Record]) -> Iterator[str]:
    """Give a line per kind, or several where one would be too long to read back."""
    for table in to_tables(records):
        columns = _encode(table.columns)
        if table.num_rows > 1 and (table.num_rows > MAX_ROWS or len(columns) > MAX_LINE_BYTES // 2):
            rows = [record for record in records if record.kind is table.kind]
            yield from _table_lines(rows[: len(rows) // 2])
            yield from _table_lines(rows[len(rows) // 2 :])
        else:
            yield f'"kind":"{table.kind.value}","columns":{columns}'


def _item(line: bytes, sources: list[Source]) -> tuple[int, Batch | None]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise WireError("not JSON") from None
    if not isinstance(value, dict):
        raise WireError("not an object")
    now_ns = _integer(value, "at")
    if value.keys() == {"at", "tick"} and value["tick"] is True:
        return now_ns, None
    if value.keys() != {"at", "source", "kind", "columns"}:
        raise WireError("neither a table nor a tick")
    told = value["source"]
    if isinstance(told, dict):
        if len(sources) >= MAX_SOURCES:
            raise WireError(f"more than {MAX_SOURCES} sources")
        sources.append(_source(told))
        source = sources[-1]
    elif type(told) is int and 0 <= told < len(sources):
        source = sources[told]
    else:
        raise WireError("a source that was not introduced")
    records = from_table(value["kind"], value["columns"])
    return now_ns, Batch(source=source, records=tuple(records))


def _source_json(source: Source) -> dict[str, Any]:
    return {field.name: getattr(source, field.name) for field in fields(Source)}


def _source(value: Mapping[str, Any]) -> Source:
    if value.keys() != {field.name for field in fields(Source)}:
        raise WireError("a source with missing or unknown fields")
    try:
        kind = SourceKind(value["kind"])
    except ValueError:
        raise WireError("a source of unknown kind") from None
    checked: dict[str, Any] = {"kind": kind}
    for name in ("host", "boot_id", "job_id"):
        checked[name] = _text(value, name)
    for name in ("pid", "attempt", "wall_offset_ns"):
        checked[name] = _integer(value, name)
    for name in ("rank", "local_rank", "node_rank", "world_size"):
        checked[name] = None if value[name] is None else _integer(value, name)
    return Source(**checked)


def _integer(value: Mapping[str, Any], name: str) -> int:
    number = value.get(name)
    if type(number) is not int or not INT64_MIN <= number <= INT64_MAX:
        raise WireError(f"{name} is not a 64-bit integer")
    return number


def _text(value: Mapping[str, Any], name: str) -> str:
    text = value[name]
    if not isinstance(text, str) or len(text) > MAX_SOURCE_TEXT:
        raise WireError(f"{name} is not a text of at most {MAX_SOURCE_TEXT} characters")
    return text
