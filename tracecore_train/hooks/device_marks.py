"""Events on the device's stream around the parts of a step, read when the device has passed them.

Nothing here waits: an event is asked with ``query()``, and two events are compared only after
both said that they are done. Everything runs on the training thread, because an event may not be
asked from another thread while a CUDA graph is captured. A step is measured at most every
:data:`SAMPLE_NS`; its number is a multiple of a power of two, so that ranks that keep the same
pace measure the same steps.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from tracecore_train.recorder.clock import now_ns
from tracecore_train.recorder.parts import Point
from tracecore_train.wire.records import RecordKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracecore_train.guard import Guard
    from tracecore_train.recorder.recorder import Recorder

SAMPLE_NS = 100_000_000
"""Least time between two measured steps: a dozen events cost some 30 µs, 0.03 % of this."""
MAX_STRIDE = 1 << 12
"""Most steps from one measured step to the next."""
MAX_EVENTS = 64
"""Events of one step; one with more microbatches than that gives its total only."""
MAX_IN_FLIGHT = 8
"""Measured steps the device has not passed yet; with more, none is begun."""


class _Sample:
    """One step that is measured."""

    __slots__ = ("begin", "device", "events", "is_cut", "is_forward_whole", "spans", "step")

    def __init__(self, step: int, device: object) -> None:
        self.step = step
        self.device = device
        self.begin: Any = None
        self.events: list[Any] = []
        self.spans: list[tuple[str, Any, Any]] = []
        self.is_cut = False
        """It had more parts than events; only its total is known."""
        self.is_forward_whole = True
        """Nothing in a forward was left out."""


class DeviceMarks:
    """Marks some of the steps and records what the marks say."""

    def __init__(
        self, cuda: Any, recorder: Recorder, guard: Guard, is_capturing: Callable[[], bool]
    ) -> None:
        """Use ``cuda`` (the module ``torch.cuda``); mark nothing while ``is_capturing``."""
        self._cuda = cuda
        self._recorder = recorder
        self._guard = guard
        self._is_capturing = is_capturing
        self._next_step = 0
        self._sample: _Sample | None = None
        self._in_flight: deque[_Sample] = deque()
        self._free: dict[object, list[Any]] = {}
        self._forward_since: Any = None
        self._part_since: Any = None
        self._optimizer_since: Any = None
        self.ends_inside_backward = False
        """Whether the last step ended inside a backward, where no event can be put between."""

    def on_step(self, step: int, duration_ns: int) -> None:
        """Close the step that ended if it is measured, and open the next if it is to be."""
        if (self._sample is None and step + 1 < self._next_step) or not self._guard.is_open:
            return
        try:
            self._close()
            if step + 1 >= self._next_step:
                stride = _stride(duration_ns)
                self._next_step = ((step + 1) // stride + 1) * stride
                self._read()
                self._open(step + 1)
        except Exception as error:  # noqa: BLE001  (hot path; the guard contains it)
            self._give_up(error)

    def mark(self, point: int) -> None:
        """Put an event where the training thread is now, in a step that is measured."""
        sample = self._sample
        if sample is None or not self._guard.is_open:
            return
        try:
            if point == Point.PAUSE_END:
                self._forward_since = None
                return
            if len(sample.events) >= MAX_EVENTS - 1:
                sample.is_cut = True
                return
            event = self._record(sample)
            if event is not None:
                self._place(sample, point, event)
        except Exception as error:  # noqa: BLE001  (hot path; the guard contains it)
            self._give_up(error)

    def _place(self, sample: _Sample, point: int, event: Any) -> None:
        if point == Point.INPUT_END:
            self._forward_since = event
        elif point == Point.BACKWARD_BEGIN:
            if self._forward_since is None:
                sample.is_forward_whole = False
            else:
                sample.spans.append(("forward", self._forward_since, event))
            self._forward_since, self._part_since = None, event
        elif point == Point.BACKWARD_END:
            if self._part_since is not None:
                sample.spans.append(("backward", self._part_since, event))
            self._forward_since, self._part_since = event, None
            # A closure ran it: the optimizer around it begins its own work now.
            if self._optimizer_since is not None:
                self._optimizer_since = event
        elif point == Point.OPTIMIZER_BEGIN:
            self._optimizer_since = event
        else:
            if self._optimizer_since is not None:
                sample.spans.append(("optimizer", self._optimizer_since, event))
            self._forward_since, self._optimizer_since = event, None

    def _open(self, step: int) -> None:
        self.ends_inside_backward = bool(self._recorder.parts.backward_since)
        if self.ends_inside_backward or len(self._in_flight) >= MAX_IN_FLIGHT:
            return
        sample = _Sample(step, self._cuda.current_stream().device)
        self._sample = sample
        sample.begin = self._forward_since = self._record(sample)
        self._part_since = self._optimizer_since = None
        if self._sample is not None:
            self._recorder.parts.marks = self

    def _close(self) -> None:
        sample = self._sample
        if sample is None:
            return
        if self._recorder.parts.backward_since:
            self._abandon()
            return
        end = self._record(sample)
        if end is None:
            return
        if sample.is_cut:
            sample.spans = []
        elif not sample.is_forward_whole:
            sample.spans = [span for span in sample.spans if span[0] != "forward"]
        sample.spans.append(("step", sample.begin, end))
        self._in_flight.append(sample)
        self._sample = self._recorder.parts.marks = None

    def _record(self, sample: _Sample) -> Any:
        """Record an event on the current stream; None, and no sample any more, where none may be.

        A graph capture would take the event for part of the graph; times of two devices do not
        compare.
        """
        if self._is_capturing() or self._cuda.is_current_stream_capturing():
            self._abandon()
            return None
        stream = self._cuda.current_stream()
        if stream.device != sample.device:
            self._abandon()
            return None
        free = self._free.setdefault(sample.device, [])
        event = free.pop() if free else self._cuda.Event(enable_timing=True)
        sample.events.append(event)
        event.record(stream)
        return event

    def _read(self) -> None:
        """Take the times of the steps the device has passed."""
        if self._is_capturing() or self._cuda.is_current_stream_capturing():
            return
        while self._in_flight:
            sample = self._in_flight[0]
            if not all(event.query() for event in reversed(sample.events)):
                return
            self._in_flight.popleft()
            now = now_ns()
            sums: dict[str, float] = {}
            for part, begin, end in sample.spans:
                sums[part] = sums.get(part, 0.0) + begin.elapsed_time(end)
            for part, ms in sums.items():
                self._recorder.append(
                    (RecordKind.DEVICE_TIME, now, sample.step, part, round(ms * 1e6))
                )
            self._free[sample.device].extend(sample.events)

    def _abandon(self) -> None:
        """Drop the sample; its events may be recorded again at any time."""
        sample = self._sample
        self._sample = self._recorder.parts.marks = None
        self._forward_since = self._part_since = self._optimizer_since = None
        if sample is not None:
            self._free.setdefault(sample.device, []).extend(sample.events)

    def _give_up(self, error: Exception) -> None:
        self._recorder.on_step = self._recorder.parts.marks = None
        self._guard.contain(error)


def _stride(duration_ns: int) -> int:
    """Give the power of two of steps that takes :data:`SAMPLE_NS` at this pace."""
    stride = 1
    while stride < MAX_STRIDE and duration_ns and stride * duration_ns < SAMPLE_NS:
        stride *= 2
    return stride
