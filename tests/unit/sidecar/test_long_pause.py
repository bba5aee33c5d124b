"""A pause much longer than its own kind's history is told, and nothing else is."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.recordings import SECOND, START_NS, SimulatedJob
from tracecore_sidecar.detectors import Findings
from tracecore_sidecar.detectors.long_pause import LongPauseDetector
from tracecore_sidecar.detectors.precedence import leading
from tracecore_sidecar.engine import Engine
from tracecore_sidecar.verdicts import Confidence, Severity, Verdict
from tracecore_train.wire import records as rec
from tracecore_train.wire.records import Batch, RecordKind, Source, SourceKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracecore_sidecar.detectors import Wanted
    from tracecore_sidecar.state.view import JobView

WORKS = ("write (zipfile.py:88)", "main (train.py:9)")
WAITS = ("barrier (torch/distributed/distributed_c10d.py:3252)", "main (train.py:9)")
COMPILES = ("compile_fx (torch/_inductor/compile_fx.py:10)", "main (train.py:9)")
PDB = ("interaction (pdb.py:350)", "main (train.py:9)")
EQUAL = (20, 21, 19, 20)
"""Seconds that the pauses before took: 63 is the limit."""
Kind = str
"""``checkpoint``, ``gc``, or the name of a phase."""


class Job:
    """A job with some pauses behind it, of which some ranks are in one since the start."""

    def __init__(
        self,
        past: Sequence[float] = EQUAL,
        *,
        inside: Sequence[int] = (0,),
        kind: Kind = "checkpoint",
        world_size: int = 4,
        device: str = "cpu",
    ) -> None:
        self.job = SimulatedJob(world_size, device=device)
        self.open: dict[int, dict[Kind, float]] = {rank: {kind: 0} for rank in inside}
        """By rank, the pauses it is in, with the second of their beginning."""
        self.at_most: float | None = None
        self.detector = LongPauseDetector()
        self.state: Any = self.detector.initial_state()
        self.wanted: tuple[Wanted, ...] = ()
        for rank in self.job.ranks:
            rank.frames = WORKS
        self.past(kind, past)

    def past(self, kind: Kind, durations: Sequence[float], *, attempt: int = 0) -> None:
        """Let every rank have pauses behind it."""
        for rank in range(self.job.world_size):
            self.hand_over(rank, [ended(rank, kind, s) for s in durations], attempt)

    def hand_over(self, rank: int, records: Sequence[rec.Record], attempt: int = 0) -> None:
        source = Source(
            kind=SourceKind.RANK,
            host="a07",
            boot_id="a07",
            pid=100 + rank,
            job_id="simulated",
            attempt=attempt,
            wall_offset_ns=0,
            rank=rank,
            world_size=self.job.world_size,
        )
        self.job.store.apply(Batch(source=source, records=tuple(records)))

    def at(self, seconds: float) -> tuple[Verdict, ...]:
        """Tick a little after ``seconds``, then fetch what was asked for."""
        now = START_NS + int(seconds * SECOND)
        self.job.now = now
        for rank in range(self.job.world_size):
            self.job.apply(rank, self._page(rank, now), kind=SourceKind.SIDECAR)
            self.job.look(rank)
        found = self.detector.evaluate(self.job.view(), self.state, now + 1)
        self.state, self.wanted = found.state, found.wanted
        self.job.fulfil(self.wanted)
        return found.verdicts

    def by(self, seconds: float) -> tuple[Verdict, ...]:
        """Tick each second of the last twenty up to ``seconds``."""
        found: tuple[Verdict, ...] = ()
        for back in range(20, -1, -1):
            found = self.at(seconds - back)
        return found

    def only(self, seconds: float) -> Verdict:
        (verdict,) = self.by(seconds)
        return verdict

    def _page(self, rank: int, now: int) -> rec.RankPageRecord:
        pauses = dict(self.open.get(rank, {}))
        began = {kind: START_NS + int(second * SECOND) for kind, second in pauses.items()}
        checkpoint_ns, gc_ns = began.pop("checkpoint", 0), began.pop("gc", 0)
        phase, phase_ns = next(iter(began.items()), ("", 0))
        limit_ns = 0 if self.at_most is None else phase_ns + int(self.at_most * SECOND)
        return rec.RankPageRecord(
            time_ns=now,
            rank=rank,
            pid=100 + rank,
            step=5,
            step_time_ns=START_NS,
            num_batches=5,
            input_since_ns=0,
            checkpoint_since_ns=checkpoint_ns,
            phase=phase,
            phase_since_ns=phase_ns,
            heartbeat_ns=now,
            last_word="",
            gc_since_ns=gc_ns,
            expect_until_ns=limit_ns if phase else 0,
        )


def ended(rank: int, kind: Kind, seconds: float) -> rec.Record:
    """A pause that ended before the start."""
    common: dict[str, Any] = {
        "time_ns": START_NS - SECOND,
        "rank": rank,
        "duration_ns": int(seconds * SECOND),
    }
    if kind == "checkpoint":
        return rec.CheckpointRecord(call="torch.save", **common)
    if kind == "gc":
        return rec.GcRecord(
            generation=2, num_collected=0, step=1, is_training_thread=True, **common
        )
    return rec.PhaseRecord(name=kind, **common)


def suspects(verdict: Verdict) -> list[int | None]:
    return [suspect.rank for suspect in verdict.suspects]


@pytest.mark.parametrize(
    ("kind", "class_", "place"),
    [
        ("checkpoint", "checkpoint", "a checkpoint call"),
        ("validation", "phase", "'validation'"),
        ("gc", "garbage_collection", "the garbage collector"),
    ],
)
def test_a_pause_far_longer_than_those_before_is_told_with_its_rank(
    kind: Kind, class_: str, place: str
) -> None:
    """80 s where four took 20: kind, rank and both times are named, as a warning."""
    verdict = Job(kind=kind).only(80)
    assert suspects(verdict) == [0]
    assert (verdict.class_, verdict.severity) == (class_, Severity.WARNING)
    assert verdict.confidence is Confidence.FULL
    assert verdict.summary == (
        f"rank 0 has been in {place} for 80.0 s, longest of 4 before: 21.0 s"
    )
    assert any("write (zipfile.py:88)" in item.text for item in verdict.evidence)


def test_either_side_of_the_limit() -> None:
    """Up to three times the longest there is silence and no look; beyond it there is a finding."""
    job = Job()
    assert job.by(63) == ()
    assert job.wanted == ()
    assert suspects(job.only(68)) == [0]


def test_a_short_kind_has_ten_seconds_to_spare() -> None:
    """Where pauses took 0.5 s, one of 10 s is not worth a word, and one of 15 s is."""
    past = (0.5, 0.4, 0.5, 0.5)
    assert Job(past, kind="validation").by(10.4) == ()
    assert suspects(Job(past, kind="validation").only(15)) == [0]


def test_pauses_of_equal_length_stay_silent() -> None:
    """The fifth that lasts as long as the four before is nothing."""
    assert all(Job().at(second) == () for second in range(22))


def test_three_pauses_are_no_history() -> None:
    """With fewer than four before it, also the longest pause is silent."""
    assert Job((20, 20, 20)).by(3000) == ()
    assert Job(()).by(3000) == ()


def test_a_kind_that_varies_much_gets_a_wider_limit() -> None:
    """Where pauses took 1 to 100 s, one that would be far too long for equal ones is usual."""
    assert Job((1, 4, 20, 100, 2, 50)).by(700) == ()
    assert Job((100, 100, 100, 100, 100, 100)).by(700) != ()


def test_a_checkpoint_that_grows_with_the_run_is_usual() -> None:
    """Half as long again each time is no finding."""
    past = [20 * 1.5**n for n in range(8)]
    assert Job(past).by(20 * 1.5**8) == ()


def test_one_kind_says_nothing_about_another() -> None:
    """Four validations of 1 s do not limit a test, nor a checkpoint."""
    job = Job((1, 1, 1, 1), kind="validation")
    job.open = {0: {"test": 0, "checkpoint": 0}}
    assert job.by(300) == ()


def test_what_the_user_announced_is_left_to_the_announcement() -> None:
    """A limit of the user's wins over the history, in both directions."""
    job = Job(kind="validation")
    job.at_most = 3600
    assert job.by(600) == ()


