"""A rank's process as ``/proc`` shows it, in more depth than is worth reading every second.

State, wait channel, processor time over a short interval, threads, children, memory, open files
that look like checkpoints, cgroup limits, and the few environment variables that steer
communication. Never the command line, and no other variable: see ``docs/bundle.md``.

Everything is bounded, and what cannot be read is listed with the reason. It blocks: call it beside
the event loop, with a deadline.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracecore_sidecar.sources.process import read_process

if TYPE_CHECKING:
    from collections.abc import Callable

INTERVAL_S = 0.5
"""Between two looks at the processor time: 50 ticks of a busy process."""
MAX_THREADS = 128
MAX_CHILDREN = 64
MAX_FILES = 4_096
"""Open files looked at; of these, those that look like a checkpoint are listed."""
MAX_LISTED = 64
MAX_TEXT = 4_096
CHECKPOINT_SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors", ".distcp", ".bin", ".tar", ".npz")
CHECKPOINT_WORDS = ("checkpoint", "ckpt")
ENVIRONMENT = (
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "CUDA_LAUNCH_BLOCKING",
    "CUDA_VISIBLE_DEVICES",
    "GLOO_SOCKET_IFNAME",
    "GROUP_RANK",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "NCCL_ALGO",
    "NCCL_ASYNC_ERROR_HANDLING",
    "NCCL_BUFFSIZE",
    "NCCL_CUMEM_ENABLE",
    "NCCL_DEBUG",
    "NCCL_DEBUG_SUBSYS",
    "NCCL_IB_DISABLE",
    "NCCL_IB_GID_INDEX",
    "NCCL_IB_HCA",
    "NCCL_IB_RETRY_CNT",
    "NCCL_IB_TIMEOUT",
    "NCCL_NET_GDR_LEVEL",
    "NCCL_NVLS_ENABLE",
    "NCCL_P2P_DISABLE",
    "NCCL_PROTO",
    "NCCL_RAS_ADDR",
    "NCCL_RAS_ENABLE",
    "NCCL_SHM_DISABLE",
    "NCCL_SOCKET_IFNAME",
    "NCCL_TIMEOUT",
    "OMP_NUM_THREADS",
    "PYTORCH_CUDA_ALLOC_CONF",
    "RANK",
    "TORCHELASTIC_MAX_RESTARTS",
    "TORCHELASTIC_RESTART_COUNT",
    "TORCH_CPP_LOG_LEVEL",
    "TORCH_DISTRIBUTED_DEBUG",
    "TORCH_FR_BUFFER_SIZE",
    "TORCH_FR_DUMP_TEMP_FILE",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING",
    "TORCH_NCCL_BLOCKING_WAIT",
    "TORCH_NCCL_DUMP_ON_TIMEOUT",
    "TORCH_NCCL_ENABLE_MONITORING",
    "TORCH_NCCL_ENABLE_TIMING",
    "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC",
    "TORCH_NCCL_TRACE_BUFFER_SIZE",
    "WORLD_SIZE",
)
"""The variables that are copied; all others stay out."""
_STATUS_KEYS = (
    *("VmPeak", "VmHWM", "VmRSS", "VmSwap", "RssAnon", "RssFile", "RssShmem", "Threads"),
    *("voluntary_ctxt_switches", "nonvoluntary_ctxt_switches", "Seccomp", "SigBlk", "SigCgt"),
)
_CGROUP_FILES = (
    *("memory.max", "memory.high", "memory.current", "memory.events", "cpu.max", "cpu.stat"),
    *("pids.max", "pids.current"),
    *("memory.limit_in_bytes", "memory.usage_in_bytes", "cpu.cfs_quota_us", "cpu.cfs_period_us"),
)
_SECONDS_PER_TICK = 1 / os.sysconf("SC_CLK_TCK")


def read_facts(
    rank: int,
    pid: int,
    *,
    proc: Path = Path("/proc"),
    cgroups: Path = Path("/sys/fs/cgroup"),
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Look at a process for :data:`INTERVAL_S`. Never raises because of it."""
    reader = _Reader(proc / str(pid))
    before, began = read_process(rank, pid, 0, proc), time.monotonic()
    threads_before = reader.threads()
    sleep(INTERVAL_S)
    after, seconds = read_process(rank, pid, 0, proc), time.monotonic() - began
    return {
        "rank": rank,
        "pid": pid,
        "state": after.state,
        "wchan": after.wchan,
        "start_ticks": after.start_ticks,
        "cpu_share": round((after.cpu_ns - before.cpu_ns) / 1e9 / seconds, 3),
        "cpu_s": after.cpu_ns / 1e9,
        "looked_for_s": round(seconds, 3),
        "rss_bytes": after.rss_bytes,
        "status": reader.status(),
        "io": reader.pairs("io"),
        "oom_score": reader.text("oom_score").strip(),
        "kernel_stack": reader.text("stack").splitlines(),
        "threads": _with_share(threads_before, reader.threads(), seconds),
        "children": reader.children(proc),
        "open_checkpoints": reader.checkpoints(),
        "cgroup": reader.cgroup(cgroups),
        "not_read": reader.problems,
    }


