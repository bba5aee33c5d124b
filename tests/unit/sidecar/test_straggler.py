"""The straggler detector on simulated jobs, through the real store."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from tests.support.recordings import MS, SECOND, WORLD, SimulatedJob, Watch
from tracecore_sidecar.detectors.lateness import cohorts, measure
from tracecore_sidecar.verdicts import Confidence, Severity, Verdict
from tracecore_train.wire.records import GroupRecord

if TYPE_CHECKING:
    from collections.abc import Callable

BUCKETS = [(WORLD, 0.25)] * 4
STEP_MS = 100


def noisy(
    seed: int, extra_ms: Callable[[int, int], float], *, noise_ms: float = 5
) -> Callable[[int, int], int]:
    """Own time of 100 ms with noise on every rank, and something extra."""
    source = random.Random(seed)

    def own(rank: int, step: int) -> int:
        spike = 30 if source.random() < 0.03 else 0
        usual = STEP_MS + source.gauss(0, noise_ms) + spike
        return int((max(usual, 1) + extra_ms(rank, step)) * MS)

    return own


def slow(rank: int, extra_ms: float, start: int = 40) -> Callable[[int, int], float]:
    return lambda r, step: extra_ms if r == rank and step >= start else 0


def watched(job: SimulatedJob) -> Watch:
    watch = Watch(job)
    watch.run_to_end()
    return watch


def only(watch: Watch) -> Verdict:
    assert len(watch.last) == 1
    return watch.last[0]


@pytest.mark.parametrize("seed", range(10))
def test_a_healthy_job_names_nobody(seed: int) -> None:
    """Noise and single spikes on both ranks over a minute accuse nobody."""
    job = SimulatedJob(2)
    job.train(600, noisy(seed, lambda rank, step: 0))
    assert watched(job).seen == []


@pytest.mark.parametrize("seed", range(3))
def test_a_very_noisy_job_names_nobody(seed: int) -> None:
    """Noise of both signs, a third of the step wide, is no straggler."""
    job = SimulatedJob(2)
    job.train(600, noisy(seed, lambda rank, step: 0, noise_ms=30))
    assert watched(job).seen == []


@pytest.mark.parametrize(("world_size", "rank"), [(2, 0), (2, 1), (4, 2), (8, 0), (8, 7)])
@pytest.mark.parametrize("is_blocking", [True, False])
def test_a_slow_rank_is_named_with_its_cost(world_size: int, rank: int, is_blocking: bool) -> None:
    """50 ms on a 100 ms step: the right rank alone, within 60 s, at a cost within a fifth."""
    job = SimulatedJob(world_size)
    job.train(450, noisy(1, slow(rank, 50), noise_ms=2), plan=BUCKETS, is_blocking=is_blocking)
    onset = job.ranks[0].entries[40 * len(BUCKETS)].created_ns
    watch = watched(job)
    assert watch.accused == {rank}
    assert watch.seen[0].time_ns - onset < 60 * SECOND
    verdict = only(watch)
    assert (verdict.pattern, verdict.class_) == ("straggler", "late_arrival")
    assert verdict.severity is Severity.WARNING
    assert verdict.confidence is Confidence.FULL
    assert verdict.cost is not None
    assert verdict.cost.seconds_per_step == pytest.approx(0.05, rel=0.2)
    assert verdict.cost.share_of_step == pytest.approx(1 / 3, rel=0.2)


@pytest.mark.parametrize("is_blocking", [True, False])
@pytest.mark.parametrize("num_buckets", [1, 2, 4, 7])
@pytest.mark.parametrize("is_step_noise", [True, False])
def test_carried_lateness_counts_once_and_repeated_lateness_adds_up(
    is_blocking: bool, num_buckets: int, is_step_noise: bool
) -> None:
    """The same 50 ms a step cost 50 ms in some waits and in as many buckets alike."""
    source = random.Random(num_buckets)
    job = SimulatedJob(2)
    for _ in range(120):
        if is_step_noise:
            jitter = [[source.gauss(0, 0.02)] * num_buckets for _ in range(2)]
        else:
            jitter = [[source.gauss(0, 0.05) for _ in range(num_buckets)] for _ in range(2)]
        for bucket in range(num_buckets):
            for index, usual_ms in ((0, 100), (1, 150)):
                part = usual_ms * (1 + jitter[index][bucket]) / num_buckets
                job.ranks[index].at_ns += int(part * MS)
            job.meet(WORLD, is_blocking=is_blocking or bucket == num_buckets - 1)
        for index, rank in enumerate(job.ranks):
            rank.at_ns += MS
            job.end_step(index, rank.at_ns - 151 * MS, 0, 0)
    Watch(job).run_to_end()
    job.advance(job.now + 10 * SECOND, pull=True)
    (cohort,) = cohorts(job.view())
    lateness = measure(job.view(), cohort, first_step=5, max_steps=100)
    assert lateness is not None
    assert lateness.removable_ns[:, 1].mean() == pytest.approx(50 * MS, rel=0.1)


def test_a_rank_late_at_the_first_bucket_only_costs_nothing() -> None:
    """Whoever has caught up by the last asynchronous collective kept nobody waiting."""
    job = SimulatedJob(2)
    for _ in range(100):
        for index, first_ms in ((0, 10), (1, 60)):
            job.ranks[index].at_ns += first_ms * MS
        job.meet(WORLD, is_blocking=False)
        for index, rest_ms in ((0, 90), (1, 40)):
            job.ranks[index].at_ns += rest_ms * MS
        job.meet(WORLD, is_blocking=True)
        for index, rank in enumerate(job.ranks):
            rank.at_ns += MS
            job.end_step(index, rank.at_ns - 101 * MS, 0, 0)
    Watch(job).run_to_end()
    job.advance(job.now + 10 * SECOND, pull=True)
    (cohort,) = cohorts(job.view())
    lateness = measure(job.view(), cohort, first_step=5, max_steps=50)
    assert lateness is not None
    assert lateness.removable_ns.max() == 0


@pytest.mark.parametrize("seed", range(3))
def test_twenty_per_cent_is_said(seed: int) -> None:
    """Near the threshold, on the side where it must speak."""
    job = SimulatedJob(4)
    job.train(500, noisy(seed, slow(2, 20), noise_ms=3))
    assert watched(job).accused == {2}


@pytest.mark.parametrize("seed", range(3))
def test_five_per_cent_is_not_said(seed: int) -> None:
    """Near the threshold, on the side where it must be silent."""
    job = SimulatedJob(4)
    job.train(500, noisy(seed, slow(2, 5), noise_ms=1))
    assert watched(job).seen == []


@pytest.mark.parametrize("period", [1, 3, 20, 60, 100])
def test_slowness_that_alternates_names_nobody(period: int) -> None:
    """Whether it changes sides every step or every hundred, no rank is the straggler."""
    job = SimulatedJob(2)
    job.train(700, noisy(0, lambda r, step: 50 if step // period % 2 == r else 0, noise_ms=2))
    assert watched(job).seen == []


def test_two_equally_slow_ranks_name_nobody() -> None:
    """Removing one of two equal stragglers saves nothing, so neither is accused."""
    job = SimulatedJob(4)
    job.train(400, noisy(0, lambda r, step: 50 if r in (1, 2) else 0, noise_ms=2))
    assert watched(job).seen == []


def test_a_single_long_pause_names_nobody() -> None:
    """Ten seconds once on rank 0, outside a checkpoint call, are no habit."""
    job = SimulatedJob(2)
    job.ranks[0].cpu_share = 1.0
    job.train(400, noisy(0, lambda r, step: 10_000 if (r, step) == (0, 200) else 0))
    assert watched(job).seen == []


def test_a_slow_start_names_nobody() -> None:
    """Warm-up steps of one rank, each a second longer, are left out."""
    job = SimulatedJob(2)
    job.train(400, noisy(0, lambda r, step: 1000 if r == 1 and step < 5 else 0))
    assert watched(job).seen == []


def test_few_steps_say_nothing() -> None:
    """With 25 sampled steps after warm-up there is no verdict however slow a rank is."""
    job = SimulatedJob(2)
    job.train(30, lambda r, step: (3 if r else 1) * SECOND)
    assert watched(job).seen == []


def test_a_straggler_from_the_first_step_is_named() -> None:
    """No healthy past is needed: ranks are compared with each other."""
    job = SimulatedJob(4)
    job.train(300, noisy(0, slow(3, 50, start=0), noise_ms=2))
    assert watched(job).accused == {3}


def test_the_onset_is_the_step_where_it_began() -> None:
    """The change point lies within a few steps of the true one, and stays."""
    job = SimulatedJob(2)
    job.train(600, noisy(3, slow(1, 50, start=150)))
    began = job.ranks[0].entries[150].created_ns
    watch = watched(job)
    assert len({s.verdict.since_ns for s in watch.seen}) == 1
    assert abs(watch.seen[0].verdict.since_ns - began) < SECOND


def test_recovery_clears_the_verdict() -> None:
    """Once the rank keeps up again, the verdict goes."""
    job = SimulatedJob(2)
    job.train(700, noisy(0, lambda r, step: 50 if r == 1 and 40 <= step < 450 else 0))
    watch = watched(job)
    assert watch.accused == {1}
    assert watch.last == ()


def test_missing_data_does_not_clear_the_verdict() -> None:
    """A straggler whose collectives cannot be read any more is not called healthy."""
    job = SimulatedJob(2)
    job.train(600, noisy(0, slow(1, 50), noise_ms=2))
    watch = Watch(job)
    watch.run(50)
    for rank in job.ranks:
        rank.is_readable = False
    watch.run(30)
    assert [s.rank for v in watch.last for s in v.suspects] == [1]


def test_missing_members_accuse_nobody() -> None:
    """While one member of the group was never seen, who came last is not known."""
    job = SimulatedJob(3, absent=[2])
    job.train(400, noisy(0, slow(1, 50)))
    assert watched(job).seen == []


def test_an_unreadable_member_accuses_nobody() -> None:
    """While one member's recorder does not answer, who came last is not known."""
    job = SimulatedJob(3)
    job.ranks[2].is_readable = False
    job.train(400, noisy(0, slow(1, 50)))
    assert watched(job).seen == []


