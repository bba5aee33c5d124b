"""The flight-recorder reader against prepared and hostile servers."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from tracecore_sidecar.sources import recorder_dump, worker_server
from tracecore_sidecar.sources.flight_recorder import FlightRecorderReader
from tracecore_train.wire.records import CollectiveRecord, PullRecord

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WALL_OFFSET_NS = 1_700_000_000_000_000_000


def entry(record_id: int, *, retired: bool = True, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "collective_seq_id": record_id + 1,
        "input_dtypes": ["Float"],
        "input_sizes": [[4, 2]],
        "is_p2p": False,
        "op_id": record_id + 1,
        "output_dtypes": ["Float"],
        "output_sizes": [[8, 2]],
        "pg_id": 0,
        "process_group": ["0", "default_pg"],
        "profiling_name": "gloo:all_reduce",
        "record_id": record_id,
        "retired": retired,
        "state": "scheduled",
        "time_created_ns": WALL_OFFSET_NS + 1_000 + record_id,
        "time_discovered_completed_ns": 0,
    }
    return values | changes


def dump(*entries: object) -> bytes:
    value: dict[str, Any] = {"version": "2.10", "pg_status": {}, "comm_lib_version": ""}
    if entries:
        value["entries"] = list(entries)
    return json.dumps(value, separators=(",", ":")).encode()  # as torch does


def http(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


class Server:
    """Answers each connection with fixed bytes, by handler where they differ."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: dict[str, bytes] = {}
        self.requests: list[bytes] = []
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with connection:
                request = connection.recv(65536)
                if request == b"stop":
                    return
                self.requests.append(request)
                handler = request.split(b" ")[1].decode().rpartition("/")[2]
                try:
                    connection.sendall(self.answers.get(handler, http(b"", "404 Not Found")))
                except OSError:
                    continue  # the reader hung up: it had enough

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.path))
            connection.sendall(b"stop")
            self._thread.join(timeout=30)
        self._socket.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    started = Server(tmp_path / "r1.ws")
    yield started
    started.close()


class Reader:
    """A reader of one rank's recorder."""

    def __init__(self, path: Path) -> None:
        self.reader = FlightRecorderReader()
        self.path = path

    def pull(self, *, pid: int = 7, **changes: Any) -> tuple[PullRecord, list[CollectiveRecord]]:
        first, *rest = self.reader.pull(
            1, self.path, pid=pid, wall_offset_ns=WALL_OFFSET_NS, now_ns=99, **changes
        )
        assert isinstance(first, PullRecord)
        collectives = [record for record in rest if isinstance(record, CollectiveRecord)]
        assert len(collectives) == len(rest)
        return first, collectives


@pytest.fixture
def reader(server: Server) -> Reader:
    return Reader(server.path)


def ids(records: list[CollectiveRecord]) -> list[int]:
    return [record.record_id for record in records]


def test_an_entry_becomes_a_collective(server: Server, reader: Reader) -> None:
    """Names, sizes and times of an entry are converted."""
    server.answers["fr_trace_json"] = http(dump(entry(5)))
    pull, collectives = reader.pull()
    assert pull == PullRecord(
        time_ns=99,
        rank=1,
        is_ok=True,
        reason="",
        num_entries=1,
        num_lost=0,
        is_truncated=True,
    )
    assert collectives == [
        CollectiveRecord(
            time_ns=99,
            rank=1,
            pg_name="0",
            collective_seq_id=6,
            record_id=5,
            op="all_reduce",
            input_sizes="[[4, 2]]",
            input_dtypes="['Float']",
            created_ns=1_005,
            completed_ns=0,
            is_retired=True,
            op_id=6,
            backend="gloo",
            output_sizes="[[8, 2]]",
            output_dtypes="['Float']",
        )
    ]


def test_the_request_is_a_post_of_the_handler(server: Server, reader: Reader) -> None:
    """The worker server answers to POST only."""
    server.answers["fr_trace_json"] = http(dump())
    reader.pull()
    assert server.requests[0].startswith(b"POST /handler/fr_trace_json HTTP/1.1\r\n")


