"""A simulated job on a manual clock: what its ranks do, laid out on a timeline in advance.

This is simulation. ``recordings.py`` delivers it as the records a real job would have given.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tracecore_train.wire import records as rec
from tracecore_train.wire.records import StepFlag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

MS = 1_000_000
SECOND = 1_000_000_000
START_NS = 5_000 * SECOND
WORLD = "default_pg"


@dataclass
class Entry:
    """One rank's entry into one collective."""

    pg_name: str
    seq_id: int
    created_ns: int
    released_ns: int | None
    op: str = "all_reduce"
    sizes: str = "[[8320]]"


@dataclass
class SimulatedRank:
    """What can be seen of one rank from outside; tests set the fields."""

    host: str = "a07"
    state: str = "S"
    cpu_share: float = 0.0
    wait_share: float = 0.0
    """Share of the time its main thread waits in the kernel's run queue."""
    wchan: str = ""
    beats: bool = True
    is_readable: bool = True
    """Its flight recorder answers."""
    has_page: bool = True
    frames: tuple[str, ...] = ()
    stack_error: str = ""
    phase: str = ""
    expect_until_ns: int = 0
    spans: list[tuple[str, int, int | None]] = field(default_factory=list)
    """``(input | checkpoint | phase, start, end)``; an end of None lasts for ever."""
    entries: list[Entry] = field(default_factory=list)
    at_ns: int = START_NS
    """Where the rank stands on its own timeline."""
    num_steps: int = 0
    is_ended: bool = False
    num_lost: int = 0
    undelivered: int = 0
    unfinished: list[Entry] = field(default_factory=list)
    heartbeat_ns: int = START_NS
    cpu_ns: int = 0
    main_wait_ns: int = 0

    def since(self, kind: str, now: int) -> int:
        """Give since when the rank is inside a span at ``now``; 0: it is not."""
        for name, start, end in self.spans:
            if name == kind and start <= now and (end is None or now < end):
                return start
        return 0


class Timeline:
    """What the ranks of a job do; ``families`` split them into process groups."""

    def __init__(
        self,
        world_size: int = 2,
        *,
        families: Mapping[str, Sequence[Sequence[int]]] | None = None,
        hosts: Sequence[str] | None = None,
        device: str = "cpu",
        absent: Iterable[int] = (),
    ) -> None:
        """Start the ranks, except the ``absent`` ones, which nobody ever hears of."""
        self.world_size = world_size
        self.device = device
        self.num_unrecorded = 0
        """Operations of every group that are counted and not recorded, as send on gloo."""
        self.families = families or {WORLD: [range(world_size)]}
        self.ranks = [SimulatedRank() for _ in range(world_size)]
        self.absent = frozenset(absent)
        for rank, host in enumerate(hosts or ()):
            self.ranks[rank].host = host
        self.step_records: list[tuple[int, int, rec.StepRecord]] = []
        """``(time, rank, record)``, not yet delivered."""
        self._next_seq: dict[str, int] = {}

    def group_of(self, family: str, rank: int) -> tuple[str, tuple[int, ...]]:
        """Give the name and members of a rank's group in a family."""
        groups = self.families[family]
        for index, members in enumerate(groups):
            if rank in members:
                return (family if len(groups) == 1 else f"{family}{index}"), tuple(members)
        raise ValueError(f"rank {rank} is in no group of {family}")

    def train(
        self,
        num_steps: int,
        own: Callable[[int, int], int],
        *,
        plan: Sequence[tuple[str, float]] = ((WORLD, 1.0),),
        is_blocking: bool = True,
        input_ns: Callable[[int, int], int] = lambda rank, step: 0,
        checkpoint_ns: Callable[[int, int], int] = lambda rank, step: 0,
    ) -> None:
        """Lay out steps: ``own`` time of each rank, split by ``plan`` between collectives.

        Blocking collectives are waited for one by one, others at the end of the step. Input is
        part of the own time; a checkpoint comes on top, at the start of the step.
        """
        for _ in range(num_steps):
            step = self.ranks[0].num_steps
            begins = [rank.at_ns for rank in self.ranks]
            for index, rank in enumerate(self.ranks):
                if pause := checkpoint_ns(index, step):
                    rank.spans.append(("checkpoint", rank.at_ns, rank.at_ns + pause))
                    rank.at_ns += pause
            costs = [own(index, step) for index in range(self.world_size)]
            for family, fraction in plan:
                for index, rank in enumerate(self.ranks):
                    rank.at_ns += int(costs[index] * fraction)
                self.meet(family, is_blocking=is_blocking)
            if not is_blocking:
                last = max(entry.released_ns or 0 for r in self.ranks for entry in r.entries[-1:])
                for rank in self.ranks:
                    rank.at_ns = max(rank.at_ns, last)
            for index, rank in enumerate(self.ranks):
                rank.at_ns += MS
                self.end_step(
                    index, begins[index], input_ns(index, step), checkpoint_ns(index, step)
                )

    def enter(
        self,
        ranks: Iterable[int],
        family: str = WORLD,
        *,
        op: str = "all_reduce",
        sizes: str = "[[8320]]",
    ) -> None:
        """Let some ranks enter their group's next collective; it completes when all did."""
        for index in ranks:
            rank = self.ranks[index]
            rank.at_ns += 5 * MS
            name, _ = self.group_of(family, index)
            last = max((e.seq_id for e in rank.entries if e.pg_name == name), default=-1)
            rank.entries.append(Entry(name, last + 1, rank.at_ns, None, op, sizes))
            rank.unfinished.append(rank.entries[-1])
            self._next_seq[name] = max(self._next_seq.get(name, 0), last + 2)

    def release(self) -> None:
        """Let every collective that all members entered complete now; call after ``enter``."""
        for name in self._next_seq:
            members = [m for f in self.families for m in self._members(f, name)]
            open_by_seq: dict[int, list[Entry]] = {}
            for index in members:
                for entry in self.ranks[index].unfinished:
                    if entry.pg_name == name:
                        open_by_seq.setdefault(entry.seq_id, []).append(entry)
            for entries in open_by_seq.values():
                if len(entries) == len(members):
                    for entry in entries:
                        entry.released_ns = max(e.created_ns for e in entries)

    def _members(self, family: str, name: str) -> tuple[int, ...]:
        for rank in range(self.world_size):
            if any(rank in g for g in self.families[family]):
                group, members = self.group_of(family, rank)
                if group == name:
                    return members
        return ()

    def meet(self, family: str, *, is_blocking: bool) -> None:
        """Let every group of a family enter its next collective, all members."""
        for members in self.families[family]:
            name, _ = self.group_of(family, members[0])
            seq_id = self._next_seq.get(name, 0)
            self._next_seq[name] = seq_id + 1
            released = max(self.ranks[r].at_ns for r in members)
            for index in members:
                rank = self.ranks[index]
                rank.entries.append(Entry(name, seq_id, rank.at_ns, released))
                if is_blocking:
                    rank.at_ns = released

    def end_step(self, index: int, begin: int, input_ns: int, checkpoint_ns: int) -> None:
        """End a rank's step where it stands."""
        rank = self.ranks[index]
        is_first = rank.num_steps == 0
        self.step_records.append(
            (
                rank.at_ns,
                index,
                rec.StepRecord(
                    time_ns=rank.at_ns,
                    rank=index,
                    step=rank.num_steps,
                    duration_ns=0 if is_first else rank.at_ns - begin,
                    input_ns=input_ns,
                    num_batches=1,
                    checkpoint_ns=checkpoint_ns,
                    flags=StepFlag.FIRST if is_first else 0,
                ),
            )
        )
        rank.num_steps += 1