def test_ranks_on_different_hosts_are_not_compared() -> None:
    """Two hosts, one rank each: their clocks say nothing about who came last."""
    job = SimulatedJob(2, hosts=["a07", "a08"])
    job.train(400, noisy(0, slow(1, 50)))
    assert watched(job).seen == []


def test_ranks_on_other_hosts_lower_the_confidence() -> None:
    """A rank late among its host's ranks is named, and what was not compared is said."""
    job = SimulatedJob(4, hosts=["a07", "a07", "a08", "a08"])
    job.train(400, noisy(0, slow(1, 50), noise_ms=2))
    verdict = only(watched(job))
    assert [s.rank for s in verdict.suspects] == [1]
    assert verdict.confidence is Confidence.PARTIAL
    assert any(t.startswith("ranks on other hosts") for t in verdict.not_measured)


def test_a_rank_kept_waiting_in_another_group_is_not_accused() -> None:
    """Rank 3 is slow; rank 2, its tensor-parallel peer, passes the delay on and is innocent."""
    job = SimulatedJob(4, families={"tp": [(0, 1), (2, 3)], "dp": [(0, 2), (1, 3)]})
    job.train(400, noisy(0, slow(3, 50), noise_ms=2), plan=[("tp", 0.9), ("dp", 0.1)])
    assert watched(job).accused == {3}


