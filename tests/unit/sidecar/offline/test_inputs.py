"""What comes in: kinds told by content, ranks by content or name, and files nobody should trust."""

from __future__ import annotations

import gc
import gzip
import json
import os
import pickle
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.recorder_dumps import DumpedJob, data_parallel
from tracecore_sidecar.offline import content
from tracecore_sidecar.offline.diagnose import Answer, diagnose_paths
from tracecore_sidecar.offline.plain_pickle import load_plain
from tracecore_sidecar.offline.rank_name import rank_in_name
from tracecore_sidecar.offline.refused import RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

STOPPED = 2
MARK = Path(tempfile.gettempdir()) / "tracecore-a-dump-was-executed"


def stopped_job(backend: str = "nccl") -> DumpedJob:
    """Four ranks; one never enters the second step."""
    job = DumpedJob(*data_parallel(4), backend=backend)
    job.ranks[STOPPED].stops_at = 5
    return job.run()


def as_json(dump: dict[str, Any]) -> bytes:
    """Write a dump as torch's JSON does: no frames, numbers of the status as texts, 0 for None."""
    dump["pg_status"] = {
        key: {name: str(value) for name, value in status.items()}
        for key, status in dump["pg_status"].items()
    }
    for entry in dump["entries"]:
        entry["time_discovered_started_ns"] = 0
    if not dump["entries"]:
        del dump["entries"]
    return json.dumps({**dump, "nccl_comm_state": {}}).encode()


def suspects(answer: Answer) -> set[int]:
    return {s["rank"] for told in answer.told for s in told.json["suspects"]}


@pytest.mark.parametrize(
    "name",
    [
        "_dump_{}",
        "nccl_trace_rank_{}",
        "comm_lib_trace_rank_{}",
        "rank{}.pkl",
        "trace-2026-{}.pickle",
        "node0_rank_{}_of_4",
    ],
)
def test_a_rank_is_read_from_any_usual_name(tmp_path: Path, name: str) -> None:
    """The rank stands behind ``rank``, else it is the last number."""
    for rank, raw in stopped_job("gloo").pickles().items():
        (tmp_path / name.format(rank)).write_bytes(raw)
    answer = diagnose_paths([tmp_path])
    assert suspects(answer) == {STOPPED}
    assert sorted(item.rank for item in answer.inputs if item.rank is not None) == [0, 1, 2, 3]


def test_a_directory_may_tell_the_rank(tmp_path: Path) -> None:
    """One directory for each rank is one job."""
    for rank, raw in stopped_job().pickles().items():
        (tmp_path / f"rank_{rank}").mkdir()
        (tmp_path / f"rank_{rank}" / "trace").write_bytes(raw)
    assert suspects(diagnose_paths([tmp_path])) == {STOPPED}


def test_local_ranks_are_no_ranks(tmp_path: Path) -> None:
    """``local_rank_1`` does not say rank 1 where a rank is named as well."""
    assert rank_in_name(tmp_path / "rank_9_local_rank_1") == 9


WRITERS: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "pickle": lambda dump: pickle.dumps(dump, protocol=2),
    "pickle 5": lambda dump: pickle.dumps(dump, protocol=5),
    "json": as_json,
    "json.gz": lambda dump: gzip.compress(as_json(dump)),
    "pickle.gz": lambda dump: gzip.compress(pickle.dumps(dump)),
}


@pytest.mark.parametrize("backend", ["nccl", "gloo"])
@pytest.mark.parametrize("active_only", [False, True])
@pytest.mark.parametrize("form", sorted(WRITERS))
def test_every_form_of_a_dump_gives_the_same_answer(
    tmp_path: Path, form: str, active_only: bool, backend: str
) -> None:
    """Pickle or JSON, packed or not, all entries or only the unfinished ones."""
    job = stopped_job(backend)
    for rank in range(4):
        dump = job.dump(rank, active_only=active_only)
        (tmp_path / f"x_{rank}.bin").write_bytes(WRITERS[form](dump))
    assert suspects(diagnose_paths([tmp_path])) == {STOPPED}


@pytest.mark.parametrize("version", ["2.4", "2.5", "2.7", "2.9", "2.10"])
def test_old_versions_leave_things_out(tmp_path: Path, version: str) -> None:
    """Keys that came later are missed by nobody."""
    job = stopped_job()
    for rank in range(4):
        dump = job.dump(rank, version=version)
        for entry in dump["entries"]:
            for key in ("output_dtypes", "timeout_ms", "is_p2p"):
                entry.pop(key)
        if version == "2.4":
            del dump["pg_status"]
        (tmp_path / f"t_{rank}").write_bytes(pickle.dumps(dump))
    assert suspects(diagnose_paths([tmp_path])) == {STOPPED}


