"""NCCL's RAS service is asked only on this node, in bounded time, and believed in nothing."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fake_ras import (
    HASH,
    TEXT_REPORT,
    End,
    FakeRas,
    group,
    member,
    missing,
    nccl_report,
    without_commas,
)
from tests.support.fake_sidecar import wait_until
from tracecore_sidecar.sources import nccl_ras
from tracecore_sidecar.sources.nccl_ras import (
    MAX_ANSWER_BYTES,
    Address,
    ask_ras,
    is_own_address,
    listens_at,
    read_settings,
)
from tracecore_sidecar.sources.nccl_ras_report import (
    MAX_FINDINGS,
    findings,
    parse_report,
    recognise,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


GENEROUS_S = 20.0
"""For what answers at once, on a machine that is busy."""
REPORT = nccl_report([group([member(0, 411), member(1, 412)])])


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    return tmp_path / "proc"


def process(proc: Path, pid: int, **environ: str) -> int:
    """A process as ``/proc`` shows it, started with ``environ``."""
    (proc / str(pid)).mkdir(parents=True)
    pairs = {"PATH": "/bin", **environ}
    raw = b"\0".join(f"{name}={value}".encode() for name, value in pairs.items())
    (proc / str(pid) / "environ").write_bytes(raw + b"\0")
    return pid


@contextmanager
def a_rank(address: str) -> Iterator[int]:
    """A real process that was told where to listen."""
    started = subprocess.Popen(["sleep", "100"], env={"NCCL_RAS_ADDR": address, "SECRET": "x"})
    environ = Path(f"/proc/{started.pid}/environ")
    try:
        # The kernel shows the environment a moment after the program has begun.
        wait_until(lambda: b"NCCL_RAS_ADDR" in environ.read_bytes(), GENEROUS_S)
        yield started.pid
    finally:
        started.kill()
        started.wait()


def said(report: str, ranks: dict[tuple[str, int], int] | None = None) -> list[str]:
    """What stands out in a report."""
    parsed = parse_report(report)
    assert parsed is not None
    return findings(parsed, ranks or {})


# The exchange.


def test_a_real_process_is_asked_as_ncclras_asks(tmp_path: Path) -> None:
    """Greeting, patience, format and status, in this order, and the answer comes back whole."""
    with FakeRas(report=REPORT) as ras, a_rank(ras.address) as pid:
        answer = ask_ras([pid], timeout_s=GENEROUS_S)
    assert (answer.text, answer.reason, answer.address) == (REPORT, "", ras.address)
    expected = ["CLIENT PROTOCOL 2", "TIMEOUT 1", "SET FORMAT json", "STATUS"]
    assert ras.commands == expected
    assert nccl_ras.SERVICE_TIMEOUT_S < nccl_ras.TIMEOUT_S


def test_one_answer_is_enough_for_all_ranks(proc: Path) -> None:
    """Ranks that share an address or have their own: the service is asked once."""
    with FakeRas(report=REPORT) as one, FakeRas(report=REPORT) as other:
        pids = [process(proc, pid, NCCL_RAS_ADDR=one.address) for pid in (1, 2, 3)]
        pids.append(process(proc, 4, NCCL_RAS_ADDR=other.address))
        assert ask_ras(pids, timeout_s=GENEROUS_S, proc=proc).text == REPORT
    assert (one.num_connections, other.num_connections) == (1, 0)


def test_an_address_that_is_no_use_is_asked_once(proc: Path) -> None:
    """Eight ranks that share a port with something else knock there once."""
    with FakeRas(greeting="220 smtp\n") as other:
        pids = [process(proc, pid, NCCL_RAS_ADDR=other.address) for pid in range(8)]
        assert "no RAS service" in ask_ras(pids, timeout_s=GENEROUS_S, proc=proc).reason
    assert other.num_connections == 1


def test_a_service_without_json_is_asked_for_its_long_text(proc: Path) -> None:
    """NCCL before 2.28.7 refuses the format and answers as text."""
    with FakeRas(report=TEXT_REPORT, speaks_json=False) as ras:
        pid = process(proc, 1, NCCL_RAS_ADDR=ras.address)
        answer = ask_ras([pid], timeout_s=GENEROUS_S, proc=proc)
    assert (answer.text, answer.reason) == (TEXT_REPORT, "")
    assert ras.commands[-1] == "VERBOSE STATUS"


def test_localhost_is_both_loopback_addresses(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without NCCL_RAS_ADDR a service on ::1 is found, and one on 127.0.0.1 as well."""
    for host in ("::1", "127.0.0.1"):
        with FakeRas(report=REPORT, host=host) as ras:
            default = f"localhost:{ras.port}"
            monkeypatch.setattr(nccl_ras, "DEFAULT_ADDRESS", default)
            pid = process(proc, ras.port)
            assert ask_ras([pid], timeout_s=GENEROUS_S, proc=proc).address == ras.address