def test_ranks_late_together_in_different_groups_are_not_accused() -> None:
    """A delay passed on by unrecorded send/recv shows in two groups at once: nobody is named."""
    job = SimulatedJob(4, families={"dp": [(0, 2), (1, 3)]})
    job.train(400, noisy(0, lambda r, s: 50 if r < 2 else 0, noise_ms=2), plan=[("dp", 1.0)])
    watch = watched(job)
    assert watch.accused == set()
    assert only(watch).confidence is Confidence.PARTIAL
    assert "ranks 0, 1" in only(watch).summary


def test_lateness_from_input_is_attributed_to_input() -> None:
    """If the slow rank waits 40 of its 50 ms for data, four fifths are input."""
    job = SimulatedJob(2)
    job.train(
        400,
        noisy(0, slow(1, 50, start=0), noise_ms=1),
        input_ns=lambda rank, step: (42 if rank else 2) * MS,
    )
    verdict = only(watched(job))
    shares = verdict.evidence[1].data["shares"]
    assert shares["input"] == pytest.approx(0.8, abs=0.1)
    assert sum(shares.values()) == pytest.approx(1, abs=0.01)
    assert "input of rank 1" in verdict.actions[0]
    assert verdict.contradicting == ()


def test_an_ordinary_input_wait_speaks_against_input() -> None:
    """A rank slow elsewhere has its ordinary input wait shown as contradicting."""
    job = SimulatedJob(2)
    job.train(400, noisy(0, slow(1, 50)), input_ns=lambda rank, step: 2 * MS)
    verdict = only(watched(job))
    assert "input wait is ordinary (2.0 ms" in verdict.contradicting[0].text


def test_on_a_device_the_verdict_is_partial_and_says_why() -> None:
    """On CUDA the host's arrival is all that was compared."""
    job = SimulatedJob(2, device="cuda")
    job.train(400, noisy(0, slow(1, 50), noise_ms=2))
    verdict = only(watched(job))
    assert verdict.confidence is Confidence.PARTIAL
    assert any(t.startswith("device time") for t in verdict.not_measured)
    assert verdict.cost is not None
    assert verdict.cost.gpu_hours is not None


def test_lost_records_lower_the_confidence() -> None:
    """Records lost while the rank was found late are said."""
    job = SimulatedJob(2)
    job.train(500, noisy(0, slow(1, 50), noise_ms=2))
    watch = Watch(job)
    watch.run(40)
    job.ranks[1].num_lost = 7
    watch.run_to_end()
    assert only(watch).confidence is Confidence.PARTIAL
    assert any("7 records were lost" in t for t in only(watch).not_measured)


def test_an_ended_rank_is_no_straggler() -> None:
    """A verdict about a rank goes with the rank."""
    job = SimulatedJob(2)
    job.train(400, noisy(0, slow(1, 50), noise_ms=2))
    watch = watched(job)
    assert watch.accused == {1}
    job.end(1)
    watch.run(1)
    assert watch.last == ()


def test_a_rank_kept_waiting_in_an_unread_group_is_no_straggler() -> None:
    """Beside a group whose recorder is not read, lateness may be passed on: nobody is named."""
    job = SimulatedJob(2)
    job.apply(
        0,
        GroupRecord(
            time_ns=1, rank=0, pg_name="n", pg_desc="nccl_pg", backend="nccl", ranks=(0, 1)
        ),
    )
    job.train(600, noisy(0, lambda r, step: 50 if r else 0, noise_ms=2))
    assert watched(job).seen == []
