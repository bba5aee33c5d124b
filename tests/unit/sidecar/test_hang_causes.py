"""Causes of hangs beyond the missing rank, through the real store: what is said, and about whom."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.rank_pages import rank_page
from tests.support.recordings import MS, SimulatedJob, Watch
from tracecore_sidecar.detectors.hang import HangDetector
from tracecore_sidecar.detectors.hang.components import sink_components
from tracecore_sidecar.detectors.hang.diagnose import diagnose
from tracecore_sidecar.detectors.hang.diagnosis import Cause, Diagnosis
from tracecore_sidecar.detectors.hang.history import expected_next
from tracecore_sidecar.detectors.hang.operations import needs_everybody, needs_same_sizes, splits
from tracecore_sidecar.detectors.hang.scene import look
from tracecore_sidecar.detectors.hang.whereabouts import Patience
from tracecore_sidecar.state.store import Store
from tracecore_train.wire.records import (
    NOT_MEASURED,
    Batch,
    CollectiveRecord,
    GroupRecord,
    PullRecord,
    Source,
    SourceKind,
)

if TYPE_CHECKING:
    from tracecore_sidecar.verdicts import Verdict
    from tracecore_train.wire.records import Record

RENDEZVOUS = (
    "_store_based_barrier (torch/distributed/distributed_c10d.py:980)",
    "init_process_group (torch/distributed/distributed_c10d.py:1700)",
    "main (train.py:9)",
)
LOADING = ("read_weights (model.py:4)", "main (train.py:7)")


@dataclass
class Job:
    """Records of a few ranks, written down one by one."""

    world_size: int
    groups: dict[str, tuple[int, ...]]
    backend: str = "nccl"
    records: list[Record] = field(default_factory=list)
    at_ns: int = 1_000
    unread: set[int] = field(default_factory=set)

    def call(
        self,
        rank: int,
        pg: str,
        seq: int,
        op: str = "all_reduce",
        *,
        is_done: bool = False,
        **more: Any,
    ) -> None:
        """Let a rank enter an operation."""
        self.at_ns += 1_000
        more = {"input_sizes": "[[4]]", "input_dtypes": "['Float']", **more}
        self.records.append(
            CollectiveRecord(
                time_ns=self.at_ns,
                rank=rank,
                pg_name=pg,
                collective_seq_id=seq,
                record_id=len(self.records),
                op=op,
                created_ns=self.at_ns,
                completed_ns=0,
                is_retired=is_done,
                is_p2p=op.startswith(("send ", "recv ")),
                op_id=seq,
                **more,
            )
        )

    def causes(self) -> tuple[Diagnosis, ...]:
        """Judge what was written down."""
        source = Source(
            kind=SourceKind.SIDECAR,
            host="a",
            boot_id="a",
            pid=0,
            job_id="j",
            attempt=0,
            wall_offset_ns=0,
            world_size=self.world_size,
        )
        made: list[Record] = [
            GroupRecord(
                time_ns=1,
                rank=ranks[0],
                pg_name=name,
                pg_desc=name,
                backend=self.backend,
                ranks=ranks,
            )
            for name, ranks in self.groups.items()
        ]
        made += [
            PullRecord(time_ns=10**6, rank=rank, is_ok=True, reason="", num_entries=0, num_lost=0)
            for rank in range(self.world_size)
            if rank not in self.unread
        ]
        kept = [r for r in self.records if getattr(r, "rank", None) not in self.unread]
        store = Store(job_id="j", node_rank=0, host="a", boot_id="a")
        store.apply(Batch(source=source, records=(*made, *kept)))
        view = store.view()
        assert view is not None
        return diagnose(
            look(
                view,
                stopped_ns=0,
                fresh_after_ns=0,
                now=10**7,
                patience=Patience(),
                is_live=False,
            )
        )


def named(causes: tuple[Diagnosis, ...]) -> list[tuple[str, list[int]]]:
    return [(c.cause.value, [w.rank for w in c.suspects]) for c in causes]


def test_the_rank_that_did_not_finish_what_the_others_finished_is_named() -> None:
    """Three are through and have moved on; the fourth is stuck in the operation."""
    job = Job(4, {"g": (0, 1, 2, 3)})
    for rank in range(4):
        job.call(rank, "g", 1, is_done=rank != 2)
    for rank in (0, 1, 3):
        job.call(rank, "g", 2)
    assert named(job.causes()) == [("stuck_peers_done", [2])]


def test_most_being_stuck_accuses_nobody() -> None:
    """One is through and three are not: a transfer broke, it is not told where."""
    job = Job(4, {"g": (0, 1, 2, 3)})
    for rank in range(4):
        job.call(rank, "g", 1, is_done=rank == 2)
    job.call(2, "g", 2)
    assert all(not diagnosis.suspects for diagnosis in job.causes())


def test_a_broadcast_that_is_over_for_its_root_accuses_nobody() -> None:
    """The root of a broadcast may be through long before the others."""
    job = Job(3, {"g": (0, 1, 2)})
    job.call(0, "g", 1, "broadcast", is_done=True)
    job.call(1, "g", 1, "broadcast", is_done=True)
    job.call(2, "g", 1, "broadcast")
    assert all(not diagnosis.suspects for diagnosis in job.causes())


def test_a_device_that_did_not_begin_is_named_where_timing_tells() -> None:
    """All entered; the recorder says that three devices run it and one does not."""
    job = Job(4, {"g": (0, 1, 2, 3)})
    for rank in range(4):
        job.call(rank, "g", 1, is_started=rank != 3)
    assert named(job.causes()) == [("none_completed", [3])]


def test_a_recv_whose_send_was_never_issued_names_the_sender() -> None:
    """Rank 1 waits for a message, rank 0 waits for rank 1 elsewhere and never sent it."""
    job = Job(2, {"g": (0, 1)})
    job.call(0, "g", 0, "send 0->1", is_done=True)
    job.call(1, "g", 0, "recv 1<-0", is_done=True)
    job.call(1, "g", 0, "recv 1<-0")
    job.call(0, "g", 1)
    causes = job.causes()
    assert named(causes) == [("unmatched_p2p", [0])]


def test_a_message_in_the_other_direction_is_no_match() -> None:
    """Both sides wait to receive: each lacks the other's send, and neither is singled out."""
    job = Job(2, {"g": (0, 1)})
    job.call(0, "g", 0, "recv 0<-1")
    job.call(1, "g", 0, "recv 1<-0")
    assert named(job.causes()) == [("unmatched_p2p", [])]


