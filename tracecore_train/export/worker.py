"""The export thread: heartbeat, look around, drain, encode, send; once per interval.

A hand-over that fails is dropped, counted, and reported as a gap by the next that works. While
the sidecar is away the thread beats and waits, longer each time, and the rings fill. After each
new connection everything that still holds (identity, groups) is sent again, because a new sidecar
knows nothing. :meth:`ExportWorker.stop` lasts at most 0.4 s whatever the sidecar does.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Protocol

from tracecore_train.export.totals import Totals
from tracecore_train.guard import MAX_REASON
from tracecore_train.recorder.clock import now_ns, wall_offset_ns
from tracecore_train.recorder.page import Word
from tracecore_train.wire.records import Batch, GapRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracecore_train.export.otlp_http import Answer, OtlpHttpClient
    from tracecore_train.guard import Guard
    from tracecore_train.recorder.recorder import Recorder
    from tracecore_train.wire.records import Record, Source

STOP_TIMEOUT_S = 0.4
"""How long :meth:`ExportWorker.stop` may take; an exit may be delayed by 0.5 s in all."""
LAST_POST_S = 0.3
"""Share of it for the last hand-over."""
FIRST_LOOKS_S = 0.1
"""Interval of the first looks, so that a new process group is known early."""
NUM_FIRST_LOOKS = 3
METRICS_INTERVAL_S = 10.0
"""Metrics are cumulative; a backend needs them no more often."""
BACK_OFF_S = (1.0, 2.0, 4.0, 8.0, 10.0)
"""Pauses after the first, second, ... failure in a row."""
FORK_WAIT_S = 0.2
"""A fork waits this long for the thread's imports: a child must not inherit their locks."""
MAX_WALL_DRIFT_NS = 100_000
"""The wall anchor sent moves only when it is off by more: what is said about the source is then
the same bytes each time. Reading the anchor is no more exact than some microseconds anyway."""
_HEARTBEAT = int(Word.HEARTBEAT)


class Report(Protocol):
    """Gives what the rank has to say beside its rows; with ``is_full`` all that still holds."""

    def __call__(self, is_full: bool) -> list[Record]:
        """Look."""


class ExportWorker:
    """Owns the thread ``tracecore-export``."""

    def __init__(
        self,
        *,
        client: OtlpHttpClient,
        rank: int,
        source: Callable[[int], Source],
        recorder: Recorder,
        report: Report,
        interval_s: float,
        guard: Guard,
        last_records: Callable[[], list[Record]],
    ) -> None:
        """Prepare; nothing runs yet.

        ``source`` gives the batches' source for a wall offset; ``last_records`` are added to
        the last hand-over.
        """
        self._client = client
        self._rank = rank
        self._make_source = source
        self._source = source(wall_offset_ns())
        self._recorder = recorder
        self._report = report
        self._interval_s = interval_s
        self._guard = guard
        self._last_records = last_records
        self._stop = threading.Event()
        self._is_imported = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tracecore-export", daemon=True)
        self._totals = Totals()
        self._start_ns = time.time_ns()
        self._full_on = -1
        """Connection on which everything that holds was delivered; -1: none."""
        self._num_failures = 0
        self._resume_at = 0.0
        self._metrics_at = 0.0
        self._num_lost = 0
        self._num_told = {"ring": 0, "export": 0}
        self._reason = ""

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Hand over what is left and end the thread, within ``STOP_TIMEOUT_S``."""
        self._client.hurry(time.monotonic() + LAST_POST_S)
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_TIMEOUT_S)

    def wait_until_forkable(self) -> None:
        """Wait, for a moment at most, until the thread imports nothing."""
        if self._thread.is_alive():
            self._is_imported.wait(FORK_WAIT_S)

    def _run(self) -> None:
        num_looks = 0
        while True:
            is_last = self._stop.is_set()
            self._recorder.page.words[_HEARTBEAT] = now_ns()
            if self._guard.is_open:
                with self._guard:
                    self._hand_over(is_last)
            self._is_imported.set()
            if is_last:
                self._client.close()
                return
            num_looks += 1
            is_early = num_looks <= NUM_FIRST_LOOKS
            interval_s = min(FIRST_LOOKS_S, self._interval_s) if is_early else self._interval_s
            # At multiples of the host's clock: ranks that pause together delay each other less,
            # and the sidecar wakes once for all of them.
            self._stop.wait(interval_s - time.monotonic() % interval_s)

    def _hand_over(self, is_last: bool) -> None:
        # Protobuf takes 31 ms to load: here, never on the training thread.
        from tracecore_train.wire.otlp import encode_logs
        from tracecore_train.wire.otlp_metrics import encode_metrics

        self._is_imported.set()
        now = time.monotonic()
        is_full = self._client.num_connections != self._full_on
        states = self._report(is_full)
        if now < self._resume_at and not is_last:
            return
        rows = self._recorder.drain()
        self._totals.add(rows)
        gaps, commit = self._gaps()
        records = [*states, *rows, *gaps, *(self._last_records() if is_last else ())]
        if not records:
            return
        source = self._anchored_source()
        body = encode_logs(Batch(source=source, records=tuple(records)))
        answer = self._client.post("/v1/logs", body)
        if not answer.is_ok:
            self._on_failure(len(rows), answer)
            return
        commit()
        self._num_failures = 0
        self._num_lost += _num_rejected(answer.body)
        if is_full:
            self._full_on = self._client.num_connections
        if is_last or now >= self._metrics_at:
            self._metrics_at = now + METRICS_INTERVAL_S
            points = self._totals.points(self._num_lost + self._recorder.num_dropped())
            end_ns = time.time_ns()
            metrics = encode_metrics(source, points, start_ns=self._start_ns, time_ns=end_ns)
            self._client.post("/v1/metrics", metrics)

    def _anchored_source(self) -> Source:
        offset_ns = wall_offset_ns()
        if abs(offset_ns - self._source.wall_offset_ns) > MAX_WALL_DRIFT_NS:
            self._source = self._make_source(offset_ns)
        return self._source

    def _on_failure(self, num_rows: int, answer: Answer) -> None:
        self._num_lost += num_rows
        self._reason = answer.reason or f"the sidecar answered {answer.status}"
        self._full_on = -1
        pause = BACK_OFF_S[min(self._num_failures, len(BACK_OFF_S) - 1)]
        self._num_failures += 1
        self._resume_at = time.monotonic() + pause

    def _gaps(self) -> tuple[list[Record], Callable[[], None]]:
        """Give what was lost and not told yet, and what to call once it was told."""
        lost = (
            ("ring", self._recorder.num_dropped(), "the buffer was full"),
            ("export", self._num_lost, self._reason or "the sidecar rejected records"),
        )
        gaps: list[Record] = [
            GapRecord(
                time_ns=now_ns(),
                rank=self._rank,
                where=where,
                num_lost=count - self._num_told[where],
                reason=reason[:MAX_REASON],
            )
            for where, count, reason in lost
            if count > self._num_told[where]
        ]

        def commit() -> None:
            self._num_told.update({where: count for where, count, _ in lost})

        return gaps, commit


def _num_rejected(body: bytes) -> int:
    """Read a partial success: how many log records the sidecar refused."""
    if not body:
        return 0
    from google.protobuf.message import DecodeError
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse

    response = ExportLogsServiceResponse()
    try:
        response.ParseFromString(body)
    except DecodeError:
        return 0
    return max(0, int(response.partial_success.rejected_log_records))
