"""A pause longer than announced is told; a rank is named only when it does not wait for another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.recordings import SECOND, START_NS, SimulatedJob
from tracecore_sidecar.detectors.declared_pause import DeclaredPauseDetector
from tracecore_sidecar.verdicts import Confidence, Severity, Verdict
from tracecore_train.wire import records as rec
from tracecore_train.wire.records import SourceKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracecore_sidecar.detectors import Wanted

LIMIT_S = 600
WORKS = ("read_shard (dataset.py:88)", "main (train.py:9)")
WAITS = ("all_reduce (torch/distributed/distributed_c10d.py:3252)", "main (train.py:9)")


class Pause:
    """A job of which some ranks are in 'evaluation', limited to 600 s, from the start on."""

    def __init__(self, world_size: int = 4, *, inside: Sequence[int], device: str = "cpu") -> None:
        self.job = SimulatedJob(world_size, device=device)
        self.inside = set(inside)
        self.detector = DeclaredPauseDetector()
        self.state = self.detector.initial_state()
        self.wanted: tuple[Wanted, ...] = ()
        for rank in range(world_size):
            self.job.ranks[rank].frames = WORKS

    def at(self, seconds: float) -> tuple[Verdict, ...]:
        """Tick a little after ``seconds`` of the pause; wishes are fulfilled afterwards."""
        now = START_NS + int(seconds * SECOND)
        self.job.now = now
        for rank in range(self.job.world_size):
            self._page(rank, now)
        found = self.detector.evaluate(self.job.view(), self.state, now + 1)
        self.state, self.wanted = found.state, found.wanted
        return found.verdicts

    def look(self) -> None:
        """Fetch what was asked for."""
        self.job.fulfil(self.wanted)

    def only(self, seconds: float) -> Verdict:
        (verdict,) = self.at(seconds)
        return verdict

    def _page(self, rank: int, now: int) -> None:
        is_inside = rank in self.inside
        page = rec.RankPageRecord(
            time_ns=now,
            rank=rank,
            pid=100 + rank,
            step=5,
            step_time_ns=START_NS,
            num_batches=5,
            input_since_ns=0,
            checkpoint_since_ns=0,
            phase="evaluation" if is_inside else "",
            phase_since_ns=START_NS if is_inside else 0,
            heartbeat_ns=now,
            last_word="",
            expect_until_ns=START_NS + LIMIT_S * SECOND if is_inside else 0,
        )
        self.job.apply(rank, page, kind=SourceKind.SIDECAR)


def suspects(verdict: Verdict) -> list[int | None]:
    return [suspect.rank for suspect in verdict.suspects]


def test_a_rank_over_its_limit_while_the_others_are_done_is_named() -> None:
    """720 s in a pause of at most 600: the rank, the pause, both times, as a warning."""
    pause = Pause(inside=[3])
    assert pause.at(603) == ()
    pause.look()
    verdict = pause.only(720)
    assert suspects(verdict) == [3]
    assert (verdict.severity, verdict.confidence) == (Severity.WARNING, Confidence.FULL)
    assert verdict.summary == (
        "rank 3 has been in 'evaluation' for 720 s, announced: at most 600 s"
    )
    assert verdict.since_ns == START_NS + LIMIT_S * SECOND
    assert any("read_shard (dataset.py:88)" in item.text for item in verdict.evidence)


def test_up_to_the_limit_nothing_is_said_or_asked() -> None:
    """A moment before the limit there is silence; soon after it, a look; then the verdict."""
    pause = Pause(inside=[3])
    for seconds in (LIMIT_S - 0.1, LIMIT_S):
        assert pause.at(seconds) == ()
        assert not pause.wanted
    assert pause.at(LIMIT_S + 2.1) == ()
    assert {wish.ranks for wish in pause.wanted} == {(3,)}
    pause.look()
    assert suspects(pause.only(LIMIT_S + 3)) == [3]


def test_a_pause_that_ends_ends_the_finding() -> None:
    """When the rank comes back, the verdict is gone, and a pause without a limit never was one."""
    pause = Pause(inside=[3])
    pause.at(603)
    pause.look()
    assert pause.at(604)
    pause.inside = set()
    assert pause.at(605) == ()


def test_all_over_the_limit_singles_nobody_out() -> None:
    """Where every rank is over it, one verdict says so and suspects nobody."""
    pause = Pause(inside=range(4))
    pause.at(603)
    pause.look()
    verdict = pause.only(604)
    assert suspects(verdict) == []
    assert verdict.summary.startswith("all ranks 0-3 have been in 'evaluation'")


def test_a_rank_that_waits_for_another_is_not_named() -> None:
    """Of two over the limit the one whose stack waits for a peer is innocent."""
    pause = Pause(inside=[1, 2])
    pause.job.ranks[1].frames = WAITS
    pause.at(603)
    pause.look()
    assert suspects(pause.only(604)) == [2]


def test_a_rank_inside_a_collective_is_not_named() -> None:
    """A stack that looks like work (a wait in C++) does not accuse who entered a collective."""
    pause = Pause(2, inside=[1])
    pause.job.ranks[0].at_ns = pause.job.ranks[1].at_ns = START_NS
    pause.job.enter([1])
    pause.at(603)
    pause.look()
    assert suspects(pause.only(604)) == []


def test_without_a_look_nobody_is_named_and_it_is_said() -> None:
    """No stack within the time for it: the overrun is told as partial, nobody is named."""
    pause = Pause(inside=[3])
    pause.job.ranks[3].is_readable = False
    assert pause.at(601) == ()
    assert pause.at(610) == ()
    verdict = pause.only(616)
    assert suspects(verdict) == []
    assert verdict.confidence is Confidence.PARTIAL
    assert "stack of rank 3: not taken" in verdict.not_measured


def test_a_group_that_is_not_read_protects_its_members() -> None:
    """On NCCL, whose recorder is not read, a rank may wait on the device: nobody is named."""
    pause = Pause(inside=[3], device="cuda")
    pause.job.ranks[3].is_readable = False
    pause.at(603)
    pause.look()
    verdict = pause.only(616)
    assert suspects(verdict) == []
    assert any("recorder is not read" in text for text in verdict.not_measured)


def test_the_verdict_stays_the_same_while_the_ranks_do() -> None:
    """Later stacks do not change who is named: an incident does not flap."""
    pause = Pause(inside=[3])
    pause.at(603)
    pause.look()
    assert suspects(pause.only(604)) == [3]
    pause.job.ranks[3].frames = WAITS
    pause.job.fulfil(pause.wanted)
    assert suspects(pause.only(640)) == [3]


def test_a_dead_rank_overruns_nothing() -> None:
    """A rank that ended inside a pause is for others to tell."""
    pause = Pause(inside=[3])
    word = rec.LastWordRecord(time_ns=START_NS, rank=3, word="exit")
    pause.job.apply(3, word, kind=SourceKind.SIDECAR)
    assert pause.at(700) == ()


def test_ranks_that_exchange_data_all_along_are_not_told_apart() -> None:
    """Of two that meet in collectives after their limit, the one met at work is not to blame."""
    pause = Pause(inside=[1, 2])
    for rank in pause.job.ranks:
        rank.at_ns = START_NS + 601 * SECOND
    pause.job.enter(range(4))
    pause.job.release()
    pause.job.enter([1])
    pause.at(603)
    pause.look()
    assert suspects(pause.only(604)) == []


def test_one_of_all_is_named_when_the_others_wait_for_it_since_before_the_limit() -> None:
    """All are over the limit, three wait since the 500th second: the one at work is the cause."""
    pause = Pause(inside=range(4))
    for rank in pause.job.ranks:
        rank.at_ns = START_NS + 500 * SECOND
    pause.job.enter([0, 1, 3])
    pause.at(603)
    pause.look()
    assert suspects(pause.only(604)) == [2]


def test_more_than_half_of_the_job_at_work_is_nobodys_fault() -> None:
    """Three of four work in a pause that is too long: what makes them slow is not one of them."""
    pause = Pause(inside=[0, 1, 2])
    pause.at(603)
    pause.look()
    assert suspects(pause.only(604)) == []
