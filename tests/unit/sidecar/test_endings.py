"""How ranks ended: causes and consequences told apart, and nobody first where nobody knows."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tracecore_sidecar.detectors.endings import Ending, EndKind, ending_lines, endings
from tracecore_sidecar.state.store import Store
from tracecore_train.wire.records import (
    Batch,
    ExceptionRecord,
    LastWordRecord,
    ProcessRecord,
    RankPageRecord,
    Record,
    RendezvousRecord,
    Source,
    SourceKind,
    WorkerExitRecord,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tracecore_sidecar.state.view import JobView

MS = 1_000_000
SECOND = 1_000 * MS
START = 1_000 * SECOND


class Job:
    """Ranks on one host whose ends are told by records; times are milliseconds."""

    def __init__(self, world_size: int = 4) -> None:
        self.store = Store(job_id="job", node_rank=0, host="a07", boot_id="b")
        self.pages: dict[int, dict[str, Any]] = {}
        ranks = tuple(range(world_size))
        self._apply(
            RendezvousRecord(
                time_ns=START,
                world_size=world_size,
                ranks=ranks,
                pids=tuple(r + 100 for r in ranks),
            )
        )

    def exits(self, rank: int, at_ms: int, status: int) -> None:
        """The launcher saw an exit code, or minus a signal."""
        self._apply(
            WorkerExitRecord(
                time_ns=START + at_ms * MS,
                rank=rank,
                pid=100 + rank,
                exit_code=status if status >= 0 else None,
                signal=-status if status < 0 else None,
            )
        )

    def page(self, rank: int, **fields: Any) -> None:
        """The sidecar read a rank's page; what was read before stays."""
        known = self.pages.setdefault(rank, {})
        known.update(fields)
        base: dict[str, Any] = dict.fromkeys(
            ("step", "step_time_ns", "num_batches", "input_since_ns", "checkpoint_since_ns"), 0
        )
        base |= {"phase": "", "phase_since_ns": 0, "heartbeat_ns": 0, "last_word": ""}
        self._apply(RankPageRecord(time_ns=START, rank=rank, pid=100 + rank, **(base | known)))

    def raises(self, rank: int, at_ms: int) -> None:
        """An uncaught exception, on the page and as a record."""
        time_ns = START + at_ms * MS
        self.page(
            rank,
            last_word="exception",
            exception_ns=time_ns,
            exception="ValueError in f (a.py:3): x",
        )
        self._apply(
            ExceptionRecord(
                time_ns=time_ns,
                rank=rank,
                where="main",
                type_name="ValueError",
                message="x",
                frame="f (a.py:3)",
                is_fatal=True,
            )
        )

    def says_exit(self, rank: int) -> None:
        self._apply(LastWordRecord(time_ns=START, rank=rank, word="exit"))

    def vanishes(self, rank: int, at_ms: int) -> None:
        self._apply(
            ProcessRecord(
                time_ns=START + at_ms * MS,
                rank=rank,
                pid=100 + rank,
                start_ticks=1,
                state="-",
                cpu_ns=0,
                rss_bytes=0,
                wchan="",
            )
        )

    def view(self) -> JobView:
        view = self.store.view()
        assert view is not None
        return view

    def ends(self) -> dict[int, Ending]:
        return endings(self.view())

    def kinds(self) -> list[EndKind]:
        return [end.kind for _, end in sorted(self.ends().items())]

    def first(self) -> list[int]:
        return [rank for rank, end in self.ends().items() if end.is_first]

    def _apply(self, record: Record) -> None:
        source = Source(
            kind=SourceKind.SIDECAR,
            host="a07",
            boot_id="b",
            pid=1,
            job_id="job",
            attempt=0,
            wall_offset_ns=0,
            world_size=4,
        )
        self.store.apply(Batch(source=source, records=(record,)))


def test_a_crash_is_first_and_the_launchers_sigterm_a_consequence() -> None:
    """Rank 2 raises, the launcher ends the others: one exception, named with its frame."""
    job = Job()
    job.raises(2, 1_000)
    job.exits(2, 1_400, 1)
    for rank in (0, 1, 3):
        job.exits(rank, 1_600, -signal.SIGTERM)
    terminated = EndKind.TERMINATED
    assert job.kinds() == [terminated, terminated, EndKind.EXCEPTION, terminated]
    assert job.first() == [2]
    assert ending_lines(job.ends()) == [
        "rank 2: ValueError in f (a.py:3): x (exit code 1) (the first to fail)",
        "ranks 0, 1, 3: ended by the launcher: SIGTERM after rank 2 had failed",
    ]


def test_a_peers_exception_is_not_first() -> None:
    """A rank that raises because its peer is gone comes after that peer, by their own clock."""
    job = Job(2)
    job.raises(1, 1_000)
    job.raises(0, 1_003)
    job.exits(0, 1_300, 1)
    job.exits(1, 1_300, 1)
    assert job.first() == [1]


