"""One entry of a flight recorder dump, of any version of torch; every value is checked."""

from __future__ import annotations

from typing import Any, NamedTuple

from tracecore_sidecar.offline.refused import RefusedError

MAX_TEXT = 1_000
"""Characters of one text that are kept."""
MAX_LISTED = 65_536
"""Items of a list of sizes."""
MAX_FRAMES = 32
"""Of a stack."""
_INT64_MAX = 2**63 - 1


class DumpEntry(NamedTuple):
    """What is used of an entry; times are nanoseconds since the epoch, 0 where there is none."""

    record_id: int
    pg_id: str
    pg_name: str
    pg_desc: str
    backend: str
    op: str
    seq_id: int
    p2p_seq_id: int
    op_id: int
    is_p2p: bool
    created_ns: int
    completed_ns: int
    input_sizes: str
    input_dtypes: str
    output_sizes: str
    is_done: bool
    is_started: bool
    frames: tuple[str, ...]
    """Stack of the call, innermost first; kept of unfinished operations only."""


def read_entry(value: Any, index: int) -> DumpEntry:
    """Check an entry; raise :class:`RefusedError` where it is none."""
    if not isinstance(value, dict):
        raise RefusedError(f"entry {index} is not a dict")
    group = value.get("process_group")
    if not isinstance(group, (list, tuple)) or not group:
        raise RefusedError(f"entry {index} names no process group")
    name, desc = text(group[0]), text(group[1]) if len(group) > 1 else ""
    backend, _, op = text(value.get("profiling_name")).rpartition(":")
    state = text(value.get("state"))
    completed = _number(value.get("time_discovered_completed_ns"))
    started = _number(value.get("time_discovered_started_ns"))
    is_p2p = value.get("is_p2p")
    is_done = value.get("retired") is True or state == "completed" or completed > 0
    return DumpEntry(
        record_id=_number(value.get("record_id"), index),
        pg_id=text(value.get("pg_id")),
        pg_name=name,
        pg_desc=desc,
        backend=backend,
        op=op,
        seq_id=_number(value.get("collective_seq_id")),
        p2p_seq_id=_number(value.get("p2p_seq_id")),
        op_id=_number(value.get("op_id")),
        is_p2p=is_p2p if isinstance(is_p2p, bool) else op.startswith(("send ", "recv ")),
        created_ns=_number(value.get("time_created_ns")),
        completed_ns=completed,
        input_sizes=_listing(value.get("input_sizes")),
        input_dtypes=_listing(value.get("input_dtypes")),
        output_sizes=_listing(value.get("output_sizes")),
        is_done=is_done,
        is_started=state in {"started", "completed"} or started > 0,
        frames=() if is_done else _frames(value.get("frames")),
    )


def text(value: Any) -> str:
    """Give a text or number as a text of bounded length."""
    if isinstance(value, str):
        if len(value) <= MAX_TEXT and value.isascii():
            return value
        return value[:MAX_TEXT].encode("utf-8", "replace").decode()
    return str(value) if type(value) is int and abs(value) < 2**63 else ""


def _number(value: Any, default: int = 0) -> int:
    if isinstance(value, str) and len(value) < 20 and value.isdecimal():
        value = int(value)
    return value if type(value) is int and 0 <= value <= _INT64_MAX else default


def _listing(value: Any) -> str:
    """Write a list of sizes or types as torch does: ``[[8320]]``."""
    if not isinstance(value, (list, tuple)) or len(value) > MAX_LISTED:
        return ""
    try:
        return repr(value)[:MAX_TEXT].encode("utf-8", "replace").decode()
    except RecursionError:
        raise RefusedError("an entry whose sizes are nested without end") from None


def _frames(value: Any) -> tuple[str, ...]:
    """Give the stack of the call, innermost first, as ``function (file:line)``."""
    if not isinstance(value, (list, tuple)):
        return ()
    return tuple(
        f"{text(frame.get('name'))} ({text(frame.get('filename'))}:{text(frame.get('line'))})"
        for frame in value[:MAX_FRAMES]
        if isinstance(frame, dict)
    )
