"""What hooks write to: a ring per thread, and the running sums of the current step.

A row is a tuple ``(kind, time_ns, values...)`` in the field order of its record type, without
the rank; fields at the end that have a default may be left out. :meth:`Recorder.drain` makes
records of rows, in the export thread. Steps, input wait and checkpoint time are summed for one
thread, the one that trains: the main thread as soon as it takes a batch or ends a step, until
then the first thread that does.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import fields
from threading import get_ident
from typing import TYPE_CHECKING, Any, cast

from tracecore_train.recorder.clock import now_ns
from tracecore_train.recorder.page import Word
from tracecore_train.recorder.ring import Ring
from tracecore_train.wire.records import (
    RECORD_TYPES,
    CheckpointRecord,
    DeviceTimeRecord,
    ExceptionRecord,
    GcRecord,
    PhaseRecord,
    Record,
    RecordKind,
    ScalarRecord,
    StepFlag,
    StepRecord,
)

if TYPE_CHECKING:
    from tracecore_train.recorder.page import RankPage

RING_CAPACITY = 4_096
"""Rows per thread: an hour of 1 s steps, or 4 s of 1 ms steps, while the sidecar is away."""
MAX_RINGS = 64
"""Threads that may record; a job that makes more has their rows counted as dropped."""
MAX_DRAIN = 20_000
"""Rows handed over at once, so that one request stays below a few MiB."""

_STEP, _STEP_TIME, _NUM_BATCHES = int(Word.STEP), int(Word.STEP_TIME), int(Word.NUM_BATCHES)
_INPUT_SINCE = int(Word.INPUT_SINCE)
_STEP_KIND = RecordKind.STEP
_FIRST = StepFlag.FIRST
_FIELDS = {
    cls.kind: tuple(f.name for f in fields(cls) if f.name != "rank")
    for cls in (
        StepRecord,
        PhaseRecord,
        GcRecord,
        DeviceTimeRecord,
        CheckpointRecord,
        ScalarRecord,
        ExceptionRecord,
    )
}


class _Owner:
    """Lives in a thread's locals and dies with the thread."""

    __slots__ = ("__weakref__", "ring")

    def __init__(self, ring: Ring) -> None:
        self.ring = ring


class Recorder:
    """The rank's memory between two hand-overs. Methods never wait and never raise by design."""

    def __init__(self, page: RankPage, *, rank: int, capacity: int = RING_CAPACITY) -> None:
        """Write to ``page`` and to rings of ``capacity`` rows."""
        self.page = page
        self.training_thread = 0
        """Identifier of the thread whose batches and steps count; 0: not known yet."""
        self.num_steps = 0
        self.is_in_input = False
        """Whether the training thread is inside ``next(dataloader)``."""
        self.is_explicit = False
        """Whether the user calls ``step()``; hooks then end no steps."""
        self.phase = ("", 0)
        """Name of the phase the training thread is in and since when; empty: none."""
        self._rank = rank
        self._capacity = capacity
        self._main_thread = threading.main_thread().ident
        self._local = threading.local()
        self._rings: list[tuple[weakref.ref[_Owner], Ring]] = []
        self._num_refused = 0
        self._num_dropped_before = 0
        self._step_end_ns = 0
        self._total_batches = 0
        self._input_ns = 0
        self._num_batches = 0
        self._checkpoint_ns = 0
        self._global_step: int | None = None
        self._num_microbatches: int | None = None

    def append(self, row: tuple[object, ...]) -> None:
        """Store a row in this thread's ring."""
        try:
            owner = self._local.owner
        except AttributeError:
            owner = self._adopt_thread()
        if owner is not None:
            owner.ring.append(row)
        else:
            self._num_refused += 1

    def claim_training_thread(self) -> bool:
        """Say whether the calling thread is the one that trains; it may become that now."""
        ident = get_ident()
        if ident == self.training_thread:
            return True
        if self.training_thread == 0 or ident == self._main_thread:
            self.training_thread = ident
            return True
        return False

    def enter_input(self) -> int:
        """Note that the training thread asks for a batch; give the time."""
        self.is_in_input = True
        began = now_ns()
        self.page.words[_INPUT_SINCE] = began
        return began

    def leave_input(self, began: int, num_batches: int) -> None:
        """Note that it came back, with a batch (1) or without one (0)."""
        words = self.page.words
        words[_INPUT_SINCE] = 0
        self.is_in_input = False
        self._input_ns += now_ns() - began
        if num_batches:
            self._num_batches += 1
            self._total_batches += 1
            words[_NUM_BATCHES] = self._total_batches

    def add_checkpoint(self, duration_ns: int) -> None:
        """Add time the training thread spent inside a checkpoint call."""
        self._checkpoint_ns += duration_ns

    def begin_microbatch(self, global_step: int | None) -> None:
        """Note a microbatch of the current step, and the number the framework gives the step."""
        self._global_step = global_step
        self._num_microbatches = (self._num_microbatches or 0) + 1

    def end_step(self, flags: int) -> None:
        """Close the current step and begin the next."""
        now = now_ns()
        number = self.num_steps
        if self._step_end_ns:
            duration = now - self._step_end_ns
        else:
            duration = 0
            flags |= _FIRST
        self.append(
            (
                _STEP_KIND,
                now,
                number,
                duration,
                self._input_ns,
                self._num_batches,
                self._checkpoint_ns,
                flags,
                self._global_step,
                self._num_microbatches,
            )
        )
        self._step_end_ns = now
        self.num_steps = number + 1
        self._input_ns = self._num_batches = self._checkpoint_ns = 0
        self._global_step = self._num_microbatches = None
        words = self.page.words
        words[_STEP_TIME] = now
        words[_STEP] = number + 1

    def end_explicit_step(self) -> None:
        """End a step because the user says so; from the first time on, nobody else does.

        Where the optimizer hook counted before, the first call only takes over: the hook has
        already counted the step that this call ends.
        """
        if not self.is_explicit:
            self.is_explicit = True
            if self.num_steps:
                return
        self.end_step(StepFlag.EXPLICIT)

    def drain(self) -> list[Record]:
        """Take what was recorded, as records. For the export thread."""
        records: list[Record] = []
        for entry in list(self._rings):
            owner, ring = entry
            is_ended = owner() is None
            rows = ring.drain(MAX_DRAIN - len(records))
            records.extend(self._record(row) for row in rows)
            if is_ended and not len(ring):
                self._num_dropped_before += ring.num_dropped
                self._rings.remove(entry)
        return records

    def num_dropped(self) -> int:
        """Rows lost so far because a ring was full."""
        waiting = sum(ring.num_dropped for _, ring in self._rings)
        return self._num_dropped_before + self._num_refused + waiting

    def _adopt_thread(self) -> _Owner | None:
        owner = None
        if len(self._rings) < MAX_RINGS:
            owner = _Owner(Ring(self._capacity))
            self._rings.append((weakref.ref(owner), owner.ring))
        self._local.owner = owner
        return owner

    def _record(self, row: tuple[object, ...]) -> Record:
        kind = cast("RecordKind", row[0])
        make = cast("Any", RECORD_TYPES[kind])
        values = dict(zip(_FIELDS[kind], row[1:], strict=False))
        return cast("Record", make(rank=self._rank, **values))
