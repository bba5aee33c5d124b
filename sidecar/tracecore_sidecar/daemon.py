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
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from tracecore_sidecar import blindness
from tracecore_sidecar.detectors.catalogue import built_in
from tracecore_sidecar.engine import Engine
from tracecore_sidecar.evidence import EvidenceFetcher
from tracecore_sidecar.forward.forwarder import Forwarder
from tracecore_sidecar.intake.listen import open_listener, parse_listen
from tracecore_sidecar.intake.senders import SenderProtocol
from tracecore_sidecar.receiver import IntakeStats, create_app
from tracecore_sidecar.render import render_text
from tracecore_sidecar.sinks.jsonl import JsonlSink
from tracecore_sidecar.sinks.otlp_events import OtlpEventSink
from tracecore_sidecar.sinks.record_file import RecordWriter
from tracecore_sidecar.sinks.terminal import Terminal, format_status
from tracecore_sidecar.sources.process import read_process
from tracecore_sidecar.sources.rank_pages import attempts, read_pages
from tracecore_sidecar.state.store import MAX_WORLD_SIZE, Store
from tracecore_sidecar.summary import RunSummary, write_summary
from tracecore_sidecar.telemetry.meter import Meter
from tracecore_train import runtime
from tracecore_train.errors import TracecoreError
from tracecore_train.wire.records import Batch, Record, Source, SourceKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tracecore_sidecar.config import SidecarConfig
    from tracecore_sidecar.incidents import IncidentEvent
    from tracecore_sidecar.state.view import JobView

LISTEN_BACKLOG = 128
SHUTDOWN_GRACE_S = 0.5
"""How long late records of ending ranks are still taken in."""
GC_THRESHOLD = 20_000
"""Container objects between two young collections. A recorder pull makes thousands that die at
once without a cycle; at Python's default the collector took a fifth of the processor time."""


class Daemon:
    """One job's sidecar on one node."""

    def __init__(self, config: SidecarConfig) -> None:
        """Prepare; nothing is opened before :meth:`run`."""
        self._config = config
        self._host = socket.gethostname()
        self._boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
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
        self._is_closing = False
        self._meter = Meter(
            store,
            intake=self._intake.as_dict,
            forward=self._forward.as_dict,
            num_lost={
                "records": lambda: self._records.num_lost,
                "verdicts": lambda: self._sink.num_lost,
                "terminal": lambda: self._terminal.num_dropped,
            },
        )
        self._evidence = EvidenceFetcher(
            config.job_dir,
            on_records=self._ingest,
            wall_offset_ns=self._wall_offset_ns,
            on_pull=self._meter.times.pulled,
        )
        self._events: list[tuple[IncidentEvent, str]] = []

    async def run(self) -> None:
        """Serve until SIGTERM, SIGINT or the parent's end.

        Raises :class:`TracecoreError` when the socket cannot be had. Output that cannot be
        written is said by whoever writes it, and the judging goes on.
        """
        config = self._config
        tcp_listener, tcp_text = self._open_tcp()
        listener = _listen(config.job_dir)
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
        # A server of its own for TCP: whatever comes there takes no connection from the ranks.
        server, tcp_server = _server(app), _server(app)
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._stop.set)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        ending = [serving]
        if tcp_listener is not None:
            ending.append(asyncio.create_task(tcp_server.serve(sockets=[tcp_listener])))
        self._forward.start()
        self._terminal.start_line(self._start_text(tcp_text, self._forward.describe()))
        _spare_the_collector()
        try:
            while not self._stop.is_set() and not serving.done():
                self._tick()
                with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), config.tick_interval)
                if config.parent_pid is not None and os.getppid() != config.parent_pid:
                    break
            await asyncio.sleep(SHUTDOWN_GRACE_S)
            self._tick()
        finally:
            self._is_closing = True
            server.should_exit = tcp_server.should_exit = True
            await self._evidence.close()
            await asyncio.wait(ending, timeout=2)
            self._finish()
            runtime.sidecar_socket(config.job_dir).unlink(missing_ok=True)

    def _tick(self) -> None:
        now_ns = time.monotonic_ns()
        self._read_node(now_ns)
        tick = self._engine.tick(now_ns)
        self._records.write_tick(now_ns)
        self._tell(tick.events, tick.view, now_ns)
        if tick.view is not None:
            self._ranks_by_pid = _ranks_by_pid(tick.view)
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
        records += [read_process(page.rank, page.pid, now_ns) for page in pages]
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
        copied = _copy_pages(self._config.job_dir, output / "pages")
        summary = write_summary(
            output / "summary.json",
            self._summary,
            verdicts=[headline for _, headline in self._events],
            view=view,
            intake=self._intake.as_dict(),
            forward=self._forward.as_dict(),
            num_dropped=dict(self._engine.store.num_dropped),
            num_pages=copied,
        )
        self._terminal.summary(summary)
        self._terminal.close()

    def _rank_of(self, host: str | None, pid: int) -> int | None:
        return self._ranks_by_pid.get(pid) if host in (None, self._host) else None

    def _open_tcp(self) -> tuple[socket.socket | None, str]:
        """Open the TCP door where asked for; give what the start line says of it."""
        if self._tcp is None:
            return None, ""
        try:
            listener = open_listener(*self._tcp)
        except TracecoreError as error:
            if self._config.parent_pid is None:
                raise
            # Two jobs of one node inherit the same address; the second is watched all the same.
            return None, f"no TCP intake: {error}"
        host, port = listener.getsockname()[:2]
        return listener, f"OTLP also on http://{f'[{host}]' if ':' in host else host}:{port}"

    def _start_text(self, *extras: str) -> str:
        config = self._config
        told = "".join(f"{extra}; " for extra in extras if extra)
        return (
            f"tracecore: job {config.job_id}, sidecar pid {os.getpid()} on "
            f"unix:{runtime.sidecar_socket(config.job_dir)}, output in {config.output}; {told}"
            f"blind: {'; '.join(blindness.of_this_node())}"
        )


