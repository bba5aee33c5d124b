"""The processes of a node's ranks, looked at again and again, from prepared files."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.proc_tree import FakeProcess, page
from tracecore_sidecar.sources.processes import (
    CLOSELY_EVERY_NS,
    FRESH_NS,
    MAX_KEPT_OPEN,
    ProcessSampler,
)
from tracecore_sidecar.sources.pss import MAX_RSS_BYTES, PAUSE_FACTOR, PssReader
from tracecore_train.wire.records import NOT_MEASURED

SECOND_NS = 1_000_000_000
NOW_NS = 1_000 * SECOND_NS
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def process(tmp_path: Path) -> FakeProcess:
    return FakeProcess(tmp_path, pid=7)


@pytest.fixture
def sampler(tmp_path: Path) -> ProcessSampler:
    return ProcessSampler(tmp_path)


def test_a_look_tells_the_host_side_of_the_process(
    process: FakeProcess, sampler: ProcessSampler
) -> None:
    """Faults, threads, run queue, switches and kinds of memory come in their units."""
    process.write(threads=12, major_faults=5)
    (record,) = sampler.sample([page(7)], NOW_NS)
    assert (record.state, record.num_threads, record.num_major_faults) == ("S", 12, 5)
    assert (record.main_cpu_ns, record.main_wait_ns) == (1_500_000_000, 250_000)
    assert (record.num_voluntary_switches, record.num_involuntary_switches) == (11, 766)
    assert (record.anon_bytes, record.shmem_bytes) == (148_452 * 1024, 24 * 1024)


def test_the_same_open_files_tell_what_is_new(
    process: FakeProcess, sampler: ProcessSampler
) -> None:
    """The second look sees what changed since the first."""
    sampler.sample([page(7)], NOW_NS)
    process.write(state="D", major_faults=9)
    (record,) = sampler.sample([page(7)], NOW_NS + SECOND_NS)
    assert (record.state, record.num_major_faults) == ("D", 9)


@pytest.mark.parametrize("text", ["", "0 0 0\n", "1 2\n", "a b c\n"])
def test_a_kernel_that_does_not_count_run_queues_gives_no_zero(
    process: FakeProcess, sampler: ProcessSampler, text: str
) -> None:
    """Where schedstat is empty or all 0 the times are not measured."""
    process.schedstat(text)
    (record,) = sampler.sample([page(7)], NOW_NS)
    assert (record.main_cpu_ns, record.main_wait_ns) == (NOT_MEASURED, NOT_MEASURED)


def test_missing_files_cost_only_themselves(process: FakeProcess, sampler: ProcessSampler) -> None:
    """Without status and schedstat the state still comes."""
    (process.directory / "status").unlink()
    (process.directory / "schedstat").unlink()
    (record,) = sampler.sample([page(7)], NOW_NS)
    assert (record.state, record.num_threads) == ("S", 1)
    assert record.num_involuntary_switches == record.anon_bytes == NOT_MEASURED


def test_children_are_told_apart_and_less_often(
    process: FakeProcess, sampler: ProcessSampler, tmp_path: Path
) -> None:
    """Loader workers: their number, states and memory, at close looks; ranks take turns."""
    for pid, state in ((21, "S"), (22, "D"), (23, "D")):
        FakeProcess(tmp_path, pid=pid).write(state=state, rss_pages=100)
    process.children(21, 22, 23, 24)
    (first,) = sampler.sample([page(7)], NOW_NS)
    assert (first.num_children, first.child_states) == (4, "SDD")
    assert first.children_rss_bytes == 300 * PAGE_BYTES
    process.children(21)
    (soon,) = sampler.sample([page(7)], NOW_NS + SECOND_NS)
    assert (soon.num_children, soon.main_wait_ns) == (NOT_MEASURED, NOT_MEASURED)
    (later,) = sampler.sample([page(7)], NOW_NS + CLOSELY_EVERY_NS)
    assert (later.num_children, later.child_states) == (1, "S")


def test_ranks_take_turns_in_being_looked_at_closely(tmp_path: Path) -> None:
    """In each five ticks every rank has one close look, and not all on the same tick, also after a
    pause of the sidecar.
    """
    sampler = ProcessSampler(tmp_path)
    for pid in range(1, 9):
        FakeProcess(tmp_path, pid=pid)
    pages = [page(pid, rank=pid - 1) for pid in range(1, 9)]
    sampler.sample(pages, NOW_NS - SECOND_NS * 60)
    sampler.sample(pages, NOW_NS)
    counts: dict[int, int] = {}
    most = 0
    for tick in range(1, 21):
        records = sampler.sample(pages, NOW_NS + tick * SECOND_NS)
        close = [record.rank for record in records if record.main_cpu_ns != NOT_MEASURED]
        most = max(most, len(close))
        for rank in close:
            counts[rank] = counts.get(rank, 0) + 1
    assert counts == dict.fromkeys(range(8), 4)
    assert most < 8
    sampler.close()


def test_children_a_kernel_does_not_list_are_not_zero(
    process: FakeProcess, sampler: ProcessSampler
) -> None:
    """Without the list nobody knows how many there are."""
    shutil.rmtree(process.directory / "task")
    (record,) = sampler.sample([page(7)], NOW_NS)
    assert record.num_children == NOT_MEASURED


def test_a_process_that_was_there_and_is_not_is_gone(
    process: FakeProcess, sampler: ProcessSampler
) -> None:
    """Its pid taken by another process since is gone too, though the page is fresh."""
    sampler.sample([page(7)], NOW_NS)
    process.write(start_ticks=999_999)
    (record,) = sampler.sample([page(7)], NOW_NS + SECOND_NS)
    assert (record.state, record.num_threads) == ("-", NOT_MEASURED)
    assert sampler.blind() == ()


@pytest.mark.parametrize("is_taken", [False, True])
def test_a_rank_that_beats_elsewhere_is_blind_and_not_gone(
    process: FakeProcess, sampler: ProcessSampler, is_taken: bool
) -> None:
    """Where /proc has no such pid, or gives it to somebody else, a beating rank lives on; later,
    when it beats no more, we still do not know.
    """
    if is_taken:
        process.write(start_ticks=999_999)
    else:
        shutil.rmtree(process.directory)
    seen = page(7)
    (first,) = sampler.sample([seen], NOW_NS)
    assert (first.state, first.rss_bytes) == ("?", 0)
    assert sampler.blind() == ()
    beaten = replace(seen, heartbeat_ns=seen.heartbeat_ns + SECOND_NS)
    sampler.sample([beaten], NOW_NS + SECOND_NS)
    (text,) = sampler.blind()
    assert text.startswith("host.process: /proc does not show the sidecar rank 0 (")
    (late,) = sampler.sample([beaten], NOW_NS + 10 * FRESH_NS)
    assert late.state == "?"


def test_a_page_whose_rank_is_long_dead_is_gone(
    process: FakeProcess, sampler: ProcessSampler
) -> None:
    """No process and no beat for long: it ended before we first looked."""
    shutil.rmtree(process.directory)
    old = replace(page(7), heartbeat_ns=NOW_NS - 2 * FRESH_NS)
    (record,) = sampler.sample([old], NOW_NS)
    assert record.state == "-"
    assert sampler.blind() == ()


def test_a_close_look_on_demand_is_of_the_rank_or_of_nobody(
    process: FakeProcess, sampler: ProcessSampler
) -> None:
    """It tells switches at once; after the pid was taken by another process it tells nothing."""
    sampler.sample([page(7)], NOW_NS)
    assert sampler.look_closely(0, 7, NOW_NS + 1).num_involuntary_switches == 766
    process.write(start_ticks=999_999)
    taken = sampler.look_closely(0, 7, NOW_NS + 2)
    assert (taken.state, taken.num_involuntary_switches) == ("-", NOT_MEASURED)


def test_a_close_look_at_a_hidden_rank_does_not_end_it(
    process: FakeProcess, sampler: ProcessSampler
) -> None:
    """Where /proc does not show a beating rank, its state is unknown on demand too."""
    shutil.rmtree(process.directory)
    seen = page(7)
    for number in range(2):
        beat = replace(seen, heartbeat_ns=seen.heartbeat_ns + number * SECOND_NS)
        sampler.sample([beat], NOW_NS + number * SECOND_NS)
    assert sampler.look_closely(0, 7, NOW_NS + 2 * SECOND_NS).state == "?"


def num_open_files(sampler: ProcessSampler) -> int:
    sampler.pss.wait(30)
    return len(os.listdir("/proc/self/fd"))


def test_files_are_closed_again(process: FakeProcess, tmp_path: Path) -> None:
    """A rank that leaves, that comes back under another pid, and the end leave no file open."""
    FakeProcess(tmp_path, pid=8)
    sampler = ProcessSampler(tmp_path)
    num_before = num_open_files(sampler)
    sampler.sample([page(7)], NOW_NS)
    num_open = num_open_files(sampler)
    assert num_open > num_before
    sampler.sample([page(8)], NOW_NS)
    assert num_open_files(sampler) == num_open
    sampler.sample([], NOW_NS)
    assert num_open_files(sampler) == num_before
    sampler.sample([page(7)], NOW_NS)
    sampler.close()
    assert num_open_files(sampler) == num_before


def test_a_node_with_many_ranks_keeps_no_file_open(tmp_path: Path) -> None:
    """Above the limit every look opens and closes, and tells the same."""
    for pid in range(1, 151):
        FakeProcess(tmp_path, pid=pid)
    pages = [page(pid, rank=pid) for pid in range(1, 151)]
    sampler = ProcessSampler(tmp_path)
    num_before = num_open_files(sampler)
    sampler.sample(pages, NOW_NS)
    assert num_open_files(sampler) - num_before <= 2 * MAX_KEPT_OPEN
    records = sampler.sample(pages, NOW_NS + SECOND_NS)
    assert {record.state for record in records} == {"S"}
    assert num_open_files(sampler) == num_before
    sampler.close()


def test_pss_comes_now_and_then_and_says_when(
    process: FakeProcess, sampler: ProcessSampler
) -> None:
    """It is read beside the tick and carried by later looks with the time it was read."""
    (first,) = sampler.sample([page(7)], NOW_NS)
    assert (first.pss_bytes, first.pss_time_ns) == (NOT_MEASURED, 0)
    sampler.pss.wait(30)
    (second,) = sampler.sample([page(7)], NOW_NS + CLOSELY_EVERY_NS)
    assert (second.pss_bytes, second.pss_time_ns) == (1234 * 1024, NOW_NS)


def test_pss_of_a_very_large_process_is_not_read(tmp_path: Path) -> None:
    """It would hold the process's memory lock for too long; the blind spot says so."""
    reader = PssReader(tmp_path)
    reader.start(0, 7, MAX_RSS_BYTES + 1, NOW_NS)
    found = reader.take()
    assert found is not None
    assert found.pss_bytes == NOT_MEASURED
    assert "8 GiB" in reader.reason


