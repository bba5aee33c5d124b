"""A view and a bundle case of a small job on this host, made from records."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from tests.support.verdicts import WALL_OFFSET_NS, event_of, fact, hang
from tracecore_sidecar.bundle.case import Case, open_case
from tracecore_sidecar.state.store import Store
from tracecore_train.wire.records import (
    Batch,
    GroupRecord,
    IdentityRecord,
    RendezvousRecord,
    Source,
    SourceKind,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tracecore_sidecar.state.view import JobView
    from tracecore_sidecar.verdicts import Verdict
    from tracecore_train.wire.records import Record

HOST = socket.gethostname()


def identity(rank: int, pid: int, start_ticks: int, world_size: int) -> IdentityRecord:
    """What a rank says of itself."""
    return IdentityRecord(
        time_ns=1,
        rank=rank,
        local_rank=rank,
        node_rank=0,
        world_size=world_size,
        pid=pid,
        start_ticks=start_ticks,
        device="cpu",
        gpu_uuid=None,
        torch_version="2.13.0",
        blind=(),
    )


def job_view(
    processes: Mapping[int, tuple[int, int]],
    *,
    world_size: int = 4,
    remote: Sequence[int] = (),
    backend: str = "gloo",
) -> JobView:
    """A job whose local ranks run as ``processes``: rank to (pid, start ticks)."""
    store = Store(job_id="job", node_rank=0, host=HOST, boot_id="b")
    group = tuple(range(world_size))
    local: list[Record] = [
        RendezvousRecord(
            time_ns=1,
            world_size=world_size,
            ranks=tuple(processes),
            pids=tuple(pid for pid, _ in processes.values()),
        ),
        GroupRecord(
            time_ns=1, rank=0, pg_name="0", pg_desc="default_pg", backend=backend, ranks=group
        ),
    ]
    local += [identity(rank, *processes[rank], world_size) for rank in processes]
    store.apply(Batch(source=_source(HOST), records=tuple(local)))
    away = tuple(identity(rank, 7_000 + rank, 5, world_size) for rank in remote)
    store.apply(Batch(source=_source("a08"), records=away))
    view = store.view()
    assert view is not None
    return view


def waits(*waiting: int, suspects: Sequence[int] = (1,)) -> Verdict:
    """A hang in which ``waiting`` wait for ``suspects``."""
    return hang(*suspects, evidence=(fact("they wait", None, waiting=list(waiting)),))


def open_test_case(view: JobView, verdict: Verdict | None = None) -> Case:
    """The case of a hang that rank 1 is suspected of."""
    return open_case(event_of(verdict or waits(0)), view, ())


def _source(host: str) -> Source:
    return Source(
        kind=SourceKind.SIDECAR,
        host=host,
        boot_id="b",
        pid=1,
        job_id="job",
        attempt=0,
        wall_offset_ns=WALL_OFFSET_NS,
        node_rank=0,
    )
