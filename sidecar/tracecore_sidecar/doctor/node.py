"""Looks at what this node lets a sidecar read. Nothing is changed, loaded libraries not started.

Every probe takes ``root``, where ``dev``, ``proc`` and ``sys`` lie, so that tests can make a node.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

NVML = "libnvidia-ml.so.1"
_MAX_BYTES = 1 << 16


def kernel_log(root: Path) -> str:
    """Say why the kernel log cannot be read; empty: it can."""
    path = root / "dev/kmsg"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return "/dev/kmsg is not there (a container without it)"
    except OSError as error:
        return f"/dev/kmsg cannot be opened ({error.strerror}; kernel.dmesg_restrict?)"
    try:
        os.read(fd, 8192)
    except OSError as error:
        # Nothing new, or lines lost before we came: readable all the same.
        if error.errno not in {errno.EAGAIN, errno.EPIPE}:
            return f"/dev/kmsg cannot be read ({error.strerror}; kernel.dmesg_restrict?)"
    finally:
        os.close(fd)
    return ""


def gpu(root: Path) -> str:
    """Say why NVML cannot be used; empty: its library loads."""
    try:
        ctypes.CDLL(NVML)
    except OSError:
        seen = "a driver is there" if (root / "dev/nvidiactl").exists() else "no NVIDIA driver"
        return f"{NVML} cannot be loaded ({seen})"
    return ""


def infiniband(root: Path) -> str:
    """Say why no InfiniBand port can be seen; empty: there is one."""
    return "" if _names(root / "sys/class/infiniband") else "/sys/class/infiniband shows no device"


def pcie(root: Path) -> str:
    """Say why no PCI device can be seen; empty: there is one."""
    return "" if _names(root / "sys/bus/pci/devices") else "/sys/bus/pci/devices shows no device"


def cgroup(root: Path) -> str:
    """Say why this process's cgroup v2 cannot be read; empty: it can."""
    own = [line for line in _text(root / "proc/self/cgroup").splitlines() if line[:3] == "0::"]
    mount = root / "sys/fs/cgroup"
    if not (mount / "cgroup.controllers").exists():
        return "cgroup v2 is not mounted at /sys/fs/cgroup"
    # In a container the path may be the host's while the mount shows the own group only.
    folders = [mount / own[0][3:].lstrip("/"), mount] if own else [mount]
    if not any(_text(folder / "cpu.stat") for folder in folders):
        return "the own cgroup under /sys/fs/cgroup has no cpu.stat"
    return ""


def pressure(root: Path) -> str:
    """Say why pressure (PSI) cannot be read; empty: it can."""
    if not (root / "proc/pressure/cpu").exists():
        return "/proc/pressure is not there"
    return "" if _text(root / "proc/pressure/cpu") else "/proc/pressure cannot be read"


PROBES: Mapping[str, Callable[[Path], str]] = {
    "kernel_log": kernel_log,
    "gpu": gpu,
    "infiniband": infiniband,
    "pcie": pcie,
    "cgroup": cgroup,
    "pressure": pressure,
}
"""Signal of the node -> what says why it cannot be had."""


def _names(path: Path) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
