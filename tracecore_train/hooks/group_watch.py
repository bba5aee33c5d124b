"""The process groups of this process: which there are, which are new, which are gone.

They are read from torch's own registry, because the flight recorder's ``pg_config`` is broken on
gloo. A look costs a microsecond where nothing changed. Making a group is also seen as it happens
(:meth:`GroupWatch.wrap_making`): a group that lives shorter than the time between two looks still
takes a number in its backend's flight recorder, and what a group of the same name did before must
not be taken for what this one does.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import weakref
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from tracecore_train.hooks.copied import copied
from tracecore_train.hooks.dynamo import keep_out_of_graphs
from tracecore_train.hooks.patch import Patch
from tracecore_train.recorder.clock import now_ns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tracecore_train.guard import Guard

C10D = "torch.distributed.distributed_c10d"
"""Module of torch that knows the groups."""
MAX_GROUPS = 4_096
"""Process groups followed; far above what tensor, pipeline and data parallelism need."""
MAX_TEXT = 200
"""Characters of a group's name, description or backend."""


class Part(NamedTuple):
    """What one backend does of a group: a sequence of collectives of its own."""

    name: str
    """The group's; with several backends ``name:backend`` for all but gloo, or the first."""
    desc: str
    backend: str
    number: int


@dataclass(frozen=True, slots=True)
class Group:
    """One process group of this process."""

    ref: weakref.ref[Any]
    name: str
    desc: str
    ranks: tuple[int, ...]
    """Global ranks of the members, in group order."""
    backends: tuple[tuple[str, str], ...]
    """Device types, each with the name of the backend that serves it."""
    numbers: tuple[tuple[str, int], ...]
    """Names of its backends, each with how many of that name were made before in this process:
    its number in the flight recorder of that backend."""
    made_ns: int
    """When its making began; 0: not seen."""
    generation: int
    """How often a group of this name was made before."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """Give its backends apart: each counts its own collectives from 1."""
        if len(self.numbers) < 2:
            return tuple(Part(self.name, self.desc, *number) for number in self.numbers)
        plain = next((part for part in self.numbers if part[0] == "gloo"), self.numbers[0])
        return tuple(
            Part(self.name, self.desc, *part)
            if part is plain
            else Part(f"{self.name}:{part[0]}", f"{self.desc} on {part[0]}", *part)
            for part in self.numbers
        )


@dataclass(frozen=True, slots=True)
class _Made:
    """A group whose making was seen."""

    ref: weakref.ref[Any]
    backends: tuple[str, ...]
    """Names of its backends, one per backend made."""
    made_ns: int


class GroupWatch:
    """Looks at torch's registry for one hook. :meth:`look` is for one thread at a time."""

    def __init__(self) -> None:
        """Know no group yet."""
        self.groups: list[Group] = []
        self.num_backends: dict[str, int] = {}
        """Backends made so far in this process, by name."""
        self._ids: tuple[int, ...] = ()
        self._making: deque[_Made] = deque(maxlen=MAX_GROUPS)
        self._counted: list[_Made] = []
        self._generations: dict[str, int] = {}
        self._patch: Patch | None = None

    def wrap_making(self, guard: Guard) -> None:
        """See each group being made from now on, where this torch lets us."""
        patch = patch_making(guard, self._note)
        with contextlib.suppress(AttributeError):
            patch.install()
            self._patch = patch

    def unwrap_making(self) -> None:
        """Undo :meth:`wrap_making`."""
        if self._patch is not None:
            self._patch.uninstall()
        self._patch = None

    def look(self) -> tuple[list[Group], list[Group]]:
        """Give the groups that appeared and those that went since the last look."""
        c10d = sys.modules.get(C10D)
        names = getattr(getattr(c10d, "_world", None), "pg_names", None)
        if names is None:
            return [], []
        ids = tuple(map(id, copied(names)))
        is_same = ids == self._ids and not self._making
        if is_same and all(group.ref() is not None for group in self.groups):
            return [], []
        # Before the registry is copied: what was made by now and is not in it was destroyed.
        self._counted = [self._making.popleft() for _ in range(len(self._making))]
        return self._compare(c10d, copied(names.items()), ids)

    def _compare(
        self, c10d: Any, alive: list[tuple[Any, Any]], ids: tuple[int, ...]
    ) -> tuple[list[Group], list[Group]]:
        alive_ids = {id(pg) for pg, _ in alive}
        gone = [group for group in self.groups if id(group.ref()) not in alive_ids]
        kept = [group for group in self.groups if id(group.ref()) in alive_ids]
        known = {id(group.ref()) for group in kept}
        made: list[Group] = []
        is_whole = True
        for pg, name in alive:
            if id(pg) in known:
                continue
            if len(kept) + len(made) >= MAX_GROUPS:
                break
            try:
                made.append(self._describe(c10d, pg, str(name)[:MAX_TEXT]))
            except (KeyError, ValueError, RuntimeError):
                # Destroyed since the copy: torch knows it no more.
                is_whole = False
        self._count_until(None)
        self.groups = kept + made
        self._ids = ids if is_whole else ()
        return made, gone

    def _describe(self, c10d: Any, pg: Any, name: str) -> Group:
        ranks = dict(copied(c10d._world.pg_group_ranks[pg].items()))
        by_device = backends_of(pg) or _told_backends(c10d, pg)
        seen = self._count_until(pg)
        numbers = self._number(_distinct(pg, by_device))
        generation = self._generations.get(name, -1) + 1
        if name in self._generations or len(self._generations) < 4 * MAX_GROUPS:
            self._generations[name] = generation
        return Group(
            ref=weakref.ref(pg),
            name=name,
            desc=str(getattr(pg, "group_desc", ""))[:MAX_TEXT],
            ranks=tuple(sorted(ranks, key=lambda rank: ranks[rank])),
            backends=tuple(by_device.items()),
            numbers=numbers,
            made_ns=seen.made_ns if seen is not None else 0,
            generation=generation,
        )

    def _note(self, pg: Any, began: int) -> None:
        names = _distinct(pg, backends_of(pg))
        self._making.append(_Made(weakref.ref(pg), names, began))

    def _count_until(self, pg: Any) -> _Made | None:
        """Number what was made before ``pg`` and is gone; give what was seen of ``pg`` itself."""
        found = [index for index, made in enumerate(self._counted) if made.ref() is pg]
        end = len(self._counted) if pg is None else found[0] if found else 0
        for made in self._counted[:end]:
            self._number(made.backends)
        seen = self._counted[end] if found and pg is not None else None
        del self._counted[: end + 1 if seen else end]
        return seen

    def _number(self, names: Iterable[str]) -> tuple[tuple[str, int], ...]:
        numbers: list[tuple[str, int]] = []
        for name in names:
            number = self.num_backends.get(name, 0)
            self.num_backends[name] = number + 1
            numbers.append((name, number))
        return tuple(numbers)


