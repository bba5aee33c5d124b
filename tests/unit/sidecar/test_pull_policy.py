"""Which recorders are read: gloo and nccl2 always, legacy NCCL where and when it is safe."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.rank_pages import rank_page
from tests.support.recordings import START_NS, SimulatedJob
from tracecore_sidecar.detectors import Wanted, WantedKind
from tracecore_sidecar.evidence import EvidenceFetcher
from tracecore_sidecar.pull_policy import NcclPull, PullPolicy, unread_recorders
from tracecore_train.wire.records import GroupRecord, PullRecord, SourceKind

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tracecore_train.wire.records import Record


def _job(backend: str, *, capture_since_ns: int = 0, has_page: bool = True) -> SimulatedJob:
    job = SimulatedJob()
    job.apply(
        0,
        GroupRecord(
            time_ns=START_NS, rank=0, pg_name="9", pg_desc="", backend=backend, ranks=(0, 1)
        ),
    )
    page = rank_page(START_NS, pid=100, capture_since_ns=capture_since_ns)
    if has_page:
        job.apply(0, page, kind=SourceKind.SIDECAR)
    return job


def _plan(job: SimulatedJob, nccl: NcclPull, *, is_suspicion: bool) -> tuple[str, str]:
    plan = PullPolicy(job.view(), nccl).plan(0, is_suspicion=is_suspicion)
    return " ".join(plan.handlers), plan.left_out


GLOO = "fr_trace_json"
ALWAYS = NcclPull.ON_SUSPICION


@pytest.mark.parametrize("is_suspicion", [False, True])
@pytest.mark.parametrize("nccl", [*NcclPull])
def test_gloo_is_always_read(nccl: NcclPull, is_suspicion: bool) -> None:
    """A job on gloo has one recorder, and it is sampled."""
    assert _plan(_job("gloo"), nccl, is_suspicion=is_suspicion) == (GLOO, "")


@pytest.mark.parametrize("is_suspicion", [False, True])
def test_nccl2_is_sampled_beside_gloo(is_suspicion: bool) -> None:
    """A job on nccl2 has both recorders read, also while nothing is suspected."""
    plan = _plan(_job("cpu:gloo,cuda:nccl2"), NcclPull.NEVER, is_suspicion=is_suspicion)
    assert plan == (f"{GLOO} fr_trace_json?backend=nccl2", "")


def test_legacy_nccl_is_not_read_by_default() -> None:
    """Without the user's word the recorder of NCCL stays closed, and that is said."""
    job = _job("cpu:gloo,cuda:nccl")
    assert _plan(job, NcclPull.NEVER, is_suspicion=True) == (GLOO, "")
    assert "TRACECORE_NCCL_PULL=never" in unread_recorders(job.view(), NcclPull.NEVER)[0]
    assert unread_recorders(job.view(), ALWAYS) == ()
    assert unread_recorders(_job("gloo").view(), NcclPull.NEVER) == ()


def test_legacy_nccl_is_read_on_suspicion_only() -> None:
    """Allowed, it is read when a detector asks, and a scheduled read says that it left it out."""
    job = _job("nccl")
    assert _plan(job, ALWAYS, is_suspicion=True) == (f"{GLOO} dump_nccl_trace_json", "")
    handlers, left_out = _plan(job, ALWAYS, is_suspicion=False)
    assert (handlers, "on suspicion only" in left_out) == (GLOO, True)


def test_legacy_nccl_is_not_read_during_a_capture() -> None:
    """A rank that captures a graph, or of which that is not known, is left alone."""
    capturing = _plan(_job("nccl", capture_since_ns=START_NS), ALWAYS, is_suspicion=True)
    assert (capturing[0], "graph capture" in capturing[1]) == (GLOO, True)
    unknown = _plan(_job("nccl", has_page=False), ALWAYS, is_suspicion=True)
    assert (unknown[0], "captures a graph" in unknown[1]) == (GLOO, True)


class _Reader:
    """Notes what is asked for, and answers that it worked."""

    def __init__(self) -> None:
        self.handlers: list[tuple[str, ...]] = []

    def pull(self, rank: int, path: Path, *, now_ns: int, **options: Any) -> list[PullRecord]:
        self.handlers.append(options["handlers"])
        pull = PullRecord(
            time_ns=now_ns, rank=rank, is_ok=True, reason="", num_entries=0, num_lost=0
        )
        return [pull]


def test_a_suspicion_reads_what_a_schedule_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fetcher asks for the recorder of NCCL when a detector wants it, and marks a scheduled
    read that left it out.
    """
    job = _job("nccl")
    found: list[Record] = []
    reader = _Reader()
    monkeypatch.setattr("tracecore_sidecar.evidence.FlightRecorderReader", lambda: reader)
    pages = tmp_path / "0"
    pages.mkdir()
    monkeypatch.setattr("tracecore_sidecar.evidence.runtime.rank_pages", lambda *_: {0: pages})

    async def fetch() -> None:
        has_come = asyncio.Event()

        def take(records: Sequence[Record], _attempt: int) -> None:
            found.extend(records)
            has_come.set()

        fetcher = EvidenceFetcher(tmp_path, on_records=take, wall_offset_ns=0, nccl_pull=ALWAYS)
        fetcher.pull_on_schedule(5.0, job.view(), START_NS)
        await has_come.wait()
        has_come.clear()
        await asyncio.sleep(0)  # the fetch is over
        wish = Wanted(kind=WantedKind.COLLECTIVES, ranks=(0,), reason="suspicion")
        fetcher.request([wish], job.view(), START_NS + 2_000_000_000)
        await has_come.wait()
        await fetcher.close()

    asyncio.run(asyncio.wait_for(fetch(), 30))
    assert reader.handlers == [(GLOO,), (GLOO, "dump_nccl_trace_json")]
    assert [(r.is_whole, bool(r.reason)) for r in found if isinstance(r, PullRecord)] == [
        (False, True),
        (True, False),
    ]


def test_other_ranks_are_not_concerned() -> None:
    """A rank outside the group of NCCL is read as before."""
    job = SimulatedJob(3)
    job.apply(
        0,
        GroupRecord(
            time_ns=START_NS, rank=0, pg_name="9", pg_desc="", backend="nccl", ranks=(0, 1)
        ),
    )
    plan = PullPolicy(job.view(), ALWAYS).plan(2, is_suspicion=False)
    assert (plan.handlers, plan.left_out) == ((GLOO,), "")
