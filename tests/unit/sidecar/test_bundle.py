"""A bundle is whole or absent, bounded, and says what it lacks."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pickle
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.cases import job_view, open_test_case, waits
from tests.support.fake_ras import TEXT_REPORT, End, FakeRas, group, member, nccl_report
from tests.support.rank_pages import rank_page
from tests.support.small_disk import small_disk
from tests.support.verdicts import WALL_OFFSET_NS, event_of
from tracecore_sidecar.bundle import bundler as bundler_module
from tracecore_sidecar.bundle import dumps, gather
from tracecore_sidecar.bundle.bundler import BundleError, Bundler
from tracecore_sidecar.bundle.case import Role, open_case
from tracecore_sidecar.bundle.folder import (
    BundleFolder,
    FolderClosedError,
    NoRoomError,
    SpoiledError,
)
from tracecore_sidecar.bundle.process_facts import (
    looks_like_checkpoint,
    read_environment,
    read_facts,
)
from tracecore_sidecar.pull_policy import NcclPull
from tracecore_sidecar.sources.beside import beside
from tracecore_sidecar.sources.worker_server import PullError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tracecore_sidecar.bundle.bundler import Bundle
    from tracecore_sidecar.bundle.case import Case

NOBODY = (2**22 - 1, 9)
"""A process that does not exist."""
STRANGERS = nccl_report([group([member(0, 1, host="192.0.2.1")])])
"""What NCCL RAS tells of another job."""
JOB_SAID, ALL_SAID = "what NCCL RAS says of this job", "all that NCCL RAS has to say"


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "SETTLE_S", 0.0)


def make(tmp_path: Path, case: Case, **settings: Any) -> Bundle:
    """Make a bundle in ``tmp_path/out`` of a job without sockets or pages."""

    async def run() -> Bundle:
        (tmp_path / "job").mkdir(exist_ok=True)
        output = settings.pop("output", tmp_path / "out")
        bundler = Bundler(tmp_path / "job", output, wall_offset_ns=WALL_OFFSET_NS, **settings)
        return await bundler.make(case)

    return asyncio.run(run())


def manifest_of(bundle: Bundle) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((bundle.path / "manifest.json").read_text())
    return found


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until a condition holds."""
    for _ in range(30_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("the condition did not come true")


# The folder.


def test_a_bundle_is_not_seen_before_it_is_whole(tmp_path: Path) -> None:
    """Files come into a hidden directory; finishing renames it with the manifest inside."""
    folder = BundleFolder(tmp_path / "bundles" / "ab12").open()
    folder.add("stacks/rank1.txt", b"frames", "stacks")
    assert not folder.path.exists()
    folder.finish({"n": 1})
    assert sorted(path.name for path in (tmp_path / "bundles").iterdir()) == ["ab12"]
    assert (folder.path / "stacks" / "rank1.txt").read_bytes() == b"frames"
    assert json.loads((folder.path / "manifest.json").read_text()) == {"n": 1}
    with pytest.raises(FolderClosedError):
        folder.add("late", b"x", "a thread that came too late")


def test_an_abandoned_bundle_leaves_nothing(tmp_path: Path) -> None:
    """What was written goes, and what comes later is refused."""
    folder = BundleFolder(tmp_path / "ab12").open()
    folder.add("a", b"x", "a")
    folder.abandon()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FolderClosedError):
        folder.add("b", b"x", "b")


def test_a_file_over_the_limit_is_left_out_and_smaller_ones_still_fit(tmp_path: Path) -> None:
    """The limit holds for the sum, whatever the order."""
    folder = BundleFolder(tmp_path / "ab12", max_bytes=100).open()
    folder.add("a", b"x" * 60, "a")
    with pytest.raises(NoRoomError, match="limit of 100 bytes"):
        folder.add("b", b"x" * 41, "b")
    folder.add("c", b"x" * 40, "c")
    assert [file.path for file in folder.files()] == ["a", "c"]
    assert folder.num_bytes == 100


def test_what_a_killed_sidecar_left_is_replaced(tmp_path: Path) -> None:
    """A stale half-written directory does not end up in the new bundle."""
    BundleFolder(tmp_path / "ab12").open().add("stale", b"x", "stale")
    folder = BundleFolder(tmp_path / "ab12").open()
    folder.finish({})
    assert [path.name for path in folder.path.iterdir()] == ["manifest.json"]


