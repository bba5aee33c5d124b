"""What the state of an entry leaves open: given up, issued as one, overwritten."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import pytest

from tests.support.dump_forms import Form, dump
from tests.support.stream_job import SYNC, WAIT, Call, StreamJob
from tracecore_sidecar.offline.diagnose import Answer, diagnose_paths
from tracecore_sidecar.offline.dump_entry import NUM_OF_GROUP, NUM_READ, EntryReader
from tracecore_sidecar.offline.recorder_file import RecorderFile, read_recorder

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.stream_job import Program

GROUPS: dict[str, tuple[int, ...]] = {"0": (0, 1, 2, 3)}
STOPPED = 2
GATHERS = (512, 64)


def job_of(step: Program, *, stops_at: int, num_steps: int = 5) -> StreamJob:
    """Give a job of four ranks of which one stops."""
    job = StreamJob(GROUPS, [step * num_steps for _ in range(4)], run_ahead=24)
    job.ranks[STOPPED].stops_at = stops_at
    return job.run()


def answer_of(job: StreamJob, form: Form, directory: Path) -> Answer:
    for rank in range(4):
        (directory / f"_dump_{rank}").write_bytes(pickle.dumps(dump(job, rank, form)))
    return diagnose_paths([directory])


def told(answer: Answer) -> dict[int, str]:
    return {s["rank"]: t.json["class"] for t in answer.told for s in t.json["suspects"]}


def file_of(job: StreamJob, rank: int, form: Form) -> RecorderFile:
    return read_recorder(dump(job, rank, form), "", rank, EntryReader())


PLAIN: Program = [Call("all_reduce", "0", (64,)), Call("all_reduce", "0", (8,)), SYNC]


@pytest.mark.parametrize("is_active_only", [False, True])
@pytest.mark.parametrize("given_up", [{0}, {0, 1}, {0, 1, 3}])
def test_what_the_watchdog_gave_up_is_not_over(
    tmp_path: Path, given_up: set[int], is_active_only: bool
) -> None:
    """Ranks that retired a wait without its end waited like the others, and accuse nobody."""
    form = Form(given_up=frozenset(given_up), is_active_only=is_active_only)
    answer = answer_of(job_of(PLAIN, stops_at=7), form, tmp_path)
    assert told(answer) == {STOPPED: "never_entered"}


def test_what_was_given_up_before_anything_completed_is_not_over(tmp_path: Path) -> None:
    """The counters tell it where no entry has an end to compare with."""
    form = Form(given_up=frozenset({0, 1}), is_active_only=True)
    assert told(answer_of(job_of(PLAIN, stops_at=0), form, tmp_path)) == {STOPPED: "never_entered"}


def test_a_recorder_that_never_tells_an_end_is_believed(tmp_path: Path) -> None:
    """Where nothing has an end, and no counter contradicts, retired means over."""
    value = dump(job_of(PLAIN, stops_at=7), 0, Form(given_up=frozenset({0})))
    value["pg_status"] = {}
    for entry in value["entries"]:
        entry["state"], entry["time_discovered_completed_ns"] = "scheduled", None
        entry["retired"] = True
    found = read_recorder(value, "", 0, EntryReader())
    assert all(entry.is_retired for entry in found.entries)


COALESCED: Program = [
    Call("_all_gather_base", "0", GATHERS, is_async=True),
    WAIT,
    Call("all_reduce", "0", (8,)),
    SYNC,
]


@pytest.mark.parametrize("is_active_only", [False, True])
def test_parts_of_a_finished_collective_are_waited_in_by_nobody(
    tmp_path: Path, is_active_only: bool
) -> None:
    """Parts never change: left in a dump of what is unfinished, they are finished all the same."""
    job = job_of(COALESCED, stops_at=12)
    form = Form(is_active_only=is_active_only)
    assert told(answer_of(job, form, tmp_path)) == {STOPPED: "never_entered"}
    if is_active_only:
        assert all(entry.is_retired for entry in file_of(job, STOPPED, form).entries)


def test_the_parts_of_a_collective_make_one_entry() -> None:
    """Sizes of all parts, one number; unfinished as long as the whole is."""
    entries = file_of(job_of(COALESCED, stops_at=12), 0, Form()).entries
    gather = entries[-2]
    assert [entry.collective_seq_id for entry in entries] == list(range(1, len(entries) + 1))
    assert (gather.input_sizes, gather.is_retired) == ("[[512, 8], [64, 8]]", False)
    assert entries[-3].is_retired


def test_parts_that_a_ring_has_cut_are_no_mismatch(tmp_path: Path) -> None:
    """One rank's ring begins in the middle of what the others still have whole."""
    job = job_of(COALESCED, stops_at=12)
    num_entries = len(dump(job, 1, Form())["entries"])
    form = Form(rings={1: num_entries - 5})
    entries = file_of(job, 1, form).entries
    assert entries[0].op == "coalesced"
    assert told(answer_of(job, form, tmp_path)) == {STOPPED: "never_entered"}


