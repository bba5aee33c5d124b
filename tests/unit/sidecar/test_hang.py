"""The hang detector on simulated jobs, through the real store."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.recordings import MS, SECOND, WORLD, SimulatedJob, Watch
from tracecore_sidecar.detectors.hang import HangDetector
from tracecore_sidecar.verdicts import Confidence, Severity, Verdict
from tracecore_train.wire.records import GroupRecord, PhaseRecord

USER_FRAMES = (
    "sleep (time.py:1)",
    "forward (torch/nn/modules/linear.py:125)",
    "read_shard (dataset.py:88)",
    "main (train.py:12)",
)
GRID = {"tp": [(0, 1), (2, 3)], "dp": [(0, 2), (1, 3)]}


def trained(world_size: int = 4, num_steps: int = 60, step_ms: int = 100) -> SimulatedJob:
    job = SimulatedJob(world_size)
    job.train(num_steps, lambda rank, step: step_ms * MS)
    return job


def hung(rank: int = 1, world_size: int = 4, num_steps: int = 60) -> SimulatedJob:
    """A job in which every rank but one has entered the next collective."""
    job = trained(world_size, num_steps)
    job.ranks[rank].frames = USER_FRAMES
    job.enter(r for r in range(world_size) if r != rank)
    return job


def grid() -> SimulatedJob:
    """Two by two ranks, in tensor-parallel and data-parallel groups."""
    job = SimulatedJob(4, families=GRID)
    job.train(60, lambda rank, step: 100 * MS, plan=[("tp", 0.5), ("dp", 0.5)])
    return job


def watched(job: SimulatedJob, extra_s: float) -> Watch:
    watch = Watch(job, [HangDetector()])
    watch.run_to_end(extra_s)
    return watch


def only(watch: Watch) -> Verdict:
    assert len(watch.last) == 1
    return watch.last[0]


def texts(verdict: Verdict) -> str:
    return "\n".join(item.text for item in verdict.evidence)


@pytest.mark.parametrize(
    ("world_size", "rank"), [(2, 0), (2, 1), (4, 0), (4, 2), (4, 3), (8, 0), (8, 5), (8, 7)]
)
def test_the_rank_that_never_entered_is_named_alone(world_size: int, rank: int) -> None:
    """Whichever rank stays away, it and nobody else is the suspect, with full confidence."""
    verdict = only(watched(hung(rank, world_size), 12))
    assert [s.rank for s in verdict.suspects] == [rank]
    assert (verdict.pattern, verdict.class_) == ("hang", "never_entered")
    assert verdict.severity is Severity.CRITICAL
    assert verdict.confidence is Confidence.FULL
    assert verdict.summary == f"rank {rank} never joined all_reduce #60 of {WORLD}"
    assert verdict.cost is not None
    assert verdict.cost.waiting_ranks == world_size - 1


@pytest.mark.parametrize("num_steps", [8, 37, 400])
def test_a_hang_is_named_within_ten_seconds(num_steps: int) -> None:
    """From the moment the last rank stopped moving, early or late, ten seconds suffice."""
    job = hung(num_steps=num_steps)
    stopped = max(rank.at_ns for rank in job.ranks)
    watch = watched(job, 11)
    assert watch.seen[0].time_ns - stopped < 10 * SECOND


def test_nothing_is_said_before_the_job_was_quiet_for_five_seconds() -> None:
    """A pause of four seconds is no hang."""
    assert watched(hung(), 4).seen == []


def test_a_suspicion_alone_gives_no_verdict() -> None:
    """The first look after the limit only asks for evidence."""
    detector, job = HangDetector(), hung()
    watch = Watch(job, [detector])
    watch.run_to_end(5)
    while not watch.states[0].suspected_ns:
        watch.run(1)
    assert watch.last == ()


def test_the_evidence_says_who_entered_what_and_where_the_suspect_is() -> None:
    """Waiters, the suspect's last entry and its own code stand in the evidence."""
    verdict = only(watched(hung(), 12))
    assert "ranks 0, 2, 3 entered all_reduce #60" in texts(verdict)
    assert "the last that rank 1 entered of default_pg is all_reduce #59" in texts(verdict)
    assert "read_shard (dataset.py:88) < main (train.py:12)" in texts(verdict)
    assert verdict.suspects[0].pid == 101
    assert verdict.suspects[0].host == "a07"


