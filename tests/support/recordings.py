"""Delivers a simulated job as records to a real store, and a watch that judges it.

Nothing here sleeps: time moves by :meth:`Watch.run`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.support.simulation import MS, SECOND, START_NS, WORLD, Entry, Timeline
from tracecore_sidecar.detectors import WantedKind
from tracecore_sidecar.detectors.hang import HangDetector
from tracecore_sidecar.detectors.straggler import StragglerDetector
from tracecore_sidecar.state.store import Store
from tracecore_train.wire import records as rec
from tracecore_train.wire.records import Batch, Source, SourceKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tracecore_sidecar.detectors import Detector, Wanted
    from tracecore_sidecar.state.view import JobView
    from tracecore_sidecar.verdicts import Verdict

__all__ = ["MS", "SECOND", "START_NS", "WORLD", "SimulatedJob", "Watch"]

JOB_ID = "simulated"


class SimulatedJob(Timeline):
    """A timeline whose ranks have a store to speak to."""

    def __init__(self, world_size: int = 2, **options: Any) -> None:
        """Take what :class:`Timeline` takes, and let every rank introduce itself."""
        super().__init__(world_size, **options)
        self.store = Store(job_id=JOB_ID, node_rank=0, host="a07", boot_id="b")
        self.now = self._advanced_ns = START_NS
        self._introduce()

    def view(self) -> JobView:
        """Give what the detectors see now."""
        view = self.store.view()
        assert view is not None
        return view

    def apply(self, index: int, *records: rec.Record, kind: SourceKind = SourceKind.RANK) -> None:
        """Hand records about a rank to the store."""
        source = Source(
            kind=kind,
            host=self.ranks[index].host,
            boot_id=self.ranks[index].host,
            pid=100 + index,
            job_id=JOB_ID,
            attempt=0,
            wall_offset_ns=0,
            rank=index if kind is SourceKind.RANK else None,
            local_rank=index,
            node_rank=0,
            world_size=self.world_size,
        )
        self.store.apply(Batch(source=source, records=records))

    def advance(self, now: int, *, pull: bool) -> None:
        """Move the clock and deliver what ranks and the node show by then."""
        elapsed, self.now, self._advanced_ns = now - self._advanced_ns, now, now
        due = [item for item in self.step_records if item[0] <= now]
        self.step_records = [item for item in self.step_records if item[0] > now]
        for _, index, record in sorted(due, key=lambda item: item[:2]):
            if not self.ranks[index].is_ended:
                self.apply(index, record)
        for index, rank in enumerate(self.ranks):
            if index in self.absent or rank.is_ended:
                continue
            rank.cpu_ns += int(rank.cpu_share * elapsed)
            rank.main_wait_ns += int(rank.wait_share * elapsed)
            if rank.beats:
                rank.heartbeat_ns = now
                self._counters(index)
            if rank.has_page:
                self._page(index)
            self.look(index)
            if pull:
                self.pull(index)

    def end(self, index: int, *, exit_code: int | None = 0, signal: int | None = None) -> None:
        """Let a rank end now, seen by the launcher."""
        self.ranks[index].is_ended = True
        self.apply(
            index,
            rec.WorkerExitRecord(
                time_ns=self.now, rank=index, pid=100 + index, exit_code=exit_code, signal=signal
            ),
            kind=SourceKind.LAUNCHER,
        )

    def pull(self, index: int) -> None:
        """Read a rank's flight recorder."""
        rank = self.ranks[index]
        if rank.is_ended or index in self.absent:
            return
        if not rank.is_readable or rank.state in "TZ-":
            self._pulled(index, is_ok=False)
            return
        fresh = [e for e in rank.entries[rank.undelivered :] if e.created_ns <= self.now]
        rank.undelivered += len(fresh)
        older = [e for e in rank.unfinished if e not in fresh]
        seen = [e for e in older if e.created_ns <= self.now]
        records = [self._collective(index, entry) for entry in [*seen, *fresh]]
        rank.unfinished = [
            e for e in [*older, *fresh] if e.released_ns is None or e.released_ns > self.now
        ]
        self._pulled(index, is_ok=True, num_entries=len(records))
        self.apply(index, *records, kind=SourceKind.SIDECAR)

    def look(self, index: int) -> None:
        """Look at a rank's process."""
        rank = self.ranks[index]
        record = rec.ProcessRecord(
            time_ns=self.now,
            rank=index,
            pid=100 + index,
            start_ticks=1,
            state=rank.state,
            cpu_ns=rank.cpu_ns,
            rss_bytes=0,
            wchan=rank.wchan,
            main_cpu_ns=rank.cpu_ns,
            main_wait_ns=rank.main_wait_ns,
        )
        self.apply(index, record, kind=SourceKind.SIDECAR)

    def fulfil(self, wanted: Iterable[Wanted]) -> None:
        """Fetch what a detector asked for, 10 ms after the tick."""
        self.now += 10 * MS
        for wish in wanted:
            for index in wish.ranks:
                if wish.kind is WantedKind.COLLECTIVES:
                    self.pull(index)
                elif wish.kind is WantedKind.STACKS:
                    self._stack(index)

    def _introduce(self) -> None:
        for index in range(self.world_size):
            if index in self.absent:
                continue
            self.apply(
                index,
                rec.IdentityRecord(
                    time_ns=START_NS,
                    rank=index,
                    local_rank=index,
                    node_rank=0,
                    world_size=self.world_size,
                    pid=100 + index,
                    start_ticks=1,
                    device=self.device,
                    gpu_uuid=None,
                    torch_version="2.13.0",
                    blind=(),
                ),
            )
            for family in self.families:
                if any(index in group for group in self.families[family]):
                    name, members = self.group_of(family, index)
                    self.apply(
                        index,
                        rec.GroupRecord(
                            time_ns=START_NS,
                            rank=index,
                            pg_name=name,
                            pg_desc=name,
                            backend="gloo" if self.device == "cpu" else "nccl",
                            ranks=members,
                        ),
                    )

    def _counters(self, index: int) -> None:
        counts: dict[str, int] = {}
        for entry in self.ranks[index].entries:
            if entry.created_ns <= self.now:
                counts[entry.pg_name] = counts.get(entry.pg_name, 0) + 1
        for name, count in counts.items():
            self.apply(
                index,
                rec.ProgressRecord(
                    time_ns=self.now,
                    rank=index,
                    pg_name=name,
                    enqueued=count,
                    started=-1,
                    completed=count,
                ),
            )

    def _page(self, index: int) -> None:
        rank = self.ranks[index]
        ended = [e for e in rank.spans if e[2] is not None and e[2] <= self.now]
        for span in ended:
            rank.spans.remove(span)
            if span[0] == "checkpoint":
                self.apply(
                    index,
                    rec.CheckpointRecord(
                        time_ns=span[2] or 0,
                        rank=index,
                        call="torch.save",
                        duration_ns=(span[2] or 0) - span[1],
                    ),
                )
        phase_since = rank.since("phase", self.now)
        steps = int(self.view().ranks.num_steps[index])
        self.apply(
            index,
            rec.RankPageRecord(
                time_ns=self.now,
                rank=index,
                pid=100 + index,
                step=steps,
                step_time_ns=0,
                num_batches=steps,
                input_since_ns=rank.since("input", self.now),
                checkpoint_since_ns=rank.since("checkpoint", self.now),
                phase=rank.phase if phase_since else "",
                phase_since_ns=phase_since,
                expect_until_ns=rank.expect_until_ns if phase_since else 0,
                heartbeat_ns=rank.heartbeat_ns,
                last_word="",
            ),
            kind=SourceKind.SIDECAR,
        )

    def _stack(self, index: int) -> None:
        rank = self.ranks[index]
        if not rank.frames and not rank.stack_error:
            return
        record = rec.StackRecord(
            time_ns=self.now,
            rank=index,
            pid=100 + index,
            thread="" if rank.stack_error else "MainThread",
            is_active=False,
            holds_gil=False,
            frames=() if rank.stack_error else rank.frames,
            error=rank.stack_error,
        )
        self.apply(index, record, kind=SourceKind.SIDECAR)

    def _pulled(self, index: int, *, is_ok: bool, num_entries: int = 0) -> None:
        lost, self.ranks[index].num_lost = self.ranks[index].num_lost, 0
        record = rec.PullRecord(
            time_ns=self.now,
            rank=index,
            is_ok=is_ok,
            reason="" if is_ok else "connection refused",
            num_entries=num_entries,
            num_lost=lost,
        )
        self.apply(index, record, kind=SourceKind.SIDECAR)

    def _collective(self, index: int, entry: Entry) -> rec.CollectiveRecord:
        return rec.CollectiveRecord(
            time_ns=self.now,
            rank=index,
            pg_name=entry.pg_name,
            collective_seq_id=entry.seq_id,
            record_id=entry.seq_id,
            op=entry.op,
            input_sizes=entry.sizes,
            input_dtypes="['Float']",
            created_ns=entry.created_ns,
            completed_ns=0,
            is_retired=entry.released_ns is not None and entry.released_ns <= self.now,
            op_id=entry.seq_id + self.num_unrecorded,
        )