def batched(rank: int) -> Program:
    """Give a step of a pipeline of four, each send and recv a batch of its own."""
    step: Program = []
    if rank:
        step += [Call("recv", "0", (64,), rank - 1, is_async=True, batch=2 * rank), WAIT]
    if rank < 3:
        step += [Call("send", "0", (64,), rank + 1, is_async=True, batch=2 * rank + 1), WAIT]
    return [*step, SYNC]


def test_a_batch_of_one_that_is_over_is_waited_in_by_nobody(tmp_path: Path) -> None:
    """A stopped rank shows nothing but what it finished, and is named for the next."""
    job = StreamJob(GROUPS, [batched(rank) * 5 for rank in range(4)], run_ahead=24)
    job.ranks[STOPPED].stops_at = 10
    job.run()
    form = Form(is_active_only=True)
    assert not [entry for entry in file_of(job, STOPPED, form).entries if not entry.is_retired]
    assert told(answer_of(job, form, tmp_path)).keys() <= {STOPPED}


def test_a_ring_too_short_for_what_is_unfinished_tells_no_wait(tmp_path: Path) -> None:
    """What such a rank waits in is not known; that is said, and nobody is accused for it."""
    step: Program = [*[Call("all_reduce", "0", (n,)) for n in range(1, 9)], SYNC]
    job = job_of(step, stops_at=12)
    form = Form(rings={1: 2})
    assert file_of(job, 1, form).has_lost_unfinished
    assert not file_of(job, 0, form).has_lost_unfinished
    answer = answer_of(job, form, tmp_path)
    assert told(answer) == {STOPPED: "never_entered"}
    gaps = answer.not_measured
    assert any("rank 1" in gap and "TORCH_FR_BUFFER_SIZE" in gap for gap in gaps)


def test_of_what_finished_long_ago_only_the_last_of_each_group_is_read() -> None:
    """The first entry, a group's last ones however old, and the newest ones are all there."""
    groups: dict[str, tuple[int, ...]] = {"0": (0, 1), "1": (0, 1)}
    rare: Program = [Call("all_reduce", "1", (8,))] * 300
    often: Program = [Call("all_reduce", "0", (8,)), SYNC] * 1_500
    job = StreamJob(groups, [[*rare, *often]] * 2, run_ahead=24).run()
    value = dump(job, 0, Form())
    found = read_recorder(value, "", 0, EntryReader())
    read = {
        name: [e.collective_seq_id for e in found.entries if e.pg_name == name] for name in groups
    }
    assert found.num_entries == len(value["entries"]) == 1_800
    assert read["1"] == [1, *range(300 - NUM_OF_GROUP + 1, 301)]
    assert read["0"] == list(range(1_500 - NUM_READ - NUM_OF_GROUP + 1, 1_501))
    assert not found.is_truncated
    assert not found.is_active_only