def test_an_empty_ring_is_a_good_pull(server: Server, reader: Reader) -> None:
    """A dump without the key `entries` is an empty ring, not a failure."""
    server.answers["fr_trace_json"] = http(dump())
    pull, collectives = reader.pull()
    assert (pull.is_ok, pull.num_entries, collectives) == (True, 0, [])


def test_only_new_entries_come_again(server: Server, reader: Reader) -> None:
    """A second pull gives what was added since."""
    server.answers["fr_trace_json"] = http(dump(entry(0), entry(1)))
    reader.pull()
    server.answers["fr_trace_json"] = http(dump(entry(0), entry(1), entry(2)))
    pull, collectives = reader.pull()
    assert ids(collectives) == [2]
    assert (pull.num_entries, pull.num_lost) == (1, 0)


def test_an_entry_that_finished_comes_again_once(server: Server, reader: Reader) -> None:
    """An entry not retired at the last pull is given again when it is, and not a third time."""
    server.answers["fr_trace_json"] = http(dump(entry(0), entry(1, retired=False)))
    reader.pull()
    assert reader.pull()[1] == []
    server.answers["fr_trace_json"] = http(dump(entry(0), entry(1)))
    finished = reader.pull()[1]
    assert [(record.record_id, record.is_retired) for record in finished] == [(1, True)]
    assert reader.pull()[1] == []


def test_overwritten_entries_are_counted(server: Server, reader: Reader) -> None:
    """A gap in the record ids and a pending entry that is gone count as lost."""
    server.answers["fr_trace_json"] = http(dump(entry(0), entry(1, retired=False)))
    reader.pull()
    server.answers["fr_trace_json"] = http(dump(entry(10), entry(11)))
    pull, collectives = reader.pull()
    assert ids(collectives) == [10, 11]
    assert pull.num_lost == 8 + 1


def test_the_first_pull_loses_nothing(server: Server, reader: Reader) -> None:
    """What a ring overwrote before it was ever read is not lost between two pulls."""
    server.answers["fr_trace_json"] = http(dump(entry(5_000)))
    assert reader.pull()[0].num_lost == 0


def test_send_and_receive_come_with_the_others(server: Server, reader: Reader) -> None:
    """A send is told while it is under way and when it is finished, as what it is."""
    send: dict[str, Any] = {"is_p2p": True, "p2p_seq_id": 4, "profiling_name": "nccl:send 0->1"}
    server.answers["fr_trace_json"] = http(dump(entry(0), entry(1, retired=False, **send)))
    first = reader.pull()[1][1]
    assert (first.op, first.is_p2p, first.p2p_seq_id, first.is_retired) == (
        "send 0->1",
        True,
        4,
        False,
    )
    server.answers["fr_trace_json"] = http(dump(entry(0), entry(1, **send), entry(2)))
    pull, collectives = reader.pull()
    assert ids(collectives) == [1, 2]
    assert (pull.num_entries, pull.num_lost) == (2, 0)


def test_times_of_the_device_come_along(server: Server, reader: Reader) -> None:
    """Where a recorder measured start, end and duration they are converted; gloo's stay empty."""
    timed = entry(
        0,
        state="completed",
        time_discovered_started_ns=WALL_OFFSET_NS + 2_000,
        time_discovered_completed_ns=WALL_OFFSET_NS + 3_000,
        duration_ms=1.25,
    )
    server.answers["fr_trace_json"] = http(dump(timed, entry(1, state="started"), entry(2)))
    found = reader.pull()[1]
    assert [(c.is_started, c.started_ns, c.completed_ns, c.duration_ns) for c in found] == [
        (True, 2_000, 3_000, 1_250_000),
        (True, 0, 0, -1),
        (False, 0, 0, -1),
    ]


@pytest.mark.parametrize("duration", [-1.0, 1e300, float("nan"), float("inf")])
def test_a_senseless_duration_is_not_measured(
    server: Server, reader: Reader, duration: float
) -> None:
    """A duration that cannot be one is none, and costs nothing else of the entry."""
    server.answers["fr_trace_json"] = http(dump(entry(0, duration_ms=duration)))
    assert reader.pull()[1][0].duration_ns == -1