@dataclass
class Seen:
    """One verdict of one tick."""

    time_ns: int
    verdict: Verdict


class Watch:
    """Ticks once a second over a simulated job, as the sidecar does."""

    def __init__(self, job: SimulatedJob, detectors: Sequence[Detector[Any]] | None = None) -> None:
        """Watch with the given detectors; by default both, hang first."""
        self.job = job
        self.detectors = detectors or (HangDetector(), StragglerDetector())
        self.states: list[Any] = [d.initial_state() for d in self.detectors]
        self.seen: list[Seen] = []
        self.tick_ns = job.now
        self.num_ticks = 0

    @property
    def last(self) -> tuple[Verdict, ...]:
        """Verdicts of the last tick."""
        return tuple(s.verdict for s in self.seen if s.time_ns == self.tick_ns)

    @property
    def accused(self) -> set[int | None]:
        """Every rank that was ever suspected."""
        return {suspect.rank for s in self.seen for suspect in s.verdict.suspects}

    def run(self, seconds: float) -> None:
        """Tick for some time."""
        for _ in range(int(seconds)):
            self.tick_ns += SECOND
            self.num_ticks += 1
            self.job.advance(self.tick_ns, pull=self.num_ticks % 5 == 0)
            view = self.job.view()
            wanted: list[Wanted] = []
            for index, detector in enumerate(self.detectors):
                findings = detector.evaluate(view, self.states[index], self.tick_ns)
                self.states[index] = findings.state
                self.seen += [Seen(self.tick_ns, verdict) for verdict in findings.verdicts]
                wanted += findings.wanted
            self.job.fulfil(wanted)

    def run_to_end(self, extra_s: float = 0) -> None:
        """Tick until the laid-out timeline is over, and some seconds more."""
        end = max(rank.at_ns for rank in self.job.ranks)
        self.run((end - self.tick_ns) / SECOND + extra_s)
