"""Stand-ins for what torch's distributed modules look like in other versions than the installed.

Names and signatures are those of the installed wheels (looked up in 2.6.0, 2.8.0, 2.10.0, 2.13.0,
2.14.1 and 2.15.0); behaviour is the least that a hook can notice. :func:`install` puts one shape
in the place of the installed torch's two modules. Run with the installed torch beside it, a hook
cannot tell it from that version.
"""

from __future__ import annotations

import itertools
import json
import sys
import types
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tracecore_train.hooks.group_watch import C10D
from tracecore_train.hooks.recorder_counters import EXTENSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import pytest


@dataclass(frozen=True)
class Shape:
    """What differs between versions of torch, as far as our hooks look at it."""

    version: str
    has_generic_dump: bool = True
    """``_dump_fr_trace_json`` exists."""
    has_nccl_dump: bool = True
    """``_dump_nccl_trace_json`` exists: any build with CUDA."""
    takes_backend: bool = False
    """``_dump_fr_trace_json`` takes ``backend=``."""
    has_group_hooks: bool = False
    """Process groups have ``register_pre_hook`` and ``register_post_hook``."""
    nccl: str = "nccl"
    """Name of the backend that a user gets for ``nccl``."""
    is_gloo_recorded: bool = True
    """Gloo takes part in the flight recorder."""
    has_generic_handler: bool = True
    """The worker server answers ``fr_trace_json``; 2.8 and 2.9 record gloo and do not."""


SHAPES = {
    shape.version: shape
    for shape in (
        Shape("2.6", has_generic_dump=False, is_gloo_recorded=False, has_generic_handler=False),
        Shape("2.8", has_generic_handler=False),
        Shape("2.10"),
        Shape("2.13"),
        Shape("2.13+cpu", has_nccl_dump=False),
        Shape("2.14", has_group_hooks=True),
        Shape("2.15", has_group_hooks=True, takes_backend=True, nccl="nccl2"),
    )
}


class FakeBackend:
    """What ``_get_backend`` gives."""

    def __init__(self, name: str, number: int) -> None:
        self._name = name
        self.number = number

    def name(self) -> str:
        return self._name


class FakeGroup:
    """A process group as versions without callbacks have it."""

    def __init__(self, name: str, desc: str, backends: Mapping[str, FakeBackend]) -> None:
        self.group_name = name
        self.group_desc = desc
        self._backends = dict(backends)
        self.timing_calls = 0

    @property
    def _device_types(self) -> list[str]:
        return list(self._backends)

    def _get_backend(self, device: str) -> FakeBackend:
        if device not in self._backends:
            raise RuntimeError(f"No backend type associated with device type {device}")
        return self._backends[device]

    def _enable_collectives_timing(self) -> None:
        self.timing_calls += 1

    def rank(self) -> int:
        return 0


class _HookArgs:
    """What torch hands to a callback; ``tensors`` stands for what must not be kept."""

    def __init__(self, name: str, op_id: int) -> None:
        self.name = types.SimpleNamespace(name=name)
        self.op_id = op_id
        self.tensors = [object()]


