"""Record types: everything the state store, the replay files and the detectors know about.

A record is one stored fact. It is frozen, holds plain values only (``int``, ``bool``, ``str``,
tuples of ``int`` or ``str``, and ``None`` where a value can be missing), and carries times as
integer nanoseconds of its host's monotonic clock unless the field says otherwise. A number that
was not measured is ``NOT_MEASURED``, never 0. Who said it,
on which host, in which job and attempt stands once on the :class:`Batch`, in its
:class:`Source`; that is also what an OTLP resource carries.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar, TypeAlias

SCHEMA_VERSION = 1
"""Version of the record tables; a receiver refuses a higher one."""
NOT_MEASURED = -1
"""Value of a duration, count or size that nobody measured."""


class SourceKind(str, Enum):
    """Who hands over a batch."""

    RANK = "rank"
    LAUNCHER = "launcher"
    SIDECAR = "sidecar"


class RecordKind(str, Enum):
    """The kinds of record, by the name that stands on the wire."""

    IDENTITY = "identity"
    GROUPS = "groups"
    PROGRESS = "progress"
    STEP = "step"
    PHASE = "phase"
    INPUT = "input"
    MEMORY = "memory"
    GC = "gc"
    DEVICE_TIME = "device_time"
    CHECKPOINT = "checkpoint"
    SCALAR = "scalar"
    EXCEPTION = "exception"
    LAST_WORD = "last_word"
    GAP = "gap"
    RENDEZVOUS = "rendezvous"
    WORKER_EXIT = "worker_exit"
    RANK_PAGE = "rank_page"
    PULL = "pull"
    COLLECTIVE = "collective"
    COLLECTIVE_TOTALS = "collective_totals"
    STACK = "stack"
    PROCESS = "process"
    NCCL_RAS = "nccl_ras"
    CONNECTIONS = "connections"


class StepFlag:
    """Bits of :attr:`StepRecord.flags`."""

    FIRST = 1
    """First step this process ended: its duration is unknown (0)."""
    SKIPPED = 2
    """The gradient scaler skipped the optimizer (non-finite gradients)."""
    EXPLICIT = 4
    """Ended by ``tracecore_train.step()``, not seen by the optimizer hook."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Who hands over a batch: a process of one job, on one host, in one attempt.

    ``wall_offset_ns`` is the host's wall clock minus its monotonic clock, so that
    ``time_ns + wall_offset_ns`` is nanoseconds since the epoch.
    """

    kind: SourceKind
    host: str
    boot_id: str
    pid: int
    job_id: str
    attempt: int
    wall_offset_ns: int
    rank: int | None = None
    local_rank: int | None = None
    node_rank: int | None = None
    world_size: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityRecord:
    """A rank introduces itself, once per process."""

    kind: ClassVar[RecordKind] = RecordKind.IDENTITY
    time_ns: int
    rank: int
    local_rank: int
    node_rank: int
    world_size: int
    pid: int
    start_ticks: int
    """Process start time in clock ticks since boot (``/proc/PID/stat`` field 22); 0 if unknown."""
    device: str
    """``cpu`` or ``cuda``."""
    gpu_uuid: str | None
    torch_version: str | None
    blind: tuple[str, ...]
    """Signals this rank cannot give, each as ``signal: reason``."""
    measured: tuple[str, ...] = ()
    """Signals this rank gives."""
    off: tuple[str, ...] = ()
    """Signals the user turned off, or did not turn on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRecord:
    """A process group this rank belongs to (torch's own ``pg_config`` is broken on gloo)."""

    kind: ClassVar[RecordKind] = RecordKind.GROUPS
    time_ns: int
    rank: int
    pg_name: str
    pg_desc: str
    backend: str
    ranks: tuple[int, ...]
    """Global ranks of the members, in group order."""
    generation: int = 0
    """How often a group of this name was made before in this process (destroyed since)."""
    is_destroyed: bool = False
    """The group is gone: its counters stand still and that means nothing."""
    made_ns: int = 0
    """When its making began in this process; 0: not seen, it was made before we looked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressRecord:
    """Counters of one process group, read from the flight recorder without its entries.

    They mix collectives with send/recv: they show *that* something moves, never who is behind.
    """

    kind: ClassVar[RecordKind] = RecordKind.PROGRESS
    time_ns: int
    rank: int
    pg_name: str
    enqueued: int
    started: int
    completed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One step ended at ``time_ns``."""

    kind: ClassVar[RecordKind] = RecordKind.STEP
    time_ns: int
    rank: int
    step: int
    """Number of steps this process has ended before this one (0 for the first)."""
    duration_ns: int
    """Since the end of the previous step; 0 when unknown (flag ``FIRST``)."""
    input_ns: int
    """Time inside ``next(dataloader)`` on the training thread during this step."""
    num_batches: int
    """Batches taken from any loader during this step, those of a validation included."""
    checkpoint_ns: int
    """Time inside ``torch.save`` on the training thread during this step."""
    flags: int
    global_step: int | None = None
    """Updates before this one as the framework counts them, also over a resume; None: not told."""
    num_microbatches: int | None = None
    """Microbatches the framework began during this step (gradient accumulation); None: not told."""
    forward_ns: int = NOT_MEASURED
    """From the end of input wait (or of the previous backward) to the next backward, summed."""
    backward_ns: int = NOT_MEASURED
    """Time inside ``torch.autograd.backward`` on the training thread."""
    optimizer_ns: int = NOT_MEASURED
    """Time inside optimizers' ``step`` on the training thread."""
    transfer_ns: int = NOT_MEASURED
    """Time the training thread spent issuing host-to-device copies of batches."""
    gc_ns: int = NOT_MEASURED
    """Time inside Python's garbage collector, on the training thread."""
    num_backwards: int = NOT_MEASURED
    """Outermost backward passes: microbatches, where each has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseRecord:
    """A phase that the user or the framework named ended at ``time_ns``."""

    kind: ClassVar[RecordKind] = RecordKind.PHASE
    time_ns: int
    rank: int
    name: str
    duration_ns: int
    at_most_ns: int = 0
    """Longest the user announced (``expect``); 0: not announced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRecord:
    """One data loader of the training thread as it stands at ``time_ns``; sums since its start."""

    kind: ClassVar[RecordKind] = RecordKind.INPUT
    time_ns: int
    rank: int
    loader: str
    """Class of the loader's iterator and a number, e.g. ``_MultiProcessingDataLoaderIter#1``."""
    num_batches: int
    wait_ns: int
    """Time inside ``next``, without the first batch."""
    longest_wait_ns: int
    """Longest single wait, without the first batch."""
    first_batch_ns: int
    """Wait for the first batch, worker start-up included; ``NOT_MEASURED`` before it."""
    num_ready: int = NOT_MEASURED
    """Batches that lie ready in the queue."""
    num_outstanding: int = NOT_MEASURED
    """Batches asked for and not delivered yet, the ready ones included."""
    prefetch_limit: int = NOT_MEASURED
    """Most batches that may be outstanding."""
    num_workers: int = NOT_MEASURED
    num_workers_alive: int = NOT_MEASURED


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRecord:
    """Memory of one device as its allocator reports it, in bytes. Peaks are the user's to reset."""

    kind: ClassVar[RecordKind] = RecordKind.MEMORY
    time_ns: int
    rank: int
    device: int
    """Index of the device in this process."""
    allocated_bytes: int
    allocated_peak_bytes: int
    """High-water mark since the user last reset it: a censored series."""
    reserved_bytes: int
    reserved_peak_bytes: int
    inactive_split_bytes: int
    """Freed but not returnable: fragmentation."""
    num_alloc_retries: int
    num_ooms: int
    num_sync_all_streams: int = NOT_MEASURED
    device_free_bytes: int = NOT_MEASURED
    device_total_bytes: int = NOT_MEASURED
    pinned_bytes: int = NOT_MEASURED
    """Pinned host memory held by torch's host allocator."""
    phase: str = ""
    """Phase that ended just before the sample; empty: a periodic sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GcRecord:
    """Python's garbage collector stopped a thread for long enough to be told singly."""

    kind: ClassVar[RecordKind] = RecordKind.GC
    time_ns: int
    rank: int
    generation: int
    duration_ns: int
    num_collected: int
    step: int
    """Steps this process had ended when it began."""
    is_training_thread: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceTimeRecord:
    """Device time of one step between device events, read after the step, never waited for."""

    kind: ClassVar[RecordKind] = RecordKind.DEVICE_TIME
    time_ns: int
    rank: int
    step: int
    part: str
    """``step``, ``forward``, ``backward`` or ``optimizer``."""
    device_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRecord:
    """A checkpoint call ended at ``time_ns``."""

    kind: ClassVar[RecordKind] = RecordKind.CHECKPOINT
    time_ns: int
    rank: int
    call: str
    """The function, e.g. ``torch.save``."""
    duration_ns: int
    num_bytes: int = NOT_MEASURED
    is_blocking: bool = True
    """Whether training waited for it; False: it ran beside training (async save)."""
    error: str = ""
    """Type of the exception it ended with; empty: it worked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalarRecord:
    """A number the user gave to ``tracecore_train.log``."""

    kind: ClassVar[RecordKind] = RecordKind.SCALAR
    time_ns: int
    rank: int
    step: int
    """Steps this process had ended when it was given."""
    name: str
    value: float | None
    """None when it is not finite."""
    non_finite: str = ""
    """``nan``, ``inf`` or ``-inf``; empty when ``value`` holds the number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExceptionRecord:
    """An exception that ended a thread, or an error torch.distributed reported."""

    kind: ClassVar[RecordKind] = RecordKind.EXCEPTION
    time_ns: int
    rank: int
    where: str
    """``main``, ``thread NAME``, or the torch call that failed, e.g. ``init_process_group``."""
    type_name: str
    message: str
    """Cut; may hold what the user put into it."""
    frame: str
    """Innermost frame, as ``function (file:line)``."""
    is_fatal: bool
    """Whether the process ends of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LastWordRecord:
    """What a rank said when it ended normally. Its absence after an exit means it was cut off."""

    kind: ClassVar[RecordKind] = RecordKind.LAST_WORD
    time_ns: int
    rank: int
    word: str


REFUSERS = frozenset({"log()", "expect()"})
"""Functions that refuse a user's bad argument and report it as a gap: no record was lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GapRecord:
    """Records that were lost, counted."""

    kind: ClassVar[RecordKind] = RecordKind.GAP
    time_ns: int
    rank: int
    where: str
    """``ring`` (the rank's buffer was full), ``export`` (not delivered), a hook's name, or one of
    :data:`REFUSERS`."""
    num_lost: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RendezvousRecord:
    """The launcher started this node's workers: which ranks, under which pids."""

    kind: ClassVar[RecordKind] = RecordKind.RENDEZVOUS
    time_ns: int
    world_size: int
    ranks: tuple[int, ...]
    pids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerExitRecord:
    """The launcher saw a worker end."""

    kind: ClassVar[RecordKind] = RecordKind.WORKER_EXIT
    time_ns: int
    rank: int
    pid: int
    exit_code: int | None
    """Exit code, or None when a signal ended it."""
    signal: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPageRecord:
    """The rank page as read from outside at ``time_ns``; see ``recorder/page.py``."""

    kind: ClassVar[RecordKind] = RecordKind.RANK_PAGE
    time_ns: int
    rank: int
    pid: int
    step: int
    """Steps ended so far."""
    step_time_ns: int
    """End of the last step; 0 before the first."""
    num_batches: int
    """Batches taken so far."""
    input_since_ns: int
    """Inside ``next(dataloader)`` since; 0 when outside."""
    checkpoint_since_ns: int
    """Inside a checkpoint call since; 0 when outside."""
    phase: str
    """Name of the phase the user opened; empty when none."""
    phase_since_ns: int
    heartbeat_ns: int
    """Last beat of the export thread, which needs the GIL: stale means GIL held or stopped."""
    last_word: str
    backward_since_ns: int = 0
    """Inside ``torch.autograd.backward`` since; 0 when outside."""
    optimizer_since_ns: int = 0
    """Inside an optimizer's ``step`` since; 0 when outside."""
    gc_since_ns: int = 0
    """Inside Python's garbage collector since; 0 when outside."""
    capture_since_ns: int = 0
    """Capturing a CUDA graph since; 0 when not."""
    expect_until_ns: int = 0
    """Moment up to which the open phase was announced to last (``expect``); 0: no limit given."""
    sigterm_ns: int = 0
    """When SIGTERM was seen (opt-in); 0: not."""
    num_ooms: int = 0
    """Times the device allocator failed."""
    oom_ns: int = 0
    """When it last failed; 0: never."""
    oom: str = ""
    """The request that failed last and where it came from."""
    exception_ns: int = 0
    """When an exception ended the main thread; 0: none did."""
    exception: str = ""
    """Its type, message and frame."""
    start_ticks: int = 0
    """Process start time as in ``IdentityRecord``; 0 if unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PullRecord:
    """The sidecar read (or failed to read) a rank's flight recorder at ``time_ns``."""

    kind: ClassVar[RecordKind] = RecordKind.PULL
    time_ns: int
    rank: int
    is_ok: bool
    reason: str
    """Why it failed; empty when it worked."""
    num_entries: int
    """Entries newer than the previous pull, or unfinished then and finished now."""
    num_lost: int
    """Entries the ring overwrote between two pulls."""
    is_active_only: bool = False
    """Finished entries were left out: absence alone does not tell finished from never entered."""
    is_whole: bool = True
    """Every recorder that may be read was read; False: what the others hold is as old as before,
    and ``reason`` says why."""
    is_truncated: bool = False
    """The ring had overwritten entries that nobody had read before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveRecord:
    """One ring entry of a rank's flight recorder, as pulled at ``time_ns``."""

    kind: ClassVar[RecordKind] = RecordKind.COLLECTIVE
    time_ns: int
    rank: int
    pg_name: str
    collective_seq_id: int
    record_id: int
    op: str
    """For example ``all_reduce``; without the backend's prefix."""
    input_sizes: str
    """For example ``[[8320]]``."""
    input_dtypes: str
    created_ns: int
    """When the rank entered it (torch stamps wall time; converted to the monotonic clock)."""
    completed_ns: int
    """When completion was discovered; 0 where the backend does not say (always on gloo)."""
    is_retired: bool
    """The operation left the recorder's pending set: it finished, failed or timed out."""
    is_p2p: bool = False
    """A send or recv: ordered per pair and direction, not by ``collective_seq_id``."""
    p2p_seq_id: int = 0
    op_id: int = 0
    """Ordinal among all operations of the group, send/recv included; 0: not told."""
    output_sizes: str = ""
    is_started: bool = False
    """It was seen to run on the device; the recorder tells only where timing is on."""
    started_ns: int = 0
    """When torch's watchdog found it running (converted like ``created_ns``); 0: not told."""
    duration_ns: int = NOT_MEASURED
    """Time on the device; the recorder tells only where timing is on."""
    output_dtypes: str = ""
    backend: str = ""
    """Which of a group's backends did it, where the recorder tells: each counts its own."""
    tag: int = NOT_MEASURED
    """Tag of a send or recv, where the calls themselves are recorded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveTotalsRecord:
    """Collectives of one kind as they were issued in one group; sums since the rank looked."""

    kind: ClassVar[RecordKind] = RecordKind.COLLECTIVE_TOTALS
    time_ns: int
    rank: int
    pg_name: str
    op: str
    """For example ``all_reduce``."""
    num_issued: int
    issue_ns: int
    """Time inside the issuing call; for a synchronous call on gloo that is the whole of it."""
    longest_issue_ns: int
    last_issue_ns: int
    """When the last one was issued."""
    num_inside: int = 0
    """Calls that had begun and not returned at ``time_ns``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StackRecord:
    """The Python stack of one thread of a rank, taken from outside."""

    kind: ClassVar[RecordKind] = RecordKind.STACK
    time_ns: int
    rank: int
    pid: int
    thread: str
    """Thread name; ``MainThread`` for the one that trains."""
    is_active: bool
    holds_gil: bool
    frames: tuple[str, ...]
    """Innermost first, each as ``function (file:line)``. Empty when ``error`` is set."""
    error: str
    """Why no stack could be had; empty when it worked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRecord:
    """A rank's process as ``/proc`` shows it."""

    kind: ClassVar[RecordKind] = RecordKind.PROCESS
    time_ns: int
    rank: int
    pid: int
    start_ticks: int
    state: str
    """One letter of ``/proc/PID/stat``: R, S, D, T, t, Z; ``-`` when the process is gone."""
    cpu_ns: int
    """User and system time used so far."""
    rss_bytes: int
    wchan: str
    num_threads: int = NOT_MEASURED
    num_major_faults: int = NOT_MEASURED
    """Page faults that had to wait for a disk, so far; all threads."""
    main_cpu_ns: int = NOT_MEASURED
    """Time the main thread was on a processor, so far."""
    main_wait_ns: int = NOT_MEASURED
    """Time it was ready to run and waited for a processor (run queue), so far."""
    num_voluntary_switches: int = NOT_MEASURED
    """Times the main thread gave its processor up, so far."""
    num_involuntary_switches: int = NOT_MEASURED
    """Times it was taken off its processor while it could have gone on, so far."""
    anon_bytes: int = NOT_MEASURED
    """Resident memory that no file backs: what the host cannot drop."""
    shmem_bytes: int = NOT_MEASURED
    """Resident shared memory (``/dev/shm``, shared anonymous mappings)."""
    pss_bytes: int = NOT_MEASURED
    """Resident memory with shared pages divided among who shares them, as of ``pss_time_ns``."""
    pss_time_ns: int = 0
    """When it was read, now and then; 0: never."""
    num_children: int = NOT_MEASURED
    """Processes its main thread started and that are there: loader workers."""
    children_rss_bytes: int = NOT_MEASURED
    """Their resident memory, summed; pages they share with the rank count in each."""
    child_states: str = ""
    """Their states, one letter each, by age; the first 64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NcclRasRecord:
    """What NCCL's RAS service said of the job when one of its processes was asked; a hint."""

    kind: ClassVar[RecordKind] = RecordKind.NCCL_RAS
    time_ns: int
    rank: int
    """Lowest of those that could have been asked; the answer is about the whole job."""
    findings: tuple[str, ...]
    """What stands out in it, as sentences. None is no sign of health."""
    error: str
    """Why nothing can be said; empty when it was read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionsRecord:
    """TCP connections of a rank in which something waits; a value per connection.

    One that is idle is not listed. All are as the kernel counts them at ``time_ns``.
    """

    kind: ClassVar[RecordKind] = RecordKind.CONNECTIONS
    time_ns: int
    rank: int
    peers: tuple[int, ...]
    """Rank at the other end; ``NOT_MEASURED`` where it is none of this node."""
    addresses: tuple[str, ...]
    """The other end, ``address:port``."""
    num_unacknowledged: tuple[int, ...]
    """Bytes sent that the other end's kernel has not acknowledged."""
    num_unread: tuple[int, ...]
    """Bytes that came and that the rank has not read."""
    num_retransmits: tuple[int, ...]
    """How often the oldest of them were sent again without an answer."""
    error: str = ""
    """Why nothing can be said; empty when they were read."""