def test_both_sides_of_a_message_that_does_not_arrive_name_nobody() -> None:
    """Issued on both sides and not complete: the link between them."""
    job = Job(2, {"g": (0, 1)})
    job.call(0, "g", 0, "send 0->1")
    job.call(1, "g", 0, "recv 1<-0")
    (cause,) = job.causes()
    assert (cause.cause, cause.suspects) == (Cause.NONE_COMPLETED, ())
    assert cause.head is not None
    assert cause.head.link == (0, 1)


@pytest.mark.parametrize(
    ("backend", "expected"), [("gloo", ("none_completed", [])), ("nccl", ("stuck_peers_done", [1]))]
)
def test_a_message_that_was_sent_and_does_not_arrive(
    backend: str, expected: tuple[str, list[int]]
) -> None:
    """Gloo calls a send over when the kernel has taken it: it may be lost between the two."""
    job = Job(2, {"g": (0, 1)}, backend=backend)
    job.call(0, "g", 0, "send 0->1", is_done=True)
    job.call(1, "g", 0, "recv 1<-0")
    job.call(0, "g", 0, "recv 0<-1")
    assert named(job.causes()) == [expected]


def test_a_sender_that_is_not_through_though_its_message_arrived_is_named() -> None:
    """Rank 1 has received, so neither it nor the link keeps rank 0 in its send."""
    job = Job(2, {"g": (0, 1)}, backend="gloo")
    job.call(0, "g", 0, "send 0->1")
    job.call(1, "g", 0, "recv 1<-0", is_done=True)
    job.call(1, "g", 0, "recv 1<-0")
    assert named(job.causes()) == [("stuck_peers_done", [0])]


def test_a_message_told_before_its_rank_fell_silent_is_no_wait() -> None:
    """Rank 1 holds the GIL: the recv it told of last may be over, and it keeps 0 waiting."""
    job = Job(2, {"g": (0, 1)}, backend="gloo")
    job.call(0, "g", 0, "send 0->1", tag=0, is_done=True)
    job.call(1, "g", 0, "recv 1<-0", tag=0)
    job.call(0, "g", 0, "send 0->1", tag=0)
    told = rank_page(10**6, pid=1, rank=1, time_ns=10**6)
    job.records.append(told)
    assert [w for _, w in named(job.causes())] == [[]]
    job.records[-1] = replace(told, heartbeat_ns=0)
    assert named(job.causes()) == [("never_entered", [1])]


