"""The state of one attempt of a job: a column per fact, a small function per record kind.

Records about a rank outside the job, and rows that contradict what the source says about itself,
are counted and dropped.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from tracecore_sidecar.state.early_entries import EarlyEntries
from tracecore_sidecar.state.memberships import Change, Memberships
from tracecore_sidecar.state.view import MIN_APART_NS, UNKNOWN_EXIT, JobView, RankColumns, read_only
from tracecore_sidecar.state.windows import GroupRows, StepRows
from tracecore_train.wire import records as rec
from tracecore_train.wire.records import RecordKind, Source, SourceKind

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Mapping

    from tracecore_sidecar.state.pauses import PauseHistory
    from tracecore_sidecar.verdicts import JobInfo
    from tracecore_train.wire.records import Batch

_Key = TypeVar("_Key")
_Latest = TypeVar("_Latest")

MAX_LATEST = 256
"""Loaders, devices or scalar names kept of one rank; further ones are counted and dropped."""
MAX_GROUPS = 65_536
"""Process groups kept; further ones are counted and dropped. 16,384 ranks have some 10,000."""
MAX_COUNTERS = 524_288
"""Pairs of rank and process group whose counters are kept."""
MAX_HOSTS = 16_384

_INT_COLUMNS = (
    "ended_ns",
    "exit_ns",
    "pid",
    "num_steps",
    "step_ns",
    "num_batches",
    "progress_ns",
    "page_ns",
    "input_since_ns",
    "checkpoint_since_ns",
    "phase_since_ns",
    "heartbeat_ns",
    "pull_ns",
    "pull_failed_ns",
    "longest_checkpoint_ns",
)


class AttemptState:
    """Everything known about one attempt."""

    def __init__(self, world_size: int, num_dropped: Counter[str], pauses: PauseHistory) -> None:
        """Start with nothing known but the ``pauses`` of earlier attempts.

        ``num_dropped`` counts records not applied, by reason.
        """
        self.world_size = world_size
        self._num_dropped = num_dropped
        self._pauses = pauses
        self._ints = {name: np.zeros(world_size, dtype=np.int64) for name in _INT_COLUMNS}
        self._exit_code = np.full(world_size, UNKNOWN_EXIT, dtype=np.int64)
        self._host_index = np.full(world_size, -1, dtype=np.int64)
        self._is_seen = np.zeros(world_size, dtype=np.bool_)
        self._is_ended = np.zeros(world_size, dtype=np.bool_)
        self._is_active_only = np.zeros(world_size, dtype=np.bool_)
        self._is_truncated = np.zeros(world_size, dtype=np.bool_)
        self._steps = StepRows(world_size)
        self._groups: dict[str, GroupRows] = {}
        self._memberships: dict[str, Memberships] = {}
        self._early = EarlyEntries()
        self._hosts: dict[tuple[str, str], int] = {}
        self._identities: dict[int, rec.IdentityRecord] = {}
        self._phases: dict[int, str] = {}
        self._counters: dict[tuple[int, str], tuple[int, int, int]] = {}
        self._stacks: dict[int, tuple[rec.StackRecord, ...]] = {}
        self._processes: dict[int, tuple[rec.ProcessRecord, ...]] = {}
        self._close_looks: dict[int, tuple[rec.ProcessRecord, ...]] = {}
        self._blind: dict[int, tuple[str, ...]] = {}
        self._num_lost: dict[int, int] = {}
        self._ras_answers: dict[int, rec.NcclRasRecord] = {}
        self._connections: dict[int, rec.ConnectionsRecord] = {}
        self._pages: dict[int, rec.RankPageRecord] = {}
        self._exceptions: dict[int, rec.ExceptionRecord] = {}
        self._last_words: dict[int, str] = {}
        self._inputs: dict[int, dict[str, rec.InputRecord]] = {}
        self._memory: dict[int, dict[int, rec.MemoryRecord]] = {}
        self._scalars: dict[int, dict[str, rec.ScalarRecord]] = {}
        self._handlers: Mapping[RecordKind, Callable[[Any], None]] = {
            RecordKind.IDENTITY: self._identity,
            RecordKind.GROUPS: self._group,
            RecordKind.PROGRESS: self._progress,
            RecordKind.STEP: self._step,
            RecordKind.PHASE: self._phase,
            RecordKind.INPUT: self._input,
            RecordKind.MEMORY: self._memory_sample,
            RecordKind.GC: self._gc,
            RecordKind.DEVICE_TIME: self._not_kept,
            RecordKind.CHECKPOINT: self._checkpoint,
            RecordKind.SCALAR: self._scalar,
            RecordKind.EXCEPTION: self._exception,
            RecordKind.LAST_WORD: self._last_word,
            RecordKind.GAP: self._gap,
            RecordKind.WORKER_EXIT: self._worker_exit,
            RecordKind.RANK_PAGE: self._rank_page,
            RecordKind.PULL: self._pull,
            RecordKind.COLLECTIVE_TOTALS: self._not_kept,
            RecordKind.PROCESS: self._process,
            RecordKind.NCCL_RAS: self._ras_answer,
            RecordKind.CONNECTIONS: self._connections_seen,
        }

    def apply(self, batch: Batch) -> None:
        """Take in one batch."""
        source = batch.source
        host_index = self._host(source)
        collectives: list[rec.CollectiveRecord] = []
        stacks: dict[int, list[rec.StackRecord]] = {}
        admitted: int | None = None
        """Rank of the record before: hundreds in a row are about one."""
        for record in batch.records:
            if isinstance(record, rec.RendezvousRecord):
                self._rendezvous(record, host_index)
                continue
            rank = record.rank
            if rank != admitted:
                if not self._admits(rank, source, host_index):
                    continue
                admitted = rank
            if isinstance(record, rec.CollectiveRecord):
                collectives.append(record)
            elif isinstance(record, rec.StackRecord):
                stacks.setdefault(rank, []).append(record)
            else:
                self._handlers[record.kind](record)
                if isinstance(record, rec.GroupRecord):
                    collectives[:0] = self._early.take(record.pg_name)
        self._collectives(collectives)
        # Stacks of one rank arrive together and replace the older ones.
        self._stacks.update({rank: tuple(found) for rank, found in stacks.items()})

    def view(self, job: JobInfo) -> JobView:
        """Share the state, read-only."""
        ranks = RankColumns(
            is_seen=read_only(self._is_seen),
            is_ended=read_only(self._is_ended),
            is_active_only=read_only(self._is_active_only),
            is_truncated=read_only(self._is_truncated),
            exit_code=read_only(self._exit_code),
            host_index=read_only(self._host_index),
            **{name: read_only(column) for name, column in self._ints.items()},
        )
        return JobView(
            job=job,
            ranks=ranks,
            groups={name: rows.view() for name, rows in self._groups.items()},
            steps=self._steps.view(),
            hosts=tuple(host for host, _ in self._hosts),
            identities=MappingProxyType(self._identities),
            phases=MappingProxyType(self._phases),
            stacks=MappingProxyType(self._stacks),
            processes=MappingProxyType(self._processes),
            blind=MappingProxyType(self._blind),
            num_lost=MappingProxyType(self._num_lost),
            pages=MappingProxyType(self._pages),
            exceptions=MappingProxyType(self._exceptions),
            last_words=MappingProxyType(self._last_words),
            inputs=MappingProxyType(self._inputs),
            close_looks=MappingProxyType(self._close_looks),
            memory=MappingProxyType(self._memory),
            scalars=MappingProxyType(self._scalars),
            ras_answers=MappingProxyType(self._ras_answers),
            connections=MappingProxyType(self._connections),
            past_pauses=self._pauses.view(),
        )

    def _admits(self, rank: int, source: Source, host_index: int) -> bool:
        """Say whether a source may speak about a rank; note that it was seen."""
        if not 0 <= rank < self.world_size:
            self._num_dropped["rank outside the job"] += 1
            return False
        if source.kind is SourceKind.RANK and source.rank != rank:
            self._num_dropped["rank speaks for another rank"] += 1
            return False
        self._is_seen[rank] = True
        if self._host_index[rank] < 0:
            self._host_index[rank] = host_index
        return True

    # One small function per record kind.

    def _rendezvous(self, record: rec.RendezvousRecord, host_index: int) -> None:
        for rank, pid in zip(record.ranks, record.pids, strict=False):
            if 0 <= rank < self.world_size:
                self._is_seen[rank] = True
                self._host_index[rank] = host_index
                self._ints["pid"][rank] = pid
                self._moved(rank, record.time_ns)

    def _identity(self, record: rec.IdentityRecord) -> None:
        known = self._identities.get(record.rank)
        self._identities[record.rank] = record
        self._blind[record.rank] = record.blind
        self._ints["pid"][record.rank] = record.pid
        if known is None or known.pid != record.pid:
            self._moved(record.rank, record.time_ns)

    def _group(self, record: rec.GroupRecord) -> None:
        name = record.pg_name
        known = self._groups.get(name)
        if known is None and (record.is_destroyed or len(self._groups) >= MAX_GROUPS):
            self._num_dropped["too many groups"] += not record.is_destroyed
            return
        if not record.ranks or not all(0 <= rank < self.world_size for rank in record.ranks):
            self._num_dropped["group with foreign ranks"] += 1
            return
        change = self._memberships.setdefault(name, Memberships()).apply(record)
        if change is Change.OVER:
            del self._groups[name], self._memberships[name]
            return
        if record.is_destroyed:
            return
        is_other = known is None or known.members != tuple(dict.fromkeys(record.ranks))
        if is_other or change is Change.MADE_ANEW:
            self._groups[name] = GroupRows(record)

    def _progress(self, record: rec.ProgressRecord) -> None:
        key = (record.rank, record.pg_name)
        counters = (record.enqueued, record.started, record.completed)
        if len(self._counters) < MAX_COUNTERS or key in self._counters:
            if self._counters.get(key) != counters:
                self._moved(record.rank, record.time_ns)
            self._counters[key] = counters
        group = self._groups.get(record.pg_name)
        if group is not None and self._memberships[record.pg_name].is_current(record.rank):
            group.count(record.rank, record.enqueued, record.completed)

    def _step(self, record: rec.StepRecord) -> None:
        self._steps.add(record)
        self._steps_ended(record.rank, record.step + 1, record.time_ns)

    def _steps_ended(self, rank: int, num_steps: int, time_ns: int) -> None:
        if num_steps > self._ints["num_steps"][rank]:
            self._ints["num_steps"][rank] = num_steps
            self._ints["step_ns"][rank] = time_ns
            self._moved(rank, time_ns)

    def _phase(self, record: rec.PhaseRecord) -> None:
        self._pauses.add(record)
        self._moved(record.rank, record.time_ns)

    def _checkpoint(self, record: rec.CheckpointRecord) -> None:
        self._pauses.add(record)
        if record.is_blocking:
            longest = self._ints["longest_checkpoint_ns"]
            longest[record.rank] = max(int(longest[record.rank]), record.duration_ns)
        self._moved(record.rank, record.time_ns)

    def _gc(self, record: rec.GcRecord) -> None:
        self._pauses.add(record)

    def _input(self, record: rec.InputRecord) -> None:
        self._keep(self._inputs.setdefault(record.rank, {}), record.loader, record)

    def _memory_sample(self, record: rec.MemoryRecord) -> None:
        self._keep(self._memory.setdefault(record.rank, {}), record.device, record)

    def _scalar(self, record: rec.ScalarRecord) -> None:
        self._keep(self._scalars.setdefault(record.rank, {}), record.name, record)

    def _exception(self, record: rec.ExceptionRecord) -> None:
        known = self._exceptions.get(record.rank)
        if known is None or record.is_fatal or not known.is_fatal:
            self._exceptions[record.rank] = record

    def _not_kept(self, record: rec.Record) -> None:
        """Leave a record to the record files: nothing here reads it yet."""

    def _keep(self, latest: dict[_Key, _Latest], key: _Key, record: _Latest) -> None:
        if key in latest or len(latest) < MAX_LATEST:
            latest[key] = record
        else:
            self._num_dropped["too many series of one rank"] += 1

    def _last_word(self, record: rec.LastWordRecord) -> None:
        self._last_words[record.rank] = record.word
        self._ended(record.rank, record.time_ns)

    def _gap(self, record: rec.GapRecord) -> None:
        if record.where not in rec.REFUSERS:
            self._lost(record.rank, record.num_lost)

    def _worker_exit(self, record: rec.WorkerExitRecord) -> None:
        self._ended(record.rank, record.time_ns)
        self._ints["exit_ns"][record.rank] = record.time_ns
        if record.signal is not None:
            self._exit_code[record.rank] = -record.signal
        elif record.exit_code is not None:
            self._exit_code[record.rank] = record.exit_code

    def _rank_page(self, record: rec.RankPageRecord) -> None:
        rank, ints = record.rank, self._ints
        self._pages[rank] = record
        ints["page_ns"][rank] = record.time_ns
        ints["pid"][rank] = record.pid
        ints["heartbeat_ns"][rank] = record.heartbeat_ns
        self._steps_ended(rank, record.step, record.step_time_ns)
        if record.num_batches > ints["num_batches"][rank]:
            ints["num_batches"][rank] = record.num_batches
            self._moved(rank, record.time_ns)
        for name in ("input_since_ns", "checkpoint_since_ns", "phase_since_ns"):
            since = getattr(record, name)
            if since != ints[name][rank]:
                ints[name][rank] = since
                self._moved(rank, since or record.time_ns)
        if record.phase_since_ns and record.phase:
            self._phases[rank] = record.phase
        else:
            self._phases.pop(rank, None)
        if record.last_word:
            self._last_words[rank] = record.last_word
            self._ended(rank, record.time_ns)

    def _pull(self, record: rec.PullRecord) -> None:
        if record.is_ok and not record.is_whole:
            # What is known of the other recorders is as old as it was.
            self._ints["pull_failed_ns"][record.rank] = 0
        elif record.is_ok:
            self._ints["pull_ns"][record.rank] = record.time_ns
            self._is_active_only[record.rank] = record.is_active_only
            self._is_truncated[record.rank] |= record.is_truncated
            self._ints["pull_failed_ns"][record.rank] = 0
        else:
            self._ints["pull_failed_ns"][record.rank] = record.time_ns
        self._lost(record.rank, record.num_lost)

    def _part(self, pg_name: str, told: str) -> str:
        """Name the group in which an operation counts: a group's backends count apart."""
        # Nccl2 may name itself as its predecessor did.
        for backend in (told, f"{told}2") if told else ():
            part = f"{pg_name}:{backend}"
            if part in self._groups:
                return part
        return pg_name

    def _collectives(self, records: list[rec.CollectiveRecord]) -> None:
        parts: dict[tuple[str, str], str] = {}
        by_part: dict[tuple[str, int], list[rec.CollectiveRecord]] = {}
        for record in records:
            name = (record.pg_name, record.backend)
            part = parts.get(name)
            if part is None:
                part = parts[name] = self._part(*name)
            by_part.setdefault((part, record.rank), []).append(record)
        for (pg_name, rank), entries in by_part.items():
            group = self._groups.get(pg_name)
            if group is None:
                if num_left := self._early.keep(pg_name, rank, entries):
                    self._num_dropped["collective of an unknown group"] += num_left
                continue
            current = self._memberships[pg_name].current(rank, entries)
            if current:
                group.add(rank, current)

    def _process(self, record: rec.ProcessRecord) -> None:
        self._processes[record.rank] = _last_two(self._processes.get(record.rank, ()), record)
        if record.main_cpu_ns != rec.NOT_MEASURED or record.num_children != rec.NOT_MEASURED:
            known = self._close_looks.get(record.rank, ())
            self._close_looks[record.rank] = _last_two(known, record)
        if record.state == "-":
            self._ended(record.rank, record.time_ns)

    def _ras_answer(self, record: rec.NcclRasRecord) -> None:
        self._ras_answers[record.rank] = record

    def _connections_seen(self, record: rec.ConnectionsRecord) -> None:
        self._connections[record.rank] = record

    def _moved(self, rank: int, time_ns: int) -> None:
        progress = self._ints["progress_ns"]
        progress[rank] = max(int(progress[rank]), time_ns)

    def _ended(self, rank: int, time_ns: int) -> None:
        if not self._is_ended[rank]:
            self._is_ended[rank] = True
            self._ints["ended_ns"][rank] = time_ns

    def _lost(self, rank: int, count: int) -> None:
        if count > 0:
            self._num_lost[rank] = self._num_lost.get(rank, 0) + count

    def _host(self, source: Source) -> int:
        key = (source.host, source.boot_id)
        if key not in self._hosts and len(self._hosts) >= MAX_HOSTS:
            return -1
        return self._hosts.setdefault(key, len(self._hosts))


def _last_two(
    known: tuple[rec.ProcessRecord, ...], record: rec.ProcessRecord
) -> tuple[rec.ProcessRecord, ...]:
    """Keep a look and the last one before it that is far enough away to tell a share."""
    is_near = len(known) == 2 and record.time_ns - known[1].time_ns < MIN_APART_NS
    return (known[0] if is_near else known[-1], record) if known else (record,)