def patch_making(guard: Guard, on_made: Callable[[Any, int], None]) -> Patch:
    """Give a patch that calls ``on_made(group, began_ns)`` on the thread that made a group.

    Installing it raises ``AttributeError`` where this torch makes groups in another way.
    """

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def _new_process_group_helper(*args: Any, **kwargs: Any) -> Any:
            if not guard.is_open:
                return original(*args, **kwargs)
            began = now_ns()
            made = original(*args, **kwargs)
            if guard.is_open:
                with guard:
                    pg = made[0] if isinstance(made, tuple) and made else made
                    # A rank that is no member gets a number, and makes no backend.
                    if not isinstance(pg, int) and pg is not None:
                        on_made(pg, began)
            return made

        return keep_out_of_graphs(_new_process_group_helper)

    return Patch(sys.modules.get(C10D), "_new_process_group_helper", wrap)


def backends_of(pg: Any) -> dict[str, str]:
    """Name the backend that serves each device type, as torch resolved it; empty: not told."""
    return {device: name for device, name, _ in _backends(pg)}


def _backends(pg: Any) -> list[tuple[str, str, Any]]:
    found: list[tuple[str, str, Any]] = []
    for device in getattr(pg, "_device_types", ()):
        with contextlib.suppress(RuntimeError, AttributeError, TypeError):
            backend = pg._get_backend(device)
            found.append((str(device)[:MAX_TEXT], str(backend.name())[:MAX_TEXT].lower(), backend))
    return sorted(found, key=lambda item: item[:2])


def _distinct(pg: Any, by_device: dict[str, str]) -> tuple[str, ...]:
    """Name each backend of a group once: gloo alone serves every device type by one."""
    found = _backends(pg)
    if not found:
        return tuple(dict.fromkeys(by_device.values()))
    return tuple({id(backend): name for _, name, backend in found}.values())


def _told_backends(c10d: Any, pg: Any) -> dict[str, str]:
    """Read what torch was asked for, ``cuda:nccl,cpu:gloo`` or ``gloo``."""
    told = str(c10d._world.pg_backend_config.get(pg, "")) or str(c10d.get_backend(pg))
    pairs = [part.partition(":") for part in told.lower().split(",") if part]
    return {device if colon else "": name if colon else device for device, colon, name in pairs}


def groups_now() -> list[Any]:
    """Give torch's own objects of all groups there are."""
    world = getattr(sys.modules.get(C10D), "_world", None)
    return [pg for pg, _ in copied(getattr(world, "pg_names", {}).items())]
