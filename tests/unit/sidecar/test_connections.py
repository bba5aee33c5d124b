"""Connections of the ranks are read from the kernel, and name the link that holds a group up."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.campaign.below import drop_all
from tests.support.cases import job_view
from tests.support.fake_sidecar import wait_until
from tests.support.rank_pages import rank_page
from tests.support.recordings import MS, SimulatedJob, Watch
from tracecore_sidecar.connection_looks import REPEAT_AFTER_NS, ConnectionLooks
from tracecore_sidecar.detectors.hang import HangDetector
from tracecore_sidecar.sources.connections import (
    MAX_CONNECTIONS,
    address_text,
    parse_table,
    read_connections,
)
from tracecore_train.wire.records import NOT_MEASURED, ConnectionsRecord, SourceKind

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tracecore_sidecar.verdicts import Verdict
    from tracecore_train.wire.records import Record

PEER = """
import socket, sys, time
socket.create_connection(("127.0.0.1", int(sys.argv[1])))
held = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
time.sleep(100)
"""
HEADER = (
    "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout"
)
ROW = "0: 0100007F:1F90 0200007F:A1B2 01 00000060:00000020 01:00000014 00000004  0 0 77 3 0 20 4 31"


@pytest.fixture
def peer() -> Iterator[tuple[int, socket.socket]]:
    """A process with a connection to this one that it never reads: its pid, and our end."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        arguments = [sys.executable, "-c", PEER, str(server.getsockname()[1])]
        process = subprocess.Popen(arguments)
        try:
            server.settimeout(60)
            server.accept()[0].close()
            end, _ = server.accept()
            with end:
                yield process.pid, end
        finally:
            process.kill()
            process.wait()


def look(pid: int) -> dict[int, ConnectionsRecord]:
    """This process as rank 0, the other as rank 1."""
    return {record.rank: record for record in read_connections({os.getpid(): 0, pid: 1}, 5)}


def test_what_a_peer_does_not_read_is_counted_at_its_end(peer: tuple[int, socket.socket]) -> None:
    """Bytes sent to a process that reads nothing wait there, and name who sent them."""
    pid, end = peer
    end.sendall(bytes(1000))
    wait_until(lambda: look(pid)[1].num_unread == (1000,))
    record = look(pid)[1]
    assert (record.peers, record.num_unacknowledged, record.error) == ((0,), (0,), "")
    assert record.addresses == (f"127.0.0.1:{end.getsockname()[1]}",)


def test_a_dead_link_is_seen_at_the_end_that_sends(peer: tuple[int, socket.socket]) -> None:
    """Where nothing comes back, the bytes stay unacknowledged and are sent again and again."""
    pid, end = peer
    drop_all(end)
    end.sendall(bytes(1000))
    wait_until(lambda: max(look(pid)[0].num_retransmits, default=0) >= 2)
    record = look(pid)[0]
    assert (record.peers, record.num_unacknowledged) == ((1,), (1000,))


def test_idle_connections_are_left_out(peer: tuple[int, socket.socket]) -> None:
    """Nothing waits, nothing is told."""
    records = look(peer[0])
    assert [record.peers for record in records.values()] == [(), ()]


def test_a_process_that_is_gone_has_a_reason() -> None:
    """A rank whose files are not there is not said to be well."""
    (record,) = read_connections({2**22 + 1: 3}, 5)
    assert record.error.startswith("its sockets are not shown: ")


def test_a_line_of_the_table_is_read_as_the_kernel_means_it() -> None:
    """Queues are hexadecimal, and a count of retransmits holds only while that timer runs."""
    (row,) = parse_table(f"{HEADER}\n{ROW}\n")
    assert (row.num_unacknowledged, row.num_unread, row.num_retransmits) == (96, 32, 4)
    assert (address_text(row.local), address_text(row.remote)) == (
        "127.0.0.1:8080",
        "127.0.0.2:41394",
    )
    (row,) = parse_table(f"{HEADER}\n{ROW.replace(' 01:00000014', ' 00:00000000')}\n")
    assert row.num_retransmits == 0


def test_an_address_of_version_6_is_read_and_a_mapped_one_is_of_version_4() -> None:
    """Both ends of a connection are found, whichever table each stands in."""
    mapped, plain = "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"
    rows = [ROW.replace("0100007F", address, 1) for address in (mapped, plain)]
    ends = [address_text(row.local) for row in parse_table("\n".join([HEADER, *rows]))]
    assert ends == ["127.0.0.1:8080", "[::1]:8080"]


@pytest.mark.parametrize(
    "line", ["", "x", "0: 1", ROW.replace("0100007F", "zz"), ROW.replace(":1F90", ""), "\x00" * 99]
)
def test_lines_that_are_not_of_the_table_are_left_out(line: str) -> None:
    """A line that cannot be read costs nothing but itself."""
    assert len(list(parse_table(f"{HEADER}\n{line}\n{ROW}\n"))) == 1