@pytest.mark.parametrize(
    ("entries", "enqueued", "is_active_only"),
    [
        ([], "7", True),
        ([], "-1", False),
        ([3, 4], "7", False),
        ([3, 6], "7", True),
    ],
)
def test_an_answer_without_finished_entries_says_so(
    server: Server, reader: Reader, entries: list[int], enqueued: str, is_active_only: bool
) -> None:
    """A recorder that leaves out what is finished is told from one where nothing is."""
    value = json.loads(dump(*(entry(number, retired=False) for number in entries)))
    value["pg_status"] = {"0": {"last_enqueued_collective": enqueued}}
    server.answers["fr_trace_json"] = http(json.dumps(value).encode())
    pull, _ = reader.pull()
    assert (pull.is_active_only, pull.num_lost) == (is_active_only, 0)


def test_entries_lost_before_the_first_look_are_told(server: Server, reader: Reader) -> None:
    """A ring that had already overwritten entries is truncated; one that is whole is not."""
    server.answers["fr_trace_json"] = http(dump(entry(0), entry(1)))
    assert not reader.pull()[0].is_truncated
    server.answers["fr_trace_json"] = http(dump(entry(7)))
    assert reader.pull(pid=8)[0].is_truncated


def test_several_recorders_of_one_rank_are_read(server: Server, reader: Reader) -> None:
    """Entries of both recorders come back, though both count from 0; one that fails says so."""
    server.answers["fr_trace_json"] = http(dump(entry(0)))
    server.answers["fr_trace_json?backend=nccl2"] = http(dump(entry(0, process_group=["3", ""])))
    handlers = ("fr_trace_json", "fr_trace_json?backend=nccl2", "dump_nccl_trace_json")
    pull, collectives = reader.pull(handlers=handlers)
    assert [record.pg_name for record in collectives] == ["0", "3"]
    assert (pull.is_ok, pull.reason) == (False, "this torch has no handler dump_nccl_trace_json")


def test_another_process_starts_anew(server: Server, reader: Reader) -> None:
    """The cursor of a process does not hide the entries of its successor."""
    server.answers["fr_trace_json"] = http(dump(entry(0), entry(1)))
    reader.pull(pid=7)
    pull, collectives = reader.pull(pid=8)
    assert ids(collectives) == [0, 1]
    assert pull.num_lost == 0


def test_a_recorder_that_was_reset_starts_anew(server: Server, reader: Reader) -> None:
    """Record ids that went back to zero are new entries."""
    server.answers["fr_trace_json"] = http(dump(*[entry(n) for n in range(10)]))
    reader.pull()
    later = [entry(n, time_created_ns=WALL_OFFSET_NS + 10**9 + n) for n in range(3)]
    server.answers["fr_trace_json"] = http(dump(*later))
    assert ids(reader.pull()[1]) == [0, 1, 2]


def test_a_reset_that_caught_up_is_seen_by_its_times(server: Server, reader: Reader) -> None:
    """The same record id with another creation time means that the ring began again."""
    server.answers["fr_trace_json"] = http(dump(*[entry(n) for n in range(3)]))
    reader.pull()
    later = [entry(n, time_created_ns=WALL_OFFSET_NS + 10**9 + n) for n in range(5)]
    server.answers["fr_trace_json"] = http(dump(*later))
    assert ids(reader.pull()[1]) == [0, 1, 2, 3, 4]


def test_a_moved_wall_clock_offset_is_no_reset(server: Server, reader: Reader) -> None:
    """The offset is measured again and again; that does not bring old entries back."""
    server.answers["fr_trace_json"] = http(dump(entry(0), entry(1)))
    reader.pull()
    records = reader.reader.pull(
        1, server.path, pid=7, wall_offset_ns=WALL_OFFSET_NS + 12_345, now_ns=99
    )
    assert len(records) == 1


