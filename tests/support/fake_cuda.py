"""Stands in for a CUDA build of torch: its allocator's functions, below the code under test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest


class FakeCuda:
    """Devices in memory. ``calls`` counts what was asked of the driver and of the allocator."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, num_devices: int = 2) -> None:
        """Put it in place; it is not initialised yet, as at a script's start."""
        self.is_initialized = False
        self.allocated = [0] * num_devices
        self.peak = [0] * num_devices
        self.num_ooms = 0
        self.free, self.total = 60 << 30, 80 << 30
        self.has_figures = True
        self.calls: dict[str, int] = {}
        self.observers: list[Callable[[int, int, int, int], None]] = []
        for name in ("memoryStats", "resetPeakMemoryStats", "hostMemoryStats"):
            function = getattr(self, f"_{name}")
            monkeypatch.setattr(torch._C, f"_cuda_{name}", function, raising=False)
        monkeypatch.setattr(
            torch._C, "_cuda_attach_out_of_memory_observer", self._attach, raising=False
        )
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: self.is_initialized)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: num_devices)
        monkeypatch.setattr(torch.cuda, "mem_get_info", self._mem_get_info)

    def allocate(self, device: int, num_bytes: int) -> None:
        """Allocate, or give back a negative number of bytes."""
        self.is_initialized = True
        self.allocated[device] += num_bytes
        self.peak[device] = max(self.peak[device], self.allocated[device])

    def fail(self, device: int, num_bytes: int) -> None:
        """Fail an allocation for good: observers first, then the exception."""
        self.num_ooms += 1
        for observer in self.observers:
            observer(device, num_bytes, self.total, self.free)
        raise torch.OutOfMemoryError("CUDA out of memory")

    def _count(self, name: str) -> None:
        assert self.is_initialized, f"{name} would initialise CUDA"
        self.calls[name] = self.calls.get(name, 0) + 1

    def _memoryStats(self, device: int) -> dict[str, Any]:  # noqa: N802  (torch's name)
        self._count("stats")
        if not self.has_figures:
            raise RuntimeError("pluggable allocator does not yet support getDeviceStats")
        allocated, peak = self.allocated[device], self.peak[device]

        def figure(current: int, highest: int) -> dict[str, Any]:
            return {"all": {"current": current, "peak": highest, "allocated": 0, "freed": 0}}

        return {
            "allocated_bytes": figure(allocated, peak),
            "reserved_bytes": figure(2 * allocated, 2 * peak),
            "inactive_split_bytes": figure(allocated // 10, peak),
            "num_alloc_retries": 3,
            "num_ooms": self.num_ooms,
            "num_sync_all_streams": 4,
            "reserved_bytes_by_private_pools": {(0, 1): 5},
        }

    def _resetPeakMemoryStats(self, device: int) -> None:  # noqa: N802
        self._count("reset")
        self.peak[device] = self.allocated[device]

    def _hostMemoryStats(self) -> dict[str, Any]:  # noqa: N802
        self._count("host")
        return {"allocated_bytes": {"current": 4096, "peak": 8192}, "num_host_alloc": 1}

    def _mem_get_info(self, device: int) -> tuple[int, int]:
        self._count("driver")
        return self.free, self.total

    def _attach(self, observer: Callable[[int, int, int, int], None]) -> None:
        self._count("attach")
        self.observers.append(observer)