def test_send_recv_on_gloo_is_listed_as_not_measured() -> None:
    """Gloo hides send/recv, and the verdict says so."""
    assert any(t.startswith("send/recv") for t in only(watched(hung(), 12)).not_measured)


def test_a_verdict_stays_with_the_same_onset_until_progress_resumes() -> None:
    """While the hang lasts there is one verdict a tick, with one onset; afterwards none."""
    job = hung()
    watch = watched(job, 20)
    assert len({s.verdict.since_ns for s in watch.seen}) == 1
    assert len(watch.seen) >= 10
    job.ranks[1].at_ns = watch.tick_ns
    job.enter([1])
    job.release()
    for rank in job.ranks:
        rank.at_ns = watch.tick_ns
    job.train(20, lambda rank, step: 100 * MS)
    watch.run(2)
    assert watch.last == ()


def test_the_onset_is_when_progress_stopped() -> None:
    """Since lies within the one second in which counters are handed over."""
    job = hung()
    stopped = max(rank.at_ns for rank in job.ranks)
    since = only(watched(job, 12)).since_ns
    assert 0 <= since - stopped <= SECOND


def test_two_ranks_that_stay_away_are_both_named() -> None:
    """Several causes at once are normal."""
    job = trained(8)
    job.enter([0, 1, 3, 4, 6, 7])
    assert [s.rank for s in only(watched(job, 12)).suspects] == [2, 5]


# Start-up and pace.


def test_a_slow_first_step_names_nobody() -> None:
    """A first step of 100 s on one rank is compilation until shown otherwise."""
    job = SimulatedJob(2)
    job.train(1, lambda rank, step: 100 * SECOND if rank else 100 * MS)
    job.train(50, lambda rank, step: 100 * MS)
    assert watched(job, 0).seen == []


def test_a_hang_during_start_up_is_named_after_two_minutes() -> None:
    """Start-up is given time, not for ever."""
    job = hung(num_steps=2)
    watch = watched(job, 115)
    assert watch.seen == []
    watch.run(12)
    assert [s.rank for s in only(watch).suspects] == [1]


def test_a_job_of_slow_steps_is_given_ten_of_them() -> None:
    """With steps of 3 s, 25 s without progress are silent and 40 s are a hang."""
    job = trained(2, num_steps=20, step_ms=3000)
    job.enter([0])
    watch = watched(job, 25)
    assert watch.seen == []
    watch.run(15)
    assert watch.accused == {1}


def test_a_pause_the_job_makes_often_is_no_hang() -> None:
    """Rank 0 works alone for 6 s every 20 steps; after three such pauses nobody is accused."""
    job = SimulatedJob(2)
    job.ranks[0].frames = ("evaluate (train.py:7)",)
    job.train(200, lambda rank, step: 4 * SECOND if rank == 0 and step % 20 == 10 else 100 * MS)
    watch = watched(job, 0)
    job.train(100, lambda rank, step: 7 * SECOND if rank == 0 and step % 20 == 10 else 100 * MS)
    watch.run_to_end()
    assert watch.seen == []


def test_steps_that_advance_on_one_rank_are_progress() -> None:
    """A job in which any rank still ends steps does not hang."""
    job = SimulatedJob(3, families={"pair": [(0, 1)], "single": [(2,)]})
    job.train(60, lambda rank, step: 100 * MS, plan=[("pair", 1.0), ("single", 0.0)])
    job.enter([0], "pair")
    for _ in range(300):
        job.ranks[2].at_ns += 100 * MS
        job.end_step(2, job.ranks[2].at_ns - 100 * MS, 0, 0)
    assert watched(job, -2).seen == []


# Where the suspect is.