def read_environment(pid: int, *, proc: Path = Path("/proc")) -> dict[str, str]:
    """Give the listed variables a process was started with; raise ``OSError``.

    Waits for a lock of the process: not together with :func:`read_facts`, which takes none.
    """
    pairs = (pair.partition("=") for pair in _text(proc / str(pid) / "environ").split("\0"))
    return {name: value[:MAX_TEXT] for name, _, value in pairs if name in ENVIRONMENT}


class _Reader:
    """Reads files of one process; notes what could not be read."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.problems: dict[str, str] = {}

    def text(self, name: str) -> str:
        try:
            return _text(self._directory / name)
        except OSError as error:
            self.problems[name] = error.strerror or str(error)
            return ""

    def pairs(self, name: str) -> dict[str, str]:
        pairs = (line.partition(":") for line in self.text(name).splitlines())
        return {key: value.strip() for key, _, value in pairs}

    def status(self) -> dict[str, str]:
        found = self.pairs("status")
        return {key: found[key] for key in _STATUS_KEYS if key in found}

    def threads(self) -> list[dict[str, Any]]:
        found = []
        for tid in self._names("task")[:MAX_THREADS]:
            with contextlib.suppress(OSError, ValueError, IndexError):
                found.append(_task(self._directory / "task" / tid))
        return found

    def children(self, proc: Path) -> list[dict[str, Any]]:
        """Give the processes it started, also by its threads: loader workers, compilers."""
        pids: list[str] = []
        for tid in self._names("task")[:MAX_THREADS]:
            with contextlib.suppress(OSError):
                pids += _text(self._directory / "task" / tid / "children").split()
        found = []
        for pid in pids[:MAX_CHILDREN]:
            with contextlib.suppress(OSError, ValueError, IndexError):
                found.append(_task(proc / pid))
        return found

    def checkpoints(self) -> list[dict[str, Any]]:
        """Give the open files that look like a checkpoint, with position and mode."""
        found: list[dict[str, Any]] = []
        for name in self._names("fd")[:MAX_FILES]:
            with contextlib.suppress(OSError):
                path = os.readlink(self._directory / "fd" / name)
                if not looks_like_checkpoint(path):
                    continue
                info = self.pairs(f"fdinfo/{name}")
                flags = int(info.get("flags") or "0", 8)
                is_written = flags & os.O_ACCMODE != os.O_RDONLY
                found.append(
                    {"path": path, "position": info.get("pos"), "is_for_writing": is_written}
                )
        return found[:MAX_LISTED]

    def cgroup(self, root: Path) -> dict[str, Any]:
        """Give the limits of its cgroup: of version 2, or of the controllers of version 1."""
        found: dict[str, Any] = {}
        for line in self.text("cgroup").splitlines()[:32]:
            _, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            places = [root / path.lstrip("/")] if not controllers else []
            places += [root / name / path.lstrip("/") for name in controllers.split(",") if name]
            for place in places:
                for name in _CGROUP_FILES:
                    with contextlib.suppress(OSError):
                        found[name] = _text(place / name).strip()
        return found

    def _names(self, name: str) -> list[str]:
        try:
            return sorted(os.listdir(self._directory / name), key=len)
        except OSError as error:
            self.problems[name] = error.strerror or str(error)
            return []


def looks_like_checkpoint(path: str) -> bool:
    """Say whether a path is a file that a checkpoint may be written to or read from."""
    if not path.startswith("/") or path.startswith(("/dev/", "/proc/", "/sys/", "/memfd:")):
        return False
    lowered = path.lower()
    if lowered.endswith((".py", ".so", ".log")):
        return False
    # `.tmp` and numbered parts: many writers write beside the file and rename.
    stem = lowered.removesuffix(" (deleted)").removesuffix(".tmp").removesuffix(".part")
    return stem.endswith(CHECKPOINT_SUFFIXES) or any(word in lowered for word in CHECKPOINT_WORDS)


def _task(directory: Path) -> dict[str, Any]:
    stat = _text(directory / "stat")
    # The name is free text in parentheses: it may hold parentheses itself.
    head, _, rest = stat.rpartition(")")
    number, _, name = head.partition("(")
    fields = rest.split()
    wchan = ""
    with contextlib.suppress(OSError):
        wchan = _text(directory / "wchan").strip()
    return {
        "id": int(number),
        "name": name[:64],
        "state": fields[0],
        "cpu_ticks": int(fields[11]) + int(fields[12]),
        "wchan": "" if wchan == "0" else wchan[:64],
    }


def _with_share(
    before: list[dict[str, Any]], after: list[dict[str, Any]], seconds: float
) -> list[dict[str, Any]]:
    ticks = {thread["id"]: thread["cpu_ticks"] for thread in before}
    for thread in after:
        used = thread["cpu_ticks"] - ticks.get(thread["id"], thread["cpu_ticks"])
        thread["cpu_share"] = round(used * _SECONDS_PER_TICK / seconds, 3)
    return after


def _text(path: Path) -> str:
    limit = 1 << 20 if path.name == "environ" else MAX_TEXT
    with path.open("rb") as file:
        return file.read(limit).decode("utf-8", "replace")
