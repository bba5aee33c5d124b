"""The sidecar process: wires intake, sources, engine and sinks together; owns the clock.

One asyncio loop. Every tick reads the rank pages and ``/proc``, asks the engine, hands events to
the sinks and fetches the evidence the detectors want. Reads that can block (a worker server of a
stopped rank, py-spy) run beside the loop with deadlines; their results come back as records.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING

from tracecore_sidecar import blindness
from tracecore_sidecar.bundle.bundler import Bundler
from tracecore_sidecar.detectors.catalogue import built_in
from tracecore_sidecar.engine import Engine
from tracecore_sidecar.evidence import EvidenceFetcher
from tracecore_sidecar.forward.forwarder import Forwarder
from tracecore_sidecar.intake.listen import parse_listen
from tracecore_sidecar.on_hang.choice import parse_on_hang
from tracecore_sidecar.on_hang.responder import Responder
from tracecore_sidecar.pull_policy import unread_recorders
from tracecore_sidecar.receiver import IntakeStats, create_app
from tracecore_sidecar.render import render_text
from tracecore_sidecar.serving import Doors
from tracecore_sidecar.sinks.jsonl import JsonlSink
from tracecore_sidecar.sinks.otlp_events import OtlpEventSink
from tracecore_sidecar.sinks.record_file import RecordWriter
from tracecore_sidecar.sinks.terminal import Terminal, format_status
from tracecore_sidecar.sources.processes import ProcessSampler
from tracecore_sidecar.sources.rank_pages import attempts, copy_pages, read_pages
from tracecore_sidecar.state.store import MAX_WORLD_SIZE, Store
from tracecore_sidecar.summary import RunSummary, write_summary
from tracecore_sidecar.telemetry.meter import Meter
from tracecore_train import runtime
from tracecore_train.wire.records import Batch, Record, Source, SourceKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracecore_sidecar.config import SidecarConfig
    from tracecore_sidecar.incidents import IncidentEvent
    from tracecore_sidecar.state.view import JobView

SHUTDOWN_GRACE_S = 0.5
"""How long late records of ending ranks are still taken in."""
TICK_PHASE_S = 0.1
"""Ticks come this long after multiples of their interval: the ranks have just handed over."""
GC_THRESHOLD = 20_000
"""Container objects between two young collections. A recorder pull makes thousands that die at
once without a cycle; at Python's default the collector took a fifth of the processor time."""