def test_a_full_disk_spoils_the_folder(tmp_path: Path) -> None:
    """The writer is told why, and abandoning gives the room back."""
    with small_disk(tmp_path / "d") as disk:
        folder = BundleFolder(disk.path / "ab12").open()
        disk.fill()
        with pytest.raises(SpoiledError, match="No space left"):
            folder.add("a/b", b"x" * 100_000, "a")
        folder.abandon()
        assert [path.name for path in disk.path.iterdir()] == ["filler"]


# Beside the loop.


def test_a_call_that_hangs_costs_its_deadline_and_no_place() -> None:
    """The waiter goes on after the deadline; another call runs meanwhile."""
    release = threading.Event()

    async def run() -> tuple[float, int]:
        started = time.monotonic()
        with pytest.raises(TimeoutError, match=r"no answer within 0\.1 s"):
            await beside(0.1, lambda: release.wait(30))
        return time.monotonic() - started, await beside(5.0, lambda: 7)

    seconds, answer = asyncio.run(run())
    release.set()
    assert seconds < 5
    assert answer == 7


def test_what_a_call_raises_is_raised_to_the_waiter() -> None:
    """An error in the thread is the waiter's error."""
    with pytest.raises(PullError, match="why"):
        asyncio.run(beside(5.0, lambda: (_ for _ in ()).throw(PullError("why"))))


# Dumps.


def entry(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "record_id": 4,
        "process_group": ["0", "default_pg"],
        "time_created_ns": 1_000_000_000,
        "time_discovered_completed_ns": 0,
        "timeout_ms": 1_800_000,
        "retired": False,
    }
    return values | changes


def test_a_dump_becomes_what_torch_pickles() -> None:
    """Groups are ours, counters are numbers, 0 is None again, and frames are there to be read."""
    (group,) = job_view({0: NOBODY}).groups.values()
    dump = {
        "version": "2.10",
        "pg_config": {"": {"name": "", "desc": "", "ranks": "[]"}},
        "pg_status": {"0": {"last_enqueued_collective": "66", "last_started_collective": "-1"}},
        "entries": [entry(), "no entry"],
    }
    found = pickle.loads(dumps.torch_pickle(dump, [group], 0))
    assert found["pg_config"] == {"0": {"name": "0", "desc": "default_pg", "ranks": "[0, 1, 2, 3]"}}
    assert found["pg_status"]["0"] == {
        "last_enqueued_collective": 66,
        "last_started_collective": -1,
    }
    assert found["entries"] == [
        {
            **entry(),
            "frames": [],
            "process_group": ("0", "default_pg"),
            "time_discovered_started_ns": None,
            "time_discovered_completed_ns": None,
        }
    ]


def test_an_empty_ring_has_an_empty_list_of_entries() -> None:
    """Torch leaves the key out, its analyzer needs it; a group the rank is not in stays out."""
    (group,) = job_view({0: NOBODY}).groups.values()
    found = pickle.loads(dumps.torch_pickle({"version": "2.10"}, [group], 9))
    assert (found["entries"], found["pg_config"], found["pg_status"]) == ([], {}, {})


