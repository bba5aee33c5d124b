"""Process groups and their counters, read from the export thread; no call is patched.

Membership comes from torch's own registry, because the flight recorder's ``pg_config`` is broken
on gloo. Counters come from the flight recorder without its entries (3 to 4 µs); it numbers
groups by creation order within this process and backend, which is not the group's name on a rank
that is not in every group, so the numbers are matched by that order.

The flight recorder's size is set where the user did not: torch 2.10 and older leave it off, newer
ones use the same size by default. That must happen before the first process group is made. A
user's explicit 0 is respected, and reported as blind.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tracecore_train.errors import HookUnavailableError
from tracecore_train.recorder.clock import now_ns
from tracecore_train.wire.records import GroupRecord, ProgressRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracecore_train.guard import Guard
    from tracecore_train.hooks.context import HookContext
    from tracecore_train.wire.records import Record

RING_VARIABLES = ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE")
"""Size of the flight recorder, by its present and its older name."""
RING_ENTRIES = "2000"
"""Torch's own default where it is on; larger rings make every dump hold a lock for longer."""
MAX_GROUPS = 4_096
"""Process groups followed; far above what tensor, pipeline and data parallelism need."""


@dataclass(frozen=True, slots=True)
class _Group:
    ref: weakref.ref[Any]
    record: GroupRecord
    generic_id: int | None
    """Number in the generic flight recorder (gloo and others); None: not recorded there."""
    nccl_id: int | None
    """Number in the legacy NCCL flight recorder."""


class ProcessGroupsHook:
    """Reports groups as they appear and their counters at every hand-over."""

    name = "process_groups"

    def __init__(self, context: HookContext, guard: Guard) -> None:
        """Prepare; nothing is set yet."""
        self._rank = context.rank
        self._groups: list[_Group] = []
        self._num_generic = 0
        self._num_nccl = 0
        self._blind = ""
        self._set_variables: list[str] = []
        self._has_counters = False

    def install(self) -> None:
        """Turn the flight recorder on where the user did not decide."""
        try:
            import torch.distributed as dist
        except ImportError as error:
            raise HookUnavailableError(f"collectives: no torch ({error})") from None
        if not dist.is_available():
            raise HookUnavailableError("collectives: this torch is built without distributed")
        chosen = [name for name in RING_VARIABLES if name in os.environ]
        if chosen:
            if all(os.environ[name].strip() == "0" for name in chosen):
                self._blind = f"the flight recorder is off ({chosen[0]}=0)"
        else:
            # Where the recorder of every backend exists, torch warns about the older name.
            is_new = _counters("_dump_fr_trace_json") is not None
            for name in RING_VARIABLES[:1] if is_new else RING_VARIABLES:
                os.environ[name] = RING_ENTRIES
                self._set_variables.append(name)
        if not self._blind and _counters("_dump_fr_trace_json") is None:
            self._blind = "this torch has no flight recorder for every backend (2.8 and newer do)"

    def uninstall(self) -> None:
        """Take our environment variables back and let go of what was seen."""
        for name in self._set_variables:
            if os.environ.get(name) == RING_ENTRIES:
                del os.environ[name]
        self._set_variables, self._groups = [], []

    def blind(self) -> list[str]:
        """Give what this hook cannot see."""
        if self._blind:
            return [f"collectives: {self._blind}"]
        if self._groups and not self._has_counters:
            return ["collectives: the flight recorder has counted none yet, or it is off"]
        return []

    def poll(self, is_full: bool) -> list[Record]:
        """Give the groups that are new (or all) and the counters of all."""
        c10d = sys.modules.get("torch.distributed.distributed_c10d")
        world = getattr(c10d, "_world", None)
        if world is None:
            return []
        alive = {id(pg): name for pg, name in _snapshot(world.pg_names)}
        self._groups = [group for group in self._groups if id(group.ref()) in alive]
        known = {id(group.ref()) for group in self._groups}
        num_known = len(self._groups)
        for pg, name in _snapshot(world.pg_names):
            if id(pg) not in known and len(self._groups) < MAX_GROUPS:
                # Destroyed since the snapshot: torch's registry knows it no more.
                with contextlib.suppress(KeyError, ValueError, RuntimeError):
                    self._groups.append(self._describe(c10d, world, pg, str(name)))
        if not self._groups:
            return []
        fresh = self._groups if is_full else self._groups[num_known:]
        return [*(group.record for group in fresh), *self._progress()]

    def _describe(self, c10d: Any, world: Any, pg: Any, name: str) -> _Group:
        ranks = dict(_snapshot(world.pg_group_ranks.get(pg, {})))
        backend = str(c10d.get_backend(pg))
        backends = f"{backend} {world.pg_backend_config.get(pg, '')}".lower().replace(",", " ")
        has_nccl = _is_legacy_nccl(backends)
        has_generic = not has_nccl or "gloo" in backends
        group = _Group(
            ref=weakref.ref(pg),
            record=GroupRecord(
                time_ns=now_ns(),
                rank=self._rank,
                pg_name=name[:200],
                pg_desc=str(getattr(pg, "group_desc", ""))[:200],
                backend=backend[:200],
                ranks=tuple(sorted(ranks, key=lambda rank: ranks[rank])),
            ),
            generic_id=self._num_generic if has_generic else None,
            nccl_id=self._num_nccl if has_nccl else None,
        )
        self._num_generic += has_generic
        self._num_nccl += has_nccl
        return group

    def _progress(self) -> list[Record]:
        generic = _read(_counters("_dump_fr_trace_json"))
        nccl = _read(_counters("_dump_nccl_trace_json")) if _is_cuda_in_use() else {}
        records: list[Record] = []
        now = now_ns()
        for group in self._groups:
            for number, status in ((group.generic_id, generic), (group.nccl_id, nccl)):
                counters = status.get(str(number))
                if counters is not None:
                    records.append(
                        ProgressRecord(
                            time_ns=now,
                            rank=self._rank,
                            pg_name=group.record.pg_name,
                            enqueued=_number(counters, "last_enqueued_collective"),
                            started=_number(counters, "last_started_collective"),
                            completed=_number(counters, "last_completed_collective"),
                        )
                    )
        self._has_counters = self._has_counters or bool(records)
        return records


def _snapshot(mapping: Any) -> list[tuple[Any, Any]]:
    """Copy a dict that the training thread may be changing."""
    for _ in range(5):
        with contextlib.suppress(RuntimeError):
            return list(mapping.items())
    return []


def _counters(name: str) -> Callable[[bool, bool], bytes] | None:
    module = sys.modules.get("torch._C._distributed_c10d")
    found: Callable[[bool, bool], bytes] | None = getattr(module, name, None)
    return found


def _read(dump: Callable[[bool, bool], bytes] | None) -> dict[str, Any]:
    """Read the counters of all groups; the recorder's entries stay where they are."""
    if dump is None:
        return {}
    try:
        status = json.loads(dump(False, False)).get("pg_status", {})
    except (TypeError, ValueError, RuntimeError):
        return {}
    return status if isinstance(status, dict) else {}


def _number(counters: Any, name: str) -> int:
    try:
        return int(counters[name])
    except (KeyError, TypeError, ValueError):
        return -1


def _is_legacy_nccl(backends: str) -> bool:
    return "nccl" in backends and "nccl2" not in backends


def _is_cuda_in_use() -> bool:
    cuda = sys.modules.get("torch.cuda")
    return cuda is not None and bool(cuda.is_initialized())
