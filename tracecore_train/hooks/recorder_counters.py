"""Counters of the flight recorders in this process, read without their entries (3 to 4 µs each).

There are up to three recorders, by backend: gloo's, legacy NCCL's and nccl2's; a CUDA job with a
gloo side group has two. Each numbers the groups in the order in which their backends were made in
this process. How each is read is found out by looking, never from a version: torch 2.15 gave an
existing function an argument and changed what ``nccl`` means.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from tracecore_train.guard import MAX_REASON

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

EXTENSION = "torch._C._distributed_c10d"
"""Module of torch that reads the flight recorders."""
GENERIC_DUMP = "_dump_fr_trace_json"
NCCL_DUMP = "_dump_nccl_trace_json"
HANDLERS = {
    "gloo": "fr_trace_json",
    "nccl": "dump_nccl_trace_json",
    "nccl2": "fr_trace_json",
}
"""Backend -> what torch's worker server calls the entries of its recorder."""
_DECODER = json.JSONDecoder()


class Counters:
    """How far one group has come, as a recorder counts."""

    __slots__ = ("completed", "enqueued", "started")

    def __init__(self, status: Mapping[str, Any]) -> None:
        """Read one entry of ``pg_status``; what it does not tell is -1."""
        self.enqueued = _number(status, "last_enqueued_collective")
        self.started = _number(status, "last_started_collective")
        self.completed = _number(status, "last_completed_collective")


class RecorderCounters:
    """The recorder of one backend. What has not changed since the last read is not parsed."""

    def __init__(self, backend: str) -> None:
        """Read the recorder of ``backend``, by the name torch gives it."""
        self._backend = backend
        self._dump = _dump_of(backend)
        self._answer = b""
        self._found: dict[int, Counters] = {}
        self.is_changed = False
        """Whether the last read differs from the one before it."""
        self.blind = "" if self._dump else _no_recorder(backend)
        """Why the last read gave nothing; empty: it worked."""
        self.no_entries = self.blind or _no_handler(backend)
        """Why nobody can pull the entries from outside; empty: nothing speaks against it."""

    def read(self, num_groups: int) -> dict[int, Counters]:
        """Give the counters by the group's number; ``num_groups`` were made so far."""
        if self._dump is None:
            return {}
        try:
            answer = self._dump()
            self.is_changed = answer != self._answer
            if self.is_changed:
                self._found = _parse(answer)
        except (TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = f"the flight recorder of {self._backend} does not answer ({error})"
            self._answer, self.blind = b"", reason[:MAX_REASON]
            return {}
        self._answer = answer
        if self._found and max(self._found) >= num_groups:
            self.blind = (
                f"the flight recorder of {self._backend} counts groups whose making was not seen"
            )
            return {}
        self.blind = ""
        return self._found


def _dump_of(backend: str) -> Callable[[], bytes] | None:
    name = NCCL_DUMP if backend == "nccl" else GENERIC_DUMP
    read: Callable[..., bytes] | None = getattr(sys.modules.get(EXTENSION), name, None)
    if backend not in HANDLERS or read is None:
        return None
    if backend == "nccl2":
        return lambda: read(False, False, backend="nccl2")
    return lambda: read(False, False)


def _no_recorder(backend: str) -> str:
    if backend in HANDLERS:
        return f"this torch has no flight recorder of {backend}"
    return f"the backend {backend} has no flight recorder that is read"


def _no_handler(backend: str) -> str:
    """Say where the worker server lacks what the entries are pulled by, as gloo's in torch 2.8."""
    names = getattr(sys.modules.get(EXTENSION), "_get_handler_names", None)
    if names is None or HANDLERS[backend] in names():
        return ""
    return f"the worker server of this torch has no {HANDLERS[backend]} (2.10 and newer do)"


def _parse(answer: bytes) -> dict[int, Counters]:
    dump, _ = _DECODER.raw_decode(answer.decode("utf-8", "replace"))
    return {int(number): Counters(told) for number, told in dump.get("pg_status", {}).items()}


def has_generic_recorder() -> bool:
    """Say whether this torch has a flight recorder beside that of legacy NCCL."""
    return getattr(sys.modules.get(EXTENSION), GENERIC_DUMP, None) is not None


def _number(status: Mapping[str, Any], name: str) -> int:
    try:
        return int(status[name])
    except (KeyError, TypeError, ValueError):
        return -1
