"""Recorded records through the same store, detectors and incidents, on the recorded clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from tracecore_sidecar.detectors.catalogue import built_in
from tracecore_sidecar.engine import Engine
from tracecore_sidecar.sinks.record_file import read_records
from tracecore_sidecar.state.store import Store
from tracecore_sidecar.verdicts import to_json
from tracecore_train.errors import WireError
from tracecore_train.wire.records import SourceKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from tracecore_sidecar.incidents import IncidentEvent
    from tracecore_sidecar.verdicts import JobInfo
    from tracecore_train.wire.records import Batch, Source

Recorded: TypeAlias = "tuple[int, Batch | None]"

TICK_NS = 1_000_000_000
"""Tick distance for recordings that hold no ticks of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """One incident event of a replay, with what it takes to render it."""

    event: IncidentEvent
    job: JobInfo
    wall_offset_ns: int


def replay_path(path: Path) -> Iterator[Replayed]:
    """Replay a records directory (or a job's output directory, or one file).

    Raises :class:`~tracecore_train.errors.WireError` or ``OSError`` when it holds no readable
    records.
    """
    records = _records_in(path)
    return replay(lambda: read_records(records), str(path))


def replay(open_recording: Callable[[], Iterable[Recorded]], name: str) -> Iterator[Replayed]:
    """Replay ``(time_ns, batch)`` items in order; a batch of None is a tick.

    ``open_recording`` is called twice: once to see who observed, once to replay. Without a tick
    in the recording, one is made for every second of recorded time.
    """
    observer, has_ticks = _survey(open_recording(), name)
    engine = Engine(
        Store(
            job_id=observer.job_id,
            node_rank=observer.node_rank or 0,
            host=observer.host,
            boot_id=observer.boot_id,
        ),
        built_in(),
        wall_offset_ns=observer.wall_offset_ns,
    )
    job: JobInfo | None = None
    now_ns = 0
    for now_ns, batch in open_recording() if has_ticks else _with_ticks(open_recording()):
        if batch is not None:
            engine.apply(batch)
            continue
        tick = engine.tick(now_ns)
        job = tick.view.job if tick.view is not None else job
        for event in tick.events:
            yield _replayed(event, job, observer)
    for event in engine.close(now_ns):
        yield _replayed(event, job, observer)


def _replayed(event: IncidentEvent, job: JobInfo | None, observer: Source) -> Replayed:
    assert job is not None, "an incident needs a job"  # noqa: S101  (an invariant, not a check)
    return Replayed(event=event, job=job, wall_offset_ns=observer.wall_offset_ns)


def _survey(recording: Iterable[Recorded], name: str) -> tuple[Source, bool]:
    """Find the source whose clock and node the recording is about, and whether it has ticks."""
    first: Source | None = None
    observer: Source | None = None
    has_ticks = False
    for _, batch in recording:
        if batch is None:
            has_ticks = True
        else:
            first = first or batch.source
            if batch.source.kind is SourceKind.SIDECAR:
                observer = observer or batch.source
        if observer is not None and has_ticks:
            break
    if first is None:
        raise WireError(f"{name} holds no records")
    return observer or first, has_ticks


def _with_ticks(recording: Iterable[Recorded]) -> Iterator[Recorded]:
    next_tick: int | None = None
    for now_ns, batch in recording:
        next_tick = now_ns + TICK_NS if next_tick is None else next_tick
        while now_ns >= next_tick:
            yield next_tick, None
            next_tick += TICK_NS
        yield now_ns, batch
    if next_tick is not None:
        yield next_tick, None


def _records_in(path: Path) -> Path:
    """Find the records below a job's output directory, a node's, or the records themselves."""
    if path.is_file():
        return path
    candidates = [path / "records", *sorted(path.glob("*/records"))]
    return next((candidate for candidate in candidates if candidate.is_dir()), path)


def verdict_json(item: Replayed) -> dict[str, Any]:
    """Give the verdict of a replayed event as a line of ``verdicts.jsonl`` would hold it."""
    return to_json(
        item.event.verdict,
        item.job,
        incident_id=item.event.incident_id,
        emitted_ns=item.event.now_ns,
        wall_offset_ns=item.wall_offset_ns,
    )
