"""The sidecar as a child of the launcher: its directory, its start, its end.

The directory is claimed with a lock, so that two launchers on one host that run the same job
(two nodes rehearsed on one machine) never share sockets. It is removed at the end.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from tracecore_train.errors import TracecoreError
from tracecore_train.runtime import (
    checked_socket_path,
    job_dir,
    make_private_dir,
    runtime_root,
    sidecar_socket,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

SIDECAR_COMMAND: Sequence[str] = (sys.executable, "-m", "tracecore_sidecar", "sidecar")
"""What starts a sidecar; its options are appended."""
STOP_TIMEOUT_S = 10.0
"""Seconds the sidecar has for its summary after SIGTERM, before SIGKILL."""
_LOCK_FILE = "launcher.lock"
_RESET_SCROLL_REGION = "\x1b7\x1b[r\x1b8"


class JobDirectory:
    """The runtime directory of one job on this host, ours until :meth:`remove`."""

    def __init__(self, path: Path, lock_fd: int) -> None:
        """Wrap a claimed directory; use :meth:`claim`."""
        self.path = path
        self._lock_fd = lock_fd

    @classmethod
    def claim(cls, job_id: str) -> JobDirectory:
        """Make and lock the directory, emptied of what a killed predecessor left in it.

        Raises :class:`TracecoreError` when no private directory can be had.
        """
        if not os.environ.get("TRACECORE_RUNTIME_DIR"):
            make_private_dir(runtime_root())
        for name in (job_id, f"{job_id}-{os.getpid()}"):
            path = make_private_dir(job_dir(name).absolute())
            checked_socket_path(sidecar_socket(path))
            try:
                lock_fd = os.open(path / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise TracecoreError(f"cannot write in {path}: {error.strerror}") from None
            if not _lock(lock_fd, path / _LOCK_FILE):
                os.close(lock_fd)
                continue
            claimed = cls(path, lock_fd)
            claimed._empty()
            return claimed
        raise TracecoreError(f"the runtime directory of job {job_id} is locked: {job_dir(job_id)}")

    def _empty(self) -> None:
        for entry in os.scandir(self.path):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            elif entry.name != _LOCK_FILE:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)

    def remove(self) -> None:
        """Remove the directory with its sockets and rank pages, and give up the claim."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock_fd)


def _lock(lock_fd: int, path: Path) -> bool:
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A predecessor may have removed the directory between our open and our lock.
        return os.path.samestat(os.fstat(lock_fd), os.stat(path))
    except OSError:
        return False


class SidecarProcess:
    """A running sidecar."""

    def __init__(self, process: subprocess.Popen[bytes], *, display: str) -> None:
        """Wrap a started process; use :func:`start_sidecar`."""
        self._process = process
        self._display = display

    def exit_code(self) -> int | None:
        """Give the exit code, or None while it runs."""
        return self._process.poll()

    def stop(self, is_hurried: Callable[[], bool], timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Ask it to finish, wait for its summary, and kill it when late or when hurried."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
            # One that somebody stopped would keep us waiting for a summary it cannot write.
            self._process.send_signal(signal.SIGCONT)
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and not is_hurried():
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.1)
                return
        if self._process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._display == "live":
            # It could not give back the terminal row it had reserved.
            with contextlib.suppress(OSError):
                os.write(2, _RESET_SCROLL_REGION.encode())


def start_sidecar(
    directory: Path,
    *,
    job_id: str,
    output: Path,
    node_rank: int,
    display: str,
    on_hang: str | None = None,
) -> SidecarProcess:
    """Start the sidecar in a session of its own, so that Ctrl-C does not reach it.

    It writes to our standard error: the start line, verdicts, the summary. Raises ``OSError``.
    """
    command = [
        *SIDECAR_COMMAND,
        *("--job-dir", str(directory)),
        *("--job-id", job_id),
        *("--output", str(output)),
        *("--node-rank", str(node_rank)),
        *("--parent-pid", str(os.getpid())),
        *("--display", display),
        *(() if on_hang is None else ("--on-hang", on_hang)),
    ]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=2,
        stderr=2,
        start_new_session=True,
        # `-m` would put the working directory, full of the user's modules, first on sys.path.
        env={**os.environ, "PYTHONSAFEPATH": "1"},
    )
    return SidecarProcess(process, display=display)