def test_forgetting_a_rank_starts_anew(server: Server, reader: Reader) -> None:
    """After forget() a pull gives the whole ring."""
    server.answers["fr_trace_json"] = http(dump(entry(0)))
    reader.pull()
    reader.reader.forget(1)
    assert ids(reader.pull()[1]) == [0]


def test_what_was_read_before_is_not_parsed_again(server: Server, reader: Reader) -> None:
    """An old entry that could not be read any more fails nothing: it is skipped unread."""
    server.answers["fr_trace_json"] = http(dump(entry(0), entry(1), entry(2)))
    reader.pull()
    spoilt = entry(0, time_created_ns="spoilt")
    server.answers["fr_trace_json"] = http(dump(spoilt, entry(1), entry(2), entry(3)))
    pull, collectives = reader.pull()
    assert (ids(collectives), pull.is_ok, pull.num_lost) == ([3], True, 0)


def test_an_old_entry_not_finished_is_read_again(server: Server, reader: Reader) -> None:
    """Skipping begins before the oldest collective that still runs, not before the newest read."""
    before = [entry(0), entry(1, retired=False), entry(2)]
    server.answers["fr_trace_json"] = http(dump(*before))
    reader.pull()
    server.answers["fr_trace_json"] = http(dump(entry(0), entry(1), entry(2), entry(3)))
    assert ids(reader.pull()[1]) == [1, 3]


@pytest.mark.parametrize(
    "name", ["},{", '},{"record_id":2,', '"record_id":2,', "\\", '\\"record_id\\":2,', "]}"]
)
@pytest.mark.parametrize("place", [1, 2, 3])
def test_texts_that_look_like_entries_change_nothing(
    server: Server, reader: Reader, name: str, place: int
) -> None:
    """Whatever an operation is called, exactly the new entries come."""
    entries = [entry(n) for n in range(5)]
    entries[place]["input_dtypes"] = [name]
    server.answers["fr_trace_json"] = http(dump(*entries[:3]))
    reader.pull()
    server.answers["fr_trace_json"] = http(dump(*entries))
    pull, collectives = reader.pull()
    assert (ids(collectives), pull.is_ok, pull.num_lost) == ([3, 4], True, 0)


def test_a_ring_out_of_order_is_read_whole(server: Server, reader: Reader) -> None:
    """New entries that stand before old ones are not skipped."""
    server.answers["fr_trace_json"] = http(dump(entry(0), entry(1)))
    reader.pull()
    server.answers["fr_trace_json"] = http(dump(entry(2), entry(0), entry(1)))
    assert ids(reader.pull()[1]) == [2]


def test_an_answer_in_chunks_is_read(server: Server, reader: Reader) -> None:
    """A body without an announced length is taken too."""
    body = dump(entry(0))
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    server.answers["fr_trace_json"] = head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    assert ids(reader.pull()[1]) == [0]


def test_both_recorders_are_read_when_asked(server: Server, reader: Reader) -> None:
    """Each handler has a cursor of its own; the entries of both come back."""
    both = ("fr_trace_json", "dump_nccl_trace_json")
    server.answers["fr_trace_json"] = http(dump(entry(0), entry(1)))
    nccl = entry(
        0, profiling_name="nccl:all_gather", time_discovered_completed_ns=WALL_OFFSET_NS + 9
    )
    server.answers["dump_nccl_trace_json"] = http(dump(nccl))
    pull, collectives = reader.pull(handlers=both)
    assert (pull.is_ok, pull.num_entries) == (True, 3)
    assert [record.op for record in collectives] == ["all_reduce", "all_reduce", "all_gather"]
    assert collectives[2].completed_ns == 9
    assert reader.pull(handlers=both)[0].num_entries == 0


def test_one_recorder_that_fails_does_not_hide_the_other(server: Server, reader: Reader) -> None:
    """The pull has failed, says which handler, and still gives the other's entries."""
    server.answers["fr_trace_json"] = http(dump(entry(0)))
    pull, collectives = reader.pull(handlers=("fr_trace_json", "dump_nccl_trace_json"))
    assert not pull.is_ok
    assert "dump_nccl_trace_json" in pull.reason
    assert ids(collectives) == [0]