def test_a_rank_inside_the_dataloader_is_named_at_once_with_the_place() -> None:
    """Waiting for data is no excuse, and it is what the verdict tells to look at."""
    job = hung()
    job.ranks[1].spans.append(("input", job.ranks[1].at_ns, None))
    job.ranks[1].cpu_share = 1.0
    verdict = only(watched(job, 10))
    assert "rank 1 has been inside next(dataloader)" in texts(verdict)
    assert "data source" in verdict.actions[0]


@pytest.mark.parametrize(("seconds", "is_named"), [(10, False), (58, False), (66, True)])
def test_a_checkpoint_is_given_a_minute(seconds: int, is_named: bool) -> None:
    """Others waiting for a checkpoint are patient for 60 s and not longer."""
    job = hung(rank=0)
    job.ranks[0].spans.append(("checkpoint", job.ranks[0].at_ns, None))
    watch = watched(job, seconds)
    assert bool(watch.seen) is is_named
    if is_named:
        assert "inside a checkpoint call" in texts(only(watch))


def test_a_ten_second_checkpoint_of_one_rank_names_nobody() -> None:
    """Rank 0 saves for 10 s while rank 1 waits; nobody is accused, also by the straggler rule."""
    job = SimulatedJob(2)
    job.train(
        300,
        lambda rank, step: 100 * MS,
        checkpoint_ns=lambda rank, step: 10 * SECOND if (rank, step) == (0, 100) else 0,
    )
    watch = Watch(job)
    watch.run_to_end()
    assert watch.seen == []


def test_slow_checkpoints_seen_before_lengthen_the_patience() -> None:
    """After a checkpoint of 12 s, one of 100 s is still within ten times that."""
    job = SimulatedJob(2)
    job.train(
        60,
        lambda rank, step: 100 * MS,
        checkpoint_ns=lambda rank, step: 12 * SECOND if (rank, step) == (0, 30) else 0,
    )
    job.ranks[0].spans.append(("checkpoint", job.ranks[0].at_ns, None))
    job.enter([1])
    watch = watched(job, 100)
    assert watch.seen == []
    watch.run(30)
    assert watch.accused == {0}


def test_a_checkpoint_seen_only_on_the_stack_is_an_excuse_too() -> None:
    """Without a rank page, a save on the stack gives the same minute."""
    job = hung(rank=0)
    job.ranks[0].has_page = False
    job.ranks[0].frames = ("write (io.py:1)", "save_file (safetensors/torch.py:280)")
    watch = watched(job, 50)
    assert watch.seen == []
    watch.run(20)
    assert watch.accused == {0}


def test_a_named_phase_is_given_a_minute() -> None:
    """A phase the user opened is meant; after 60 s the verdict comes and names the phase."""
    job = hung(rank=0)
    job.ranks[0].phase = "evaluate"
    job.ranks[0].spans.append(("phase", job.ranks[0].at_ns, None))
    watch = watched(job, 55)
    assert watch.seen == []
    watch.run(15)
    assert "in phase 'evaluate'" in texts(only(watch))


def test_long_phases_seen_before_lengthen_the_patience() -> None:
    """After a phase of 12 s, one of that name is left alone for 100 s, and not for 130."""
    job = hung(rank=0)
    rank = job.ranks[0]
    past = PhaseRecord(time_ns=job.now, rank=0, name="evaluate", duration_ns=12 * SECOND)
    job.apply(0, past)
    rank.phase = "evaluate"
    rank.spans.append(("phase", rank.at_ns, None))
    watch = watched(job, 100)
    assert watch.seen == []
    watch.run(30)
    assert watch.accused == {0}


@pytest.mark.parametrize("limit_s", [20, 150])
def test_an_announced_pause_is_given_what_was_announced(limit_s: int) -> None:
    """``expect`` shortens or lengthens the minute; past its limit the verdict comes."""
    job = hung(rank=0)
    rank = job.ranks[0]
    rank.phase, rank.expect_until_ns = "evaluate", rank.at_ns + limit_s * SECOND
    rank.spans.append(("phase", rank.at_ns, None))
    watch = watched(job, limit_s - 5)
    assert watch.seen == []
    watch.run(15)
    assert watch.accused == {0}