def test_failed_and_background_checkpoints_are_no_history() -> None:
    """A save that raised and one that training did not wait for tell nothing of the next."""
    job = Job(())
    for change in ({"error": "OSError"}, {"is_blocking": False}):
        record = replace(ended(0, "checkpoint", 1), **change)
        job.hand_over(0, [record] * 4)
    assert job.by(300) == ()


def test_saves_of_less_than_a_second_are_no_history_of_checkpoints() -> None:
    """Metrics saved by the same call, each in 10 ms, do not make the first model's save long."""
    assert Job([0.01] * 50).by(300) == ()
    assert Job([0.01] * 50 + [20] * 4 + [0.01] * 50).by(60) == ()


def test_a_rank_that_waits_for_another_is_not_named() -> None:
    """In a distributed save the ranks that wait since before the limit point at the one at work."""
    job = Job(inside=range(4))
    for rank in job.job.ranks:
        rank.at_ns = START_NS + 30 * SECOND
    job.job.enter([0, 1, 3])
    verdict = job.only(80)
    assert suspects(verdict) == [2]
    assert verdict.cost is not None
    assert verdict.cost.text == (
        "4 of 4 ranks stand still; 240 CPU rank-seconds so far beyond the usual 20.0 s"
    )


def test_all_at_work_singles_nobody_out_and_tells_the_cost() -> None:
    """A validation that is long on every rank names nobody, and counts what all of them lose."""
    verdict = Job(inside=range(4), kind="validation", device="cpu").only(80)
    assert suspects(verdict) == []
    assert verdict.summary.startswith("all ranks 0-3 have been in 'validation' for 80.0 s")
    assert verdict.cost is not None
    assert verdict.cost.text.startswith("4 of 4 ranks stand still; 240 CPU rank-seconds")
    assert verdict.cost.gpu_hours is None