def test_a_failed_pull_keeps_the_cursor(server: Server, reader: Reader) -> None:
    """After a failure the next pull goes on where the last good one ended."""
    server.answers["fr_trace_json"] = http(dump(entry(0)))
    reader.pull()
    server.answers["fr_trace_json"] = http(b"nonsense")
    assert not reader.pull()[0].is_ok
    server.answers["fr_trace_json"] = http(dump(entry(0), entry(1)))
    pull, collectives = reader.pull()
    assert (ids(collectives), pull.num_lost) == ([1], 0)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 50_000,
        http(b"", "500 Internal Server Error"),
        http(b""),
        http(b"not json"),
        http(b"[" * 100_000),
        http(b"[1, 2]"),
        http(b'{"entries": {}}'),
        http(b'{"entries": [1' + b"0" * 5_000 + b"]}"),
        http(b"\xff\xfe\x00"),
        http(dump(17)),
        http(dump(entry(0), entry(0))),
    ],
    ids=[
        "nothing",
        "garbage",
        "cut",
        "headers",
        "status",
        "empty",
        "text",
        "deep",
        "list",
        "no-list",
        "huge-number",
        "bytes",
        "no-object",
        "twice",
    ],
)
def test_a_bad_answer_is_a_failed_pull(server: Server, reader: Reader, answer: bytes) -> None:
    """Whatever is no dump gives a pull that failed, with a reason, and no collectives."""
    server.answers["fr_trace_json"] = answer
    pull, collectives = reader.pull(timeout_s=20.0)
    assert not pull.is_ok
    assert pull.reason
    assert len(pull.reason) < 500
    assert collectives == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("record_id", -1),
        ("record_id", "0"),
        ("record_id", True),
        ("record_id", 2**63),
        ("collective_seq_id", 1.5),
        ("process_group", []),
        ("process_group", [0, "default_pg"]),
        ("profiling_name", None),
        ("time_created_ns", None),
        ("time_created_ns", 10**30),
        ("retired", 1),
        ("is_p2p", "no"),
        ("input_sizes", 4),
    ],
)
def test_a_wrong_value_fails_the_pull(
    server: Server, reader: Reader, key: str, value: object
) -> None:
    """A value of the wrong type or range is never taken for data."""
    server.answers["fr_trace_json"] = http(dump(entry(0) | {key: value}))
    pull, collectives = reader.pull()
    assert (pull.is_ok, collectives) == (False, [])


@pytest.mark.parametrize(
    "key", ["record_id", "collective_seq_id", "process_group", "retired", "time_created_ns"]
)
def test_a_missing_key_fails_the_pull(server: Server, reader: Reader, key: str) -> None:
    """An entry that lacks what names or orders it is refused, and the key is named."""
    incomplete = entry(0)
    del incomplete[key]
    server.answers["fr_trace_json"] = http(dump(incomplete))
    pull, _ = reader.pull()
    assert not pull.is_ok
    assert key in pull.reason


def test_unknown_keys_and_versions_are_read(server: Server, reader: Reader) -> None:
    """A newer torch that adds keys is read as far as it is known."""
    value = json.loads(dump(entry(0) | {"mood": "good"})) | {"version": "9.9", "new": {}}
    server.answers["fr_trace_json"] = http(json.dumps(value).encode())
    assert ids(reader.pull()[1]) == [0]


def test_null_stands_for_not_completed(server: Server, reader: Reader) -> None:
    """A completion time of null is the same as zero."""
    server.answers["fr_trace_json"] = http(dump(entry(0, time_discovered_completed_ns=None)))
    assert reader.pull()[1][0].completed_ns == 0


def test_texts_are_bounded_and_can_be_encoded(server: Server, reader: Reader) -> None:
    """Long names are cut and lone surrogates replaced."""
    server.answers["fr_trace_json"] = http(
        dump(entry(0, profiling_name="gloo:" + "x" * 100_000, process_group=["\ud800", "d"]))
    )
    (record,) = reader.pull()[1]
    assert len(record.op) <= recorder_dump.MAX_CHARS
    assert record.pg_name.encode("utf-8") == b"?"


