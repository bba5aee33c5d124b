"""How dumps of a :class:`~tests.support.stream_job.StreamJob` look: versions, rings, files.

A form is drawn at random. It changes what is told and how, never what happened.
"""

from __future__ import annotations

import gzip
import json
import pickle
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from tests.support.stream_job import Call, StreamJob, Work

TIMEOUT_MS = 180_000
NAMES = ("_dump_{}", "nccl_trace_rank_{}", "comm_lib_trace_rank_{}", "job7.node-3.r{}.rank{}.json")


@dataclass(slots=True)
class Form:
    """What a set of dumps looks like."""

    version: str = "2.9"
    is_json: bool = False
    is_gzip: bool = False
    is_active_only: bool = False
    has_timing: bool = False
    name: str = "_dump_{}"
    rings: dict[int, int] = field(default_factory=dict)
    """Entries kept, by rank; others keep all."""
    missing: frozenset[int] = frozenset()
    doubled: frozenset[int] = frozenset()
    """Ranks with an older dump beside the last one."""
    given_up: frozenset[int] = frozenset()
    """Ranks whose watchdog has ended what they waited in before they dumped."""


def random_form(rng: random.Random, num_ranks: int) -> Form:
    """Draw a form."""

    def some(share: float) -> frozenset[int]:
        return frozenset(r for r in range(num_ranks) if rng.random() < share)

    has_rings = rng.random() < 0.4
    is_json = rng.random() < 0.3
    return Form(
        version=rng.choice(["2.4", "2.5", "2.7", "2.9", "2.10"]),
        is_json=is_json,
        is_gzip=rng.random() < 0.1,
        is_active_only=rng.random() < 0.5,
        has_timing=rng.random() < 0.2,
        name=rng.choice(NAMES),
        rings={r: rng.randrange(20, 90) for r in some(0.7)} if has_rings else {},
        missing=some(0.1) if rng.random() < 0.3 else frozenset(),
        doubled=some(0.3) if rng.random() < 0.2 else frozenset(),
        given_up=some(0.5) if rng.random() < 0.2 else frozenset(),
    )


def write(job: StreamJob, form: Form, directory: Path) -> None:
    """Write the dumps of a job."""
    for rank in range(len(job.ranks)):
        if rank in form.missing:
            continue
        name = form.name.format(rank, rank)
        (directory / name).write_bytes(_encoded(dump(job, rank, form), form))
        if rank in form.doubled:
            older = directory / ("a_" + name)
            older.write_bytes(_encoded(dump(job, rank, form, num_later=3), form))


def _encoded(value: dict[str, Any], form: Form) -> bytes:
    raw = json.dumps(value).encode() if form.is_json else pickle.dumps(value, protocol=2)
    return gzip.compress(raw) if form.is_gzip else raw


def dump(job: StreamJob, rank: int, form: Form, *, num_later: int = 0) -> dict[str, Any]:
    """Give the dump of one rank, as it stood ``num_later`` calls ago."""
    works = job.ranks[rank].works
    works = works[: len(works) - num_later]
    own = [name for name, members in job.groups.items() if rank in members]
    entries = [entry for work in works for entry in _entries(job, rank, work, own, form)]
    entries = entries[-form.rings.get(rank, 20_000) :]
    if form.is_active_only:
        entries = [e for e in entries if not e["time_discovered_completed_ns"]]
    used = [name for name in own if any(work.pg == name for work in works)]
    status = {str(3 * own.index(name)): _status(works, name, form) for name in used}
    found: dict[str, Any] = {
        "version": form.version,
        "pg_config": {
            name: {"name": name, "desc": f"GROUP_{name}", "ranks": str(list(job.groups[name]))}
            for name in sorted(used)
        },
        "comm_lib_version" if form.version == "2.10" else "nccl_version": "2.27.3",
        "pg_status": status,
    }
    if entries or not form.is_json:
        found["entries"] = entries
    return found


def _status(works: list[Work], name: str, form: Form) -> dict[str, Any]:
    own = [work for work in works if work.pg == name]
    told = [work for work in own if work.is_told]

    def last(found: list[Work]) -> int:
        work = found[-1] if found else None
        return -1 if work is None else work.p2p_seq_id if work.is_p2p else work.seq_id

    counts = {
        "last_enqueued_collective": last(own),
        "last_started_collective": -1,
        "last_completed_collective": last(told),
    }
    return {k: str(v) for k, v in counts.items()} if form.is_json else dict(counts)


def _entries(
    job: StreamJob, rank: int, work: Work, own: list[str], form: Form
) -> list[dict[str, Any]]:
    calls = work.calls
    parts = [(c, size) for c in calls for size in c.sizes]
    is_coalesced = work.num_entries > len(parts)
    found = [
        _entry(job, rank, work, own, form, place, call, size, is_part=is_coalesced)
        for place, (call, size) in enumerate(parts)
    ]
    if is_coalesced:
        found.append(_entry(job, rank, work, own, form, len(parts), calls[0], None, is_part=False))
    return found


def _entry(
    job: StreamJob,
    rank: int,
    work: Work,
    own: list[str],
    form: Form,
    place: int,
    call: Call,
    size: int | None,
    *,
    is_part: bool,
) -> dict[str, Any]:
    members = job.groups[call.pg]
    name = call.kind
    if size is None:
        name = "coalesced"
    elif call.peer is not None:
        arrow = "->" if call.kind == "send" else "<-"
        name = f"{call.kind} {members.index(rank)}{arrow}{members.index(call.peer)}"
    is_told = work.is_told and not is_part
    has_started = form.has_timing and not is_part and (is_told or job.has_begun(work))
    none = 0 if form.is_json else None
    entry: dict[str, Any] = {
        "record_id": work.record_id + place,
        "pg_id": 3 * own.index(call.pg),
        "process_group": (call.pg, f"GROUP_{call.pg}"),
        "thread_name": "python3",
        "thread_id": "23456244340032",
        "collective_seq_id": work.seq_id,
        "p2p_seq_id": work.p2p_seq_id,
        "op_id": work.op_id + place - (size is None),
        "profiling_name": f"nccl:{name}",
        "time_created_ns": work.created_ns + place,
        "input_sizes": [] if size is None else [[size, 8]],
        "input_dtypes": [] if size is None else ["BFloat16"],
        "output_sizes": [] if size is None else [[size, 8]],
        "output_dtypes": [] if size is None else ["BFloat16"],
        "state": "completed" if is_told else "started" if has_started else "scheduled",
        "time_discovered_started_ns": work.created_ns + 10 if has_started else none,
        "time_discovered_completed_ns": work.created_ns + 20 if is_told else none,
        "retired": is_told or (rank in form.given_up and not is_part),
        "timeout_ms": TIMEOUT_MS,
        "is_p2p": call.peer is not None,
    }
    if form.version in {"2.4", "2.5"}:
        del entry["thread_name"], entry["thread_id"]
    return entry
