"""A simulated job with a stream for each process group, which leaves dumps as NCCL jobs do.

Made apart from :mod:`tests.support.recorder_dumps`, which carries operations out strictly in
order: here a call may be asynchronous, what is not waited for overtakes and is overtaken, sends
and receives may be issued as a batch, several collectives as one. Nothing here knows how dumps are
judged.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

START_NS = 1_760_000_000_000_000_000
WAIT = "wait"
"""The device waits for everything asynchronous so far."""
SYNC = "sync"
"""The host waits for the device."""


@dataclass(frozen=True, slots=True)
class Call:
    """A collective, or a send or recv where ``peer`` is given; several sizes: issued as one."""

    kind: str
    pg: str
    sizes: tuple[int, ...] = (64,)
    peer: int | None = None
    is_async: bool = False
    batch: int | None = None
    """Sends and receives with one number are issued as one."""


Item = Call | str
Program = list[Item]


@dataclass(slots=True, eq=False)
class Work:
    """A call that was made."""

    rank: int
    calls: tuple[Call, ...]
    index: int
    seq_id: int
    p2p_seq_id: int
    op_id: int
    """Of its first call."""
    record_id: int
    created_ns: int
    after: list[Work]
    """What must be over before it can begin."""
    places: list[int]
    """Of each send and recv: how many such were made with that peer before."""
    is_over: bool = False
    is_told: bool = False
    """The recorder knows that it is over."""

    @property
    def pg(self) -> str:
        """Group it belongs to."""
        return self.calls[0].pg

    @property
    def is_p2p(self) -> bool:
        """It consists of sends and receives."""
        return self.calls[0].peer is not None

    @property
    def num_entries(self) -> int:
        """Entries the recorder makes of it: one for each part, and one for the whole."""
        parts = len(self.calls) if self.is_p2p else len(self.calls[0].sizes)
        is_coalesced = parts > 1 or self.calls[0].batch is not None
        return parts + is_coalesced


@dataclass(slots=True)
class Process:
    """One rank."""

    program: Program
    at: int = 0
    works: list[Work] = field(default_factory=list)
    num_records: int = 0
    seq: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    p2p: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    ops: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    waited: list[Work] = field(default_factory=list)
    """What the device waits for before it goes on."""
    loose: list[Work] = field(default_factory=list)
    by_seq: dict[tuple[str, int], Work] = field(default_factory=dict)
    lines: dict[tuple[str, int, str], list[Work]] = field(default_factory=lambda: defaultdict(list))
    open: list[Work] = field(default_factory=list)
    stops_at: int | None = None
    """Place in the program the host never gets past."""
    blind_from: int | None = None
    """Call from which completions are no longer noticed: the device reports an error."""
    dead_from: int | None = None
    """Call from which the device carries nothing out."""


class StreamJob:
    """See the module."""

    def __init__(
        self, groups: dict[str, tuple[int, ...]], programs: list[Program], *, run_ahead: int
    ) -> None:
        """Take the members of each group and the program of each rank."""
        self.groups = groups
        self.ranks = [Process(list(program)) for program in programs]
        self.run_ahead = run_ahead
        self.now_ns = START_NS

    def run(self) -> StreamJob:
        """Let every rank go on until nothing moves."""
        is_moving = True
        while is_moving:
            is_moving = False
            for index in range(len(self.ranks)):
                is_moving |= self._host(index)
            for process in self.ranks:
                for work in process.open:
                    is_moving |= self._carry_out(work)
                process.open = [work for work in process.open if not work.is_over]
        return self

    def _host(self, index: int) -> bool:
        process, moved = self.ranks[index], False
        while process.at < len(process.program):
            if process.stops_at is not None and process.at >= process.stops_at:
                break
            item = process.program[process.at]
            step = 1
            if item == SYNC:
                is_blind = process.blind_from is not None and (
                    len(process.works) > process.blind_from
                )
                if is_blind or any(not work.is_over for work in process.waited):
                    break
            elif item == WAIT:
                process.waited += process.loose
                process.loose = []
            elif isinstance(item, Call):
                if sum(not work.is_over for work in process.open) >= self.run_ahead:
                    break
                step = self._make(index, item)
            process.at += step
            moved = True
        return moved

    def _make(self, index: int, call: Call) -> int:
        """Make a call, and those issued as one with it; give how many."""
        process = self.ranks[index]
        calls = [call]
        if call.batch is not None:
            for other in process.program[process.at + 1 :]:
                if not isinstance(other, Call) or other.batch != call.batch:
                    break
                calls.append(other)
        pg = call.pg
        self.now_ns += 1_000_000
        if call.peer is None:
            process.seq[pg] += 1
        else:
            process.p2p[pg] += 1
        lanes = _lanes(calls)
        before = [work for work in process.open if not work.is_over and _lanes(work.calls) & lanes]
        process.waited = [work for work in process.waited if not work.is_over]
        work = Work(
            rank=index,
            calls=tuple(calls),
            index=len(process.works),
            seq_id=process.seq[pg],
            p2p_seq_id=0 if call.peer is None else process.p2p[pg],
            op_id=process.ops[pg] + 1,
            record_id=process.num_records,
            created_ns=self.now_ns,
            after=[*process.waited, *before],
            places=[],
        )
        process.ops[pg] += len(calls) if call.peer is not None else len(call.sizes)
        process.num_records += work.num_entries
        process.works.append(work)
        process.open.append(work)
        for each in calls:
            if each.peer is None:
                process.by_seq[pg, work.seq_id] = work
            else:
                line = process.lines[pg, each.peer, each.kind]
                work.places.append(len(line))
                line.append(work)
        (process.loose if call.is_async else process.waited).append(work)
        return len(calls)

    def has_begun(self, work: Work) -> bool:
        """Say whether the device carries it out, or would if the others did."""
        dead_from = self.ranks[work.rank].dead_from
        is_alive = dead_from is None or work.index < dead_from
        return is_alive and all(other.is_over for other in work.after)

    def _carry_out(self, work: Work) -> bool:
        """Finish a work, and those of the others it is one with, where all have come to it."""
        partners = None if work.is_over else self._partners(work)
        for partner in partners or ():
            blind_from = self.ranks[partner.rank].blind_from
            partner.is_over = True
            partner.is_told = blind_from is None or partner.index < blind_from
        return bool(partners)

    def _partners(self, work: Work) -> list[Work] | None:
        """Give all works that finish together with one; None where one of them has not begun."""
        found: dict[int, Work] = {}
        queue = [work]
        while queue:
            each = queue.pop()
            if id(each) in found:
                continue
            if not self.has_begun(each):
                return None
            found[id(each)] = each
            for other in self._counterparts(each):
                if other is None:
                    return None
                if not other.is_over:
                    queue.append(other)
        return list(found.values())

    def _counterparts(self, work: Work) -> list[Work | None]:
        if not work.is_p2p:
            key = (work.pg, work.seq_id)
            others = [self.ranks[r].by_seq.get(key) for r in self.groups[work.pg]]
            return [o if o is not None and o.calls == work.calls else None for o in others]
        found: list[Work | None] = []
        for call, place in zip(work.calls, work.places, strict=True):
            assert call.peer is not None
            kind = "recv" if call.kind == "send" else "send"
            line = self.ranks[call.peer].lines[work.pg, work.rank, kind]
            found.append(line[place] if place < len(line) else None)
        return found


def _lanes(calls: Iterable[Call]) -> set[tuple[str, int, str]]:
    """Give the streams calls run on: one for a group, one for each peer and direction in it."""
    return {
        (call.pg, -1, "") if call.peer is None else (call.pg, call.peer, call.kind)
        for call in calls
    }
