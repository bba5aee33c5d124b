"""Asks NCCL's RAS service when a hang is suspected: one process answers for the whole job.

Asked seldom, and only where the flight recorder of NCCL may be read: some releases of NCCL crash
over being asked.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tracecore_sidecar.seldom import Seldom
from tracecore_sidecar.sources.beside import beside
from tracecore_sidecar.sources.flight_recorder import NCCL_HANDLER
from tracecore_sidecar.sources.nccl_ras import ask_ras, is_own_address
from tracecore_sidecar.sources.nccl_ras_report import read_answer
from tracecore_train.wire.records import NcclRasRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tracecore_sidecar.pull_policy import PullPolicy
    from tracecore_sidecar.state.view import JobView
    from tracecore_train.wire.records import Record

REPEAT_AFTER_NS = 60_000_000_000
"""A suspicion that lasts asks again only then."""
TIMEOUT_S = 5.0
"""For asking, which takes three seconds, and for reading the answer."""


class RasAsking:
    """Turns suspicions into ``nccl_ras`` records."""

    def __init__(self, on_records: Callable[[Sequence[Record], int], None]) -> None:
        """``on_records(records, attempt)`` is called on the event loop."""
        self._on_records = on_records
        self._seldom = Seldom(REPEAT_AFTER_NS)

    def request(self, policy: PullPolicy, view: JobView, now_ns: int) -> None:
        """Start asking, unless that was done a short while ago or nobody may be asked."""
        attempt = view.job.attempt
        if not self._seldom.is_due(attempt, now_ns):
            return
        ranks_by_pid = _who_may_be_asked(policy, view)
        if ranks_by_pid:
            self._seldom.start(attempt, now_ns, self._ask(ranks_by_pid, attempt))

    async def close(self) -> None:
        """Stop what is under way."""
        await self._seldom.close()

    async def _ask(self, ranks_by_pid: Mapping[int, int], attempt: int) -> None:
        now_ns = time.monotonic_ns()
        try:
            findings, error = await beside(TIMEOUT_S, lambda: _asked(ranks_by_pid))
        except TimeoutError as problem:
            findings, error = [], str(problem)
        record = NcclRasRecord(
            time_ns=now_ns,
            rank=min(ranks_by_pid.values()),
            findings=tuple(findings),
            error="" if findings else error,
        )
        self._on_records([record], attempt)


def _who_may_be_asked(policy: PullPolicy, view: JobView) -> dict[int, int]:
    """Give the live ranks of this node that are in groups of NCCL, by pid."""
    found = {}
    for rank in view.pages:
        pid, plan = int(view.ranks.pid[rank]), policy.plan(rank, is_suspicion=True)
        if pid > 0 and not view.ranks.is_ended[rank] and NCCL_HANDLER in plan.handlers:
            found[pid] = rank
    return found


def _asked(ranks_by_pid: Mapping[int, int]) -> tuple[list[str], str]:
    """Give what stands out, or why nothing can be said."""
    answer = ask_ras(tuple(ranks_by_pid))
    if not answer.text:
        return [], answer.reason
    findings, why_not = read_answer(answer.text, ranks_by_pid, is_own_address)
    return findings, answer.reason or why_not
