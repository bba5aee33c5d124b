"""Send and recv where the backend's flight recorder leaves them out (gloo). Off by default.

Every Python call (``send``, ``recv``, ``isend``, ``irecv``, ``batch_isend_irecv``, lists of
objects, pipeline schedules) ends in a method of the process group, and that is what is patched:
the functions themselves stay, because torch compares them (``P2POp`` takes no other ``isend``).
An operation is open from there until its work's ``wait`` returns or the work is dropped; the work
is only referenced weakly. What is told looks like an entry of the flight recorder.

Groups whose backend records send and recv by itself (NCCL) are left alone.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

from tracecore_train.errors import HookUnavailableError
from tracecore_train.hooks.dynamo import keep_out_of_graphs
from tracecore_train.hooks.group_watch import MAX_TEXT, backends_of
from tracecore_train.hooks.open_operations import OpenOperations
from tracecore_train.hooks.patch import Patch
from tracecore_train.recorder.clock import now_ns
from tracecore_train.wire.records import GapRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracecore_train.guard import Guard
    from tracecore_train.hooks.context import HookContext
    from tracecore_train.hooks.open_operations import Operation
    from tracecore_train.wire.records import Record

MAX_GROUPS = 4_096
"""Groups whose facts are kept; further ones are looked up each time."""
ANY = "any"
"""Peer of a recv that takes from whoever sends."""


class _Group(NamedTuple):
    ref: weakref.ref[Any]
    name: str
    rank: int
    """Of this process in the group."""
    is_recorded: dict[str, bool]
    """By device type, whether the backend records send and recv itself."""


class PointToPointHook:
    """Tells each send and recv of gloo: with whom, since when, until when."""

    name = "point_to_point"

    def __init__(self, context: HookContext, guard: Guard) -> None:
        """Prepare; nothing is installed yet."""
        self._rank = context.rank
        self._guard = guard
        self._operations = OpenOperations()
        self._groups: dict[int, _Group] = {}
        self._works: dict[int, tuple[weakref.ref[Any], Operation]] = {}
        self._num_lost_told = 0
        self._patches: list[Patch] = []

    def install(self) -> None:
        """Patch the methods of the process group and ``Work.wait``."""
        try:
            from torch._C._distributed_c10d import ProcessGroup, Work
        except ImportError as error:
            raise HookUnavailableError(f"no torch.distributed ({error})") from None
        self._patches = [
            Patch(ProcessGroup, "send", functools.partial(self._wrap, "send")),
            Patch(ProcessGroup, "recv", functools.partial(self._wrap, "recv")),
            Patch(ProcessGroup, "recv_anysource", functools.partial(self._wrap, ANY)),
            Patch(Work, "wait", self._wrap_wait),
        ]
        try:
            for patch in self._patches:
                patch.install()
        except (AttributeError, TypeError) as error:
            self.uninstall()
            raise HookUnavailableError(f"this torch cannot be patched there ({error})") from None

    def uninstall(self) -> None:
        """Put the originals back."""
        for patch in self._patches:
            patch.uninstall()
        self._patches = []

    def blind(self) -> list[str]:
        """Give what this hook cannot see."""
        return []

    def poll(self, is_full: bool) -> list[Record]:
        """Give what began and what ended, and what is still open to a new sidecar."""
        now = now_ns()
        records: list[Record] = [
            operation.record(self._rank, now) for operation in self._operations.take(is_full)
        ]
        num_lost = self._operations.num_lost - self._num_lost_told
        if num_lost:
            self._num_lost_told += num_lost
            records.append(
                GapRecord(
                    time_ns=now,
                    rank=self._rank,
                    where=self.name,
                    num_lost=num_lost,
                    reason="more sends and receives than are kept",
                )
            )
        return records

    def _wrap(self, direction: str, original: Callable[..., Any]) -> Callable[..., Any]:
        guard = self._guard

        @functools.wraps(original)
        def call(pg: Any, *args: Any, **kwargs: Any) -> Any:
            if not guard.is_open:
                return original(pg, *args, **kwargs)
            operation = None
            with guard:
                operation = self._begin(pg, direction, args, kwargs)
            if operation is None:
                return original(pg, *args, **kwargs)
            work = None
            try:
                work = original(pg, *args, **kwargs)
                return work
            finally:
                if guard.is_open:
                    with guard:
                        self._issued(operation, work)

        return keep_out_of_graphs(call)

    def _wrap_wait(self, original: Callable[..., Any]) -> Callable[..., Any]:
        guard, works = self._guard, self._works

        @functools.wraps(original)
        def wait(work: Any, *args: Any, **kwargs: Any) -> Any:
            known = works.get(id(work)) if guard.is_open else None
            if known is None:
                return original(work, *args, **kwargs)
            try:
                return original(work, *args, **kwargs)
            finally:
                if guard.is_open:
                    with guard:
                        self._finished(known[1], work)

        return keep_out_of_graphs(wait)

    def _begin(
        self, pg: Any, direction: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Operation | None:
        group = self._groups.get(id(pg))
        if group is None or group.ref() is not pg:
            group = self._look_up(pg)
        given = [*args, *kwargs.values()]
        tensor = given[0][0]
        if group.is_recorded.get(tensor.device.type, False):
            return None
        if direction == ANY:
            op = f"recv {group.rank}<-{ANY}"
            tag = given[1] if len(given) > 1 else 0
        else:
            op = f"{direction} {group.rank}{'->' if direction == 'send' else '<-'}{given[1]}"
            tag = given[2] if len(given) > 2 else 0
        return self._operations.begin(group.name, op, int(tag), tensor)

    def _issued(self, operation: Operation, work: Any) -> None:
        if work is None:
            self._operations.end(operation)
            return
        key = id(work)

        def drop(_: object) -> None:
            self._works.pop(key, None)
            if self._guard.is_open:
                with self._guard:
                    self._operations.end(operation)

        self._works[key] = (weakref.ref(work, drop), operation)

    def _finished(self, operation: Operation, work: Any) -> None:
        # Nothing is left to learn from this work, also where the job keeps it for ever.
        self._works.pop(id(work), None)
        op = ""
        if operation.op.endswith(ANY):
            # Torch asks the same once such a recv returned; one that failed has no source.
            with contextlib.suppress(RuntimeError, AttributeError):
                op = operation.op.removesuffix(ANY) + str(int(work._source_rank()))
        self._operations.end(operation, op)

    def _look_up(self, pg: Any) -> _Group:
        if len(self._groups) >= MAX_GROUPS:
            self._groups.clear()
        group = _Group(
            ref=weakref.ref(pg),
            name=str(pg.group_name)[:MAX_TEXT],
            rank=int(pg.rank()),
            is_recorded={device: "ccl" in backend for device, backend in backends_of(pg).items()},
        )
        self._groups[id(pg)] = group
        return group
