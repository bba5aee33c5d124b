"""Timeout lines of training logs, and what torchrun says of the ends."""

from __future__ import annotations

import gzip
import pickle
from typing import TYPE_CHECKING

from tests.support.recorder_dumps import DumpedJob, data_parallel
from tracecore_sidecar.offline.diagnose import Answer, diagnose_paths
from tracecore_sidecar.offline.watchdog_log import log_facts

if TYPE_CHECKING:
    from pathlib import Path

PLAIN = (
    "[rank{r}]:[E1121 10:00:00.123456789 ProcessGroupNCCL.cpp:632] [Rank {r}] Watchdog caught "
    "collective operation timeout: WorkNCCL(SeqNum={s}, OpType=ALLREDUCE, NumelIn=8320, "
    "NumelOut=8320, Timeout(ms)=600000) ran for 600029 milliseconds before timing out.\n"
)
WITH_GROUP = (
    "[rank{r}]:[E1121 ProcessGroupNCCL.cpp:688] [PG ID 3 PG GUID 17(TENSOR_GROUP) Rank {r}] "
    "Watchdog caught collective operation timeout: WorkNCCL(SeqNum={s}, OpType=_ALLGATHER_BASE, "
    "NumelIn=16, NumelOut=64, Timeout(ms)=180000) ran for 180100 milliseconds before timing out.\n"
)
COUNTS = (
    "[rank{r}]:[E1121 ProcessGroupNCCL.cpp:1834] [PG ID 0 PG GUID 0(default_pg) Rank {r}] "
    "Received a dump signal due to a collective timeout from rank 0 and we will try our best to "
    "dump the debug info. Last enqueued NCCL work: {n}, last completed NCCL work: {n}.\n"
)


def diagnosed(tmp_path: Path, text: str) -> Answer:
    (tmp_path / "train.log").write_text("epoch 1\nloss 0.3\n" + text)
    return diagnose_paths([tmp_path])


def suspects(answer: Answer) -> set[int]:
    return {s["rank"] for told in answer.told for s in told.json["suspects"]}


def test_a_timeout_line_is_read() -> None:
    """Rank, group, sequence number, operation, sizes, and how long it ran."""
    (found,) = log_facts([WITH_GROUP.format(r=3, s=482)]).timeouts
    assert (found.rank, found.pg_name, found.seq_id) == (3, "17", 482)
    assert (found.op, found.numel_in, found.ran_ms) == ("_all_gather_base", 16, 180_100)


def test_a_rank_that_told_it_had_entered_less_is_named(tmp_path: Path) -> None:
    """Rank 1 was at 481 when the others gave up on 482; a log is never full evidence."""
    text = "".join(PLAIN.format(r=r, s=482) for r in (0, 2, 3)) + COUNTS.format(r=1, n=481)
    answer = diagnosed(tmp_path, text)
    assert suspects(answer) == {1}
    (told,) = answer.told
    assert (told.json["class"], told.json["confidence"]) == ("never_entered", "partial")
    assert "#482" in told.json["summary"]


def test_a_rank_that_said_nothing_is_not_named(tmp_path: Path) -> None:
    """Three ranks gave up; what the fourth did nobody knows."""
    text = "".join(PLAIN.format(r=r, s=482) for r in (0, 1, 3))
    (told,) = diagnosed(tmp_path, text).told
    assert (told.json["class"], told.json["suspects"]) == ("undetermined", [])
    assert "rank 2 unread" in told.json["summary"]


def test_ranks_at_different_operations_are_a_mismatch(tmp_path: Path) -> None:
    """One gave up on a broadcast where the others gave up on an all_reduce."""
    text = "".join(PLAIN.format(r=r, s=9) for r in (0, 1, 3))
    text += PLAIN.format(r=2, s=9).replace("ALLREDUCE", "BROADCAST")
    answer = diagnosed(tmp_path, text)
    assert [told.json["class"] for told in answer.told] == ["mismatch"]
    assert suspects(answer) == {2}


def test_a_failed_monitored_barrier_names_its_ranks(tmp_path: Path) -> None:
    """Torch says who did not come."""
    text = "[rank0]: RuntimeError: [Rank 0]: Ranks 1, 3 failed to pass monitoredBarrier in 30000 ms"
    answer = diagnosed(tmp_path, text)
    assert suspects(answer) == {1, 3}


def test_a_rendezvous_names_the_missing_where_all_others_spoke(tmp_path: Path) -> None:
    """Three of four had joined, and three say so: the fourth is missing."""
    line = (
        "[rank{r}]: Timed out initializing process group in store based barrier on rank: {r}, for "
        "key: store_based_barrier_key:1 (world_size=4, num_workers_joined=3, timeout=0:30:00)\n"
    )
    answer = diagnosed(tmp_path, "".join(line.format(r=r) for r in (0, 1, 3)))
    assert [told.json["class"] for told in answer.told] == ["rendezvous"]
    assert suspects(answer) == {2}
    assert suspects(diagnosed(tmp_path, line.format(r=0))) == set()


ROOT_CAUSE = (
    "Root Cause (first observed failure):\n[0]:\n  time      : 2026-11-21_10:00:00\n"
    "  host      : a07\n  rank      : 2 (local_rank: 2)\n  exitcode  : {code} (pid: 4121)\n"
)


def test_a_killed_rank_without_a_dump_is_named_by_the_launchers_log(tmp_path: Path) -> None:
    """Its absence accuses nobody; that it was killed by SIGKILL before the others does."""
    job = DumpedJob(*data_parallel(4))
    job.ranks[2].stops_at = 5
    for rank, raw in job.run().pickles().items():
        if rank != 2:
            (tmp_path / f"t_{rank}").write_bytes(raw)
    assert suspects(diagnose_paths([tmp_path])) == set()
    (tmp_path / "launcher.log").write_text(ROOT_CAUSE.format(code=-9))
    answer = diagnose_paths([tmp_path])
    assert suspects(answer) == {2}
    assert "signal 9" in answer.told[0].json["summary"]


def test_an_abort_after_the_timeout_names_nobody(tmp_path: Path) -> None:
    """SIGABRT is how torch's watchdog ends a rank that waited: a consequence."""
    job = DumpedJob(*data_parallel(4)).run()
    job.ranks[1].stops_at = 0
    made = DumpedJob(*data_parallel(4))
    made.ranks[1].stops_at = 5
    made.run()
    for rank in (0, 2, 3):
        (tmp_path / f"t_{rank}").write_bytes(pickle.dumps(made.dump(rank)))
    (tmp_path / "launcher.log").write_text(ROOT_CAUSE.format(code=-6))
    assert suspects(diagnose_paths([tmp_path])) == set()


def test_a_packed_log_is_read(tmp_path: Path) -> None:
    """Logs are often rotated into gzip files."""
    text = "".join(PLAIN.format(r=r, s=482) for r in (0, 2, 3)) + COUNTS.format(r=1, n=481)
    (tmp_path / "train.log.1.gz").write_bytes(gzip.compress(text.encode()))
    assert suspects(diagnose_paths([tmp_path])) == {1}


def test_ordinary_logs_say_nothing(tmp_path: Path) -> None:
    """A log without such lines is listed as not used."""
    answer = diagnosed(tmp_path, "all is well\n" * 100)
    assert [item.status for item in answer.inputs] == ["not used"]
    assert answer.told == ()
