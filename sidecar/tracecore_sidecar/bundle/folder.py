"""The directory of one bundle while it is written: bounded, aside, then renamed into place.

Safe to use from several threads. A disk that refuses spoils the whole bundle: whoever writes is
told by :class:`SpoiledError`, and :meth:`BundleFolder.abandon` removes what was written.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tracecore_sidecar.sinks.jsonl import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MAX_BYTES = 128 << 20
"""Of one bundle. Eight ranks take about two megabytes; what does not fit is said."""

WRITER_TIMEOUT_S = 2.0
"""How long giving up waits for whoever is in the middle of a file, as on a disk that hangs."""


class FolderClosedError(Exception):
    """The bundle was finished or given up; what comes now is too late."""


class SpoiledError(Exception):
    """The disk refused; the message says why. There will be no bundle."""


class NoRoomError(Exception):
    """A file would lift the bundle above its limit; the message says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleFile:
    """A file of the bundle."""

    path: str
    num_bytes: int
    about: str


class BundleFolder:
    """Takes files until it is finished or abandoned."""

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES) -> None:
        """Name the directory; :meth:`open` makes it."""
        self.path = path
        """Where the bundle stands once it is finished."""
        self._aside = path.with_name(f".{path.name}.tmp")
        self._lock = threading.Condition()
        self._num_writing = 0
        self._left = max_bytes
        self._max_bytes = max_bytes
        self._is_closed = False
        self._files: list[BundleFile] = []

    def open(self) -> BundleFolder:
        """Make the directory beside its later place.

        Raises :class:`SpoiledError`, or :class:`FolderClosedError` where it was given up already.
        """
        with self._writing():
            shutil.rmtree(self._aside, ignore_errors=True)  # left by a killed sidecar
            try:
                self._aside.mkdir(parents=True)
            except OSError as error:
                raise SpoiledError(error.strerror or str(error)) from None
        return self

    @property
    def num_bytes(self) -> int:
        """Bytes taken so far."""
        return self._max_bytes - self._left

    def add(self, name: str, data: bytes, about: str) -> None:
        """Write a file.

        Raises :class:`NoRoomError`, :class:`FolderClosedError` or :class:`SpoiledError`.
        """
        with self._writing():
            self._reserve(len(data))
            place = self._aside / name
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(data)
            except OSError as error:
                raise SpoiledError(error.strerror or str(error)) from None
            self._list(name, len(data), about)

    def add_json(self, name: str, value: Any, about: str) -> None:
        """Write a value as JSON; see :meth:`add`."""
        self.add(name, json_bytes(value), about)

    def take(self, name: str, write: Callable[[Path], object]) -> list[tuple[str, bytes]]:
        """Let ``write`` fill the directory ``name``; give the small files it made there."""
        place = self._aside / name
        made: list[tuple[str, bytes]] = []
        with self._writing():
            write(place)
            try:
                for path in sorted(place.iterdir()) if place.exists() else []:
                    made.append((path.name, path.read_bytes()))
                    self._reserve(len(made[-1][1]))
                    self._list(f"{name}/{path.name}", len(made[-1][1]), "as it was found")
            except OSError as error:
                raise SpoiledError(error.strerror or str(error)) from None
        return made

    def files(self) -> list[BundleFile]:
        """List what was written, by path."""
        with self._lock:
            return sorted(self._files, key=lambda file: file.path)

    def finish(self, manifest: Any) -> Path:
        """Write the manifest and put the bundle into place; raise :class:`SpoiledError`."""
        with self._lock:
            if self._is_closed:
                raise FolderClosedError
            self._is_closed = True
        try:
            (self._aside / "manifest.json").write_bytes(json_bytes(manifest))
            self._aside.rename(self.path)
        except OSError as error:
            raise SpoiledError(error.strerror or str(error)) from None
        return self.path

    def abandon(self) -> None:
        """Take no more and remove what was written; a finished bundle stays."""
        with self._lock:
            self._is_closed = True
            # Who is still writing would make the directory anew.
            self._lock.wait_for(lambda: self._num_writing == 0, WRITER_TIMEOUT_S)
        shutil.rmtree(self._aside, ignore_errors=True)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        with self._lock:
            if self._is_closed:
                raise FolderClosedError
            self._num_writing += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_writing -= 1
                self._lock.notify_all()

    def _reserve(self, num_bytes: int) -> None:
        with self._lock:
            if num_bytes > self._left:
                raise NoRoomError(f"left out: the bundle's limit of {self._max_bytes:,} bytes")
            self._left -= num_bytes

    def _list(self, name: str, num_bytes: int, about: str) -> None:
        with self._lock:
            self._files.append(BundleFile(path=name, num_bytes=num_bytes, about=about))


def json_bytes(value: Any) -> bytes:
    """Give a value as JSON that a person can read, too."""
    text = json.dumps(plain(value, 16), indent=1, ensure_ascii=False)
    return text.encode("utf-8", "replace") + b"\n"