def test_the_fullest_connections_of_a_rank_are_told(
    tmp_path: Path,
) -> None:
    """A rank with more connections than are told keeps those in which most waits."""
    process = tmp_path / "7"
    for name in ("fd", "ns", "net"):
        (process / name).mkdir(parents=True)
    (process / "ns" / "net").symlink_to("net:[1]")
    lines = [HEADER]
    for number in range(1, MAX_CONNECTIONS + 10):
        (process / "fd" / str(number)).symlink_to(f"socket:[{number}]")
        ends = f"0100007F:{number:04X} 0200007F:0001"
        lines.append(f"0: {ends} 01 00000000:{number:08X} 00:0 0 0 0 {number}")
    (process / "net" / "tcp").write_text("\n".join(lines))
    (record,) = read_connections({7: 2}, 5, tmp_path)
    assert record.num_unread[0] == MAX_CONNECTIONS + 9
    assert len(record.num_unread) == MAX_CONNECTIONS
    assert set(record.peers) == {NOT_MEASURED}


def test_a_suspicion_looks_once_and_a_lasting_one_again() -> None:
    """Wishes a second apart share a look."""
    view = job_view({0: (os.getpid(), 5)}, world_size=2)
    view = replace(view, pages={0: rank_page(50, pid=os.getpid(), rank=0)})
    found: list[Record] = []

    async def run() -> None:
        looks = ConnectionLooks(lambda records, _: found.extend(records))
        for now_ns in (0, 1_000_000_000, REPEAT_AFTER_NS):
            before = asyncio.all_tasks()
            looks.request(view, now_ns)
            await asyncio.gather(*(asyncio.all_tasks() - before))
        await looks.close()

    asyncio.run(asyncio.wait_for(run(), 50))
    assert [record.rank for record in found if isinstance(record, ConnectionsRecord)] == [0, 0]


# What the hang detector makes of it.


def stuck_with(*records: ConnectionsRecord) -> Verdict:
    """The verdict of a job whose four ranks are all inside an operation."""
    job = SimulatedJob(4)
    job.train(60, lambda _rank, _step: 100 * MS)
    job.enter(range(4))
    watch = Watch(job, [HangDetector()])
    watch.run_to_end(4)
    for record in records:
        told = replace(record, time_ns=watch.tick_ns)
        job.apply(record.rank, told, kind=SourceKind.SIDECAR)
    watch.run(10)
    (verdict,) = watch.last
    assert (verdict.class_, verdict.suspects) == ("none_completed", ())
    return verdict


def connection(rank: int, peer: int, unread: int = 0, again: int = 0) -> ConnectionsRecord:
    """One connection of a rank."""
    return ConnectionsRecord(
        time_ns=0,
        rank=rank,
        peers=(peer,),
        addresses=("192.0.2.9:80",),
        num_unacknowledged=(96 if again else 0,),
        num_unread=(unread,),
        num_retransmits=(again,),
    )


def test_a_dead_link_is_named_and_no_rank_is_accused() -> None:
    """Both ends stand in the sentence, in the evidence, and in what to do."""
    verdict = stuck_with(connection(1, 2, again=4), connection(2, 1, again=3))
    assert verdict.summary.endswith("; nothing gets through between rank 1 and rank 2")
    assert verdict.actions == ("look at the network between rank 1 and rank 2",)
    found = [item.text for item in verdict.evidence if item.kind == "connection"]
    assert found[0] == (
        "rank 1 has sent 96 bytes to rank 2 that are not acknowledged, 4 times again"
    )


def test_an_end_on_another_node_is_named_by_its_address() -> None:
    """What this node does not run is told as the kernel knows it."""
    verdict = stuck_with(connection(3, NOT_MEASURED, again=6))
    assert verdict.summary.endswith("; nothing gets through between 192.0.2.9:80 and rank 3")


def test_a_rank_that_does_not_read_is_told_and_not_accused() -> None:
    """It may be waiting itself; what to look at is its threads."""
    verdict = stuck_with(connection(3, 0, unread=352))
    assert verdict.summary.endswith("; rank 3 did not read what came")
    assert "py-spy dump --native" in verdict.actions[0]


@pytest.mark.parametrize("again", [0, 1])
def test_one_lost_packet_is_no_dead_link(again: int) -> None:
    """The sentence is the plain one."""
    verdict = stuck_with(connection(1, 2, again=again))
    assert verdict.summary.endswith("and none completed it")


def test_a_look_that_is_missing_is_said() -> None:
    """Ranks whose connections were not seen are listed, with the reason where there is one."""
    refused = replace(connection(1, 2), error="its sockets are not shown: Permission denied")
    texts = stuck_with(refused).not_measured
    assert "connections of rank 0: not looked at" in texts
    assert "connections of rank 1: its sockets are not shown: Permission denied" in texts