def test_a_rank_that_runs_code_is_given_half_a_minute() -> None:
    """A rank that burns processor time with a live interpreter may be sampling or compiling."""
    job = hung()
    job.ranks[1].cpu_share = 0.9
    watch = watched(job, 28)
    assert watch.seen == []
    watch.run(8)
    assert "used 90% of a core" in texts(only(watch))


def test_a_crowded_processor_leaves_a_busy_rank_its_excuse() -> None:
    """A rank that gets a third of a core and queues for the rest runs code like any other."""
    job = hung()
    job.ranks[1].cpu_share, job.ranks[1].wait_share = 0.3, 0.6
    watch = watched(job, 28)
    assert watch.seen == []
    watch.run(8)
    assert "used 30% of a core, queued for 60%" in texts(only(watch))


def test_a_rank_that_holds_the_gil_is_named_at_once() -> None:
    """Busy without a heartbeat is a held GIL, and that is no excuse."""
    job = hung()
    job.ranks[1].cpu_share = 1.0
    job.ranks[1].beats = False
    verdict = only(watched(job, 10))
    assert [s.rank for s in verdict.suspects] == [1]
    assert "GIL" in verdict.actions[0]


def test_slow_heartbeats_of_every_rank_are_no_held_gil() -> None:
    """Where all ranks beat slowly, a busy rank is running code."""
    job = hung()
    job.ranks[1].cpu_share = 1.0
    watch = watched(job, 1)
    for rank in job.ranks:
        rank.beats = False
    watch.run(20)
    assert watch.seen == []


def test_a_stopped_rank_is_named_with_the_way_to_continue_it() -> None:
    """Its recorder does not answer, but its process state is evidence enough."""
    job = trained()
    job.enter([0, 2, 3])
    watch = watched(job, 0)
    job.ranks[1].state = "T"
    watch.run(12)
    verdict = only(watch)
    assert [s.rank for s in verdict.suspects] == [1]
    assert "is stopped" in verdict.summary
    assert "kill -CONT 101" in verdict.actions[0]


def test_a_rank_stopped_inside_the_collective_is_named() -> None:
    """All entered; the one that is stopped keeps the others from finishing."""
    job = trained()
    job.enter([0, 1, 2, 3])
    watch = watched(job, 3)
    job.pull(1)
    job.ranks[1].state = "T"
    watch.run(12)
    verdict = only(watch)
    assert ([s.rank for s in verdict.suspects], verdict.class_) == ([1], "none_completed")
    assert (
        verdict.summary == "rank 1 is stopped (process state T) inside all_reduce #60 of default_pg"
    )


def test_it_is_not_claimed_that_an_unread_rank_never_joined() -> None:
    """A rank stopped before its entries were read may have joined: only the wait is a fact."""
    job = trained()
    job.enter([0, 1, 2, 3])
    watch = watched(job, 0)
    job.ranks[1].state = "T"
    watch.run(12)
    verdict = only(watch)
    assert [s.rank for s in verdict.suspects] == [1]
    assert "never joined" not in verdict.summary
    assert any(t.startswith("collectives of rank 1:") for t in verdict.not_measured)


def test_a_killed_rank_is_named_with_its_signal() -> None:
    """The peers look hung; the dead rank is the suspect."""
    job = hung()
    watch = watched(job, 0)
    job.end(1, exit_code=None, signal=9)
    watch.run(12)
    assert [s.rank for s in only(watch).suspects] == [1]
    assert "signal 9" in only(watch).summary


def test_a_rank_that_ended_its_loop_early_is_named() -> None:
    """Uneven input: rank 1 exits normally while the others wait for it in a collective."""
    job = hung()
    watch = watched(job, 0)
    job.end(1)
    watch.run(12)
    assert "rank 1 has ended (exit code 0)" in only(watch).summary


# Where nobody must be named.


