"""Flight recorder dumps as torch's own analyzer reads them: one pickle per rank.

The worker server answers with JSON. Torch's analyzer (``torch.distributed.flight_recorder``)
loads pickles, and needs in them what torch leaves out or gets wrong on gloo: the list of entries
of an empty ring, and ``pg_config``, which we know from the groups the ranks told us about.
"""

from __future__ import annotations

import json
import pickle
from typing import TYPE_CHECKING, Any

from tracecore_sidecar.sources.recorder_dump import MAX_ENTRIES
from tracecore_sidecar.sources.worker_server import PullError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tracecore_sidecar.state.view import GroupView

DIRECTORY = "dumps/torch"
"""Holds a directory per recorder, each as torch's analyzer wants it: one file per rank."""
FILE_PREFIX = "comm_lib_trace_rank_"
"""Name of the files without the rank, as newer versions of torch name theirs."""
_TIMES = ("time_discovered_started_ns", "time_discovered_completed_ns")
_PROTOCOL = 4


def parse_dump(raw: bytes | bytearray) -> dict[str, Any]:
    """Read a worker server's answer; raise :class:`PullError` where it is no dump."""
    try:
        dump = json.loads(raw)
    except (ValueError, RecursionError):
        raise PullError(f"its answer of {len(raw)} bytes is not JSON") from None
    if not isinstance(dump, dict) or not isinstance(dump.get("entries", []), list):
        raise PullError("its answer is not a flight recorder dump")
    return dump


def torch_pickle(dump: Mapping[str, Any], groups: Iterable[GroupView], rank: int) -> bytes:
    """Give a parsed dump of ``rank`` in the form that torch itself pickles."""
    entries = [entry for entry in dump.get("entries", []) if isinstance(entry, dict)]
    fixed = {
        **dump,
        "version": str(dump.get("version", "")),
        "pg_config": pg_config(groups, rank),
        "pg_status": {
            str(name): {key: _number(value) for key, value in status.items()}
            for name, status in _mapping(dump.get("pg_status")).items()
            if isinstance(status, dict)
        },
        "entries": [_entry(entry) for entry in entries[-MAX_ENTRIES:]],
    }
    return pickle.dumps(fixed, protocol=_PROTOCOL)


def pg_config(groups: Iterable[GroupView], rank: int) -> dict[str, dict[str, str]]:
    """Give the groups of ``rank`` as torch writes them; the members are a text there."""
    return {
        group.pg_name: {
            "name": group.pg_name,
            "desc": group.pg_desc,
            "ranks": str(list(group.members)),
        }
        for group in groups
        if rank in group.members
    }


def give_up_wall_ns(dump: Mapping[str, Any]) -> int | None:
    """Say when torch itself would give up the oldest wait of this rank; None where none waits."""
    found: list[int] = []
    for entry in dump.get("entries", []):
        if not isinstance(entry, dict) or entry.get("retired") is not False:
            continue
        created, timeout = entry.get("time_created_ns"), entry.get("timeout_ms")
        if type(created) is int and type(timeout) is int and created > 0 and timeout > 0:
            found.append(created + timeout * 1_000_000)
    return min(found, default=None)


def _entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    # JSON has 0 where the pickle has None, and no frames.
    known: dict[str, Any] = {name: entry.get(name) or None for name in _TIMES}
    if isinstance(entry.get("process_group"), list):
        known["process_group"] = tuple(entry["process_group"])
    return {"frames": [], **entry, **known}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> Any:
    is_number = isinstance(value, str) and value.lstrip("-").isdecimal() and len(value) < 20
    return int(value) if is_number else value
