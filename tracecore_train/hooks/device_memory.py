"""What torch's allocator and the driver say about the memory of CUDA devices.

Only what somebody else has initialised is read: looking never makes a context. The allocator's
figures are host-side counters behind its lock; nothing waits for the device. The driver's free
memory is a driver call, made seldom, from the export thread only, and never while a CUDA graph is
captured. Functions are looked up by name; one that is missing or answers with an error costs its
own figures.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from tracecore_train.guard import MAX_REASON
from tracecore_train.hooks.cuda import cuda_in_use
from tracecore_train.recorder.clock import now_ns
from tracecore_train.recorder.page import Word
from tracecore_train.wire.records import NOT_MEASURED, MemoryRecord

if TYPE_CHECKING:
    from tracecore_train.recorder.recorder import Recorder

DRIVER_EVERY_NS = 10_000_000_000
"""Between two looks at free and pinned memory, and for devices newly in use."""
MAX_DEVICES = 64
_CAPTURE_SINCE = int(Word.CAPTURE_SINCE)


class DeviceMemory:
    """Reads the devices this process uses."""

    def __init__(self, recorder: Recorder, rank: int) -> None:
        """Prepare; nothing is looked up yet."""
        self._recorder = recorder
        self._rank = rank
        self._devices: tuple[int, ...] = ()
        self._free: dict[int, tuple[int, int]] = {}
        self._pinned = NOT_MEASURED
        self._driver_at = 0
        self.reason = ""
        """Why the allocator gives no figures; empty: it does, or was not asked."""

    def look_around(self) -> bool:
        """Say whether this process uses CUDA; look now and then at what the driver knows.

        For the export thread.
        """
        cuda = cuda_in_use()
        if cuda is None:
            return False
        now = now_ns()
        if now < self._driver_at:
            return True
        self._devices = self._find_devices(cuda)
        if self._devices:
            self._driver_at = now + DRIVER_EVERY_NS
            self._pinned = _pinned_bytes()
            if not self._recorder.page.words[_CAPTURE_SINCE]:
                self._free = {device: _free_and_total(cuda, device) for device in self._devices}
        return True

    def sample(self, phase: str = "") -> list[MemoryRecord]:
        """Give the figures of the devices in use. For any thread; some 10 µs a device."""
        records = []
        for device in self._devices:
            stats = self._stats(device)
            if stats is not None:
                records.append(self._record(device, stats, phase))
        return records

    def reset_peaks(self) -> None:
        """Begin new high-water marks. They are the user's: only where the user said so."""
        reset = getattr(_torch_c(), "_cuda_resetPeakMemoryStats", None)
        if reset is not None:
            for device in self._devices:
                reset(device)

    def _record(self, device: int, stats: dict[str, Any], phase: str) -> MemoryRecord:
        free, total = self._free.get(device, (NOT_MEASURED, NOT_MEASURED))
        is_first = device == self._devices[0]
        return MemoryRecord(
            time_ns=now_ns(),
            rank=self._rank,
            device=device,
            allocated_bytes=_of_all(stats, "allocated_bytes", "current"),
            allocated_peak_bytes=_of_all(stats, "allocated_bytes", "peak"),
            reserved_bytes=_of_all(stats, "reserved_bytes", "current"),
            reserved_peak_bytes=_of_all(stats, "reserved_bytes", "peak"),
            inactive_split_bytes=_of_all(stats, "inactive_split_bytes", "current"),
            num_alloc_retries=_number(stats.get("num_alloc_retries")),
            num_ooms=_number(stats.get("num_ooms")),
            num_sync_all_streams=_number(stats.get("num_sync_all_streams")),
            device_free_bytes=free,
            device_total_bytes=total,
            # Of the process, not of a device: told once.
            pinned_bytes=self._pinned if is_first else NOT_MEASURED,
            phase=phase,
        )

    def _find_devices(self, cuda: Any) -> tuple[int, ...]:
        found = []
        for device in range(min(int(cuda.device_count()), MAX_DEVICES)):
            stats = self._stats(device)
            if stats is not None and _of_all(stats, "reserved_bytes", "peak") > 0:
                found.append(device)
        return tuple(found) or self._devices

    def _stats(self, device: int) -> dict[str, Any] | None:
        read = getattr(_torch_c(), "_cuda_memoryStats", None)
        if read is None:
            self.reason = "this torch has no _cuda_memoryStats"
            return None
        try:
            stats = read(device)
        except (RuntimeError, ValueError, AssertionError) as error:
            self.reason = f"the allocator in use gives no figures ({error})"[:MAX_REASON]
            return None
        self.reason = ""
        return stats if isinstance(stats, dict) else None


def allocator_text(device: int) -> str:
    """Give what the allocator holds of a device in words; empty where it does not say."""
    read = getattr(_torch_c(), "_cuda_memoryStats", None)
    try:
        stats = read(device) if read is not None else None
    except (RuntimeError, ValueError, AssertionError):
        stats = None
    if not isinstance(stats, dict):
        return ""
    allocated = _of_all(stats, "allocated_bytes", "current")
    reserved = _of_all(stats, "reserved_bytes", "current")
    return f"allocated {allocated}, reserved {reserved}"


def _free_and_total(cuda: Any, device: int) -> tuple[int, int]:
    try:
        free, total = cuda.mem_get_info(device)
    except (RuntimeError, AttributeError, AssertionError):
        return NOT_MEASURED, NOT_MEASURED
    return int(free), int(total)


def _pinned_bytes() -> int:
    read = getattr(_torch_c(), "_cuda_hostMemoryStats", None)
    try:
        stats = read() if read is not None else None
    except (RuntimeError, AssertionError):
        stats = None
    if not isinstance(stats, dict):
        return NOT_MEASURED
    held = stats.get("allocated_bytes")
    if not isinstance(held, dict):
        return NOT_MEASURED
    return _number(held.get("current", _part(held, "all", "current")))


def _of_all(stats: dict[str, Any], figure: str, part: str) -> int:
    return _number(_part(stats.get(figure), "all", part))


def _part(found: Any, *names: str) -> Any:
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _number(value: object) -> int:
    return value if type(value) is int else NOT_MEASURED


def _torch_c() -> Any:
    return sys.modules.get("torch._C")