def test_all_entered_and_none_completed_suspects_no_rank() -> None:
    """When every member waits in the same collective, only the group is named."""
    job = trained()
    job.enter(range(4))
    verdict = only(watched(job, 12))
    assert (verdict.class_, verdict.suspects) == ("none_completed", ())
    assert verdict.summary.startswith("all 4 members entered all_reduce #60 of default_pg")


def test_members_that_disagree_about_a_collective_are_told_apart() -> None:
    """Different operations at one sequence number are the explanation: the minority is named."""
    job = trained()
    job.enter([0, 2, 3])
    job.enter([1], op="broadcast")
    verdict = only(watched(job, 12))
    assert (verdict.class_, [s.rank for s in verdict.suspects]) == ("mismatch", [1])
    assert "rank 1 called broadcast" in verdict.summary
    assert "code paths" in verdict.actions[0]


def test_different_sizes_of_an_all_gather_are_no_disagreement() -> None:
    """Sizes are compared only where torch requires them to be equal."""
    job = trained(2)
    job.enter([0], op="all_gather", sizes="[[4]]")
    job.enter([1], op="all_gather", sizes="[[5]]")
    assert "disagree" not in only(watched(job, 12)).summary


def test_a_rank_queued_behind_another_group_is_not_accused() -> None:
    """Rank 2 misses its data-parallel peers because rank 3 never came to their tensor group."""
    job = grid()
    job.ranks[3].frames = USER_FRAMES
    job.enter([0, 1, 2], "tp")
    job.release()
    job.enter([0, 1], "dp")
    verdict = only(watched(job, 12))
    assert [s.rank for s in verdict.suspects] == [3]
    assert verdict.summary.startswith("rank 3 never joined all_reduce #60 of tp1")
    chain = "rank 0 in all_reduce #60 of dp0; which waits for rank 2 in all_reduce #60 of tp1"
    assert chain in texts(verdict)


def test_a_rank_that_entered_but_waits_elsewhere_is_not_accused() -> None:
    """An asynchronous entry is queued behind the rank's oldest wait, which decides."""
    job = grid()
    job.enter([2], "tp")
    job.enter([0, 1, 2], "dp")
    job.ranks[3].frames = USER_FRAMES
    assert [s.rank for s in only(watched(job, 12)).suspects] == [3]


def test_a_circle_of_groups_names_who_departed_from_the_usual_order() -> None:
    """Rank 1 takes b before a, as nobody ever did: it is the suspect, in part."""
    job = SimulatedJob(2, families={"a": [(0, 1)], "b": [(0, 1)]})
    job.train(60, lambda rank, step: 100 * MS, plan=[("a", 0.5), ("b", 0.5)])
    job.enter([0], "a")
    job.enter([1], "b")
    verdict = only(watched(job, 12))
    assert (verdict.class_, [s.rank for s in verdict.suspects]) == ("wait_cycle", [1])
    assert verdict.confidence is Confidence.PARTIAL


def test_a_circle_of_groups_without_a_past_accuses_nobody() -> None:
    """Two groups entered in opposite order: both waits are shown, no rank is at fault."""
    job = SimulatedJob(2, families={"a": [(0, 1)], "b": [(0, 1)]})
    job.enter([0], "a")
    job.enter([1], "b")
    verdict = only(watched(job, 130))
    assert (verdict.class_, verdict.suspects) == ("wait_cycle", ())
    assert verdict.confidence is Confidence.PARTIAL
    assert "of a, rank 1 did not" in texts(verdict)
    assert "of b, rank 0 did not" in texts(verdict)


def test_a_rank_that_could_not_be_read_is_not_accused() -> None:
    """Absence is no evidence: the verdict says who could not be read and names nobody."""
    job = hung()
    job.ranks[1].is_readable = False
    verdict = only(watched(job, 20))
    assert verdict.suspects == ()
    assert verdict.class_ == "undetermined"
    assert verdict.confidence is Confidence.PARTIAL
    assert any(t.startswith("collectives of rank 1:") for t in verdict.not_measured)


