"""The optional hook for send and recv, on real ranks over gloo."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.fake_sidecar import FakeSidecar, wait_until
from tests.support.ranks import PROGRAM, Ranks
from tracecore_train.wire.records import CollectiveRecord, GroupRecord, IdentityRecord

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("torch")
pytestmark = pytest.mark.timeout(120)

SEND_AND_RECEIVE = PROGRAM.with_name("send_and_receive.py")
GOT = [
    {"got": [11.0, 11.0, 12.0, 13.0, 14.0], "objects": [None]},
    {"got": [1.0, 1.0, 2.0, 2.0], "objects": [{"a": 1}]},
]


def test_every_send_and_recv_is_told_also_while_one_blocks(tmp_path: Path) -> None:
    """All ways to send and receive are told with their pair and order, and end; a recv that
    blocks is seen open while it blocks; what arrives is what arrives without us.
    """
    with (
        FakeSidecar(tmp_path / "j") as sidecar,
        Ranks(
            tmp_path / "run",
            endpoint=sidecar.endpoint,
            program=SEND_AND_RECEIVE,
            TRACECORE_HOOKS="+point_to_point",
        ) as ranks,
    ):
        ranks.wait_at_gate()

        def open_ones() -> list[tuple[int, str, int]]:
            last = {(r.rank, r.record_id): r for r in sidecar.records(CollectiveRecord)}
            return [(r.rank, r.op, r.p2p_seq_id) for r in last.values() if not r.is_retired]

        # One of the pair, one of the batch, one from anybody; the side group counts apart.
        wait_until(lambda: open_ones() == [(0, "recv 0<-1", 4)], 60)
        ranks.open_gate([1])
        ended = ranks.finish()
        assert open_ones() == []
    assert [rank.returncode for rank in ended] == [0, 0], ended
    assert [rank.report for rank in ended] == GOT
    assert not any("tracecore" in rank.stderr for rank in ended), ended
    last = {(r.rank, r.record_id): r for r in sidecar.records(CollectiveRecord)}.values()
    names = {group.pg_name: len(group.ranks) for group in sidecar.records(GroupRecord)}
    for sender, receiver in ((0, 1), (1, 0)):
        sent = {
            (r.pg_name, r.p2p_seq_id, r.input_sizes)
            for r in last
            if (r.rank, r.op) == (sender, f"send {sender}->{receiver}")
        }
        received = {
            (r.pg_name, r.p2p_seq_id, r.input_sizes)
            for r in last
            if (r.rank, r.op) == (receiver, f"recv {receiver}<-{sender}")
        }
        assert sent == received
        assert {name for name, _, _ in sent} == set(names)
    assert {r.tag for r in last} == {0, 7}
    assert "point_to_point" in sidecar.records(IdentityRecord)[-1].measured


def test_it_is_off_by_default(tmp_path: Path) -> None:
    """Nobody's send or recv is wrapped unless the user asks."""
    with (
        FakeSidecar(tmp_path / "j") as sidecar,
        Ranks(tmp_path / "run", endpoint=sidecar.endpoint, program=SEND_AND_RECEIVE) as ranks,
    ):
        ranks.wait_at_gate()
        ranks.open_gate([1])
        ended = ranks.finish()
    assert [rank.report for rank in ended] == GOT
    assert sidecar.records(CollectiveRecord) == []
    assert "point_to_point" in sidecar.records(IdentityRecord)[-1].off