class HookedGroup(FakeGroup):
    """A process group as 2.14 and newer have it."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.pre: dict[int, Callable[[Any], None]] = {}
        self.post: dict[int, Callable[[Any], None]] = {}
        self._op_ids = itertools.count()
        self.arguments: list[_HookArgs] = []

    def register_pre_hook(self, hook_id: int, hook: Callable[[Any], None]) -> None:
        self.pre[hook_id] = hook

    def register_post_hook(self, hook_id: int, hook: Callable[[Any], None]) -> None:
        self.post[hook_id] = hook

    def unregister_pre_hook(self, hook_id: int) -> None:
        self.pre.pop(hook_id, None)

    def unregister_post_hook(self, hook_id: int) -> None:
        self.post.pop(hook_id, None)

    def begin(self, op: str) -> int:
        """Issue a collective: the callbacks before it run."""
        args = _HookArgs(op, next(self._op_ids))
        for hook in list(self.pre.values()):
            hook(args)
        return args.op_id

    def finish(self, op: str, op_id: int) -> None:
        """Return from it: the callbacks after it run."""
        for hook in list(self.post.values()):
            hook(_HookArgs(op, op_id))


class FakeTorch:
    """One version of torch's distributed modules, with a process in it."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.counters: dict[str, dict[int, int]] = {"gloo": {}, "nccl": {}, "nccl2": {}}
        """By recorder and number of the group, what was enqueued."""
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self._num_backends: dict[str, int] = {}
        self.extension = types.ModuleType(EXTENSION)
        self.c10d = types.ModuleType(C10D)
        group_class = HookedGroup if shape.has_group_hooks else FakeGroup
        self._add(self.c10d, "ProcessGroup", group_class)
        self._add(self.c10d, "_new_process_group_helper", self._make)
        self._world = types.SimpleNamespace(pg_names={}, pg_group_ranks={}, pg_backend_config={})
        self._add(self.c10d, "_world", self._world)
        self._add(self.c10d, "is_initialized", lambda: bool(self._world.pg_names))
        if shape.has_generic_dump:
            self._add(self.extension, "_dump_fr_trace_json", self._dump_generic)
        if shape.has_nccl_dump:
            self._add(self.extension, "_dump_nccl_trace_json", self._dump_nccl)
        self._add(self.extension, "_get_handler_names", self._handlers)

    def make_group(
        self, name: str, backends: Mapping[str, str], ranks: Iterable[int] = (0, 1)
    ) -> Any:
        """Make a group as ``new_group`` does."""
        pg, _ = self.c10d._new_process_group_helper(name, backends, tuple(ranks))
        return pg

    def destroy(self, pg: Any) -> None:
        """Take a group out of the registry, as ``destroy_process_group`` does."""
        del self._world.pg_names[pg], self._world.pg_group_ranks[pg]

    def enqueue(self, pg: Any, device: str, count: int) -> None:
        """Let the recorder of a group's backend count on."""
        backend = pg._get_backend(device)
        if backend.name() != "gloo" or self.shape.is_gloo_recorded:
            self.counters[backend.name()][backend.number] = count

    def _make(self, name: str, backends: Mapping[str, str], ranks: tuple[int, ...]) -> Any:
        made: dict[str, FakeBackend] = {}
        by_name: dict[str, FakeBackend] = {}
        for device, told in backends.items():
            backend = self.shape.nccl if told == "nccl" else told
            if backend not in by_name:
                number = self._num_backends.get(backend, 0)
                self._num_backends[backend] = number + 1
                by_name[backend] = FakeBackend(backend, number)
            made[device] = by_name[backend]
        pg = self.c10d.ProcessGroup(name, f"{name}_desc", made)
        self._world.pg_names[pg] = name
        self._world.pg_group_ranks[pg] = {rank: index for index, rank in enumerate(ranks)}
        return pg, object()

    def _dump_generic(self, *args: bool, **kwargs: Any) -> bytes:
        self.calls.append(("_dump_fr_trace_json", args, kwargs))
        if kwargs and not self.shape.takes_backend:
            raise TypeError("incompatible function arguments")
        return self._status(kwargs.get("backend", "gloo"))

    def _dump_nccl(self, *args: bool) -> bytes:
        self.calls.append(("_dump_nccl_trace_json", args, {}))
        return self._status("nccl")

    def _handlers(self) -> list[str]:
        names = ["dump_traceback", "ping"]
        names += ["fr_trace_json"] if self.shape.has_generic_handler else []
        nccl = ["dump_nccl_trace_json", "dump_nccl_trace_pickle"]
        return names + (nccl if self.shape.has_nccl_dump else [])

    def _status(self, recorder: str) -> bytes:
        status = {
            str(number): {
                "last_enqueued_collective": str(count),
                "last_started_collective": "-1",
                "last_completed_collective": str(count - 1),
            }
            for number, count in self.counters[recorder].items()
        }
        return json.dumps({"version": "2.10", "pg_config": {}, "pg_status": status}).encode()

    @staticmethod
    def _add(module: types.ModuleType, name: str, value: Any) -> None:
        setattr(module, name, value)


def install(monkeypatch: pytest.MonkeyPatch, version: str) -> FakeTorch:
    """Put a version in the place of the installed torch's modules until the test ends."""
    fake = FakeTorch(SHAPES[version])
    monkeypatch.setitem(sys.modules, EXTENSION, fake.extension)
    monkeypatch.setitem(sys.modules, C10D, fake.c10d)
    return fake