def test_unequal_versions_lower_the_confidence(tmp_path: Path) -> None:
    """The rank is still named; that the versions differ is said."""
    job = stopped_job()
    for rank in range(4):
        dump = job.dump(rank, version="2.9" if rank else "2.10")
        (tmp_path / f"t_{rank}").write_bytes(pickle.dumps(dump))
    answer = diagnose_paths([tmp_path])
    assert suspects(answer) == {STOPPED}
    assert answer.told[0].json["confidence"] == "partial"
    assert any("2.10, 2.9" in gap for gap in answer.not_measured)


def test_the_newer_of_two_dumps_of_a_rank_counts(tmp_path: Path) -> None:
    """An earlier dump of the same job, in which all was well, changes nothing."""
    early = DumpedJob(*data_parallel(4, num_steps=1)).run()
    for rank, raw in early.pickles().items():
        (tmp_path / f"early_rank_{rank}").write_bytes(raw)
    for rank, raw in stopped_job().pickles().items():
        (tmp_path / f"late_rank_{rank}").write_bytes(raw)
    assert suspects(diagnose_paths([tmp_path])) == {STOPPED}


def test_groups_of_one_name_and_other_members_are_two_groups(tmp_path: Path) -> None:
    """Two pairs that each call their group "1" do not wait for each other."""
    job = DumpedJob(*data_parallel(2))
    job.ranks[1].stops_at = 5
    job.run()
    for rank in range(4):
        dump = job.dump(rank % 2)
        pair = [0, 1] if rank < 2 else [2, 3]
        dump["pg_config"] = {"1": {"name": "1", "desc": "pair", "ranks": str(pair)}}
        for entry in dump["entries"]:
            entry["process_group"] = ("1", "pair")
        (tmp_path / f"t_{rank}").write_bytes(pickle.dumps(dump))
    assert suspects(diagnose_paths([tmp_path])) == {1, 3}


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {MARK}",))


def _nested(depth: int) -> bytes:
    return b'{"version": "2.9", "entries": ' + b"[" * depth + b"]" * depth + b"}"


HOSTILE: dict[str, bytes] = {
    "a class": pickle.dumps({"version": "2.9", "entries": [_Evil()]}),
    "a memo bomb": b"\x80\x02]r" + struct.pack("<I", 0xF0000000) + b".",
    "a long number": b"\x80\x02\x8b" + struct.pack("<I", 0x7FFFFFFF) + b".",
    "cut in the middle": pickle.dumps({"version": "2.9", "entries": [1] * 500})[:300],
    "a text that ends nowhere": b"\x80\x02X" + struct.pack("<I", 1 << 30) + b"abc.",
    "entries of another kind": pickle.dumps({"version": "2.9", "entries": 7}),
    "an entry that is none": pickle.dumps({"version": "2.9", "entries": ["x"]}),
    "deep JSON": _nested(100_000),
    "damaged JSON": b'{"version": "2.9", "entries": [{"record_id": 1,',
    "a gzip bomb": gzip.compress(bytes(8 << 20)),
    "a cut gzip": gzip.compress(os.urandom(5_000))[:2_000],
    "a checkpoint": b"PK\x03\x04" + bytes(100),
    "noise": bytes(range(256)) * 10,
    "nothing": b"",
}


def _shared(depth: int) -> list[Any]:
    """Give lists within lists of which each holds the next one many times."""
    value: list[Any] = [1]
    for _ in range(depth):
        value = [value] * 60
    return value


def test_shared_parts_are_not_written_out(tmp_path: Path) -> None:
    """A small pickle whose sizes would fill any memory as text costs nothing."""
    for rank in range(4):
        dump = stopped_job().dump(rank)
        dump["entries"][0]["input_sizes"] = _shared(40)
        dump["entries"][1]["input_dtypes"] = ["Float" * 10_000] * 60_000
        (tmp_path / f"t_{rank}").write_bytes(pickle.dumps(dump))
    assert suspects(diagnose_paths([tmp_path])) == {STOPPED}


@pytest.mark.parametrize("ranks", [list(range(100_000)), str(list(range(100_000)))])
def test_shared_members_are_refused(tmp_path: Path, ranks: Any) -> None:
    """A thousand groups that share one list of all ranks are no real job's."""
    dump = stopped_job().dump(0)
    dump["pg_config"] = {str(n): {"name": str(n), "desc": "", "ranks": ranks} for n in range(1000)}
    (tmp_path / "t_0").write_bytes(pickle.dumps(dump))
    (item,) = diagnose_paths([tmp_path]).inputs
    assert (item.status, "members" in item.detail) == ("refused", True)


def test_a_long_list_of_sizes_is_told_from_its_beginning(tmp_path: Path) -> None:
    """An all-to-all over many ranks does not change the answer."""
    for rank in range(4):
        dump = stopped_job().dump(rank)
        for entry in dump["entries"]:
            entry["input_sizes"] = [[n] for n in range(5_000)]
        (tmp_path / f"t_{rank}").write_bytes(pickle.dumps(dump))
    assert suspects(diagnose_paths([tmp_path])) == {STOPPED}