def test_messages_of_unlike_tags_are_no_match_on_gloo() -> None:
    """Rank 0 sends under one tag, rank 1 waits for another: no link between them is blamed."""
    job = Job(2, {"g": (0, 1)}, backend="gloo")
    job.call(0, "g", 0, "send 0->1", tag=99)
    job.call(1, "g", 0, "recv 1<-0", tag=0)
    assert named(job.causes()) == [("unmatched_p2p", [])]


def test_messages_of_like_tags_are_matched_past_others() -> None:
    """What is lost is the message of the tag both are in, though another one was sent before."""
    job = Job(2, {"g": (0, 1)}, backend="gloo")
    job.call(0, "g", 0, "send 0->1", tag=5, is_done=True)
    job.call(1, "g", 0, "recv 1<-0", tag=5, is_done=True)
    job.call(0, "g", 0, "send 0->1", tag=7)
    job.call(1, "g", 0, "recv 1<-0", tag=7)
    assert named(job.causes()) == [("none_completed", [])]


@pytest.mark.parametrize(("backend", "tag"), [("nccl", 0), ("gloo", NOT_MEASURED)])
def test_tags_that_do_not_count_are_no_difference(backend: str, tag: int) -> None:
    """NCCL takes messages in order whatever their tag; a side that tells none may have any."""
    job = Job(2, {"g": (0, 1)}, backend=backend)
    job.call(0, "g", 0, "send 0->1", tag=99)
    job.call(1, "g", 0, "recv 1<-0", tag=tag)
    assert named(job.causes()) == [("none_completed", [])]


def test_a_pipeline_stage_that_waits_for_its_neighbour_is_not_named() -> None:
    """Stage 2 waits for 1, 1 waits for 0, and 0 never sent: only 0 is named."""
    job = Job(3, {"g": (0, 1, 2)})
    job.call(1, "g", 0, "recv 1<-0")
    job.call(2, "g", 0, "recv 2<-1")
    assert named(job.causes()) == [("never_entered", [0])]


def test_the_last_message_of_a_stuck_rank_blames_nobody() -> None:
    """Rank 1 did not finish what 0 and 2 did; the sender of its open recv has long sent it."""
    job = Job(3, {"g": (0, 1, 2)})
    job.call(1, "g", 0, "recv 1<-0")
    for rank in range(3):
        job.call(rank, "g", 1, is_done=rank != 1)
    assert named(job.causes()) == [("stuck_peers_done", [1])]


def test_going_on_in_another_group_shows_that_an_operation_succeeded() -> None:
    """On gloo "over" may mean failed, but 0 and 3 went on to other groups: 1 and 2 are stuck."""
    job = Job(4, {"g": (0, 1, 2, 3), "a": (0, 1), "b": (2, 3)}, backend="gloo")
    for rank in range(4):
        job.call(rank, "g", 1, is_done=rank in (0, 3))
    job.call(0, "a", 1)
    job.call(3, "b", 1)
    assert named(job.causes()) == [("stuck_peers_done", [1, 2])]


def test_an_operation_that_is_over_for_ranks_that_did_not_go_on_may_have_failed() -> None:
    """Nobody entered anything after what is over for 0 and 3: 1 and 2 are not accused."""
    job = Job(4, {"g": (0, 1, 2, 3), "a": (0, 1), "b": (2, 3)}, backend="gloo")
    for rank in range(4):
        job.call(rank, "a" if rank < 2 else "b", 1, is_done=True)
    for rank in range(4):
        job.call(rank, "g", 1, is_done=rank in (0, 3))
    assert all(not c.suspects for c in job.causes())


def steps_of_a_pipeline(job: Job, num: int, tag: int = 0) -> None:
    """Let rank 0 send and receive, rank 1 receive and send, and both reduce, again and again."""
    for step in range(num):
        job.call(0, "g", 0, "send 0->1", is_done=True, tag=tag)
        job.call(1, "g", 0, "recv 1<-0", is_done=True, tag=tag)
        job.call(1, "g", 0, "send 1->0", is_done=True, tag=tag)
        job.call(0, "g", 0, "recv 0<-1", is_done=True, tag=tag)
        for rank in (0, 1):
            job.call(rank, "g", step + 1, is_done=True)


