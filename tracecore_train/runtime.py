"""Where the pieces of one job meet on a node: directories, sockets, rank pages.

``<runtime>/<job>/otlp.sock`` is the sidecar's intake; ``<runtime>/<job>/<attempt>/`` holds a
page and a worker-server socket per rank. Names are short because a unix socket path ends at
107 bytes. Directories are private (mode 0700) and must belong to us: ``/tmp`` is shared.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from pathlib import Path

from tracecore_train.errors import TracecoreError

MAX_SOCKET_PATH = 107
"""Bytes in a unix socket path (``sun_path`` less the terminating zero; unix(7))."""
SIDECAR_SOCKET = "otlp.sock"
_RANK_FILE = re.compile(r"r(\d{1,7})\.page\Z")


def runtime_root() -> Path:
    """Give the runtime directory: TRACECORE_RUNTIME_DIR, XDG_RUNTIME_DIR, or one in /tmp."""
    if chosen := os.environ.get("TRACECORE_RUNTIME_DIR"):
        return Path(chosen)
    if xdg := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(xdg) / "tracecore"
    return Path("/tmp") / f"tracecore-{os.getuid()}"  # noqa: S108  (ownership is checked below)


def job_dir(job_id: str, root: Path | None = None) -> Path:
    """Give the directory of a job; a long or unusual job id is shortened with a hash."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", job_id).lstrip(".")
    if name != job_id or len(name) > 32:
        digest = hashlib.sha256(job_id.encode()).hexdigest()[:8]
        name = f"{name[:23]}-{digest}"
    return (root or runtime_root()) / name


def sidecar_socket(job: Path) -> Path:
    """Give the sidecar's OTLP socket of a job directory."""
    return job / SIDECAR_SOCKET


def rank_page(job: Path, attempt: int, rank: int) -> Path:
    """Give the rank page's path."""
    return job / str(attempt) / f"r{rank}.page"


def worker_server_socket(job: Path, attempt: int, rank: int) -> Path:
    """Give the path of the rank's worker-server socket."""
    return job / str(attempt) / f"r{rank}.ws"


def rank_pages(job: Path, attempt: int) -> dict[int, Path]:
    """List the rank pages of an attempt by rank."""
    directory = job / str(attempt)
    try:
        names = os.listdir(directory)
    except OSError:
        return {}
    matches = ((_RANK_FILE.match(name), name) for name in names)
    return {int(m.group(1)): directory / name for m, name in matches if m}


def boot_id() -> str:
    """Give the id of this boot of the host; empty where ``/proc`` does not show it."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text("ascii", "replace")
    except OSError:
        return ""
    return text.strip()


def make_private_dir(path: Path) -> Path:
    """Make a directory of mode 0700, or check that an existing one is ours and private.

    Raises :class:`TracecoreError` naming the path when it belongs to somebody else, is open to
    others, is not a directory, or cannot be made.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = os.lstat(path)
    except OSError as error:
        raise TracecoreError(
            f"cannot make the runtime directory {path}: {error.strerror}; "
            "set TRACECORE_RUNTIME_DIR to a directory you own"
        ) from None
    if not stat.S_ISDIR(info.st_mode):
        raise TracecoreError(f"{path} is not a directory; set TRACECORE_RUNTIME_DIR elsewhere")
    if info.st_uid != os.getuid():
        raise TracecoreError(
            f"{path} belongs to uid {info.st_uid}, not to you ({os.getuid()}); "
            "set TRACECORE_RUNTIME_DIR to a directory you own"
        )
    if info.st_mode & 0o077:
        try:
            os.chmod(path, 0o700)
        except OSError as error:
            raise TracecoreError(f"cannot make {path} private: {error.strerror}") from None
    return path


def checked_socket_path(path: Path) -> Path:
    """Return ``path``, or raise an error that says it is too long for a unix socket."""
    length = len(os.fsencode(path))
    if length > MAX_SOCKET_PATH:
        raise TracecoreError(
            f"socket path {path} has {length} bytes, the system allows {MAX_SOCKET_PATH}; "
            "set TRACECORE_RUNTIME_DIR to a shorter directory"
        )
    return path