def test_a_connection_that_nobody_greets_is_tried_again(
    proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where processes share a port, the kernel may choose a stopped one first."""
    monkeypatch.setattr(nccl_ras, "GREETING_TIMEOUT_S", 1.0)
    with FakeRas(report=REPORT, num_deaf=1) as ras:
        pid = process(proc, 1, NCCL_RAS_ADDR=ras.address)
        assert ask_ras([pid], timeout_s=GENEROUS_S, proc=proc).text == REPORT
    assert ras.num_connections >= 2


def test_a_service_that_never_greets_costs_the_deadline(proc: Path) -> None:
    """A stopped process takes connections for ever: the asking ends, with a reason."""
    with FakeRas(num_deaf=1_000) as ras:
        pid = process(proc, 1, NCCL_RAS_ADDR=ras.address)
        started = time.monotonic()
        answer = ask_ras([pid], timeout_s=1.0, proc=proc)
        assert time.monotonic() - started < 10
    assert not answer.text
    assert "takes connections and does not answer" in answer.reason


def test_half_an_answer_is_kept_and_said_to_be_half(proc: Path) -> None:
    """A service that waits for hung processes falls silent in the middle."""
    with FakeRas(report=REPORT[:200], end=End.SILENT) as ras:
        pid = process(proc, 1, NCCL_RAS_ADDR=ras.address)
        answer = ask_ras([pid], timeout_s=2.0, proc=proc)
    assert answer.text == REPORT[:200]
    assert "did not end its answer in time" in answer.reason


def test_an_endless_answer_is_cut(proc: Path) -> None:
    """Four megabytes are kept, and the rest is neither read nor waited for."""
    with FakeRas(report="{", end=End.STREAM) as ras:
        pid = process(proc, 1, NCCL_RAS_ADDR=ras.address)
        answer = ask_ras([pid], timeout_s=GENEROUS_S, proc=proc)
    assert len(answer.text) == MAX_ANSWER_BYTES
    assert "more than 4,194,304 bytes" in answer.reason


@pytest.mark.parametrize(
    ("greeting", "reason"),
    [
        ("HTTP/1.1 400 Bad Request\n", "no RAS service, it says 'HTTP/1.1 400 Bad Request'"),
        ("\x1b[31mred\x1b[0m\n", "no RAS service, it says '?[31mred?[0m'"),
        ("x" * 100_000, "no RAS service, its lines have no end"),
    ],
)
def test_who_speaks_something_else_is_not_asked(proc: Path, greeting: str, reason: str) -> None:
    """It hears one line of ours, and what it says is told, harmless and short."""
    with FakeRas(greeting=greeting) as ras:
        pid = process(proc, 1, NCCL_RAS_ADDR=ras.address)
        answer = ask_ras([pid], timeout_s=GENEROUS_S, proc=proc)
    assert not answer.text
    assert reason in answer.reason
    assert ras.commands == ["CLIENT PROTOCOL 2"]


def test_nobody_there_is_said_with_what_it_may_mean(proc: Path) -> None:
    """A refused connection names the versions and settings that explain it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    pid = process(proc, 1, NCCL_RAS_ADDR=f"127.0.0.1:{port}")
    answer = ask_ras([pid], timeout_s=GENEROUS_S, proc=proc)
    assert not answer.text
    assert answer.reason.startswith(f"127.0.0.1:{port}: nobody listens there: NCCL is older than 2")
    pid = process(proc, 2, NCCL_RAS_ADDR=f"localhost:{port}")
    reason = ask_ras([pid], timeout_s=GENEROUS_S, proc=proc).reason
    assert reason.endswith("its script chose NCCL_RAS_ADDR itself")
    assert reason.count("nobody listens there") == 1


def test_control_characters_of_an_answer_do_nothing(proc: Path) -> None:
    """Escape sequences and reversed text become question marks; lines and tabs stay."""
    with FakeRas(report="a\x1b]0;own\x07\tb\r\nc\u202ed\udcff", speaks_json=False) as ras:
        pid = process(proc, 1, NCCL_RAS_ADDR=ras.address)
        answer = ask_ras([pid], timeout_s=GENEROUS_S, proc=proc)
    assert answer.text == "a?]0;own?\tb\nc?d\ufffd"


# Whom to ask.


def test_only_two_variables_are_taken(proc: Path) -> None:
    """No other variable leaves the process's environment; values may hold an equals sign."""
    process(proc, 1, NCCL_RAS_ENABLE="1", NCCL_RAS_ADDR="a=b:1", NCCL_RAS_ADDRESS="c", SECRET="d")
    assert read_settings(1, proc) == {"NCCL_RAS_ENABLE": "1", "NCCL_RAS_ADDR": "a=b:1"}


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({}, ["[::1]:28028", "127.0.0.1:28028"]),
        ({"NCCL_RAS_ADDR": "LocalHost:9"}, ["[::1]:9", "127.0.0.1:9"]),
        ({"NCCL_RAS_ADDR": "127.0.0.3:9", "NCCL_RAS_ENABLE": "1"}, ["127.0.0.3:9"]),
        ({"NCCL_RAS_ADDR": "[::1]:9"}, ["[::1]:9"]),
        ({"NCCL_RAS_ADDR": "0.0.0.0:9"}, ["127.0.0.1:9"]),
        ({"NCCL_RAS_ADDR": "[::]:9"}, ["[::1]:9", "127.0.0.1:9"]),
        ({"NCCL_RAS_ADDR": "", "NCCL_RAS_ENABLE": "maybe"}, ["[::1]:28028", "127.0.0.1:28028"]),
    ],
)
def test_addresses_are_read_as_nccl_reads_them(told: dict[str, str], expected: list[str]) -> None:
    """A name, a number or anywhere: where the service listens on this node."""
    assert [str(address) for address in listens_at(told)] == expected