def test_the_rank_that_receives_out_of_turn_is_named() -> None:
    """Both wait to receive; rank 0 has always sent here, rank 1 has always received."""
    job = Job(2, {"g": (0, 1)}, backend="gloo")
    steps_of_a_pipeline(job, 4)
    job.call(0, "g", 0, "recv 0<-1", tag=0)
    job.call(1, "g", 0, "recv 1<-0", tag=0)
    assert named(job.causes()) == [("unmatched_p2p", [0])]


def test_a_message_with_an_unusual_tag_names_its_sender() -> None:
    """Rank 0 sends under a tag it has never used here, rank 1 waits for the usual one."""
    job = Job(2, {"g": (0, 1)}, backend="gloo")
    steps_of_a_pipeline(job, 4)
    job.call(0, "g", 0, "send 0->1", tag=99)
    job.call(1, "g", 0, "recv 1<-0", tag=0)
    assert named(job.causes()) == [("unmatched_p2p", [0])]


def test_two_ranks_without_a_past_are_not_told_apart() -> None:
    """One step is no past: who receives out of turn in the second is not known."""
    job = Job(2, {"g": (0, 1)}, backend="gloo")
    steps_of_a_pipeline(job, 1)
    job.call(0, "g", 0, "recv 0<-1", tag=0)
    job.call(1, "g", 0, "recv 1<-0", tag=0)
    assert named(job.causes()) == [("unmatched_p2p", [])]


def test_unequal_splits_name_the_rank_all_bad_pairs_share() -> None:
    """Rank 1 sends other amounts than both others take; they agree among themselves."""
    job = Job(3, {"g": (0, 1, 2)})
    sends = [[[1], [2], [3]], [[9], [5], [9]], [[7], [8], [9]]]
    takes = [[[1], [4], [7]], [[2], [5], [8]], [[3], [6], [9]]]
    for rank in range(3):
        sizes: dict[str, Any] = {"input_sizes": str(sends[rank]), "output_sizes": str(takes[rank])}
        job.call(rank, "g", 1, "all_to_all", **sizes)
    assert named(job.causes()) == [("mismatch", [1])]


def test_one_unequal_pair_shows_both_sides() -> None:
    """Of two that disagree about one amount either may be off."""
    job = Job(3, {"g": (0, 1, 2)})
    sends = [[[1], [2], [3]], [[4], [5], [9]], [[7], [8], [9]]]
    takes = [[[1], [4], [7]], [[2], [5], [8]], [[3], [6], [9]]]
    for rank in range(3):
        sizes: dict[str, Any] = {"input_sizes": str(sends[rank]), "output_sizes": str(takes[rank])}
        job.call(rank, "g", 1, "all_to_all", **sizes)
    (cause,) = job.causes()
    assert (cause.cause, cause.suspects) == (Cause.MISMATCH, ())
    assert cause.mismatch is not None
    assert {rank for _, ranks in cause.mismatch.sides for rank in ranks} == {1, 2}


def test_two_independent_causes_are_two_diagnoses() -> None:
    """A rank that never came, and elsewhere members that disagree."""
    job = Job(6, {"a": (0, 1, 2), "b": (3, 4, 5)})
    for rank in (0, 1):
        job.call(rank, "a", 1)
    for rank in (3, 4):
        job.call(rank, "b", 1)
    job.call(5, "b", 1, "all_gather")
    assert sorted(named(job.causes())) == [("mismatch", [5]), ("never_entered", [2])]


def test_a_wait_that_failed_on_gloo_still_tells_who_was_missing() -> None:
    """Gloo calls a timed-out operation over; that one member never entered shows it failed."""
    job = Job(3, {"g": (0, 1, 2)}, backend="gloo")
    for rank in range(3):
        job.call(rank, "g", 1, is_done=True)
    for rank in (0, 2):
        job.call(rank, "g", 2, is_done=True)
    assert named(job.causes()) == [("never_entered", [1])]