def test_a_pickle_holds_plain_values_only() -> None:
    """No class is needed to load one: our own restricted reader takes it, too."""
    (group,) = job_view({0: NOBODY}).groups.values()
    raw = dumps.torch_pickle({"entries": [entry()]}, [group], 0)

    class Plain(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            raise AssertionError(f"{module}.{name}")

    assert Plain(io.BytesIO(raw)).load()["entries"]


@pytest.mark.parametrize("raw", [b"", b"[1]", b'{"entries": 3}', b"{" * 100_000])
def test_what_is_no_dump_is_refused(raw: bytes) -> None:
    """Whatever holds the socket cannot get more than a reason into the bundle."""
    with pytest.raises(PullError):
        dumps.parse_dump(raw)


def test_the_wait_that_torch_would_give_up_first_counts() -> None:
    """Finished entries and hostile numbers do not count."""
    waiting = [entry(time_created_ns=3_000_000_000, timeout_ms=1_000), entry()]
    rest = [entry(retired=True, timeout_ms=1), entry(timeout_ms="1"), entry(timeout_ms=True), 7]
    assert dumps.give_up_wall_ns({"entries": waiting + rest}) == 4_000_000_000
    assert dumps.give_up_wall_ns({"entries": rest}) is None


# Who is looked at.


def test_suspects_come_first_then_typical_waiters() -> None:
    """Of many that wait the first and the last are typical; the others give their dump only."""
    view = job_view({rank: (100 + rank, 5) for rank in range(8)}, world_size=8)
    case = open_test_case(view, waits(0, 2, 3, 4, 5, 6, 7))
    assert [(rank.rank, rank.role.value) for rank in case.ranks[:3]] == [
        (1, "suspect"),
        (0, "waiter"),
        (7, "waiter"),
    ]
    assert {rank.role for rank in case.ranks[3:]} == {Role.OTHER}
    assert [rank.rank for rank in case.ranks[3:]] == [2, 3, 4, 5, 6]


def test_a_suspect_of_another_node_is_named_with_its_host() -> None:
    """Nothing of it can be had here, and the waiters of this node still are."""
    view = job_view({0: (100, 5), 2: (102, 5)}, remote=[1])
    case = open_test_case(view, waits(0, 2, 3))
    assert case.elsewhere == {1: "a08"}
    assert [(rank.rank, rank.role.value) for rank in case.ranks] == [(0, "waiter"), (2, "waiter")]


def test_without_suspects_more_waiters_are_looked_at() -> None:
    """A verdict that names nobody and lists nobody still shows where four ranks are."""
    view = job_view({rank: (100 + rank, 5) for rank in range(8)}, world_size=8)
    case = open_test_case(view, waits(suspects=()))
    assert [rank.rank for rank in case.ranks if rank.is_looked_at] == [0, 2, 5, 7]


def test_a_rank_that_did_not_introduce_this_process_is_not_known_for_certain() -> None:
    """Its start time is 0 where its pid is not the one it told."""
    view = job_view({0: (100, 5)})
    view.ranks.pid.base[0] = 101  # type: ignore[index]
    (rank,) = open_test_case(view, waits(0, suspects=())).ranks
    assert (rank.pid, rank.start_ticks) == (101, 0)


# Process facts.


def test_process_facts_show_what_helps_and_no_secret(tmp_path: Path) -> None:
    """State, share, children and the open checkpoint are there; arguments and keys are not."""
    checkpoint = tmp_path / "step-100.pt.tmp"
    program = (
        "import subprocess, sys, time\n"
        "file = open(sys.argv[1], 'wb'); file.write(b'x' * 10); file.flush()\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        "print('ready', flush=True)\n"
        "try:\n    time.sleep(600)\nfinally:\n    child.kill()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(checkpoint), "--token=hunter2"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "RANK": "3", "API_KEY": "hunter2", "NCCL_DEBUG": "INFO"},
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        facts = read_facts(3, process.pid)
        environment = read_environment(process.pid)
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()
    assert (facts["state"], facts["pid"]) == ("S", process.pid)
    assert facts["cpu_share"] < 0.5
    assert [child["name"] for child in facts["children"]] == ["sleep"]
    assert facts["open_checkpoints"] == [
        {"path": str(checkpoint), "position": "10", "is_for_writing": True}
    ]
    assert (environment["RANK"], environment["NCCL_DEBUG"]) == ("3", "INFO")
    assert "hunter2" not in json.dumps([facts, environment])


def test_a_process_that_is_gone_gives_reasons(tmp_path: Path) -> None:
    """Nothing raises; every file that could not be read is listed."""
    facts = read_facts(3, NOBODY[0], sleep=lambda _: None)
    assert (facts["state"], facts["threads"], facts["children"]) == ("-", [], [])
    assert {"status", "fd", "cgroup"} <= facts["not_read"].keys()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/data/ckpt/model.pt", True),
        ("/data/run7/checkpoint-100/optimizer.bin", True),
        ("/data/x.safetensors.tmp", True),
        ("/data/step5.distcp (deleted)", True),
        ("/data/checkpoint.py", False),
        ("/dev/shm/x.pt", False),
        ("/usr/lib/libcheckpoint.so", False),
        ("socket:[123]", False),
        ("/data/train.parquet", False),
    ],
)
def test_open_checkpoints_are_told_by_name(path: str, expected: bool) -> None:
    """Checkpoint suffixes and words count, code and devices do not."""
    assert looks_like_checkpoint(path) is expected


# The whole.


