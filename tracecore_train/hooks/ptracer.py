"""Lets the sidecar take this rank's stack where Yama restricts ptrace to ancestors.

With ``kernel.yama.ptrace_scope=1`` a process may be looked into by its ancestors and by one
process that it names itself, with that one's children. The rank names the sidecar, which is at the
other end of its socket, and names the next one when the sidecar is replaced. Only a process of the
same user, or root, is named. There is room for one name: a crash handler that the job itself named
before is displaced.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracecore_train.guard import Guard
    from tracecore_train.hooks.context import HookContext
    from tracecore_train.wire.records import Record

SCOPE_FILE = Path("/proc/sys/kernel/yama/ptrace_scope")
PR_SET_PTRACER = 0x59616D61
_REASONS = {
    2: "kernel.yama.ptrace_scope is 2; only a sidecar with CAP_SYS_PTRACE can take stacks",
    3: "kernel.yama.ptrace_scope is 3; nobody can take stacks until the node starts anew",
}


def set_ptracer(pid: int) -> int:
    """Name the process that may trace this one (0: nobody); give the error number, 0 for none."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    failed = prctl(PR_SET_PTRACER, ctypes.c_ulong(pid), *[ctypes.c_ulong(0)] * 3)
    return ctypes.get_errno() if failed else 0


class PtracerHook:
    """Names the sidecar, and its successor."""

    name = "ptracer"

    def __init__(self, context: HookContext, guard: Guard) -> None:
        """Prepare; nothing is asked yet."""
        self._sidecar = context.sidecar
        self._scope = 0
        self._named = 0
        self._blind = ""

    def install(self) -> None:
        """Read how the kernel restricts ptrace; without Yama there is nothing to do."""
        try:
            self._scope = int(SCOPE_FILE.read_text())
        except (OSError, ValueError):
            self._scope = 0
        self._blind = _REASONS.get(self._scope, "")

    def uninstall(self) -> None:
        """Name nobody any more."""
        if self._named:
            set_ptracer(0)
        self._named = 0

    def blind(self) -> list[str]:
        """Give what this hook cannot open."""
        return [f"ptrace_grant: {self._blind}"] if self._blind else []

    def poll(self, is_full: bool) -> list[Record]:
        """Name the process that takes our records, when it is a new one."""
        peer = self._sidecar() if self._scope == 1 else None
        if peer is None:
            return []
        pid, uid = peer
        if pid <= 0 or uid not in (0, os.getuid()):
            self._blind = "the sidecar is in another pid namespace or of another user"
            return []
        if pid != self._named:
            number = set_ptracer(pid)
            self._named = 0 if number else pid
            refused = f"the kernel refused to name the sidecar ({os.strerror(number)})"
            self._blind = refused if number else ""
        return []
