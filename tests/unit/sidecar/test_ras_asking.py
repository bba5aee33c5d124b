"""A suspicion asks NCCL's RAS service once, and what it says is evidence beside the others."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.support.cases import job_view
from tests.support.fake_ras import FakeRas, group, member, nccl_report
from tests.support.rank_pages import rank_page
from tests.support.recordings import MS, SimulatedJob, Watch
from tracecore_sidecar.detectors import Wanted, WantedKind
from tracecore_sidecar.detectors.hang import HangDetector
from tracecore_sidecar.evidence import EvidenceFetcher
from tracecore_sidecar.pull_policy import NcclPull
from tracecore_sidecar.sources import nccl_ras
from tracecore_train.wire.records import NcclRasRecord, SourceKind

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tracecore_sidecar.state.view import JobView
    from tracecore_sidecar.verdicts import Verdict
    from tracecore_train.wire.records import Record

WISH = Wanted(kind=WantedKind.COLLECTIVES, ranks=(0,), reason="suspicion")
LATER_NS = 61_000_000_000
FINDING = "group 0xab of 4: AllReduce counts differ: 3 members at 101, member 0 at 100 (behind)"


def nccl_view(**page: int) -> JobView:
    """A job on NCCL whose rank 0 is this very process."""
    view = job_view({0: (os.getpid(), 5)}, world_size=2, backend="nccl")
    return replace(view, pages={0: rank_page(50, pid=os.getpid(), rank=0, **page)})


def suspect(tmp_path: Path, view: JobView, times_ns: Sequence[int], pull: NcclPull) -> list[Record]:
    """Give the records of RAS that suspicions at these times lead to."""
    found: list[Record] = []

    async def run() -> None:
        fetcher = EvidenceFetcher(
            tmp_path,
            on_records=lambda records, _: found.extend(records),
            wall_offset_ns=0,
            nccl_pull=pull,
        )
        for now_ns in times_ns:
            before = asyncio.all_tasks()
            fetcher.request([WISH], view, now_ns)
            await asyncio.gather(*(asyncio.all_tasks() - before))
        await fetcher.close()

    asyncio.run(asyncio.wait_for(run(), 50))
    return [record for record in found if isinstance(record, NcclRasRecord)]


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> FakeRas:
    """A service that this process seems to have, not listening yet."""
    ras = FakeRas(report=nccl_report([group([member(0, os.getpid()), member(1, 1, host="?")])]))
    monkeypatch.setattr(nccl_ras, "read_settings", lambda *_: {"NCCL_RAS_ADDR": ras.address})
    return ras


def test_a_suspicion_asks_once_and_a_lasting_one_again(tmp_path: Path, listening: FakeRas) -> None:
    """Looks a second apart share an answer; a minute later there is another."""
    view = nccl_view()
    behind = member(0, os.getpid(), counts={"AllReduce": 7})
    peers = [member(n, 1, host="192.0.2.1") for n in (1, 2)]
    listening.report = nccl_report([group([behind, *peers])])
    with listening:
        found = suspect(tmp_path, view, (0, 1_000_000_000), NcclPull.ON_SUSPICION)
        assert listening.num_connections == 1
        (record,) = found
        assert isinstance(record, NcclRasRecord)
        assert (record.rank, record.error) == (0, "")
        assert f"member 0 (rank 0, pid {os.getpid()} at 127.0.0.1) at 7 (behind)" in str(record)
        assert len(suspect(tmp_path, view, (0, LATER_NS), NcclPull.ON_SUSPICION)) == 2


def test_agreement_is_a_record_without_findings(tmp_path: Path, listening: FakeRas) -> None:
    """Nothing that stands out is neither a finding nor an error."""
    with listening:
        (record,) = suspect(tmp_path, nccl_view(), (0,), NcclPull.ON_SUSPICION)
    assert isinstance(record, NcclRasRecord)
    assert (record.findings, record.error) == ((), "")


@pytest.mark.parametrize(("pull", "captures"), [(NcclPull.NEVER, 0), (NcclPull.ON_SUSPICION, 5)])
def test_nobody_is_asked_without_permission(
    tmp_path: Path, listening: FakeRas, pull: NcclPull, captures: int
) -> None:
    """Neither by default nor while a graph is captured."""
    with listening:
        assert suspect(tmp_path, nccl_view(capture_since_ns=captures), (0,), pull) == []
    assert listening.num_connections == 0


def test_a_service_that_is_not_there_gives_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record says why, for the verdict to pass on."""
    monkeypatch.setattr(nccl_ras, "read_settings", lambda *_: {"NCCL_RAS_ENABLE": "0"})
    (record,) = suspect(tmp_path, nccl_view(), (0,), NcclPull.ON_SUSPICION)
    assert isinstance(record, NcclRasRecord)
    assert record.error.startswith("NCCL_RAS_ENABLE=0 turns the RAS service off")


# What the hang detector makes of it.


def hang_with(findings: Sequence[str] = (), error: str = "") -> Verdict:
    """The verdict of a hang of rank 1 in which RAS has answered."""
    job = SimulatedJob(4)
    job.train(60, lambda _rank, _step: 100 * MS)
    job.enter(rank for rank in range(4) if rank != 1)
    watch = Watch(job, [HangDetector()])
    watch.run_to_end(7)
    answer = NcclRasRecord(time_ns=watch.tick_ns, rank=0, findings=tuple(findings), error=error)
    job.apply(0, answer, kind=SourceKind.SIDECAR)
    watch.run_to_end(14)
    (verdict,) = watch.last
    return verdict


def test_what_ras_says_is_evidence_and_accuses_nobody() -> None:
    """The suspect, the cause and the confidence are those of the recorder, whoever RAS lists."""
    plain, told = hang_with(), hang_with([FINDING])
    (item,) = [item for item in told.evidence if item.kind == "nccl_ras"]
    assert (item.text, item.rank) == (f"NCCL RAS, a hint: {FINDING}", None)
    assert [s.rank for s in told.suspects] == [1] == [s.rank for s in plain.suspects]
    assert (told.class_, told.confidence) == (plain.class_, plain.confidence)


def test_agreement_is_a_gap_and_not_health() -> None:
    """RAS calls hung jobs healthy: where it does, the verdict stays and says what that means."""
    verdict = hang_with()
    assert "does not mean that all is well" in " ".join(verdict.not_measured)
    assert not [item for item in verdict.evidence if item.kind == "nccl_ras"]


def test_a_reason_is_passed_on() -> None:
    """Why there was no answer stands under what was not seen."""
    assert "nccl_ras: nobody listens there" in hang_with(error="nobody listens there").not_measured


def test_no_answer_was_asked_for_and_none_is_missing() -> None:
    """A job nobody may ask about lacks nothing."""
    job = SimulatedJob(4)
    job.train(60, lambda _rank, _step: 100 * MS)
    job.enter(rank for rank in range(4) if rank != 1)
    watch = Watch(job, [HangDetector()])
    watch.run_to_end(14)
    assert not any("nccl_ras" in text for text in watch.last[0].not_measured)
