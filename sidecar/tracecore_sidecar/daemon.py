"""The sidecar process: wires intake, sources, engine and sinks together; owns the clock.

One asyncio loop. Every tick reads the rank pages and ``/proc``, asks the engine, hands events to
the sinks and fetches the evidence the detectors want. Reads that can block (a worker server of a
stopped rank, py-spy) run beside the loop with deadlines; their results come back as records.
"""

from __future__ import annotations

import asyncio
import contextlib
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
from tracecore_sidecar.receiver import IntakeStats, create_app
from tracecore_sidecar.render import render_text
from tracecore_sidecar.sinks.jsonl import JsonlSink
from tracecore_sidecar.sinks.record_file import RecordWriter
from tracecore_sidecar.sinks.terminal import Terminal, format_status
from tracecore_sidecar.sources.process import read_process
from tracecore_sidecar.sources.rank_pages import attempts, read_pages
from tracecore_sidecar.state.store import MAX_WORLD_SIZE, Store
from tracecore_sidecar.summary import RunSummary, write_summary
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
        self._engine = Engine(store, built_in(), wall_offset_ns=self._wall_offset_ns)
        self._summary = RunSummary()
        self._intake = IntakeStats()
        self._stop = asyncio.Event()
        self._terminal = Terminal(sys.stderr, config.display.value)
        self._records = RecordWriter(config.node_output / "records")
        self._sink = JsonlSink(config.node_output, wall_offset_ns=self._wall_offset_ns)
        self._evidence = EvidenceFetcher(
            config.job_dir, on_records=self._ingest, wall_offset_ns=self._wall_offset_ns
        )
        self._events: list[tuple[IncidentEvent, str]] = []

    async def run(self) -> None:
        """Serve until SIGTERM, SIGINT or the parent's end.

        Raises :class:`TracecoreError` when the socket or the output cannot be had.
        """
        config = self._config
        listener = _listen(config.job_dir)
        config.node_output.mkdir(parents=True, exist_ok=True)
        server = _server(
            create_app(
                job_id=config.job_id,
                on_batch=self._ingest_batch,
                is_ready=lambda: not self._stop.is_set(),
                stats=self._intake,
            )
        )
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._stop.set)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        self._terminal.start_line(self._start_text())
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
            server.should_exit = True
            await self._evidence.close()
            await asyncio.wait([serving], timeout=2)
            self._finish()
            runtime.sidecar_socket(config.job_dir).unlink(missing_ok=True)

    def _tick(self) -> None:
        now_ns = time.monotonic_ns()
        self._read_node(now_ns)
        tick = self._engine.tick(now_ns)
        self._records.write_tick(now_ns)
        self._tell(tick.events, tick.view, now_ns)
        if tick.view is not None:
            self._evidence.request(tick.wanted, tick.view, now_ns)
            self._evidence.pull_on_schedule(self._config.pull_interval, tick.view, now_ns)
            self._terminal.status(format_status(tick.view, tick.verdicts))

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
        source = Source(
            kind=SourceKind.SIDECAR,
            host=self._host,
            boot_id=self._boot_id,
            pid=os.getpid(),
            job_id=self._config.job_id,
            attempt=attempt,
            wall_offset_ns=self._wall_offset_ns,
            node_rank=self._config.node_rank,
        )
        self._ingest_batch(Batch(source=source, records=tuple(records)))

    def _ingest_batch(self, batch: Batch) -> None:
        self._engine.apply(batch)
        self._summary.apply(batch)
        self._records.write_batch(batch, time.monotonic_ns())

    def _tell(self, events: Sequence[IncidentEvent], view: JobView | None, now_ns: int) -> None:
        if view is None:
            return
        for event in events:
            self._sink.on_event(event, view.job)
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
            num_dropped=dict(self._engine.store.num_dropped),
            num_pages=copied,
        )
        self._terminal.summary(summary)
        self._terminal.close()

    def _start_text(self) -> str:
        config = self._config
        return (
            f"tracecore: job {config.job_id}, sidecar pid {os.getpid()} on "
            f"unix:{runtime.sidecar_socket(config.job_dir)}, output in {config.output}; "
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
        limit_concurrency=1024,
        timeout_keep_alive=75,
    )
    return _Server(config)


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