def test_a_killed_rank_is_first_and_not_excused() -> None:
    """SIGKILL of one rank, SIGTERM of the rest: killed by signal 9, then consequences."""
    job = Job(2)
    job.exits(1, 1_000, -signal.SIGKILL)
    job.exits(0, 1_200, -signal.SIGTERM)
    assert job.kinds() == [EndKind.TERMINATED, EndKind.SIGNAL]
    assert job.ends()[1].text == "killed by signal 9 (SIGKILL)"
    assert job.first() == [1]


@pytest.mark.parametrize("is_noted", [True, False])
def test_sigterm_before_any_failure_is_an_eviction(is_noted: bool) -> None:
    """A rank evicted, and a peer that fails of it: the eviction is first, with the moment noted on
    the page or, without the hook, by the order of the exits.
    """
    job = Job(2)
    if is_noted:
        job.page(0, sigterm_ns=START + 1_000 * MS)
    job.raises(1, 1_010)
    job.exits(0, 1_020, -signal.SIGTERM)
    job.exits(1, 1_400, 1)
    assert job.kinds() == [EndKind.EVICTED, EndKind.EXCEPTION]
    assert job.ends()[0].text.startswith("SIGTERM, and no rank seen here had failed")
    assert job.first() == [0]


def test_all_evicted_names_nobody_who_failed() -> None:
    """SIGTERM to every rank at once: all evicted, and which was first is not known."""
    job = Job()
    for rank in range(4):
        job.exits(rank, 1_000 + rank, -signal.SIGTERM)
    assert set(job.kinds()) == {EndKind.EVICTED}
    assert job.first() == []


def test_sigterm_during_a_hang_at_exit_keeps_the_exception() -> None:
    """A rank that raised and could not leave is a crash, whatever signal ended it."""
    job = Job(2)
    job.raises(1, 1_000)
    job.exits(1, 40_000, -signal.SIGKILL)
    job.exits(0, 39_000, -signal.SIGTERM)
    assert job.kinds()[1] is EndKind.EXCEPTION
    assert job.first() == [1]


def test_an_exception_out_of_a_sigterm_handler_is_an_eviction() -> None:
    """A handler of the user's that raises to leave does not turn an eviction into a crash."""
    job = Job(2)
    job.page(0, sigterm_ns=START + 1_000 * MS)
    job.raises(0, 1_001)
    job.exits(0, 1_100, 1)
    assert job.ends()[0].kind is EndKind.EVICTED


def test_a_late_sigkill_is_the_launchers_and_an_early_one_is_not() -> None:
    """Half a minute after a failure the launcher kills; within a second the kernel may have."""
    job = Job(3)
    job.exits(0, 1_000, -signal.SIGKILL)
    job.exits(1, 1_500, -signal.SIGKILL)
    job.exits(2, 31_200, -signal.SIGKILL)
    assert job.kinds() == [EndKind.SIGNAL, EndKind.SIGNAL, EndKind.TERMINATED]
    assert job.first() == [0]


@pytest.mark.parametrize(
    ("word", "status", "kind", "text"),
    [
        ("exit", 0, EndKind.CLEAN, "ended by itself, exit code 0"),
        ("exit", None, EndKind.CLEAN, "ended by itself, its exit was not seen"),
        ("exit", 3, EndKind.EXIT_CODE, "exit code 3"),
        ("", 5, EndKind.EXIT_CODE, "exit code 5, without a last word (os._exit, or a crash in C)"),
        ("", -11, EndKind.SIGNAL, "killed by signal 11 (SIGSEGV)"),
        ("", 143, EndKind.EVICTED, "SIGTERM, and no rank seen here had failed (exit code 143)"),
        ("", None, EndKind.VANISHED, "gone without a last word, its exit was not seen"),
    ],
)
def test_one_rank_by_word_and_exit(word: str, status: int | None, kind: EndKind, text: str) -> None:
    """Last word and exit together tell the end; a missing exit is said, not guessed."""
    job = Job(1)
    if word:
        job.says_exit(0)
    if status is not None:
        job.exits(0, 1_000, status)
    elif not word:
        job.vanishes(0, 1_000)
    (end,) = job.ends().values()
    assert (end.kind, end.text) == (kind, text)


def test_a_rank_that_runs_has_no_end() -> None:
    """Nothing is said about ranks that did not end, nor anybody called first."""
    job = Job()
    job.says_exit(1)
    assert list(job.ends()) == [1]
    assert job.first() == []


def test_the_summary_keeps_the_ends_of_every_attempt(tmp_path: Path) -> None:
    """Ends are there by attempt and rank, as data and as text without control characters."""
    from tracecore_sidecar.summary import RunSummary

    job = Job(2)
    job.raises(1, 1_000)
    job.exits(1, 1_200, 1)
    job.exits(0, 1_400, -signal.SIGTERM)
    summary = RunSummary()
    summary.see_ends(job.view())
    found = json.loads(json.dumps(summary.ends_to_json()))
    assert found["0"]["1"]["kind"] == "exception"
    assert found["0"]["1"]["is_first"] is True
    assert found["0"]["0"]["kind"] == "terminated"
    assert summary.render_ends()[:2] == [
        "ends:",
        "  rank 1: ValueError in f (a.py:3): x (exit code 1) (the first to fail)",
    ]
    assert RunSummary().render_ends() == []
