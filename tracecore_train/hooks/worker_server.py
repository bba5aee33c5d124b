"""Torch's C++ worker server on a private unix socket.

Through it the sidecar reads the flight recorder while this rank holds the GIL. It is started
from the export thread when the first process group exists, once per process, and never stopped:
its ``shutdown`` can hang for ever right after the start, and its destructor in a forked child
aborts the parent. One leaked reference avoids both; the idle server is what ``shutdown()`` leaves.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import TYPE_CHECKING

from tracecore_train.errors import HookUnavailableError, TracecoreError
from tracecore_train.guard import MAX_REASON
from tracecore_train.runtime import checked_socket_path

if TYPE_CHECKING:
    from pathlib import Path

    from tracecore_train.guard import Guard
    from tracecore_train.hooks.context import HookContext
    from tracecore_train.wire.records import Record

_started: list[Path] = []
"""Where this process listens; at most one path."""


class WorkerServerHook:
    """Starts the worker server when there is something to read from it."""

    name = "worker_server"

    def __init__(self, context: HookContext, guard: Guard) -> None:
        """Prepare; nothing is started yet."""
        self._path = context.socket_path
        self._blind = ""

    def install(self) -> None:
        """Check that it can be started later."""
        if self._path is None:
            raise HookUnavailableError("no private directory for the socket")
        try:
            checked_socket_path(self._path)
        except TracecoreError as error:
            raise HookUnavailableError(str(error)) from None
        try:
            from torch._C._distributed_c10d import _WorkerServer  # noqa: F401
        except ImportError as error:
            raise HookUnavailableError(f"no worker server ({error})") from None

    def uninstall(self) -> None:
        """Leave the server as it is; see the module's text."""

    def blind(self) -> list[str]:
        """Give what this hook cannot see."""
        return [f"collectives.entries: {self._blind}"] if self._blind else []

    def poll(self, is_full: bool) -> list[Record]:
        """Start the server once a process group exists."""
        path = self._path
        if path is None or self._blind or path in _started:
            return []
        dist = sys.modules.get("torch.distributed.distributed_c10d")
        is_initialized = getattr(dist, "is_initialized", None)
        if is_initialized is None or not is_initialized():
            return []
        if _started:
            self._blind = f"this process already listens on {_started[0]}"
            return []
        self._start(path)
        return []

    def _start(self, path: Path) -> None:
        from torch._C._distributed_c10d import _WorkerServer

        try:
            path.unlink(missing_ok=True)
            server = _WorkerServer(os.fspath(path), -1)
        except (OSError, RuntimeError, TypeError) as error:
            self._blind = f"the worker server did not start ({error})"[:MAX_REASON]
            return
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(server))
        _started.append(path)
