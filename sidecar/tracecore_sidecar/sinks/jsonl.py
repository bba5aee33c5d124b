"""Incidents as JSON lines: ``verdicts.jsonl`` for what was judged, ``incidents.jsonl`` for when.

Both are appended to, one whole line at a time: a reader never sees half a line, also when the
disk is full. A disk that refuses is counted and said once; the job goes on.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tracecore_sidecar.verdicts import rfc3339, to_json

if TYPE_CHECKING:
    from pathlib import Path

    from tracecore_sidecar.incidents import IncidentEvent
    from tracecore_sidecar.verdicts import JobInfo

VERDICTS = "verdicts.jsonl"
INCIDENTS = "incidents.jsonl"
MAX_DEPTH = 8
"""Nesting of evidence data that is written; deeper values become text."""

_log = logging.getLogger(__name__)


class JsonlSink:
    """Writes both files into ``directory``."""

    def __init__(self, directory: Path, *, wall_offset_ns: int) -> None:
        """Make the files, so that a healthy job leaves empty ones."""
        self._wall_offset_ns = wall_offset_ns
        self._verdicts = LineFile(directory / VERDICTS)
        self._incidents = LineFile(directory / INCIDENTS)

    @property
    def num_lost(self) -> int:
        """Lines the disk did not take."""
        return self._verdicts.num_lost + self._incidents.num_lost

    def on_event(self, event: IncidentEvent, job: JobInfo) -> None:
        """Write the verdict of an opened or updated incident, and the change itself."""
        body = to_json(
            event.verdict,
            job,
            incident_id=event.incident_id,
            emitted_ns=event.now_ns,
            wall_offset_ns=self._wall_offset_ns,
        )
        if event.change != "closed":
            self._verdicts.append(body)
        wall_ns = event.now_ns + self._wall_offset_ns
        self._incidents.append(
            {
                "incident_id": event.incident_id,
                "change": event.change,
                "time": rfc3339(wall_ns),
                "time_ns": wall_ns,
                "opened_at": rfc3339(event.opened_ns + self._wall_offset_ns),
                "pattern": body["pattern"],
                "class": body["class"],
                "suspects": body["suspects"],
                "summary": body["summary"],
                # Of the trouble, which is older than the incident that tells it.
                "duration_s": round((event.now_ns - event.verdict.since_ns) / 1e9, 3),
            }
        )

    def close(self) -> None:
        """Close both files."""
        self._verdicts.close()
        self._incidents.close()


class LineFile:
    """A file of JSON lines that never holds half a line of ours. Never raises ``OSError``."""

    def __init__(self, path: Path) -> None:
        """Make the file, or continue one; what an interrupted writer left is closed off."""
        self._path = path
        self._fd = -1
        self._is_said = False
        self.num_lost = 0
        try:
            self._open()
        except OSError as error:
            self._say(error)

    def append(self, value: Mapping[str, Any]) -> None:
        """Write one line, or count it as lost."""
        text = json.dumps(plain(value), ensure_ascii=False, separators=(",", ":"))
        line = text.encode("utf-8", "replace") + b"\n"
        try:
            if self._fd < 0:
                self._open()
            end = os.fstat(self._fd).st_size
            if os.write(self._fd, line) < len(line):
                os.ftruncate(self._fd, end)
                self._lose(OSError("the disk is full"))
        except OSError as error:
            self._lose(error)

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(self._path, flags, 0o644)
        size = os.fstat(self._fd).st_size
        if size and os.pread(self._fd, 1, size - 1) != b"\n":
            os.write(self._fd, b"\n")

    def _lose(self, error: OSError) -> None:
        self._say(error)
        self.num_lost += 1

    def _say(self, error: OSError) -> None:
        if self._is_said:
            return
        self._is_said = True
        reason = error.strerror or error
        _log.warning("cannot write %s: %s; what does not fit is counted", self._path, reason)


def plain(value: Any, depth: int = MAX_DEPTH) -> Any:
    """Turn any value into one that JSON has: no NaN, no numpy scalars, text for the unknown."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth <= 0:
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item, depth - 1) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item, depth - 1) for item in value]
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return plain(value.tolist(), depth - 1)
    return str(value)