def test_pss_waits_long_after_a_long_read(tmp_path: Path, process: FakeProcess) -> None:
    """One read at a time, and the pause after it is a multiple of what it took."""
    (process.directory / "smaps_rollup").unlink()
    os.mkfifo(process.directory / "smaps_rollup")
    reader = PssReader(tmp_path)
    assert reader.is_due(NOW_NS)
    reader.start(0, 7, 1, NOW_NS)
    assert not reader.is_due(NOW_NS + 3_600 * SECOND_NS)
    (process.directory / "smaps_rollup").write_text("Rss: 2 kB\nPss: 1 kB\n")
    reader.wait(30)
    found = reader.take()
    assert found is not None
    assert (found.pss_bytes, reader.reason) == (1024, "")
    assert not reader.is_due(NOW_NS + 4 * SECOND_NS)
    assert reader.is_due(NOW_NS + 30 * SECOND_NS * PAUSE_FACTOR)


def test_pss_that_cannot_be_read_says_why(tmp_path: Path, process: FakeProcess) -> None:
    """A file that is not there, or has no Pss, is a reason and no number."""
    (process.directory / "smaps_rollup").write_text("Rss: 2 kB\n")
    reader = PssReader(tmp_path)
    for pid, reason in ((7, "smaps_rollup of rank 0 has no Pss"), (99, "No such file")):
        reader.start(0, pid, 1, NOW_NS)
        reader.wait(30)
        found = reader.take()
        assert found is not None
        assert found.pss_bytes == NOT_MEASURED
        assert reason in reader.reason


def test_a_real_process_and_its_child(tmp_path: Path) -> None:
    """The real /proc shows our own process, its run-queue figures and its switches."""
    sampler = ProcessSampler()
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    (record,) = sampler.sample([replace(page(os.getpid()), start_ticks=ticks)], NOW_NS)
    assert record.state in {"R", "S"}
    assert record.num_threads >= 1
    assert record.anon_bytes > 1 << 20
    assert record.num_voluntary_switches >= 0
    sampler.pss.wait(30)
    sampler.close()
