"""Facts about this machine that decide whether the path works, each with what it should be."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tracecore_sidecar.sources.ptrace import ptrace_obstacle
from tracecore_sidecar.sources.stacks import find_py_spy
from tracecore_train import runtime

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

RING_VARIABLES = ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE")
LONGEST_JOB = "j" * 32
LONGEST_RANK = 99_999
MIN_RUNTIME_BYTES = 1 << 20
"""Room for the rank pages of a node: 4 KiB each, and some for sockets."""
MIN_SHM_BYTES = 128 << 20
"""A container's default of 64 MiB kills loader workers of real jobs (SIGBUS)."""
MIN_OPEN_FILES = 1_024
"""The sidecar holds some files per rank."""
SHARED_MEMORY = "/dev/shm"  # noqa: S108  (only its size is asked)
SLOW_CLOCKS = ("acpi_pm", "hpet", "jiffies", "refined-jiffies")
"""Clock sources whose every reading goes through the kernel; steps and batches read the clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One thing about the machine."""

    name: str
    text: str
    is_good: bool = True
    way: str = ""
    """What to do where it is not good."""


def gather(environ: Mapping[str, str], root: Path = Path("/")) -> list[Fact]:
    """Look at the machine; ``root`` is where ``dev``, ``proc`` and ``sys`` lie, for tests."""
    return [
        Fact(name="python", text=f"{platform.python_version()} on {platform.platform()}"),
        _flight_recorder(environ),
        *_runtime_directory(),
        _shared_memory(root),
        _stacks(root),
        _clock(root),
        _open_files(),
    ]


def _flight_recorder(environ: Mapping[str, str]) -> Fact:
    chosen = {name: environ[name] for name in RING_VARIABLES if name in environ}
    if not chosen:
        return Fact(name="flight recorder", text="no size chosen: each rank sets 2000 entries")
    text = ", ".join(f"{name}={value}" for name, value in chosen.items())
    is_on = any(value.strip() != "0" for value in chosen.values())
    way = "unset them, or set both to 2000: without the recorder no collective is seen"
    return Fact(name="flight recorder", text=text, is_good=is_on, way="" if is_on else way)


def _runtime_directory() -> Iterator[Fact]:
    root = runtime.runtime_root()
    way = "set TRACECORE_RUNTIME_DIR to a short private directory on a tmpfs"
    existing = next(path for path in (root, *root.absolute().parents) if path.exists())
    try:
        info, free = os.lstat(existing), shutil.disk_usage(existing).free
    except OSError as error:
        yield Fact(
            name="runtime directory", text=f"{root}: {error.strerror}", is_good=False, way=way
        )
        return
    is_ours = existing != root or (stat.S_ISDIR(info.st_mode) and info.st_uid == os.getuid())
    owner = "" if is_ours else f", belongs to uid {info.st_uid}"
    is_good = is_ours and free >= MIN_RUNTIME_BYTES and os.access(existing, os.W_OK)
    yield Fact(
        name="runtime directory",
        text=f"{root} ({_size(free)} free{owner})",
        is_good=is_good,
        way="" if is_good else way,
    )
    job = runtime.job_dir(LONGEST_JOB, root)
    length = len(os.fsencode(runtime.worker_server_socket(job.absolute(), 0, LONGEST_RANK)))
    is_short = length <= runtime.MAX_SOCKET_PATH
    yield Fact(
        name="socket path",
        text=f"at most {length} bytes of {runtime.MAX_SOCKET_PATH}",
        is_good=is_short,
        way="" if is_short else "set TRACECORE_RUNTIME_DIR to a shorter directory",
    )


def _shared_memory(root: Path) -> Fact:
    try:
        usage = shutil.disk_usage(root / "dev/shm")
    except OSError as error:
        return Fact(
            name=SHARED_MEMORY,
            text=error.strerror or "not there",
            is_good=False,
            way="mount a tmpfs there: loader workers need it",
        )
    is_good = usage.free >= MIN_SHM_BYTES
    way = (
        "" if is_good else "give the container more (docker run --shm-size): loader workers need it"
    )
    return Fact(name=SHARED_MEMORY, text=f"{_size(usage.free)} free", is_good=is_good, way=way)


def _stacks(root: Path) -> Fact:
    program, obstacle = find_py_spy(), ptrace_obstacle(root)
    text = f"py-spy: {program or 'not found'}; ptrace: {obstacle or 'nothing forbids it'}"
    is_good = program is not None and not obstacle
    return Fact(name="stacks from outside", text=text, is_good=is_good)


def _clock(root: Path) -> Fact:
    path = root / "sys/devices/system/clocksource/clocksource0/current_clocksource"
    try:
        source = path.read_text("ascii", "replace").strip()
    except OSError:
        source = "unknown source"
    is_good = source not in SLOW_CLOCKS
    return Fact(
        name="clock",
        text=f"{source}, {_cost_of_clock():.0f} ns a reading",
        is_good=is_good,
        way="" if is_good else "boot with a stable tsc: each reading of this clock is slow",
    )


def _cost_of_clock(num_readings: int = 2_000) -> float:
    costs = []
    for _ in range(5):
        began = time.monotonic_ns()
        for _ in range(num_readings):
            time.monotonic_ns()
        costs.append((time.monotonic_ns() - began) / num_readings)
    return min(costs)


def _open_files() -> Fact:
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    is_good = soft == resource.RLIM_INFINITY or soft >= MIN_OPEN_FILES
    text = "no limit" if soft == resource.RLIM_INFINITY else f"{soft} a process"
    way = "" if is_good else f"ulimit -n {MIN_OPEN_FILES} or more"
    return Fact(name="open files", text=text, is_good=is_good, way=way)


def _size(num_bytes: int) -> str:
    if num_bytes >= 1 << 30:
        return f"{num_bytes / (1 << 30):.1f} GiB"
    return f"{num_bytes / (1 << 20):.0f} MiB"