def test_a_disk_that_fills_up_ends_the_gathering_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user learns of it now and not when the slowest read is over."""
    monkeypatch.setattr(gather, "read_facts", lambda *_: time.sleep(30))
    case = open_test_case(job_view({1: (os.getpid(), 5)}), waits())
    monkeypatch.setattr(BundleFolder, "_reserve", _no_room)
    started = time.monotonic()
    with pytest.raises(BundleError, match="No space left"):
        make(tmp_path, case)
    assert time.monotonic() - started < 15
    assert list((tmp_path / "out" / "bundles").iterdir()) == []


def _no_room(self: BundleFolder, num_bytes: int) -> None:
    raise SpoiledError("No space left on device")


def test_what_cannot_be_had_is_listed_with_the_reason(tmp_path: Path) -> None:
    """A job whose processes are gone and whose sockets never were still gives a bundle."""
    view = job_view({0: NOBODY, 1: NOBODY}, remote=[2], backend="nccl")
    bundle = make(tmp_path, open_test_case(view, waits(0, suspects=(1, 2))))
    found = manifest_of(bundle)
    missing = {item["what"]: item["reason"] for item in found["missing"]}
    assert missing["gloo flight recorder of rank 0"] == "the rank has no worker server (no socket)"
    assert missing["everything of rank 2"] == "it runs on host a08; see that node's output"
    assert "is gone" in missing["stacks of rank 1"]
    assert "rank page of rank 1" in missing
    assert missing["NCCL RAS"].startswith("not asked (TRACECORE_NCCL_PULL=never)")
    assert "collectives.entries" in missing
    assert "records" in missing
    assert len(missing) == len(found["missing"]) == bundle.num_missing
    assert (bundle.has_all_dumps, bundle.give_up_wall_ns) == (False, None)
    assert found["verdict"]["incident_id"] == bundle.path.name == "c0ffee"


# NCCL RAS.


@contextmanager
def nccl_case(address: str, **environ: str) -> Iterator[tuple[Case, int]]:
    """A case of a job on NCCL that may be asked, with one live rank on this node, and its pid."""
    env = {"NCCL_RAS_ADDR": address, **environ}
    process = subprocess.Popen([sys.executable, "-c", "input()"], env=env, stdin=subprocess.PIPE)
    try:
        view = job_view({0: (process.pid, 5)}, world_size=2, remote=[1], backend="nccl")
        view = replace(view, pages={0: rank_page(50, pid=process.pid, rank=0)})
        yield open_case(event_of(waits(0)), view, (), NcclPull.ON_SUSPICION), process.pid
    finally:
        process.kill()
        process.communicate()


def test_nccl_ras_is_asked_and_its_answer_kept(tmp_path: Path) -> None:
    """A rank that is behind by NCCL's count is listed beside the answer, and not accused."""
    with FakeRas() as ras, nccl_case(ras.address) as (case, pid):
        behind = member(0, pid, counts={"AllReduce": 100})
        peers = [member(n, pid + n, host="192.0.2.1") for n in (1, 2)]
        ras.report = nccl_report([group([behind, *peers])])
        bundle = make(tmp_path, case)
    found = manifest_of(bundle)
    assert (bundle.path / "nccl_ras.json").read_text() == ras.report
    text = (bundle.path / "nccl_ras.findings.txt").read_text()
    assert f"member 0 (rank 0, pid {pid} at 127.0.0.1) at 100 (behind)" in text
    assert "its OK is no sign of health" in text
    assert not any("RAS" in item["what"] for item in found["missing"])
    assert {"nccl_ras.json", "nccl_ras.findings.txt"} <= {file["path"] for file in found["files"]}
    assert [suspect["rank"] for suspect in found["verdict"]["suspects"]] == [1]
    assert ras.num_connections == 1


def test_nothing_that_stands_out_is_not_called_healthy(tmp_path: Path) -> None:
    """RAS has called hung jobs healthy: agreement is written down as meaning nothing."""
    with FakeRas() as ras, nccl_case(ras.address) as (case, pid):
        ras.report = nccl_report([group([member(0, pid)])])
        bundle = make(tmp_path, case)
    text = (bundle.path / "nccl_ras.findings.txt").read_text()
    assert "Nothing stands out in it. That does not mean that all is well" in text