def test_an_older_dump_is_no_sign_of_a_failed_wait() -> None:
    """Two ranks are several operations ahead: the third was read earlier, nobody waits."""
    job = Job(3, {"g": (0, 1, 2)}, backend="gloo")
    for seq in range(1, 6):
        for rank in range(3) if seq == 1 else (0, 2):
            job.call(rank, "g", seq, is_done=True)
    assert all(not diagnosis.suspects for diagnosis in job.causes())


def test_a_member_that_was_not_read_and_took_part_later_is_no_blocker() -> None:
    """Rank 1 left no dump; rank 2 finished what needs rank 1, which it entered after this."""
    job = Job(4, {"a": (0, 1), "b": (0, 1, 2, 3)}, unread={1})
    job.call(0, "a", 1)
    for rank in (0, 2, 3):
        job.call(rank, "b", 1, is_done=rank != 0)
    for rank in (2, 3):
        job.call(rank, "b", 2)
    assert named(job.causes()) == [("stuck_peers_done", [0])]


@pytest.mark.parametrize("missing", [0, 2, 3])
def test_who_is_missing_in_the_making_of_a_group_is_named(missing: int) -> None:
    """Three ranks are inside init_process_group, one loads weights."""
    job = SimulatedJob(4)
    for index, rank in enumerate(job.ranks):
        rank.frames = LOADING if index == missing else RENDEZVOUS
    watch = Watch(job, [HangDetector()])
    watch.run(200)
    (verdict,) = watch.last
    assert verdict.class_ == "rendezvous"
    assert [s.rank for s in verdict.suspects] == [missing]
    assert "making of a process group" in verdict.summary


def test_all_ranks_making_a_group_name_nobody() -> None:
    """Everybody is inside: the store or the network, no rank."""
    job = SimulatedJob(2)
    for rank in job.ranks:
        rank.frames = RENDEZVOUS
    watch = Watch(job, [HangDetector()])
    watch.run(200)
    (verdict,) = watch.last
    assert (verdict.class_, verdict.suspects) == ("rendezvous", ())


def trained(world_size: int = 3) -> SimulatedJob:
    job = SimulatedJob(world_size)
    job.train(60, lambda rank, step: 100 * MS)
    return job


def only(watch: Watch) -> Verdict:
    (verdict,) = watch.last
    return verdict


def test_a_compiling_rank_is_given_minutes() -> None:
    """A recompilation on one rank is an excuse for five minutes, then it is the reason."""
    job = trained()
    job.ranks[1].frames = ("compile_fx (torch/_inductor/compile_fx.py:1)", "main (train.py:1)")
    job.enter([0, 2])
    watch = Watch(job, [HangDetector()])
    watch.run_to_end(250)
    assert watch.seen == []
    watch.run(80)
    assert [s.rank for s in only(watch).suspects] == [1]
    assert "compil" in only(watch).actions[0]


def test_a_debugger_is_left_alone() -> None:
    """Somebody is at work in a debugger: no verdict for half an hour."""
    job = trained()
    job.ranks[1].frames = ("interaction (pdb.py:350)", "main (train.py:1)")
    job.enter([0, 2])
    watch = Watch(job, [HangDetector()])
    watch.run_to_end(400)
    assert watch.seen == []


@pytest.mark.parametrize(
    ("past", "expected"),
    [
        (["a", "b", "c", "a", "b", "c", "a", "b"], "c"),
        (["a", "b", "x", "a", "b", "y", "z", "a", "b"], "y"),
        (["a", "b", "c", "d"], None),
        ([], None),
    ],
)
def test_what_comes_next_is_told_by_the_longest_repetition(
    past: list[str], expected: str | None
) -> None:
    """The place whose history matches longest decides, the latest of equal ones."""
    assert expected_next(past) == expected


def test_sink_components_are_those_that_nothing_leaves() -> None:
    """A circle that leads elsewhere is none; one that does not is, and so is a lone end."""
    sources, targets = [0, 1, 1, 3, 4], [1, 0, 2, 4, 3]
    assert sink_components(6, sources, targets, [False] * 6) == [(2,), (3, 4), (5,)]
    assert sink_components(3, [0, 1], [1, 0], [False, False, True]) == [(0, 1)]