def test_an_unusual_entry_leaves_the_others_as_they_are(server: Server, reader: Reader) -> None:
    """Entries are checked together, and each keeps its own values."""
    odd = entry(
        1,
        op_id=None,
        time_discovered_completed_ns=WALL_OFFSET_NS + 5_000,
        profiling_name="gloo:" + "x" * 100_000,
        is_p2p=True,
        duration_ms=2.5,
    )
    server.answers["fr_trace_json"] = http(dump(entry(0), odd, entry(2)))
    first, changed, last = reader.pull()[1]
    told = [(r.op_id, r.completed_ns, len(r.op), r.is_p2p, r.duration_ns) for r in (first, last)]
    assert told == [(1, 0, 10, False, -1), (3, 0, 10, False, -1)]
    assert (changed.op_id, changed.completed_ns, changed.is_p2p) == (0, 5_000, True)
    assert changed.duration_ns == 2_500_000
    assert len(changed.op) <= recorder_dump.MAX_CHARS


@pytest.mark.parametrize(
    ("key", "value"),
    [("record_id", -3), ("retired", "yes"), ("input_sizes", "[[4]]"), ("profiling_name", 5)],
)
def test_one_wrong_value_among_many_fails_the_pull(
    server: Server, reader: Reader, key: str, value: object
) -> None:
    """A bad value is found wherever in the ring it stands."""
    entries = [entry(number) for number in range(300)]
    entries[170][key] = value
    server.answers["fr_trace_json"] = http(dump(*entries))
    pull, records = reader.pull()
    assert not pull.is_ok
    assert not records


def test_a_huge_answer_is_refused(
    server: Server, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer beyond the bound fails the pull."""
    monkeypatch.setattr(worker_server, "MAX_RESPONSE_BYTES", 1_000_000)
    server.answers["fr_trace_json"] = http(b" " * 3_000_000)
    assert "1000000 bytes" in reader.pull(timeout_s=20.0)[0].reason


def test_only_the_newest_entries_are_read(
    server: Server, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of more entries than the bound the newest are kept."""
    monkeypatch.setattr(recorder_dump, "MAX_ENTRIES", 3)
    server.answers["fr_trace_json"] = http(dump(*[entry(n) for n in range(10)]))
    assert ids(reader.pull()[1]) == [7, 8, 9]


def test_no_socket_is_said(tmp_path: Path) -> None:
    """A rank without a worker server is told apart from one that does not answer."""
    assert "no worker server" in Reader(tmp_path / "none.ws").pull()[0].reason


def test_a_socket_nobody_listens_on_is_said(tmp_path: Path) -> None:
    """The socket file of a process that has ended is told apart too."""
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(tmp_path / "r1.ws"))
    assert "nobody listens" in Reader(tmp_path / "r1.ws").pull()[0].reason


def test_a_path_too_long_for_a_socket_is_a_failed_pull(tmp_path: Path) -> None:
    """A path the system cannot take raises nothing."""
    assert not Reader(tmp_path / ("x" * 200)).pull()[0].is_ok


def test_a_server_that_accepts_nothing_times_out(tmp_path: Path) -> None:
    """A stopped rank fails each pull in time, also when its backlog is full of given-up pulls."""
    path = tmp_path / "r1.ws"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        reader = Reader(path)
        started = time.monotonic()
        reasons = [reader.pull(timeout_s=0.2)[0].reason for _ in range(5)]
    assert time.monotonic() - started < 20
    assert "no answer within 0.2 s" in reasons[0]
    assert "does not accept" in reasons[-1]


def test_an_answer_in_drops_is_given_up(tmp_path: Path) -> None:
    """A server that sends a byte now and then cannot stretch the deadline."""
    path = tmp_path / "r1.ws"
    stop = threading.Event()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def drip() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                while not stop.wait(0.05):
                    connection.sendall(b" ")

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            pull, _ = Reader(path).pull(timeout_s=0.5)
        finally:
            stop.set()
            thread.join(timeout=30)
    assert "no answer within 0.5 s" in pull.reason