@pytest.mark.parametrize(
    "told",
    [
        "8.8.8.8:28028",
        "[2001:db8::1]:28028",
        "[::ffff:8.8.8.8]:28028",
        "example.com:28028",
        "169.254.169.254:80",
        "224.0.0.1:9",
        "255.255.255.255:9",
        "127.0.0.1",
        "127.0.0.1:0",
        "127.0.0.1:65536",
        "127.0.0.1:-1",
        "127.0.0.1:000000001",
        "127.0.0.1:٣",
        ":9",
        "]:9",
        "127.1:9",
        "2130706433:9",
        "127.0.0.1:9 10.0.0.1:9",
    ],
)
def test_no_other_machine_is_ever_asked(
    told: str, proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hostile address leads to a reason, not to a connection nor to a name server."""

    def no_connection(*_: object) -> None:
        raise AssertionError("it connects")

    monkeypatch.setattr(nccl_ras, "_Line", no_connection)
    monkeypatch.setattr(socket, "getaddrinfo", no_connection)
    answer = ask_ras([process(proc, 1, NCCL_RAS_ADDR=told)], proc=proc)
    assert not answer.text
    assert answer.reason.startswith(f"NCCL_RAS_ADDR={told}")


def test_an_address_of_this_node_is_known_and_others_are_not() -> None:
    """What this machine has bound itself counts; a documentation address does not."""
    assert is_own_address("127.0.0.1")
    assert is_own_address("::1")
    assert not is_own_address("192.0.2.1")
    assert not is_own_address("localhost")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return  # no way out of this machine, and so no address of its own
        assert is_own_address(probe.getsockname()[0])


def test_a_service_that_is_off_is_not_asked(proc: Path) -> None:
    """NCCL_RAS_ENABLE=0 is said, and another rank that has it on is asked."""
    off = process(proc, 1, NCCL_RAS_ENABLE="0")
    assert ask_ras([off], proc=proc).reason.startswith("NCCL_RAS_ENABLE=0 turns the RAS service")
    with FakeRas(report=REPORT) as ras:
        on = process(proc, 2, NCCL_RAS_ADDR=ras.address)
        assert ask_ras([off, on], timeout_s=GENEROUS_S, proc=proc).text == REPORT


def test_a_process_that_is_gone_is_passed_over(proc: Path) -> None:
    """The reason names what could not be read; no rank at all has a reason, too."""
    assert "No such file" in ask_ras([7], proc=proc).reason
    assert ask_ras([], proc=proc).reason == "no rank with NCCL runs on this node"


def test_an_environment_without_end_is_read_in_part(proc: Path) -> None:
    """A megabyte of it is looked at."""
    process(proc, 1, BALLAST="x" * (2 << 20), NCCL_RAS_ENABLE="0")
    assert read_settings(1, proc) == {}


# What an answer tells.


def test_a_member_with_fewer_launches_is_listed() -> None:
    """The few are named with process and rank, and that they are behind; the many are counted."""
    heard = [member(n, 400 + n) for n in range(3)] + [member(3, 403, counts={"AllReduce": 100})]
    (text,) = said(nccl_report([group(heard)]), {("127.0.0.1", 403): 7})
    assert text == (
        f"group {HASH} of 4: AllReduce counts differ: 3 members at 101, "
        "member 3 (rank 7, pid 403 at 127.0.0.1) at 100 (behind)"
    )


def test_a_minority_that_is_ahead_is_said_to_be_ahead() -> None:
    """The service lists the few, who may be the ones that went on: it must not read as blame."""
    heard = [member(n, 400 + n) for n in range(3)] + [member(3, 403, counts={"AllReduce": 102})]
    assert "member 3 (pid 403 at 127.0.0.1) at 102 (ahead)" in said(nccl_report([group(heard)]))[0]


def test_equal_sides_have_no_minority() -> None:
    """Two against two: both sides are listed, neither is behind."""
    heard = [member(n, 400 + n, counts={"AllReduce": 100 + n // 2}) for n in range(4)]
    (text,) = said(nccl_report([group(heard)]))
    assert "behind" not in text
    assert "ahead" not in text
    assert all(f"member {n} " in text for n in range(4))


def test_members_that_were_not_heard_are_listed_by_kind() -> None:
    """Out of reach, answering and not a member, and not told of at all are three things."""
    unheard = [missing(1, 401), missing(2, 402, unresponsive=False)]
    report = nccl_report([group([member(0, 400)], unheard, size=6)], num_timeouts=2)
    assert said(report) == [
        f"group {HASH} of 6: no answer from member 1 (pid 401 at 127.0.0.1)",
        f"group {HASH} of 6: nothing is told of 3 members",
        f"group {HASH} of 6: not members, though they answer: member 2 (pid 402 at 127.0.0.1)",
        "it gave up waiting for an answer 2 times",
    ]


def test_errors_and_unfinished_members_are_listed() -> None:
    """An error of NCCL is one; in progress is none, and said of a member still being made."""
    heard = [member(0, 400, async_error=6), member(1, 401, init_state=7), member(2, 402)]
    assert said(nccl_report([group(heard)])) == [
        f"group {HASH} of 3: an error of NCCL at member 0 (pid 400 at 127.0.0.1)",
        f"group {HASH} of 3: still being made at member 1 (pid 401 at 127.0.0.1)",
    ]


def test_missing_commas_are_forgiven() -> None:
    """What NCCL 2.28.9 writes is no JSON and says the same."""
    report = nccl_report([group([member(0, 400)], [missing(1, 401), missing(2, 402)])])
    broken = without_commas(report)
    with pytest.raises(ValueError, match="delimiter"):
        json.loads(broken)
    assert parse_report(broken) == parse_report(report) is not None


def test_a_number_of_many_digits_spoils_only_itself() -> None:
    """It counts as none, and the rest of the report is read."""
    report = nccl_report([group([member(0, 400)], [missing(1, 401)])])
    assert len(said(report.replace('"timeouts_count": 0', '"timeouts_count": ' + "9" * 5_000))) == 1


def test_another_jobs_answer_is_not_recognised() -> None:
    """Only a process of this node with a rank's pid makes an answer ours."""
    report = parse_report(nccl_report([group([member(0, 411), member(1, 412, host="192.0.2.1")])]))
    assert report is not None
    assert recognise(report, {411: 3, 412: 4}, is_own_address) == {("127.0.0.1", 411): 3}
    assert recognise(report, {5: 0}, is_own_address) == {}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "OK\n",
        TEXT_REPORT,
        REPORT[:300],
        "[" * 200_000,
        '{"communicators": {}}',
        '{"communicators": ' + "9" * 1_000_000,
        "null",
        "1" + "\n" * 100_000,
    ],
)
def test_what_is_no_report_is_none(text: str) -> None:
    """Text, halves, depths and depths of digits give nothing, quickly."""
    started = time.monotonic()
    assert parse_report(text) is None
    assert time.monotonic() - started < 10