@pytest.mark.parametrize(
    ("settings", "missing_as", "reason", "kept"),
    [
        ({"report": TEXT_REPORT, "speaks_json": False}, JOB_SAID, "is not JSON", "nccl_ras.txt"),
        ({"report": STRANGERS}, JOB_SAID, "another job may have answered", "nccl_ras.json"),
        ({"report": STRANGERS[:99], "end": End.STREAM}, ALL_SAID, "has more than", "nccl_ras.txt"),
        ({"greeting": "220 smtp\n"}, "NCCL RAS", "no RAS service", None),
    ],
)
def test_an_answer_of_no_use_costs_only_itself(
    tmp_path: Path, settings: dict[str, Any], missing_as: str, reason: str, kept: str | None
) -> None:
    """What came is kept, what it lacks has a reason, and the rest of the bundle is there."""
    with FakeRas(**settings) as ras, nccl_case(ras.address) as (case, _):
        bundle = make(tmp_path, case)
    missing = {item["what"]: item["reason"] for item in manifest_of(bundle)["missing"]}
    assert reason in missing[missing_as]
    assert sum("RAS" in what for what in missing) == 1
    left = [path.name for path in bundle.path.iterdir() if path.name.startswith("nccl_ras")]
    assert left == ([kept] if kept else [])
    assert (bundle.path / "process" / "rank0.json").exists()


def test_a_rank_whose_ras_is_off_is_not_asked(tmp_path: Path) -> None:
    """The setting is named, and nobody connects."""
    with FakeRas() as ras, nccl_case(ras.address, NCCL_RAS_ENABLE="0") as (case, _):
        bundle = make(tmp_path, case)
    missing = {item["what"]: item["reason"] for item in manifest_of(bundle)["missing"]}
    assert missing["NCCL RAS"] == "NCCL_RAS_ENABLE=0 turns the RAS service off; unset it"
    assert ras.num_connections == 0


def test_ras_is_not_asked_while_a_graph_is_captured(tmp_path: Path) -> None:
    """What keeps the flight recorder of NCCL from being read keeps RAS from being asked."""
    with FakeRas() as ras, nccl_case(ras.address) as (case, pid):
        page = rank_page(50, pid=pid, rank=0, capture_since_ns=5)
        view = job_view({0: (pid, 5)}, world_size=2, backend="nccl")
        view = replace(view, pages={0: page})
        case = open_case(event_of(waits(0)), view, (), NcclPull.ON_SUSPICION)
        bundle = make(tmp_path, case)
    missing = {item["what"]: item["reason"] for item in manifest_of(bundle)["missing"]}
    assert "during a graph capture" in missing["NCCL RAS"]
    assert ras.num_connections == 0


def test_a_job_without_nccl_lacks_no_ras(tmp_path: Path) -> None:
    """Gloo has no such service: nobody asks, and nothing is missing."""
    with FakeRas() as ras:
        bundle = make(tmp_path, open_test_case(job_view({0: NOBODY})))
    assert not any("RAS" in item["what"] for item in manifest_of(bundle)["missing"])
    assert ras.num_connections == 0


def test_the_number_of_bundles_is_bounded(tmp_path: Path) -> None:
    """When the last place is taken, or this one is there already, there is none, with a reason."""
    case = open_test_case(job_view({0: NOBODY}))
    make(tmp_path, case, max_bundles=2)
    with pytest.raises(BundleError, match="is there already"):
        make(tmp_path, case, max_bundles=2)
    with pytest.raises(BundleError, match="holds 1 bundles, and no more are made"):
        make(tmp_path, case, max_bundles=1)


def test_a_read_only_output_costs_the_bundle_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once and counted; the next try is counted, too."""

    async def run(output: Path) -> int:
        bundler = Bundler(tmp_path, output, wall_offset_ns=0)
        for _ in range(2):
            with pytest.raises(BundleError, match="Read-only file system"):
                await bundler.make(open_test_case(job_view({0: NOBODY})))
        return bundler.num_lost

    with small_disk(tmp_path / "d") as disk:
        disk.make_read_only()
        assert asyncio.run(run(disk.path / "out")) == 2
    assert [record.name for record in caplog.records] == [bundler_module.__name__]


def test_a_cancelled_bundle_leaves_nothing(tmp_path: Path) -> None:
    """The end of the job in the middle of gathering leaves no half bundle and no hidden rest."""

    async def run() -> None:
        bundler = Bundler(tmp_path, tmp_path / "out", wall_offset_ns=0)
        task = asyncio.ensure_future(bundler.make(open_test_case(job_view({0: NOBODY}))))
        await until(lambda: bool(list((tmp_path / "out" / "bundles").glob(".*"))))
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()

    asyncio.run(asyncio.wait_for(run(), 30))
    assert list((tmp_path / "out" / "bundles").iterdir()) == []
