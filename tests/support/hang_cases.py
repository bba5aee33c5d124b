"""Simulated hangs with their truth: each class of hang, on each kind of job, and near misses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tests.support.recorder_dumps import (
    SYNC,
    DumpedJob,
    Layout,
    Op,
    data_parallel,
    experts,
    grid,
    pipeline,
    tensor_and_data_parallel,
)

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator

LAYOUTS: dict[str, Callable[[], Layout]] = {
    "dp8": lambda: data_parallel(8),
    "dp2": lambda: data_parallel(2),
    "tp2xdp4": lambda: tensor_and_data_parallel(2, 4),
    "tp4xdp2": lambda: tensor_and_data_parallel(4, 2),
    "pp4xdp2": lambda: pipeline(4, 2),
    "ep4xdp2": lambda: experts(4, 2),
}
ACTIVE_ONLY = {"active_only": True}
SMALL_RING = {"ring": 12}


@dataclass(frozen=True, slots=True)
class Case:
    """One hang; ``may_name`` are answers that are right too, where the evidence cannot tell."""

    name: str
    class_: str
    """Empty where nothing may be said."""
    suspects: frozenset[int]
    job: DumpedJob
    options: dict[str, Any]
    may_name: tuple[frozenset[int], ...] = ()


def cases() -> Iterator[Case]:
    """Give all of them."""
    for layout in LAYOUTS:
        for backend, options in _forms(layout):
            yield from _of(layout, backend, options)


def _forms(layout: str) -> list[tuple[str, dict[str, Any]]]:
    forms: list[tuple[str, dict[str, Any]]] = [
        ("nccl", {}),
        ("nccl", ACTIVE_ONLY),
        ("nccl", SMALL_RING),
    ]
    # Gloo records no send and recv, and its dumps do not tell the members of groups.
    return forms if layout.startswith("pp") else [*forms, ("gloo", {})]


def _of(layout: str, backend: str, options: dict[str, Any]) -> Iterator[Case]:
    groups, programs = LAYOUTS[layout]()
    num = len(programs)
    places = sorted({0, num // 2, num - 1})
    form = "active" if options.get("active_only") else "ring12" if options else "full"
    # Early: in the second step; late: in the last but one.
    steps = [program.index(SYNC) + 1 for program in programs]

    def job(changed: list[list[Any]] | None = None) -> DumpedJob:
        return DumpedJob(groups, changed or programs, backend=backend)

    def case(name: str, class_: str, suspects: set[int], made: DumpedJob, *also: set[int]) -> Case:
        return Case(
            f"{layout} {backend} {form} {name}",
            class_,
            frozenset(suspects),
            made.run(),
            options,
            tuple(map(frozenset, also)),
        )

    for when, step in (("early", 1), ("late", 2)):
        for chosen in [(r,) for r in places] + ([(0, num - 1), (1, num // 2)] if num > 2 else []):
            made = job()
            for r in chosen:
                made.ranks[r].stops_at = step * steps[r] + 1
            yield case(f"{when} stop {chosen}", "never_entered", set(chosen), made)
            if backend == "nccl" and num > 2:
                made = job()
                for r in chosen:
                    offset = sum(item != SYNC for item in programs[r][: step * steps[r]])
                    made.ranks[r].blind_from = offset + 1
                # In a group of two each with its own trouble, nobody is left who is through.
                yield case(f"{when} stuck {chosen}", "stuck_peers_done", set(chosen), made)
        for r in places:
            yield from _mismatches(layout, groups, programs, steps, r, step, when, job, case)
    made = job()
    pg = next(iter(groups)) if layout.startswith("dp") else list(groups)[1]
    if not layout.startswith("pp"):
        made.broken.add((pg, 5))
        yield case("link", "none_completed", set(), made)
    yield case("healthy end", "", set(), job())


def _mismatches(
    layout: str,
    groups: dict[str, tuple[int, ...]],
    programs: list[list[Any]],
    steps: list[int],
    r: int,
    step: int,
    when: str,
    job: Callable[..., DumpedJob],
    case: Callable[..., Case],
) -> Iterator[Case]:
    begin = step * steps[r]
    first = next(i for i in range(begin, len(programs[r])) if programs[r][i] != SYNC)
    op = programs[r][first]

    def changed(*items: Any, cut: int = 1) -> list[list[Any]]:
        own = [*programs[r][:first], *items, *programs[r][first + cut :]]
        return [own if index == r else list(p) for index, p in enumerate(programs)]

    if op.peer is None:
        # One against one, and no past to tell which of them departed from it.
        tie = [set[int]()] if len(groups[op.pg]) == 2 else []
        # The rest of the program is cut off: what comes after is another fault's business.
        for name, other in (
            ("op", replace(op, kind="broadcast")),
            ("size", replace(op, size=op.size + 8)),
            ("dtype", replace(op, dtype="Half")),
        ):
            made = job(changed(other))
            yield case(f"{when} {name} ({r},)", "mismatch", {r}, made, *tie)
        following = programs[r][first + 1]
        if following.pg == op.pg and following.size != op.size:
            yield case(f"{when} skip ({r},)", "mismatch", {r}, job(changed()), *tie)
    if layout.startswith("pp"):
        wanted = "send" if r == 0 else "recv"
        place = next(
            i
            for i in range(begin, len(programs[r]))
            if isinstance(programs[r][i], Op) and programs[r][i].kind == wanted
        )
        own = [*programs[r][:place], *programs[r][place + 1 :]]
        made = job([own if index == r else list(p) for index, p in enumerate(programs)])
        yield case(f"{when} skip {wanted} ({r},)", "unmatched_p2p", {r}, made, set())
    if layout.startswith("tp"):
        # The one on all ranks before the last tensor-parallel operation.
        at = begin + 2
        own = list(programs[r])
        own.insert(at, own.pop(at + 3))
        made = job([own if index == r else list(p) for index, p in enumerate(programs)])
        yield case(f"{when} order ({r},)", "wait_cycle", {r}, made, set())
    if layout.startswith("ep"):
        at = begin + 1
        own = list(programs[r])
        sent = list(own[at].inputs)
        sent[(r + 1) % len(sent)] += 3
        own[at] = replace(own[at], inputs=tuple(sent), size=sum(sent))
        made = job([own if index == r else list(p) for index, p in enumerate(programs)])
        yield case(f"{when} split ({r},)", "mismatch", {r}, made, set())


def random_case(rng: random.Random) -> Case:
    """Give a hang at a random place of a random job; the truth is what really came to happen."""
    layouts = [(2, 4, 2), (4, 2, 2), (2, 2, 2), (1, 4, 2), (4, 1, 2)]
    shape = rng.choice(layouts)
    groups, programs = grid(*shape)
    ahead = rng.choice([1, 4, 24, 200])
    made = DumpedJob(groups, programs, run_ahead=ahead)
    kind = rng.choice(["stop", "stop", "stuck", "mixed"])
    chosen = rng.sample(range(len(programs)), rng.choice([1, 2]))
    for index, r in enumerate(chosen):
        length = len(programs[r])
        if kind == "stop" or (kind == "mixed" and index == 0):
            made.ranks[r].stops_at = rng.randrange(length // 3, length)
        else:
            made.ranks[r].blind_from = rng.randrange(length // 3, length * 9 // 10)
    made.run()
    # A fault that another one kept from happening is none.
    happened = {
        r
        for r in chosen
        if made.ranks[r].at == made.ranks[r].stops_at
        or any(entry.is_over and not entry.is_told for entry in made.ranks[r].entries)
    }
    name = f"random {kind} {shape} {sorted(chosen)} ahead {ahead}"
    options = rng.choice([{}, ACTIVE_ONLY])
    return Case(name, kind, frozenset(happened), made, options)
