"""The node and the versions of what runs on it: what an issue report is asked for first."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracecore_train import runtime
from tracecore_train.__about__ import __version__

if TYPE_CHECKING:
    from tracecore_sidecar.state.view import JobView

_MEMORY = ("MemTotal", "MemAvailable", "Dirty", "Writeback", "SwapTotal", "SwapFree", "Shmem")
_PACKAGES = ("py-spy", "numpy", "pydantic", "uvicorn", "starlette", "opentelemetry-proto")


def node_facts(host: str, output: Path, proc: Path = Path("/proc")) -> dict[str, Any]:
    """Describe this node. Never raises."""
    facts: dict[str, Any] = {
        "host": host,
        "boot_id": runtime.boot_id(),
        "kernel": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "memory": {},
        "load": [],
        "pressure": {},
    }
    with contextlib.suppress(OSError):
        facts["cpus_allowed"] = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError):
        facts["load"] = [round(load, 2) for load in os.getloadavg()]
    with contextlib.suppress(OSError):
        lines = (line.partition(":") for line in (proc / "meminfo").read_text().splitlines())
        facts["memory"] = {name: value.strip() for name, _, value in lines if name in _MEMORY}
    for name in ("cpu", "memory", "io"):
        with contextlib.suppress(OSError):
            text = (proc / "pressure" / name).read_text()
            facts["pressure"][name] = text.splitlines()
    with contextlib.suppress(OSError):
        space = os.statvfs(output)
        facts["output_free_bytes"] = space.f_bavail * space.f_frsize
    return facts


def versions(view: JobView) -> dict[str, Any]:
    """Give the versions of what runs here, and of torch by the ranks that told it."""
    torch: dict[str, list[int]] = {}
    for rank, identity in sorted(view.identities.items()):
        torch.setdefault(identity.torch_version or "unknown", []).append(rank)
    packages: dict[str, str] = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            packages[name] = metadata.version(name)
    return {
        "tracecore": __version__,
        "python": sys.version.split()[0],
        "packages": packages,
        "torch_by_ranks": torch,
    }