def test_a_late_answer_is_waited_for_rather_than_naming_nobody() -> None:
    """A rank read only after eight seconds of quiet is named in the first verdict there is."""
    job = hung()
    job.ranks[1].is_readable = False
    watch = watched(job, 12)
    assert not watch.seen
    job.ranks[1].is_readable = True
    watch.run(6)
    assert {tuple(s.rank for s in seen.verdict.suspects) for seen in watch.seen} == {(1,)}


def test_a_rank_nobody_heard_of_is_not_accused() -> None:
    """Ranks of a node that is not linked stay unknown."""
    job = SimulatedJob(4, absent=[3])
    job.train(60, lambda rank, step: 100 * MS)
    job.enter([0, 1, 2])
    watch = watched(job, 80)
    assert watch.accused == set()
    assert "rank 3" in only(watch).summary


def test_an_unreadable_bystander_lowers_the_confidence() -> None:
    """Rank 1 is plainly missing; that rank 2 could not be read makes it partial."""
    job = hung()
    job.ranks[2].is_readable = False
    verdict = only(watched(job, 14))
    assert [s.rank for s in verdict.suspects] == [1]
    assert verdict.confidence is Confidence.PARTIAL


def test_a_refused_stack_lowers_the_confidence_and_is_said() -> None:
    """Without a stack, a wait in send/recv cannot be excluded."""
    job = hung()
    job.ranks[1].frames = ()
    job.ranks[1].stack_error = "ptrace is denied"
    verdict = only(watched(job, 14))
    assert verdict.confidence is Confidence.PARTIAL
    assert "stack of rank 1: ptrace is denied" in verdict.not_measured


@pytest.mark.parametrize(
    "frames",
    [
        ("recv (torch/distributed/distributed_c10d.py:2700)", "stage (pipeline.py:40)"),
        ("_communicate (megatron/core/p2p_communication.py:300)", "stage (pipeline.py:40)"),
    ],
)
def test_a_rank_waiting_in_send_recv_is_not_accused(frames: tuple[str, ...]) -> None:
    """The recorder does not hold send/recv on gloo; the stack shows that the rank waits."""
    job = hung(rank=3)
    job.ranks[3].frames = frames
    verdict = only(watched(job, 14))
    assert verdict.suspects == ()
    assert verdict.confidence is Confidence.PARTIAL
    assert "waits for another rank" in verdict.summary


def test_a_pipeline_stage_that_waits_does_not_hide_the_one_that_does_not() -> None:
    """Ranks 2 and 3 miss the all_reduce; only the one outside communication is named."""
    job = trained()
    job.enter([0, 1])
    job.ranks[2].frames = USER_FRAMES
    job.ranks[3].frames = ("recv (torch/distributed/distributed_c10d.py:2700)",)
    assert [s.rank for s in only(watched(job, 14)).suspects] == [2]


def test_a_process_stopped_by_a_profiler_for_a_moment_is_no_evidence() -> None:
    """State t (tracing stop) of an unreadable rank accuses nobody."""
    job = hung()
    job.ranks[1].is_readable = False
    job.ranks[1].state = "t"
    assert watched(job, 14).accused == set()


def test_nobody_waiting_is_told_after_a_minute_without_a_suspect() -> None:
    """Every rank sits outside collectives: the verdict lists where, and blames nobody."""
    job = trained()
    for rank in job.ranks:
        rank.spans.append(("input", rank.at_ns, None))
    watch = watched(job, 55)
    assert watch.seen == []
    watch.run(8)
    verdict = only(watch)
    assert (verdict.class_, verdict.suspects) == ("not_collective", ())
    assert texts(verdict).count("inside next(dataloader)") == 4


def test_ranks_busy_outside_collectives_are_given_five_minutes() -> None:
    """An evaluation without collectives on every rank is no hang."""
    job = trained()
    for rank in job.ranks:
        rank.cpu_share = 1.0
    assert watched(job, 280).seen == []


def test_silence_of_unreadable_ranks_is_not_called_outside_collectives() -> None:
    """If the recorders cannot be read, where the ranks wait is not known."""
    job = trained()
    for rank in job.ranks:
        rank.is_readable = False
    verdict = only(watched(job, 70))
    assert (verdict.class_, verdict.suspects) == ("undetermined", ())


