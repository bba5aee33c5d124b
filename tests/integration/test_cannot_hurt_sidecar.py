"""A sidecar that dies, comes back, stops, dawdles or lies, beside a real job that trains on."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.support.broken_sidecar import BEHAVIOURS, BrokenSidecar
from tests.support.fake_sidecar import wait_until
from tests.support.ranks import TIMEOUT_S, Ranks, assert_same_bits, assert_unhurt
from tests.support.real_sidecar import RealSidecar
from tracecore_train.wire.records import GroupRecord, IdentityRecord, StepRecord

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("torch")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_killed_sidecar_is_replaced_and_the_next_one_judges(tmp_path: Path) -> None:
    """After a SIGKILL a new sidecar on the same socket is told who the ranks are and which groups
    they share, names the rank that stays away, and the job ends as if nothing had been.
    """
    job = tmp_path / "j"
    with (
        RealSidecar(job, tmp_path / "first") as first,
        Ranks(tmp_path / "run", "--gate", "30", endpoint=first.endpoint) as ranks,
    ):
        ranks.wait_at_gate()
        wait_until(lambda: any(isinstance(r, StepRecord) for r in first.records()), TIMEOUT_S)
        first.send(signal.SIGKILL)
        first.process.wait()
        with RealSidecar(job, tmp_path / "second") as second:
            ranks.open_gate([0])
            wait_until(lambda: second.verdicts, TIMEOUT_S)
            ranks.open_gate([1])
            assert_same_bits(ranks.finish())
            assert second.end() == 0
    verdict = second.verdicts[0]
    assert (verdict["pattern"], [s["rank"] for s in verdict["suspects"]]) == ("hang", [1])
    records = second.records()
    assert {r.rank for r in records if isinstance(r, IdentityRecord)} == {0, 1}
    assert {r.ranks for r in records if isinstance(r, GroupRecord)} == {(0, 1)}
    assert {r.step for r in records if isinstance(r, StepRecord)} >= set(range(31, 60))


def test_stopped_sidecar_holds_nobody_and_goes_on_after(tmp_path: Path) -> None:
    """While the sidecar is stopped the job trains and leaves on time; continued, it ends well."""
    with RealSidecar(tmp_path / "j", tmp_path / "out") as sidecar:
        with Ranks(tmp_path / "run", "--gate", "30", endpoint=sidecar.endpoint) as ranks:
            ranks.wait_at_gate()
            sidecar.send(signal.SIGSTOP)
            ranks.open_gate()
            assert_unhurt(ranks.finish())
        sidecar.send(signal.SIGCONT)
        assert sidecar.end() == 0
    assert set(sidecar.summary["ranks"]) == {"0", "1"}
    assert sidecar.verdicts == []


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_broken_sidecar_changes_nothing(tmp_path: Path, behaviour: str) -> None:
    """Slow, silent about lengths, endless, or no HTTP at all: exit code, bits and time are those
    of the job without us, and nothing is said.
    """
    with BrokenSidecar(tmp_path / "j", behaviour) as sidecar:
        with Ranks(tmp_path / "run", endpoint=sidecar.endpoint) as ranks:
            ended = ranks.finish()
        assert sidecar.num_requests >= 2, "each rank tried"
    assert_unhurt(ended)
    assert "tracecore: " not in "".join(rank.stderr for rank in ended)