def _listen(job_dir: Path) -> socket.socket:
    """Open the intake socket; refuse to take it from a living sidecar."""
    runtime.make_private_dir(job_dir)
    path = runtime.checked_socket_path(runtime.sidecar_socket(job_dir))
    probe = socket.socket(socket.AF_UNIX)
    probe.settimeout(1)
    try:
        probe.connect(str(path))
    except OSError:
        path.unlink(missing_ok=True)
    else:
        raise TracecoreError(
            f"another sidecar already serves {path}; stop it, or give this job another id "
            "(--job-id or TRACECORE_JOB_ID)"
        )
    finally:
        probe.close()
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
        listener.listen(LISTEN_BACKLOG)
    except OSError as error:
        listener.close()
        raise TracecoreError(f"cannot listen on {path}: {error.strerror}") from None
    listener.setblocking(False)
    return listener


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the daemon owns the signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _server(app: object) -> uvicorn.Server:
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]  # starlette's ASGI callable
        log_level="error",
        access_log=False,
        lifespan="off",
        http=SenderProtocol,
        proxy_headers=False,  # X-Forwarded-For would let a TCP sender pose as a local process
        limit_concurrency=1024,
        timeout_keep_alive=75,
    )
    return _Server(config)


def _ranks_by_pid(view: JobView) -> dict[int, int]:
    """Give the rank of each process of the job that runs; a pid that two claim is left out."""
    ranks: dict[int, int] = {}
    doubled: set[int] = set()
    for rank in (view.ranks.is_seen & ~view.ranks.is_ended).nonzero()[0].tolist():
        pid = int(view.ranks.pid[rank])
        if pid in ranks:
            doubled.add(pid)
        ranks[pid] = rank
    return {pid: rank for pid, rank in ranks.items() if pid > 0 and pid not in doubled}


def _spare_the_collector() -> None:
    """Leave what the imports made out of garbage collection, and collect less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 20, 20)


def _copy_pages(job_dir: Path, target: Path) -> int:
    """Copy the rank pages of all attempts, so that the output holds what each rank left."""
    num_copied = 0
    for attempt in attempts(job_dir):
        for rank, path in runtime.rank_pages(job_dir, attempt).items():
            with contextlib.suppress(OSError):
                target.mkdir(parents=True, exist_ok=True)
                (target / f"attempt{attempt}-r{rank}.page").write_bytes(path.read_bytes())
                num_copied += 1
    return num_copied