class Daemon:
    """One job's sidecar on one node."""

    def __init__(self, config: SidecarConfig) -> None:
        """Prepare; nothing is opened before :meth:`run`."""
        self._config = config
        self._host = socket.gethostname()
        self._boot_id = runtime.boot_id()
        self._wall_offset_ns = time.time_ns() - time.monotonic_ns()
        store = Store(
            job_id=config.job_id,
            node_rank=config.node_rank,
            host=self._host,
            boot_id=self._boot_id,
        )
        self._engine = Engine(
            store,
            built_in(),
            wall_offset_ns=self._wall_offset_ns,
            clock=time.monotonic_ns,
        )
        self._summary = RunSummary()
        self._node_signals = blindness.of_this_node(is_launched=config.parent_pid is not None)
        self._intake = IntakeStats()
        self._stop = asyncio.Event()
        self._terminal = Terminal(sys.stderr, config.display.value)
        self._records = RecordWriter(config.node_output / "records")
        self._sink = JsonlSink(config.node_output, wall_offset_ns=self._wall_offset_ns)
        self._tcp = None if config.listen is None else parse_listen(config.listen)
        self._forward = Forwarder(
            os.environ,
            config.node_output,
            listen_port=None if self._tcp is None else self._tcp[1],
        )
        self._events_sink = OtlpEventSink(
            self._forward.offer, self._source(attempt=0), wall_offset_ns=self._wall_offset_ns
        )
        self._ranks_by_pid: dict[int, int] = {}
        self._processes = ProcessSampler()
        self._is_closing = False
        bundler = Bundler(config.job_dir, config.node_output, wall_offset_ns=self._wall_offset_ns)
        self._responder = Responder(
            parse_on_hang(config.on_hang),
            bundler,
            job_dir=config.job_dir,
            output=config.node_output,
            wall_offset_ns=self._wall_offset_ns,
            nccl_pull=config.nccl_pull,
            tell=self._terminal.verdict,
        )
        self._meter = Meter(
            store,
            intake=self._intake.as_dict,
            forward=self._forward.as_dict,
            num_lost={
                "records": lambda: self._records.num_lost,
                "verdicts": lambda: self._sink.num_lost,
                "terminal": lambda: self._terminal.num_dropped,
                "bundles": lambda: bundler.num_lost,
            },
        )
        self._evidence = EvidenceFetcher(
            config.job_dir,
            on_records=self._ingest,
            wall_offset_ns=self._wall_offset_ns,
            on_pull=self._meter.times.pulled,
            nccl_pull=config.nccl_pull,
            look_closely=self._processes.look_closely,
        )
        self._events: list[tuple[IncidentEvent, str]] = []

    async def run(self) -> None:
        """Serve until SIGTERM, SIGINT or the parent's end.

        Raises :class:`TracecoreError` when the socket cannot be had. Output that cannot be
        written is said by whoever writes it, and the judging goes on.
        """
        config = self._config
        doors = Doors(config.job_dir, self._tcp, must_have_tcp=config.parent_pid is None)
        app = create_app(
            job_id=config.job_id,
            on_batch=self._ingest_batch,
            is_ready=lambda: not self._stop.is_set(),
            stats=self._intake,
            is_open=lambda: not self._is_closing,
            forwarding=self._forward,
            rank_of=self._rank_of,
        )
        app.router.routes.append(self._meter.route())
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._stop.set)
        doors.open(app)
        self._forward.start()
        self._terminal.start_line(self._start_text(doors.tcp_text, self._forward.describe()))
        _spare_the_collector()
        try:
            while not self._stop.is_set() and doors.is_open:
                self._tick()
                with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), _until_tick(config.tick_interval))
                if config.parent_pid is not None and os.getppid() != config.parent_pid:
                    break
            await asyncio.sleep(SHUTDOWN_GRACE_S)
            self._tick()
        finally:
            self._is_closing = True
            await self._evidence.close()
            await self._responder.close()
            await doors.close()
            self._finish()

    def _tick(self) -> None:
        now_ns = time.monotonic_ns()
        self._read_node(now_ns)
        tick = self._engine.tick(now_ns)
        self._records.write_tick(now_ns)
        self._tell(tick.events, tick.view, now_ns)
        if tick.view is not None:
            self._ranks_by_pid = tick.view.ranks_by_pid()
            self._summary.see_ends(tick.view)
            self._responder.on_tick(tick.verdicts, tick.view.job.attempt)
            self._evidence.request(tick.wanted, tick.view, now_ns)
            self._evidence.pull_on_schedule(self._config.pull_interval, tick.view, now_ns)
            self._terminal.status(format_status(tick.view, tick.verdicts))
        self._meter.times.ticked(time.monotonic_ns() - now_ns, tick.detector_ns)

    def _read_node(self, now_ns: int) -> None:
        """Read what this node shows about its ranks without asking them."""
        seen = attempts(self._config.job_dir)
        if not seen:
            return
        attempt = max(seen)
        pages, _problems = read_pages(self._config.job_dir, attempt, now_ns, MAX_WORLD_SIZE)
        records: list[Record] = list(pages)
        records += self._processes.sample(pages, now_ns)
        if records:
            self._ingest(records, attempt)

    def _ingest(self, records: Sequence[Record], attempt: int) -> None:
        """Take in records that this sidecar gathered itself."""
        self._ingest_batch(Batch(source=self._source(attempt), records=tuple(records)))

    def _source(self, attempt: int) -> Source:
        return Source(
            kind=SourceKind.SIDECAR,
            host=self._host,
            boot_id=self._boot_id,
            pid=os.getpid(),
            job_id=self._config.job_id,
            attempt=attempt,
            wall_offset_ns=self._wall_offset_ns,
            node_rank=self._config.node_rank,
        )

    def _ingest_batch(self, batch: Batch) -> None:
        self._engine.apply(batch)
        self._summary.apply(batch)
        self._meter.apply(batch)
        self._records.write_batch(batch, time.monotonic_ns())

    def _tell(self, events: Sequence[IncidentEvent], view: JobView | None, now_ns: int) -> None:
        if view is None:
            return
        for event in events:
            self._sink.on_event(event, view.job)
            self._events_sink.on_event(event, view.job)
            self._meter.on_event(event, view.job)
            self._responder.on_event(event, view)
            if event.change == "closed":
                continue
            text = render_text(event.verdict, now_ns=now_ns, wall_offset_ns=self._wall_offset_ns)
            self._terminal.verdict(text)
            if event.change == "opened":
                self._events.append((event, text.splitlines()[0]))

    def _finish(self) -> None:
        now_ns = time.monotonic_ns()
        view = self._engine.store.view()
        self._tell(self._engine.close(now_ns), view, now_ns)
        self._forward.close()
        self._records.close()
        self._sink.close()
        output = self._config.node_output
        copied = copy_pages(self._config.job_dir, output / "pages")
        summary = write_summary(
            output / "summary.json",
            self._summary,
            verdicts=[headline for _, headline in self._events],
            view=view,
            blind=(
                *self._engine.blind(),
                *self._processes.blind(),
                *(unread_recorders(view, self._config.nccl_pull) if view is not None else ()),
            ),
            node=self._node_signals,
            intake=self._intake.as_dict(),
            forward=self._forward.as_dict(),
            num_dropped=dict(self._engine.store.num_dropped),
            num_pages=copied,
        )
        self._processes.close()
        self._terminal.summary(summary)
        self._terminal.close()

    def _rank_of(self, host: str | None, pid: int) -> int | None:
        return self._ranks_by_pid.get(pid) if host in (None, self._host) else None

    def _start_text(self, *extras: str) -> str:
        config = self._config
        told = "".join(f"{extra}; " for extra in extras if extra)
        return (
            f"tracecore: job {config.job_id}, sidecar pid {os.getpid()} on "
            f"unix:{runtime.sidecar_socket(config.job_dir)}, output in {config.output}; {told}"
            f"blind: {'; '.join(self._node_signals.texts())}"
        )


def _until_tick(interval_s: float) -> float:
    return interval_s - (time.monotonic() - TICK_PHASE_S) % interval_s


def _spare_the_collector() -> None:
    """Leave what the imports made out of garbage collection, and collect less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 20, 20)