def test_a_rank_within_its_own_limit_is_in_it_too() -> None:
    """All four validate, one has a longer history: the other three are not accused for it."""
    job = Job(inside=range(4), kind="validation")
    job.hand_over(1, [ended(1, "validation", 200)])
    assert suspects(job.only(80)) == []


def test_ranks_on_a_device_that_is_not_read_are_not_named() -> None:
    """On NCCL a rank may wait on the device: the pause is told, as partial, without a name."""
    verdict = Job(device="cuda").only(90)
    assert suspects(verdict) == []
    assert verdict.confidence is Confidence.PARTIAL
    assert verdict.cost is not None
    assert verdict.cost.gpu_hours


def test_the_phase_around_a_save_is_not_a_second_finding() -> None:
    """Rank 0 saves inside the phase in which all others wait: one verdict, about rank 0."""
    job = Job(kind="checkpoint", inside=[0])
    job.past("save", EQUAL)
    job.open = {rank: {"save": 0} for rank in range(4)}
    job.open[0]["checkpoint"] = 0.5
    for rank in job.job.ranks:
        rank.at_ns = START_NS + SECOND
    job.job.enter([1, 2, 3])
    verdict = job.only(80)
    assert (verdict.class_, suspects(verdict)) == ("checkpoint", [0])


def test_it_ends_with_the_pause() -> None:
    """When the rank leaves, the finding is gone; when it dies in it, that is for others to tell."""
    job = Job()
    assert job.by(80)
    job.open = {}
    assert job.at(81) == ()
    job = Job()
    assert job.by(80)
    job.job.end(0, exit_code=1)
    assert job.at(81) == ()


def test_who_is_named_stays_the_same_while_the_ranks_do() -> None:
    """Later stacks do not change the finding: an incident does not flap."""
    job = Job()
    assert suspects(job.only(80)) == [0]
    job.job.ranks[0].frames = WAITS
    assert suspects(job.only(200)) == [0]


def test_earlier_attempts_are_history_unless_the_job_has_another_size() -> None:
    """After a restart with as many ranks the second pause has a past; with fewer it has none."""
    job = Job((20, 20, 20, 20))
    job.hand_over(0, [identity(4)], attempt=1)
    assert job.job.view().past_pauses[0][RecordKind.CHECKPOINT, ""].num == 4
    job.job.world_size = 2
    job.hand_over(0, [identity(2)], attempt=2)
    assert not job.job.view().past_pauses


