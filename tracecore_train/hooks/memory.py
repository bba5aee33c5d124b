"""Device memory: the allocator's figures once a second and at the end of named phases.

The export thread samples; at the end of a phase the training thread does, at most
:data:`MAX_PER_S` times a second. High-water marks are the user's to reset, so they are read as they
are; :class:`MemoryPeaksHook`, which is off unless asked for, resets them at every step.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from tracecore_train.errors import HookUnavailableError
from tracecore_train.hooks.cuda import NO_CUDA
from tracecore_train.hooks.device_memory import DeviceMemory
from tracecore_train.hooks.dynamo import keep_out_of_graphs
from tracecore_train.hooks.oom_observer import OomNotice
from tracecore_train.recorder.clock import now_ns
from tracecore_train.recorder.pace import Pace

if TYPE_CHECKING:
    from tracecore_train.guard import Guard
    from tracecore_train.hooks.context import HookContext
    from tracecore_train.wire.records import MemoryRecord, Record

SAMPLE_EVERY_NS = 900_000_000
"""Least time between two periodic samples: one for each hand-over of a second."""
MAX_PER_S = 4
"""Samples a second on the training thread, 15 to 25 µs each."""
MAX_PEAKS_PER_S = 20
"""The same for steps, where the user asked for peaks per step."""
MAX_WAITING = 512
"""Samples of the training thread that wait for a hand-over; older ones are lost."""
STEP = "step"
"""Phase of a sample at the end of a step."""


class MemoryHook:
    """Samples the devices this process uses, and notices failed allocations."""

    name = "memory"

    def __init__(self, context: HookContext, guard: Guard) -> None:
        """Prepare; nothing is installed yet."""
        self._recorder = context.recorder
        self._guard = guard
        self._memory = DeviceMemory(context.recorder, context.rank)
        self._notice = OomNotice(context.recorder, guard)
        self._pace = Pace(MAX_PER_S)
        self._waiting: deque[MemoryRecord] = deque(maxlen=MAX_WAITING)
        self._sampled_ns = 0
        self._is_in_use = False

    def install(self) -> None:
        """Listen for the ends of phases."""
        self._recorder.on_phase = self._on_phase

    def uninstall(self) -> None:
        """Listen no more. The observer of failed allocations stays attached and is inert."""
        self._recorder.on_phase = None
        self._notice.stop()

    def blind(self) -> list[str]:
        """Give which of its signals it cannot give at the moment."""
        if not self._is_in_use:
            return [f"memory.device: {NO_CUDA}", f"memory.oom: {NO_CUDA}"]
        found = {"memory.device": self._memory.reason, "memory.oom": self._notice.reason}
        return [f"{signal}: {reason}" for signal, reason in found.items() if reason]

    def poll(self, is_full: bool) -> list[Record]:
        """Give what the training thread sampled since, and a sample of now."""
        self._is_in_use = self._memory.look_around()
        if not self._is_in_use:
            return []
        if not self._notice.is_listening:
            self._notice.listen()
        records: list[Record] = _taken(self._waiting)
        now = now_ns()
        if now - self._sampled_ns >= SAMPLE_EVERY_NS:
            self._sampled_ns = now
            records += self._memory.sample()
        return records

    def _on_phase(self, name: str) -> None:
        if self._is_in_use and self._guard.is_open and self._pace.allows(now_ns()):
            with self._guard:
                self._waiting.extend(self._memory.sample(name))


class MemoryPeaksHook:
    """Makes high-water marks those of one step, by resetting them: the user must ask for it."""

    name = "memory_peaks"

    def __init__(self, context: HookContext, guard: Guard) -> None:
        """Prepare; nothing is installed yet."""
        self._recorder = context.recorder
        self._guard = guard
        self._memory = DeviceMemory(context.recorder, context.rank)
        self._pace = Pace(MAX_PEAKS_PER_S)
        self._waiting: deque[MemoryRecord] = deque(maxlen=MAX_WAITING)
        self._handle: Any = None
        self._num_steps = 0
        self._is_in_use = False

    def install(self) -> None:
        """Watch optimizers; ours comes after the hook that ends the step."""
        try:
            from torch.optim.optimizer import register_optimizer_step_post_hook
        except ImportError as error:
            raise HookUnavailableError(f"no torch ({error})") from None
        self._handle = register_optimizer_step_post_hook(keep_out_of_graphs(self._after_step))

    def uninstall(self) -> None:
        """Watch no more."""
        if self._handle is not None:
            self._handle.remove()
        self._handle = None

    def blind(self) -> list[str]:
        """Give which of its signals it cannot give at the moment."""
        reason = self._memory.reason if self._is_in_use else NO_CUDA
        return [f"memory.peaks: {reason}"] if reason else []

    def poll(self, is_full: bool) -> list[Record]:
        """Give the steps' samples."""
        self._is_in_use = self._memory.look_around()
        return _taken(self._waiting)

    def _after_step(self, optimizer: object, args: object, kwargs: object) -> None:
        if not self._is_in_use or not self._guard.is_open:
            return
        with self._guard:
            num_steps = self._recorder.num_steps
            # A step too many in this second is summed into the next one's peak.
            if num_steps != self._num_steps and self._pace.allows(now_ns()):
                self._num_steps = num_steps
                self._waiting.extend(self._memory.sample(STEP))
                self._memory.reset_peaks()


def _taken(waiting: deque[MemoryRecord]) -> list[Record]:
    """Take what waits; the training thread may append meanwhile."""
    return [waiting.popleft() for _ in range(len(waiting))]
