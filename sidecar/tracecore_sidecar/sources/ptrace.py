"""Whether this process may look into another of the same user, as the kernel's settings say.

Reading is all: nothing is attached to. A container's seccomp filter can still refuse what the
settings allow, so a stack that cannot be had says so itself.
"""

from __future__ import annotations

from pathlib import Path

_CAP_SYS_PTRACE = 19
_MAX_BYTES = 1 << 16


def ptrace_obstacle(root: Path = Path("/")) -> str:
    """Say what forbids looking into the ranks; empty: nothing that the settings tell.

    With a scope of 1 the ranks name their sidecar, and say so themselves where they cannot.
    ``root`` is where ``proc`` lies, for tests.
    """
    scope = _read(root / "proc/sys/kernel/yama/ptrace_scope").strip()
    if scope in {"", "0", "1"}:
        return ""
    if scope == "3":
        return "kernel.yama.ptrace_scope=3 forbids it to everyone until the next boot"
    if _has_capability(root):
        return ""
    return f"kernel.yama.ptrace_scope={scope} and this process has no CAP_SYS_PTRACE"


def _has_capability(root: Path) -> bool:
    for line in _read(root / "proc/self/status").splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            try:
                return bool(int(value, 16) >> _CAP_SYS_PTRACE & 1)
            except ValueError:
                return False
    return False


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES).decode("ascii", "replace")
    except OSError:
        return ""