def test_operations_are_known_by_any_of_their_names() -> None:
    """Who must take part and what must be equal, for the names torch gives."""
    assert needs_everybody("_all_gather_base [[4]] ['Float']")
    assert needs_everybody("all_to_all [[4]] ['Float'] -> [[5]]")
    assert not needs_everybody("broadcast [[4]] ['Float']")
    assert not needs_everybody("send 0->1 [[4]] ['Float']")
    assert needs_same_sizes("_reduce_scatter_base [[4]] ['Float']")
    assert not needs_same_sizes("all_gather [[4]] ['Float']")
    assert splits("all_to_all [[2, 3], [4]] ['Float'] -> [[1], [9]]") == ((6, 4), (1, 9))
    assert splits("all_to_all [[2, 3]] ['Float']") is None


RECEIVING = ("recv (torch/distributed/distributed_c10d.py:2600)", "forward (pipeline.py:12)")


@pytest.mark.parametrize("asleep", [0, 1, 2])
def test_a_stage_that_the_others_receive_from_is_told_from_stacks(asleep: int) -> None:
    """Gloo records no receive; where all others wait in one, the rank elsewhere is named, and the
    verdict says that this is less than certain.
    """
    job = trained()
    for index, rank in enumerate(job.ranks):
        rank.frames = LOADING if index == asleep else RECEIVING
    job.ranks[asleep].wchan = "hrtimer_nanosleep"
    watch = Watch(job, [HangDetector()])
    watch.run(15)
    (verdict,) = watch.last
    assert (verdict.class_, verdict.confidence.value) == ("never_entered", "partial")
    assert [s.rank for s in verdict.suspects] == [asleep]
    assert "wait for a message" in verdict.summary


@pytest.mark.parametrize("wchan", ["futex_do_wait", "do_sys_poll", "", "0"])
def test_a_rank_that_may_wait_without_a_frame_is_not_accused(wchan: str) -> None:
    """``work.wait()`` in the user's own function looks like user code that sleeps on a lock."""
    job = trained()
    for index, rank in enumerate(job.ranks):
        rank.frames = ("finish (pipeline.py:30)",) if index == 1 else RECEIVING
        rank.wchan = wchan
    watch = Watch(job, [HangDetector()])
    watch.run(90)
    assert watch.accused == set()


@pytest.mark.parametrize("num_unrecorded", [0, 40])
def test_beside_a_missing_rank_one_that_may_receive_is_not_accused(num_unrecorded: int) -> None:
    """Rank 0 waits in an all_reduce, rank 1 sleeps, and rank 2 is in a lock of its own function:
    where the job sends and receives that may be a receive from rank 1, else it is missing too.
    """
    job = SimulatedJob(3)
    job.num_unrecorded = num_unrecorded
    job.train(60, lambda rank, step: 100 * MS)
    for index, wchan in ((1, "hrtimer_nanosleep"), (2, "futex_do_wait")):
        job.ranks[index].frames = ("finish (pipeline.py:30)",)
        job.ranks[index].wchan = wchan
    job.enter([0])
    watch = Watch(job, [HangDetector()])
    watch.run_to_end(20)
    assert watch.accused == ({1} if num_unrecorded else {1, 2})


def test_a_rank_without_a_stack_is_not_taken_for_the_one_that_does_not_send() -> None:
    """Two receive and the third could not be looked at: nobody is named."""
    job = trained()
    for index, rank in enumerate(job.ranks):
        rank.frames = () if index == 1 else RECEIVING
    watch = Watch(job, [HangDetector()])
    watch.run(90)
    assert watch.accused == set()


def test_ranks_that_all_receive_name_nobody() -> None:
    """Everybody waits for a message: the schedule is wrong somewhere, nobody is singled out."""
    job = trained()
    for rank in job.ranks:
        rank.frames = RECEIVING
    watch = Watch(job, [HangDetector()])
    watch.run(90)
    (verdict,) = watch.last
    assert (verdict.class_, verdict.suspects) == ("undetermined", ())


def test_stacks_do_not_accuse_where_a_device_may_be_waited_for() -> None:
    """On NCCL a rank that waits for its own queue looks busy with its own code."""
    job = SimulatedJob(3, device="cuda")
    job.train(60, lambda rank, step: 100 * MS)
    for index, rank in enumerate(job.ranks):
        rank.frames = LOADING if index == 1 else RECEIVING
        rank.wchan = "hrtimer_nanosleep"
    watch = Watch(job, [HangDetector()])
    watch.run(90)
    assert watch.accused == set()