Record: TypeAlias = (
    IdentityRecord
    | GroupRecord
    | ProgressRecord
    | StepRecord
    | PhaseRecord
    | InputRecord
    | MemoryRecord
    | GcRecord
    | DeviceTimeRecord
    | CheckpointRecord
    | ScalarRecord
    | ExceptionRecord
    | LastWordRecord
    | GapRecord
    | RendezvousRecord
    | WorkerExitRecord
    | RankPageRecord
    | PullRecord
    | CollectiveRecord
    | CollectiveTotalsRecord
    | StackRecord
    | ProcessRecord
    | NcclRasRecord
    | ConnectionsRecord
)

RECORD_TYPES: dict[RecordKind, type[Record]] = {
    cls.kind: cls
    for cls in (
        IdentityRecord,
        GroupRecord,
        ProgressRecord,
        StepRecord,
        PhaseRecord,
        InputRecord,
        MemoryRecord,
        GcRecord,
        DeviceTimeRecord,
        CheckpointRecord,
        ScalarRecord,
        ExceptionRecord,
        LastWordRecord,
        GapRecord,
        RendezvousRecord,
        WorkerExitRecord,
        RankPageRecord,
        PullRecord,
        CollectiveRecord,
        CollectiveTotalsRecord,
        StackRecord,
        ProcessRecord,
        NcclRasRecord,
        ConnectionsRecord,
    )
}
"""The one visible list of what exists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Records of one source, handed over together."""

    source: Source
    records: tuple[Record, ...] = field(default=())