NCCL_GROUP = GroupRecord(
    time_ns=1, rank=0, pg_name="n", pg_desc="nccl_pg", backend="nccl", ranks=(0, 1, 2, 3)
)


def test_a_rank_that_may_wait_in_an_unread_group_is_not_accused() -> None:
    """Beside a group whose recorder is not read, absence from another one proves nothing."""
    job = hung()
    job.apply(0, NCCL_GROUP)
    verdict = only(watched(job, 70))
    assert (verdict.class_, verdict.suspects) == ("undetermined", ())
    assert any("nccl_pg" in gap for gap in verdict.not_measured)


def test_silence_of_an_unread_group_is_not_called_outside_collectives() -> None:
    """Where the recorder of a backend is not read, nobody claims that no rank waits."""
    job = trained()
    job.apply(0, NCCL_GROUP)
    verdict = only(watched(job, 70))
    assert (verdict.class_, verdict.suspects) == ("undetermined", ())
    assert "ranks 0-3" in verdict.summary


def test_the_last_rank_of_an_ending_job_may_take_its_time() -> None:
    """Three ranks ended normally, one still writes results: no hang."""
    job = trained()
    watch = watched(job, 1)
    for rank in (1, 2, 3):
        job.end(rank)
    watch.run(400)
    assert watch.seen == []


def test_a_job_that_ended_has_no_hang() -> None:
    """With no living rank there is nothing to say."""
    job = hung()
    watch = watched(job, 12)
    for rank in range(4):
        job.end(rank, exit_code=1)
    watch.run(3)
    assert watch.last == ()


def test_waits_that_time_out_do_not_take_the_verdict_back() -> None:
    """Gloo marks a timed-out operation like a finished one; that is no progress."""
    job = hung()
    watch = watched(job, 12)
    for index in (0, 2, 3):
        for entry in job.ranks[index].entries[-1:]:
            entry.released_ns = watch.tick_ns
    watch.run(10)
    assert [s.rank for s in only(watch).suspects] == [1]


def test_a_completion_that_was_overwritten_is_no_wait() -> None:
    """An old entry of another group whose completion the ring lost does not become a head."""
    job = SimulatedJob(2, families={"rare": [(0, 1)], WORLD: [(0, 1)]})
    job.enter([0, 1], "rare")
    for rank in job.ranks:
        rank.at_ns += 2 * SECOND
    job.train(100, lambda rank, step: 100 * MS)
    for rank in job.ranks:
        rank.num_lost = 10
    job.ranks[1].frames = USER_FRAMES
    job.enter([0])
    verdict = only(watched(job, 14))
    assert [s.rank for s in verdict.suspects] == [1]
    assert verdict.confidence is Confidence.PARTIAL


def test_what_speaks_against_a_suspect_is_shown() -> None:
    """The suspect entered something elsewhere after the others began to wait."""
    job = SimulatedJob(4, families={WORLD: [(0, 1, 2, 3)], "side": [(1, 3)]})
    job.train(60, lambda rank, step: 100 * MS, plan=[(WORLD, 1.0)])
    job.enter([0, 2])
    job.ranks[1].at_ns = job.ranks[3].at_ns = job.ranks[0].at_ns + 100 * MS
    job.enter([1, 3], "side")
    job.release()
    job.ranks[1].frames = job.ranks[3].frames = USER_FRAMES
    verdict = only(watched(job, 12))
    assert any("after the others began to wait" in item.text for item in verdict.contradicting)


def test_the_detector_does_not_change_the_state_it_is_given() -> None:
    """Evaluating twice from one state gives the same findings."""
    job = hung()
    watch = watched(job, 8)
    detector, state = HangDetector(), watch.states[0]
    kept = replace(state)
    first = detector.evaluate(job.view(), state, watch.tick_ns)
    assert detector.evaluate(job.view(), state, watch.tick_ns) == first
    assert state == kept
