"""The parts of the current step, summed as they end on the training thread.

Input wait, backward, optimizer, transfer and checkpoint are measured. Forward is inferred: it is
the time from the last end of an input wait, a backward, an optimizer or a step to the next
backward, less the checkpoints and named phases in between. A part inside another counts once:
an optimizer stepped from backward is no backward time, and a backward inside an optimizer's
closure is no optimizer time. A backward or optimizer that is open when a step ends is split.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from tracecore_train.wire.records import NOT_MEASURED

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_PAUSES = 256
"""Pauses in one forward that are told apart; more count as forward."""


class Marks(Protocol):
    """Puts events on the device's stream where parts of a step begin and end."""

    def mark(self, point: int) -> None:
        """Note that the training thread is at one of the points of :class:`Point`."""


class Point:
    """Where in a step the training thread is."""

    INPUT_END = 0
    BACKWARD_BEGIN = 1
    BACKWARD_END = 2
    OPTIMIZER_BEGIN = 3
    OPTIMIZER_END = 4
    PAUSE_END = 5


class Sum:
    """Index of each sum of a step. Times are integer nanoseconds."""

    INPUT = 0
    NUM_BATCHES = 1
    CHECKPOINT = 2
    FORWARD = 3
    BACKWARD = 4
    OPTIMIZER = 5
    TRANSFER = 6
    GC = 7
    NUM_BACKWARDS = 8


class StepParts:
    """Sums of the step that runs, and since when it is inside a part; 0: it is not inside."""

    __slots__ = (
        "backward_since",
        "forward_since",
        "is_backward_timed",
        "is_gc_timed",
        "is_optimizer_split",
        "marks",
        "optimizer_since",
        "pauses",
        "sums",
    )

    def __init__(self) -> None:
        """Begin with nothing summed."""
        self.sums = [0, 0, 0, 0, 0, 0, 0, 0, 0]
        """By :class:`Sum`; a new list for every step."""
        self.forward_since = 0
        self.pauses: list[tuple[int, int]] = []
        """Begin and length of what is to be left out of the forward; none lies inside another."""
        self.backward_since = 0
        self.optimizer_since = 0
        self.is_optimizer_split = False
        """Whether a step ended inside the open optimizer."""
        self.is_backward_timed = False
        """Whether a hook watches backward; without one nothing is known about it."""
        self.is_gc_timed = False
        """Whether a hook watches the garbage collector."""
        self.marks: Marks | None = None
        """Who marks this step on the device; None: nobody."""

    def enter_backward(self, now: int) -> None:
        """Begin a backward pass; what lay before it was a forward pass."""
        sums = self.sums
        since = self.forward_since
        if since:
            sums[_FORWARD] += now - since
            if self.pauses:
                sums[_FORWARD] -= sum(length for began, length in self.pauses if began >= since)
                self.pauses.clear()
        self.backward_since = now
        sums[_NUM_BACKWARDS] += 1
        if self.marks is not None:
            self.marks.mark(Point.BACKWARD_BEGIN)

    def after_backward(self, now: int) -> None:
        """Tell who is around a backward that ended: an optimizer (a closure), the device."""
        if self.optimizer_since:
            self.optimizer_since = now
        if self.marks is not None:
            self.marks.mark(Point.BACKWARD_END)

    def after_optimizer(self, duration: int) -> None:
        """Tell who is around an optimizer that ended; its time is no backward time."""
        if self.backward_since:
            self.backward_since += duration
        elif self.marks is not None:
            self.marks.mark(Point.OPTIMIZER_END)

    def leave_out(self, began: int, now: int) -> None:
        """Take a stretch that ends now out of the forward, unless training went on inside it."""
        if self.forward_since > began:
            self.forward_since = now
        elif self.forward_since:
            pauses = self.pauses
            if pauses and pauses[-1][0] < self.forward_since:
                pauses.clear()
            while pauses and pauses[-1][0] >= began:
                pauses.pop()
            if len(pauses) < MAX_PAUSES:
                pauses.append((began, now - began))
        if self.marks is not None:
            self.marks.mark(Point.PAUSE_END)

    def split(self, now: int) -> None:
        """Divide what is open at the end of a step between this step and the next.

        An optimizer may be open because it steps another one. One that stays open for longer
        ended by an exception: no hook tells that.
        """
        if self.backward_since:
            self.sums[_BACKWARD] += now - self.backward_since
            self.backward_since = now
        if self.optimizer_since:
            if self.is_optimizer_split:
                self.optimizer_since = 0
                return
            self.sums[_OPTIMIZER] += now - self.optimizer_since
            self.optimizer_since = now
            self.is_optimizer_split = True

    def forget_backward(self) -> None:
        """Take back what is known of backward: nobody watches it any more."""
        self.is_backward_timed = False
        self.backward_since = self.sums[_FORWARD] = self.sums[_BACKWARD] = 0

    def columns(self, sums: Sequence[list[int]]) -> dict[str, Sequence[int]]:
        """Give the sums of steps as columns of their records. For the export thread.

        A part that took no time did not run, or nobody saw it: it is not measured.
        """
        by_sum = list(zip(*sums, strict=True))
        unknown = [NOT_MEASURED] * len(sums)
        return {
            "input_ns": by_sum[Sum.INPUT],
            "num_batches": by_sum[Sum.NUM_BATCHES],
            "checkpoint_ns": by_sum[Sum.CHECKPOINT],
            "forward_ns": _measured(by_sum[Sum.FORWARD]),
            "backward_ns": _measured(by_sum[Sum.BACKWARD]),
            "optimizer_ns": _measured(by_sum[Sum.OPTIMIZER]),
            "transfer_ns": _measured(by_sum[Sum.TRANSFER]),
            "gc_ns": by_sum[Sum.GC] if self.is_gc_timed else unknown,
            "num_backwards": by_sum[Sum.NUM_BACKWARDS] if self.is_backward_timed else unknown,
        }


def _measured(sums: Sequence[int]) -> list[int]:
    return [value or NOT_MEASURED for value in sums]


_FORWARD, _BACKWARD, _OPTIMIZER = Sum.FORWARD, Sum.BACKWARD, Sum.OPTIMIZER
_NUM_BACKWARDS = Sum.NUM_BACKWARDS
