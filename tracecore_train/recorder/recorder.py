"""What hooks write to: a ring per thread, and the running sums of the current step.

A row is a tuple ``(kind, time_ns, values...)`` in the field order of its record type, without
the rank; fields at the end that have a default may be left out. The row of a step is shorter: it
holds the list of its sums as it is. :meth:`Recorder.drain` makes records of rows, in the export
thread. Steps and their parts are summed for one thread, the one that trains: the main thread as
soon as it takes a batch or ends a step, until then the first thread that does.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import fields
from itertools import groupby
from operator import itemgetter
from threading import get_ident
from typing import TYPE_CHECKING, Any, cast

from tracecore_train.recorder.clock import now_ns
from tracecore_train.recorder.page import Word
from tracecore_train.recorder.parts import StepParts, Sum
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
)
from tracecore_train.wire.tables import from_columns

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracecore_train.recorder.page import RankPage

RING_CAPACITY = 4_096
"""Rows per thread: an hour of 1 s steps, or 4 s of 1 ms steps, while the sidecar is away."""
MAX_RINGS = 64
"""Threads that may record; a job that makes more has their rows counted as dropped."""
MAX_DRAIN = 20_000
"""Rows handed over at once, so that one request stays below a few MiB."""

TRANSFER = "transfer"
"""Phase by which a user says that batches are copied to the device: a part of the step."""
FORWARD = "forward"
"""Phase that is no pause: it names what is inferred anyway."""
_STEP, _STEP_TIME = int(Word.STEP), int(Word.STEP_TIME)
_STEP_KIND = RecordKind.STEP
_FIRST = StepFlag.FIRST
_FIELDS = {
    cls.kind: tuple(f.name for f in fields(cls) if f.name != "rank")
    for cls in (
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
        self.parts = StepParts()
        """What the step that runs consists of so far; hooks of the training thread add to it."""
        self.on_step: Callable[[int, int], None] | None = None
        """Called with its number and its duration (0: unknown) when a step ended."""
        self.on_phase: Callable[[str], None] | None = None
        """Called with its name when a named phase of the training thread ended."""
        self.is_transfer_seen = False
        """Whether anybody ever named a transfer of batches to the device."""
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
        self._microbatches: tuple[int | None, int] | None = None
        """Number the framework gives the step, and how many microbatches it began in it."""

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

    def add_checkpoint(self, duration_ns: int) -> None:
        """Add a checkpoint call of the training thread that ends now."""
        self.parts.sums[Sum.CHECKPOINT] += duration_ns
        now = now_ns()
        self.parts.leave_out(now - duration_ns, now)

    def add_phase(self, name: str, began: int, now: int) -> None:
        """Add a named phase of the training thread that ends now."""
        if name == TRANSFER:
            self.is_transfer_seen = True
            self.parts.sums[Sum.TRANSFER] += now - began
        if name != FORWARD:
            self.parts.leave_out(began, now)
        on_phase = self.on_phase
        if on_phase is not None:
            on_phase(name)

    def add_gc(self, duration_ns: int) -> None:
        """Add time the garbage collector took on the training thread.

        The hook that does so sets ``parts.is_gc_timed`` while it works.
        """
        self.parts.sums[Sum.GC] += duration_ns

    def begin_microbatch(self, global_step: int | None) -> None:
        """Note a microbatch of the current step, and the number the framework gives the step."""
        num_before = self._microbatches[1] if self._microbatches is not None else 0
        self._microbatches = (global_step, num_before + 1)

    def end_step(self, flags: int, now: int = 0) -> None:
        """Close the current step at ``now`` (0: this moment) and begin the next."""
        now = now or now_ns()
        number = self.num_steps
        if self._step_end_ns:
            duration = now - self._step_end_ns
        else:
            duration = 0
            flags |= _FIRST
        parts = self.parts
        if parts.backward_since or parts.optimizer_since:
            parts.split(now)
        row = (_STEP_KIND, now, number, duration, flags, self._microbatches, parts.sums)
        parts.sums = [0, 0, 0, 0, 0, 0, 0, 0, 0]
        parts.forward_since = now
        try:
            self._local.owner.ring.append(row)
        except AttributeError:
            self.append(row)
        self._step_end_ns = now
        self.num_steps = number + 1
        self._microbatches = None
        words = self.page.words
        words[_STEP_TIME] = now
        words[_STEP] = number + 1
        on_step = self.on_step
        if on_step is not None:
            on_step(number, duration)

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
            for kind, run in groupby(rows, itemgetter(0)):
                if kind is _STEP_KIND:
                    records += self._step_records(list(run))
                else:
                    records.extend(map(self._record, run))
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

    def _step_records(self, rows: list[tuple[Any, ...]]) -> list[Record]:
        _, times, numbers, durations, flags, microbatches, sums = zip(*rows, strict=True)
        columns = {
            "time_ns": times,
            "rank": [self._rank] * len(rows),
            "step": numbers,
            "duration_ns": durations,
            "flags": flags,
            "global_step": [told and told[0] for told in microbatches],
            "num_microbatches": [told and told[1] for told in microbatches],
            **self.parts.columns(sums),
        }
        return from_columns(_STEP_KIND, columns)
