"""Process groups and their counters, told from the export thread.

Which groups there are comes from :mod:`tracecore_train.hooks.group_watch`, the counters from
:mod:`tracecore_train.hooks.recorder_counters`. Only the making of a group is patched, no
collective.

The flight recorder's size is set where the user did not: torch 2.10 and older leave it off, newer
ones use the same size by default. That must happen before the first process group is made. A
user's explicit 0 is respected, and reported as blind.
"""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING

from tracecore_train.errors import HookUnavailableError
from tracecore_train.hooks.cuda import cuda_in_use
from tracecore_train.hooks.group_watch import GroupWatch
from tracecore_train.hooks.recorder_counters import RecorderCounters, has_generic_recorder
from tracecore_train.recorder.clock import now_ns
from tracecore_train.wire.records import GroupRecord, ProgressRecord

if TYPE_CHECKING:
    from tracecore_train.guard import Guard
    from tracecore_train.hooks.context import HookContext
    from tracecore_train.hooks.group_watch import Group, Part
    from tracecore_train.hooks.recorder_counters import Counters
    from tracecore_train.wire.records import Record

RING_VARIABLES = ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE")
"""Size of the flight recorder, by its present and its older name."""
RING_ENTRIES = "2000"
"""Torch's own default where it is on; larger rings make every dump hold a lock for longer."""
MAX_DESTROYED = 256
"""Groups that are gone and are told again to a new sidecar."""


class ProcessGroupsHook:
    """Reports groups as they come and go, and their counters at every hand-over."""

    name = "process_groups"

    def __init__(self, context: HookContext, guard: Guard) -> None:
        """Prepare; nothing is set yet."""
        self._rank = context.rank
        self._guard = guard
        self._watch = GroupWatch()
        self._destroyed: deque[GroupRecord] = deque(maxlen=MAX_DESTROYED)
        self._recorders: dict[str, RecorderCounters] = {}
        self._blind = ""
        self._set_variables: list[str] = []
        self._has_counters = False

    def install(self) -> None:
        """Turn the flight recorder on where the user did not decide; see groups being made."""
        try:
            import torch.distributed as dist
        except ImportError as error:
            raise HookUnavailableError(f"no torch ({error})") from None
        if not dist.is_available():
            raise HookUnavailableError("this torch is built without distributed")
        chosen = [name for name in RING_VARIABLES if name in os.environ]
        if chosen:
            if all(os.environ[name].strip() == "0" for name in chosen):
                self._blind = f"the flight recorder is off ({chosen[0]}=0)"
        else:
            # Where the recorder of every backend exists, torch warns about the older name.
            for name in RING_VARIABLES[:1] if has_generic_recorder() else RING_VARIABLES:
                os.environ[name] = RING_ENTRIES
                self._set_variables.append(name)
        self._watch.wrap_making(self._guard)

    def uninstall(self) -> None:
        """Take our environment variables and our patch back and let go of what was seen."""
        self._watch.unwrap_making()
        for name in self._set_variables:
            if os.environ.get(name) == RING_ENTRIES:
                del os.environ[name]
        self._set_variables, self._watch = [], GroupWatch()

    def blind(self) -> list[str]:
        """Give what this hook cannot see."""
        if self._blind:
            return [f"collectives.counters: {self._blind}", f"collectives.entries: {self._blind}"]
        recorders = self._recorders.values()
        reasons = [f"collectives.counters: {r.blind}" for r in recorders if r.blind]
        if self._watch.groups and not self._has_counters and not reasons:
            reasons.append(
                "collectives.counters: the flight recorder has counted none yet, or it is off"
            )
        return reasons + [f"collectives.entries: {r.no_entries}" for r in recorders if r.no_entries]

    def poll(self, is_full: bool) -> list[Record]:
        """Give the groups that are new or gone (or all) and the counters of all."""
        made, gone = self._watch.look()
        records: list[Record] = []
        if gone:
            now = now_ns()
            ended = [
                self._record(group, part, now, is_destroyed=True)
                for group in gone
                for part in group.parts
            ]
            self._destroyed.extend(ended)
            records += ended
        if is_full:
            records, made = list(self._destroyed), self._watch.groups
        if made:
            now = now_ns()
            records += [
                self._record(group, part, group.made_ns or now)
                for group in made
                for part in group.parts
            ]
        if self._watch.groups and not self._blind:
            records += self._progress(is_all=is_full or bool(made))
        return records

    def _record(
        self, group: Group, part: Part, time_ns: int, *, is_destroyed: bool = False
    ) -> GroupRecord:
        return GroupRecord(
            time_ns=time_ns,
            rank=self._rank,
            pg_name=part.name,
            pg_desc=part.desc,
            backend=part.backend,
            ranks=group.ranks,
            generation=group.generation,
            is_destroyed=is_destroyed,
            made_ns=group.made_ns,
        )

    def _progress(self, *, is_all: bool) -> list[ProgressRecord]:
        """Give the counters of recorders that counted on, or those of all."""
        now = now_ns()
        read: dict[str, dict[int, Counters]] = {}
        records: list[ProgressRecord] = []
        for group in self._watch.groups:
            for name, _, backend, number in group.parts:
                if backend not in read:
                    read[backend] = self._read(backend, is_all=is_all)
                counters = read[backend].get(number)
                if counters is not None:
                    records.append(
                        ProgressRecord(
                            time_ns=now,
                            rank=self._rank,
                            pg_name=name,
                            enqueued=counters.enqueued,
                            started=counters.started,
                            completed=counters.completed,
                        )
                    )
        self._has_counters = self._has_counters or bool(records)
        return records

    def _read(self, backend: str, *, is_all: bool) -> dict[int, Counters]:
        if backend != "gloo" and cuda_in_use() is None:
            return {}
        recorder = self._recorders.get(backend)
        if recorder is None:
            recorder = self._recorders[backend] = RecorderCounters(backend)
        found = recorder.read(self._watch.num_backends.get(backend, 0))
        return found if is_all or recorder.is_changed else {}