@pytest.mark.parametrize("was_enabled", [True, False])
def test_the_garbage_collector_is_left_as_it_was(tmp_path: Path, was_enabled: bool) -> None:
    """It is only paused while files are read."""
    before = gc.isenabled()
    try:
        (gc.enable if was_enabled else gc.disable)()
        diagnose_paths([tmp_path])
        assert gc.isenabled() is was_enabled
    finally:
        (gc.enable if before else gc.disable)()


def test_a_file_that_may_not_be_read_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its name, the reason and what to do; the others are read."""
    for rank, raw in stopped_job().pickles().items():
        (tmp_path / f"t_{rank}").write_bytes(raw)
    (tmp_path / "secret_9").write_bytes(b"x")
    opened = Path.open

    def denied(path: Path, *args: Any, **options: Any) -> Any:
        if path.name == "secret_9":
            raise PermissionError(13, "Permission denied")
        return opened(path, *args, **options)

    monkeypatch.setattr(Path, "open", denied)
    answer = diagnose_paths([tmp_path])
    (item,) = [item for item in answer.inputs if item.status == "refused"]
    assert item.path.name == "secret_9"
    assert (
        item.detail == "cannot be read: Permission denied: run as the user of the job, or as root"
    )
    assert suspects(answer) == {STOPPED}


def test_a_file_that_vanishes_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dump that is moved away while the directory is walked stops nothing."""
    (tmp_path / "t_0").write_bytes(b"x")
    stat = Path.stat

    def gone(path: Path, **options: Any) -> os.stat_result:
        if path.name == "t_0" and options.get("follow_symlinks", True):
            raise FileNotFoundError(2, "No such file or directory")
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", gone)
    (item,) = diagnose_paths([tmp_path]).inputs
    assert (item.status, item.detail) == ("refused", "cannot be read: No such file or directory")


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_a_hostile_file_is_refused_and_the_others_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """It stands under inputs with a reason, and the answer is that of the others."""
    monkeypatch.setattr(content, "MAX_BYTES", 4 << 20)
    for rank, raw in stopped_job().pickles().items():
        (tmp_path / f"t_{rank}").write_bytes(raw)
    bad = tmp_path / "rank_0_bad"
    bad.write_bytes(HOSTILE[name])
    answer = diagnose_paths([tmp_path])
    (refused,) = [item for item in answer.inputs if item.status == "refused"]
    assert refused.path == bad
    assert refused.detail
    assert suspects(answer) == {STOPPED}
    assert not MARK.exists()


def test_json_of_another_kind_is_refused_only_where_it_was_named(tmp_path: Path) -> None:
    """In a directory it is no news; asked about by name it gets an answer."""
    other = tmp_path / "settings.json"
    other.write_text('{"lr": 0.1}')
    (found,) = diagnose_paths([tmp_path]).inputs
    (named,) = diagnose_paths([other]).inputs
    assert (found.status, named.status) == ("not used", "refused")


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    """Reading one would wait for ever."""
    os.mkfifo(tmp_path / "pipe_0")
    (item,) = diagnose_paths([tmp_path]).inputs
    assert item.status == "refused"


def test_a_link_below_a_directory_is_not_followed(tmp_path: Path) -> None:
    """A directory that links to itself ends."""
    (tmp_path / "again").symlink_to(tmp_path)
    assert diagnose_paths([tmp_path]).inputs == ()


@pytest.mark.parametrize("value", [{}, {"a": [1, (2, "x"), None, True, 1.5]}, ["x" * 70_000]])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_plain_data_comes_back_as_it_was(value: Any, protocol: int) -> None:
    """What torch and our own bundles write is let through."""
    assert load_plain(pickle.dumps(value, protocol)) == value


def test_many_texts_need_large_memo_indices() -> None:
    """Indices above 255 are legitimate where that much was stored."""
    value = [f"text {i}" for i in range(5_000)]
    assert load_plain(pickle.dumps(value, 2)) == value


@pytest.mark.parametrize("value", [{1, 2}, b"raw", complex(1, 2), frozenset()])
def test_other_types_are_refused(value: Any) -> None:
    """Sets, bytes and classes have no place in a dump."""
    with pytest.raises(RefusedError):
        load_plain(pickle.dumps(value, 2))


def test_healthy_dumps_give_no_verdict(tmp_path: Path) -> None:
    """A job that ended as it should: nothing is said, and it is not called healthy either."""
    for rank, raw in DumpedJob(*data_parallel(4)).run().pickles().items():
        (tmp_path / f"t_{rank}").write_bytes(raw)
    answer = diagnose_paths([tmp_path])
    assert answer.told == ()
    assert answer.not_measured


def test_records_of_ours_are_judged_again(tmp_path: Path) -> None:
    """A recorded run gives the verdict it gave."""
    from tests.replay.test_recordings import RECORDINGS

    (tmp_path / "records").mkdir()
    raw = (RECORDINGS / "hang_backward.jsonl.gz").read_bytes()
    (tmp_path / "records" / "000001.jsonl.gz").write_bytes(raw)
    answer = diagnose_paths([tmp_path])
    assert [told.json["class"] for told in answer.told] == ["never_entered"]
    assert suspects(answer) == {1}
