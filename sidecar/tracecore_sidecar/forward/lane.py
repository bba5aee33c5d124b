"""One signal's thread: takes from the queue, sends, retries, counts.

Bodies are joined before they are sent: serialised OTLP requests put end to end are one request
with everything, so ranks that report each second cost one request together. What the endpoint
may take later is tried again with growing pauses; what it refuses is dropped and counted; what it
refuses in part is counted and never sent again.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError

from tracecore_sidecar.forward.queue import ForwardQueue
from tracecore_sidecar.forward.upstream import Upstream
from tracecore_sidecar.render import clean_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tracecore_sidecar.forward.settings import UpstreamSettings
    from tracecore_sidecar.forward.spool import Entry
    from tracecore_sidecar.forward.upstream import Answer
    from tracecore_sidecar.otlp_signals import Signal

LINGER_S = 1.0
"""After the first body, for others to be sent with it."""
BATCH_BYTES = 1 << 20
"""Of one request; many servers refuse more than 4 MiB."""
FIRST_BACKOFF_S = 1.0
MAX_BACKOFF_S = 60.0
MAX_RETRY_AFTER_S = 300.0
"""An endpoint may ask for more; it gets this."""
TOO_MUCH_STATUSES = frozenset({400, 413})
"""Refusals that may be due to one body, or to many at once: what was joined goes one by one."""
_IDLE_S = 60.0
_MANY = 1 << 30

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class LaneStats:
    """What became of one signal's items (data points, log records or spans)."""

    num_items: int = 0
    """Taken in for forwarding."""
    num_sent: int = 0
    """Taken by the endpoint."""
    num_rejected: int = 0
    """Refused by it within a request that it otherwise took (partial success)."""
    num_refused: int = 0
    """In requests that it refused for good."""
    num_requests: int = 0
    num_retries: int = 0
    """Requests that it may take later."""
    last_problem: str = ""


class Lane:
    """Forwards one signal. ``offer`` and ``is_full`` are for the event loop."""

    def __init__(
        self,
        signal: Signal,
        settings: UpstreamSettings,
        directory: Path,
        *,
        linger_s: float = LINGER_S,
        first_backoff_s: float = FIRST_BACKOFF_S,
    ) -> None:
        """Prepare; :meth:`start` sends."""
        self.stats = LaneStats()
        self.queue = ForwardQueue(directory)
        self.place = settings.place
        self._signal = signal
        self._upstream = Upstream(settings)
        self._linger_s = linger_s
        self._first_backoff_s = first_backoff_s
        self._num_failures = 0
        self._num_one_by_one = 0
        self._stopping = threading.Event()
        self._give_up = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name=f"tracecore-forward-{signal.name}", daemon=True
        )

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def offer(self, entry: Entry) -> None:
        """Take one body."""
        self.stats.num_items += entry.num_items
        self.queue.offer(entry)

    def stop(self) -> None:
        """Send what is left, unless the endpoint is failing anyway; :meth:`join` waits."""
        self._stopping.set()
        self.queue.wake()

    def join(self, deadline: float) -> None:
        """Wait until ``deadline`` (``time.monotonic()``); leave the rest to disk."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        self._give_up.set()
        self._upstream.abort()
        self._thread.join(0.2)
        # A thread that is stuck, in connecting say, saves nothing.
        self.queue.close()

    def _run(self) -> None:
        while not self._give_up.is_set():
            if not self.queue.wait(_IDLE_S):
                if self._stopping.is_set():
                    break
                continue
            self._stopping.wait(self._linger_s)
            self.queue.relieve()
            pause_s = self._send_one()
            if pause_s:
                self.queue.spill()
                if self._stopping.wait(pause_s):
                    break
        self._upstream.close()

    def _send_one(self) -> float:
        """Send one batch; give the pause before the next."""
        is_one = self._num_one_by_one > 0
        batch = self.queue.take(BATCH_BYTES, 1 if is_one else _MANY)
        if not batch:
            return 0.0
        self._num_one_by_one -= is_one
        answer = self._upstream.post(b"".join(entry.body for entry in batch))
        self.stats.num_requests += 1
        if answer.is_worth_a_retry:
            self.stats.num_retries += 1
            self._num_one_by_one += is_one
            self._tell(answer, "trying again")
            self.queue.give_back()
            return self._backoff_s(answer)
        self._num_failures = 0
        if answer.status in TOO_MUCH_STATUSES and len(batch) > 1:
            self._num_one_by_one = len(batch)
            self.queue.give_back()
            return 0.0
        self._count(answer, batch)
        self.queue.done()
        return 0.0

    def _count(self, answer: Answer, batch: Sequence[Entry]) -> None:
        num_items = sum(entry.num_items for entry in batch)
        if not answer.is_ok:
            self.stats.num_refused += num_items
            self._tell(answer, "dropped, as it would be refused again")
            return
        num_rejected, reason = self._partial_success(answer.body)
        num_rejected = min(num_rejected, num_items)
        self.stats.num_rejected += num_rejected
        self.stats.num_sent += num_items - num_rejected
        self.stats.last_problem = clean_text(reason)[:300]

    def _partial_success(self, body: bytes) -> tuple[int, str]:
        response: Any = self._signal.response()
        try:
            response.ParseFromString(body)
        except DecodeError:
            return 0, ""  # a server that answers 200 with a page of its own took it all the same
        partial = response.partial_success
        return max(0, getattr(partial, self._signal.rejected)), partial.error_message

    def _backoff_s(self, answer: Answer) -> float:
        pause_s = min(MAX_BACKOFF_S, self._first_backoff_s * 2.0 ** min(self._num_failures, 30))
        self._num_failures += 1
        if answer.retry_after_s is not None:
            pause_s = max(pause_s, min(MAX_RETRY_AFTER_S, answer.retry_after_s))
        # Sidecars that failed together should not come back together.
        return pause_s * random.uniform(1.0, 1.2)  # noqa: S311

    def _tell(self, answer: Answer, what: str) -> None:
        problem = clean_text(f"{answer.reason}; {what}")
        if not self.stats.last_problem:
            _log.warning("forwarding %s to %s: %s", self._signal.name, self.place, problem)
        self.stats.last_problem = problem