def test_a_report_is_bounded_and_harmless() -> None:
    """Thousands of groups, names that steer a terminal, members and numbers that are none."""
    evil = {
        "hash": "\x1b[2J" + "h" * 1_000,
        "size": 10**18,
        "ranks": [{"rank": True, "host": {}, "pid": "x", "collective_counts": {"\x07": 1}}, 3],
        "missing_ranks": [{"rank": -5, "host": "\u202e", "status": []}],
    }
    report = json.dumps({"communicators": [evil] * 9_000, "ras": 1})
    texts = said(report)
    assert len(texts) == MAX_FINDINGS + 1
    assert all(text.isprintable() and len(text) < 1_000 for text in texts)
    assert texts[-1].endswith(" more")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["ranks", "missing_ranks", "status", "rank", "collective_counts", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(_JSON)
def test_any_json_gives_a_report_or_none(value: object) -> None:
    """Wrong types at any depth raise nothing."""
    report = parse_report(json.dumps({"communicators": [value, {"ranks": value}], "ras": value}))
    assert report is not None
    assert all(isinstance(text, str) for text in findings(report, {}))


def test_addresses_are_written_as_nccl_writes_them() -> None:
    """IPv6 stands in brackets."""
    assert str(Address("::1", 5)) == "[::1]:5"
    assert str(Address("10.0.0.1", 5)) == "10.0.0.1:5"
