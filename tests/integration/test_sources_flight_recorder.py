"""The flight-recorder reader against torch's own worker server."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.flight_recorder_ranks import FlightRecorderRanks
from tests.support.installed_torch import has_gloo_entries
from tracecore_sidecar.sources.flight_recorder import FlightRecorderReader
from tracecore_sidecar.sources.process import read_process
from tracecore_train.wire.records import CollectiveRecord, PullRecord

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("torch")

of_entries = pytest.mark.skipif(
    not has_gloo_entries(), reason="the worker server of this torch has no fr_trace_json"
)
DEADLINE_S = 60.0
"""For a worker server on a busy machine to answer."""


class Puller:
    """Pulls from real ranks on the real clock."""

    def __init__(self, ranks: FlightRecorderRanks) -> None:
        self.ranks = ranks
        self.reader = FlightRecorderReader()

    def pull(
        self, rank: int, timeout_s: float = DEADLINE_S
    ) -> tuple[PullRecord, list[CollectiveRecord]]:
        first, *rest = self.reader.pull(
            rank,
            self.ranks.socket(rank),
            pid=self.ranks.pid(rank),
            wall_offset_ns=time.time_ns() - time.monotonic_ns(),
            now_ns=time.monotonic_ns(),
            timeout_s=timeout_s,
        )
        assert isinstance(first, PullRecord)
        return first, [record for record in rest if isinstance(record, CollectiveRecord)]

    def collectives(self, rank: int) -> list[CollectiveRecord]:
        pull, collectives = self.pull(rank)
        assert pull.is_ok, pull.reason
        return collectives

    def retired(self, rank: int) -> CollectiveRecord:
        """Wait until the last collective of a rank is retired, a moment after its call."""
        deadline = time.monotonic() + DEADLINE_S
        last: CollectiveRecord | None = None
        while last is None or not last.is_retired:
            assert time.monotonic() < deadline, "the recorder retires nothing"
            if changed := self.collectives(rank):
                last = changed[-1]
        return last


@of_entries
def test_one_rank_shows_what_it_did(tmp_path: Path) -> None:
    """Operations, sizes and times of a single rank come out, and later only what is new."""
    with FlightRecorderRanks(tmp_path, 1) as ranks:
        puller = Puller(ranks)
        puller.collectives(0)
        before = time.monotonic_ns()
        ranks.command("all_reduce")
        ranks.command("all_reduce_tp")
        after = time.monotonic_ns()
        first, second = puller.collectives(0)
        assert (first.op, first.input_sizes, first.input_dtypes) == (
            "all_reduce",
            "[[4, 2]]",
            "['Float']",
        )
        assert first.pg_name != second.pg_name
        assert before <= first.created_ns <= second.created_ns <= after
        assert first.is_retired
        assert second.record_id == first.record_id + 1
        assert puller.collectives(0) == []


@of_entries
def test_the_rank_that_did_not_enter_is_one_behind(tmp_path: Path) -> None:
    """Rank 0 waits in a collective that rank 1 has not entered; later both have retired it."""
    with FlightRecorderRanks(tmp_path, 2) as ranks:
        puller = Puller(ranks)
        ranks.command("all_reduce")
        together = [puller.retired(rank) for rank in (0, 1)]
        assert together[0].collective_seq_id == together[1].collective_seq_id
        assert together[0].pg_name == together[1].pg_name

        ranks.command("start", 0)
        (waiting,) = puller.collectives(0)
        assert waiting.collective_seq_id == together[0].collective_seq_id + 1
        assert not waiting.is_retired
        assert puller.collectives(1) == []

        ranks.command("start", 1)
        ranks.command("finish")
        assert puller.retired(0).record_id == waiting.record_id


@of_entries
def test_a_stopped_rank_fails_the_pull_in_time(tmp_path: Path) -> None:
    """SIGSTOP: each pull fails with a timeout within its deadline; SIGCONT: it works again."""
    with FlightRecorderRanks(tmp_path, 1) as ranks:
        puller = Puller(ranks)
        puller.collectives(0)
        ranks.processes[0].send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + DEADLINE_S
        while read_process(0, ranks.pid(0), 0).state != "T":
            assert time.monotonic() < deadline, "SIGSTOP did not stop the process"
        started = time.monotonic()
        for _ in range(3):
            pull, collectives = puller.pull(0, timeout_s=0.5)
            assert not pull.is_ok
            assert "no answer within 0.5 s" in pull.reason
            assert collectives == []
        assert time.monotonic() - started < 20
        ranks.processes[0].send_signal(signal.SIGCONT)
        ranks.command("all_reduce")
        assert len(puller.collectives(0)) == 1


@of_entries
def test_a_rank_that_died_is_told_apart(tmp_path: Path) -> None:
    """After SIGKILL nobody listens, and the pull says so at once."""
    with FlightRecorderRanks(tmp_path, 1) as ranks:
        puller = Puller(ranks)
        puller.collectives(0)
        ranks.processes[0].kill()
        ranks.processes[0].wait(timeout=60)
        assert "nobody listens" in puller.pull(0)[0].reason


def test_a_handler_torch_does_not_have_is_named(tmp_path: Path) -> None:
    """Asking a worker server for an unknown handler fails with its name."""
    with FlightRecorderRanks(tmp_path, 1) as ranks:
        (pull,) = FlightRecorderReader().pull(
            0,
            ranks.socket(0),
            pid=ranks.pid(0),
            wall_offset_ns=0,
            now_ns=0,
            timeout_s=DEADLINE_S,
            handlers=("no_such_handler",),
        )
        assert isinstance(pull, PullRecord)
        assert "no_such_handler" in pull.reason