def identity(world_size: int) -> rec.IdentityRecord:
    return rec.IdentityRecord(
        time_ns=START_NS,
        rank=0,
        local_rank=0,
        node_rank=0,
        world_size=world_size,
        pid=100,
        start_ticks=1,
        device="cpu",
        gpu_uuid=None,
        torch_version=None,
        blind=(),
    )


def test_the_past_is_bounded() -> None:
    """A thousand pauses leave sixteen durations and the longest; a thousand names leave 32."""
    job = Job(())
    seconds = [300, *[20] * 1000]
    job.hand_over(0, [ended(0, "checkpoint", s) for s in seconds])
    past = job.job.view().past_pauses[0][RecordKind.CHECKPOINT, ""]
    assert (past.num, past.longest_ns, len(past.recent_ns)) == (1001, 300 * SECOND, 16)
    job.hand_over(0, [ended(0, f"validation {n}", 1) for n in range(1000)])
    assert len(job.job.view().past_pauses[0]) == 32
    assert (RecordKind.PHASE, "validation 999") in job.job.view().past_pauses[0]


def test_a_compiler_at_work_inside_a_pause_excuses_it_for_five_minutes() -> None:
    """A validation that compiles is silent; one that still does after five minutes is not."""
    job = Job(kind="validation")
    job.job.ranks[0].frames = COMPILES
    assert job.by(80) == ()
    assert job.by(360) == ()
    assert suspects(job.only(370)) == [0]


@pytest.mark.parametrize("is_outside", [True, False], ids=["gdb", "pdb"])
def test_a_debugger_inside_a_pause_excuses_it(is_outside: bool) -> None:
    """Whoever holds the rank knows; when it has left and the pause goes on, it is told."""
    job = Job(kind="validation")
    rank = job.job.ranks[0]
    rank.frames, rank.state = (WORKS, "t") if is_outside else (PDB, "S")
    assert job.by(80) == ()
    assert job.by(600) == ()
    rank.frames, rank.state = WORKS, "S"
    assert suspects(job.only(640)) == [0]


def test_lost_records_make_it_partial() -> None:
    """Where records were lost, an earlier long pause may be missing: that is said."""
    job = Job()
    job.hand_over(
        0, [rec.GapRecord(time_ns=START_NS, rank=0, where="ring", num_lost=3, reason="full")]
    )
    verdict = job.only(80)
    assert verdict.confidence is Confidence.PARTIAL
    assert "earlier pauses of rank 0: records were lost" in verdict.not_measured


def test_a_hang_tells_the_story_alone() -> None:
    """While a hang is told, the long pause is not told beside it; other findings are."""
    pause = Job().only(80)
    hang = replace(pause, pattern="hang", severity=Severity.CRITICAL)
    other = replace(pause, pattern="declared_pause")
    assert leading([hang, pause, other]) == (hang, other)
    assert leading([pause, other]) == (pause, other)


class Says:
    """A detector that says what it is told to say."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.verdicts: tuple[Verdict, ...] = ()

    def initial_state(self) -> None:
        """Nothing to remember."""

    def evaluate(self, view: JobView, state: None, now: int) -> Findings[None]:
        """Say it."""
        return Findings(verdicts=self.verdicts, state=None)


def test_when_a_hang_takes_over_the_long_pause_is_closed() -> None:
    """One trouble, two incidents, one open at a time: the pause, then the hang."""
    job = Job()
    verdict = job.only(80)
    pause, hang = Says("long_pause"), Says("hang")
    engine = Engine(job.job.store, (hang, pause), wall_offset_ns=0)
    pause.verdicts = (verdict,)
    events = []
    for second in range(80, 100):
        if second == 85:
            hang.verdicts = (replace(verdict, pattern="hang"),)
        tick = engine.tick(START_NS + second * SECOND)
        assert len(tick.verdicts) == 1
        events += [(event.verdict.pattern, event.change) for event in tick.events]
    assert events == [("long_pause", "opened"), ("hang", "opened"), ("long_pause", "closed")]
