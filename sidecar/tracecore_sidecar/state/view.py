"""The read-only picture of a job that detectors see: columns by rank, group and step.

Arrays are shared between ticks, not copied, and are marked read-only. Times are integer
nanoseconds of the host's monotonic clock; 0 means "never" or "not inside". Windows are rings: a
slot holds the row whose number stands in ``numbers`` or ``seq_ids`` (-1: empty); rows are in no
particular order, and rows older than the window are gone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from tracecore_train.wire.records import RecordKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tracecore_sidecar.verdicts import JobInfo
    from tracecore_train.wire.records import (
        ConnectionsRecord,
        ExceptionRecord,
        IdentityRecord,
        InputRecord,
        MemoryRecord,
        NcclRasRecord,
        ProcessRecord,
        RankPageRecord,
        ScalarRecord,
        StackRecord,
    )

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
_Scalar = TypeVar("_Scalar", bound=np.generic)

OTHER_OP = "other"
"""Stands in ``GroupView.ops`` for signatures that found no room: nothing is known of them."""
MIN_APART_NS = 200_000_000
"""Between two looks at a process. The kernel counts its time in ticks of 10 ms: two that are nearer
to each other say nothing of its share of a processor."""
UNKNOWN_EXIT = -1000
"""``exit_code`` of a rank whose end its launcher did not see."""


PauseKind: TypeAlias = tuple[RecordKind, str]
"""Kind of the record that a pause ends with, and the name of a phase; else an empty name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PastPauses:
    """The pauses of one kind that one rank has behind it, those of earlier attempts included."""

    num: int
    longest_ns: int
    """Of all of them."""
    recent_ns: tuple[int, ...]
    """The last ones, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankColumns:
    """One value per rank of the job, indexed by rank (arrays of length ``world_size``)."""

    is_seen: Bools
    """Something came from or about this rank. A rank not seen is not known to be healthy."""
    is_ended: Bools
    """Its process ended: the launcher saw it, it left a last word, or its pid is gone."""
    ended_ns: Ints
    exit_code: Ints
    """Exit code, minus the signal number when a signal ended it, or ``UNKNOWN_EXIT``."""
    exit_ns: Ints
    """When the launcher saw it end; 0: it did not."""
    host_index: Ints
    """Equal numbers: same host, same clock. -1: unknown."""
    pid: Ints
    num_steps: Ints
    """Steps ended."""
    step_ns: Ints
    """End of the last step."""
    num_batches: Ints
    progress_ns: Ints
    """Last time anything of this rank was seen to move: a step, a batch, a phase, a counter."""
    page_ns: Ints
    """When the rank page was last read; 0: never."""
    input_since_ns: Ints
    checkpoint_since_ns: Ints
    phase_since_ns: Ints
    heartbeat_ns: Ints
    """Last beat of the rank's export thread, from the page."""
    pull_ns: Ints
    """When the flight recorder was last read with success; 0: never."""
    pull_failed_ns: Ints
    """When the last attempt failed; 0: none failed since the last success."""
    is_active_only: Bools
    """Its last pull left finished entries out."""
    is_truncated: Bools
    """Its recorder had overwritten entries that nobody had read before."""
    longest_checkpoint_ns: Ints
    """Longest checkpoint call that training waited for and that ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PointColumns:
    """Sends and receives of one process group: one value per entry, by member, then in order."""

    member: Ints
    """Index into the group's members."""
    peer: Ints
    """The other side, as an index into the members."""
    is_send: Bools
    record_id: Ints
    created_ns: Ints
    is_done: Bools
    is_started: Bools
    op: Ints
    """Index into the group's ``ops``."""
    tag: Ints
    """``NOT_MEASURED`` where only the recorder tells of them."""
    is_whole: bool
    """Nothing that was read has been dropped again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupView:
    """One process group and the collectives of its members.

    Arrays have the shape ``(slots, members)``; column ``j`` belongs to ``members[j]``.
    """

    pg_name: str
    pg_desc: str
    backend: str
    members: tuple[int, ...]
    """Global ranks."""
    seq_ids: Ints
    """``collective_seq_id`` of each slot, shape ``(slots,)``; -1: empty."""
    created_ns: Ints
    """When the member entered; 0: not seen to enter."""
    is_retired: Bools
    """The member's operation finished, failed or timed out."""
    op: NDArray[np.int32]
    """Index into ``ops``; -1: not seen to enter."""
    ops: tuple[str, ...]
    """Operation with sizes and types, e.g. ``all_reduce [[8320]] ['Float']``."""
    last_seq: Ints
    """Highest sequence number each member entered, shape ``(members,)``; -1: none seen."""
    is_started: Bools
    """It was seen to run on the device; the recorder tells only where timing is on."""
    enqueued: Ints
    """Counter of what each member entered, shape ``(members,)``; -1: not told."""
    completed: Ints
    """Counter of what each member finished; -1: none, or not told."""
    has_plain_counters: bool
    """The counters count what ``seq_ids`` counts: no send/recv was seen in this group."""
    has_unrecorded: bool
    """Operations were counted that have no entry anywhere: send/recv on gloo, not wrapped."""
    points: PointColumns
    has_entries: bool
    """Some entry of it was read, of whichever member."""

    @property
    def is_blind(self) -> bool:
        """Its collectives are not read: the backend has a recorder of its own, and gave nothing.

        So it is with legacy NCCL, whose recorder is not pulled: silence there is not idleness.
        """
        return not self.has_entries and "nccl" in self.backend.lower()

    def op_name(self, slot: int, member: int) -> str:
        """Give the operation a member entered in a slot, without sizes; empty if not seen."""
        index = int(self.op[slot, member])
        return self.ops[index].split(" ", 1)[0] if index >= 0 else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWindow:
    """The last steps of all ranks. Arrays have the shape ``(slots, world_size)``."""

    numbers: Ints
    """Step number of each slot, shape ``(slots,)``; -1: empty."""
    end_ns: Ints
    """When the rank ended the step; 0: it has not (or was not seen to)."""
    duration_ns: Ints
    input_ns: Ints
    checkpoint_ns: Ints
    num_batches: Ints
    flags: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """Everything a detector may look at."""

    job: JobInfo
    ranks: RankColumns
    groups: Mapping[str, GroupView]
    """By process-group name, which is unique within a job."""
    steps: StepWindow
    hosts: tuple[str, ...]
    """Host names by ``host_index``."""
    identities: Mapping[int, IdentityRecord]
    """By rank, where the rank introduced itself."""
    phases: Mapping[int, str]
    """Name of the phase each rank is in, where it is in one."""
    stacks: Mapping[int, tuple[StackRecord, ...]]
    """Latest stacks by rank: one record per thread, or one with ``error`` set."""
    processes: Mapping[int, tuple[ProcessRecord, ...]]
    """Last two looks at ``/proc`` by rank, older first."""
    blind: Mapping[int, tuple[str, ...]]
    """By rank, signals that cannot be had, each as ``signal: reason``."""
    num_lost: Mapping[int, int]
    """By rank, records and ring entries lost so far."""
    pages: Mapping[int, RankPageRecord] = field(default_factory=dict)
    """Latest rank page by rank."""
    connections: Mapping[int, ConnectionsRecord] = field(default_factory=dict)
    """By rank, the latest look at its connections."""
    ras_answers: Mapping[int, NcclRasRecord] = field(default_factory=dict)
    """By rank asked, the latest answer of NCCL's RAS service."""
    exceptions: Mapping[int, ExceptionRecord] = field(default_factory=dict)
    """By rank, the exception that ended it, else the latest error that torch reported."""
    last_words: Mapping[int, str] = field(default_factory=dict)
    """By rank, what it said when it ended: ``exit`` or ``exception``."""
    inputs: Mapping[int, Mapping[str, InputRecord]] = field(default_factory=dict)
    """By rank and loader, the latest state of its data loaders."""
    close_looks: Mapping[int, tuple[ProcessRecord, ...]] = field(default_factory=dict)
    """By rank, the last two close looks: with run queue, switches, children; older first."""
    memory: Mapping[int, Mapping[int, MemoryRecord]] = field(default_factory=dict)
    """By rank and device, the latest figures of the allocator."""
    scalars: Mapping[int, Mapping[str, ScalarRecord]] = field(default_factory=dict)
    """By rank and name, the latest number the user logged."""
    past_pauses: Mapping[int, Mapping[PauseKind, PastPauses]] = field(default_factory=dict)
    """By rank and kind, how long its pauses took: phases, checkpoint calls that training waited
    for, collections that were told singly."""

    @property
    def world_size(self) -> int:
        """Number of ranks in the job."""
        return self.job.world_size

    def is_in_blind_group(self) -> Bools:
        """Say by rank whether it is in a group whose collectives are not read."""
        found: Bools = np.zeros(self.world_size, dtype=np.bool_)
        # An idle group of a rank whose recorder of that kind is read is idle, not unread.
        is_read = self.ranks.is_active_only.copy()
        blind = [g for g in self.groups.values() if g.is_blind and len(g.members) > 1]
        if blind:
            for group in self.groups.values():
                if "nccl" in group.backend.lower() and not group.is_blind:
                    members = np.asarray(group.members, dtype=np.int64)
                    is_read[members[group.last_seq >= 0]] = True
                    is_read[members[group.points.member]] = True
        for group in blind:
            found[list(group.members)] = True
        found &= ~is_read
        return found

    def may_wait_unrecorded(self) -> Bools:
        """Say by rank whether it is in a group with operations that nobody records."""
        found: Bools = np.zeros(self.world_size, dtype=np.bool_)
        for group in self.groups.values():
            if group.has_unrecorded:
                found[list(group.members)] = True
        return found

    def ranks_by_pid(self) -> dict[int, int]:
        """Give the rank of each process that runs; a pid that two ranks claim is left out."""
        found: dict[int, int] = {}
        doubled: set[int] = set()
        for rank in np.flatnonzero(self.ranks.is_seen & ~self.ranks.is_ended).tolist():
            pid = int(self.ranks.pid[rank])
            if pid in found:
                doubled.add(pid)
            found[pid] = rank
        return {pid: rank for pid, rank in found.items() if pid > 0 and pid not in doubled}


def read_only(array: NDArray[_Scalar]) -> NDArray[_Scalar]:
    """Give a view of ``array`` that cannot be written through."""
    view: NDArray[_Scalar] = array.view()
    view.flags.writeable = False
    return view
