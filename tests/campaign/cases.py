"""The campaign's jobs: shape, fault, who and when, and what must be said.

Crossed are the class, the rank's place (first, middle, last), the time (early, late), the layout
and the number of ranks at fault, as far as gloo can show them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

EARLY, LATE = 8, 120
"""Steps; before the fifth a job is starting up."""
FIRST, LAST = 0, 3
LAYOUTS = ("dp", "dp_tp", "moe", "pipeline")
AWAY = (
    *("sleep", "input", "gil", "stop", "exception"),
    *("died_with_a_thread", "lock", "left_the_loop", "child", "service"),
)
"""Ways to be elsewhere while the others wait, which nothing excuses."""
PATIENCE_S = {
    "spin": 90.0,
    "gc_callback": 90.0,
    "checkpoint": 150.0,
    "everyone": 120.0,
    "late_to_join": 180.0,
    "no_new_group": 180.0,
}
"""Faults given time on purpose: a busy rank, a checkpoint, a pause of all ranks, a start."""
SOON_S = 45.0
"""Patience for all others."""
WRAPPED = "+point_to_point"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One real job."""

    note: str = ""
    """What the other fields do not say."""
    shape: str = "dp"
    num_ranks: int = 4
    fault: str
    """Two kinds joined by ``+``: the first rank has one, the second the other."""
    ranks: tuple[int, ...] = ()
    at: int = EARLY
    seconds: float = 600.0
    classes: tuple[str, ...] = ()
    """Classes that are right, the best first; empty: nobody may be accused of a hang."""
    suspects: tuple[int, ...] | None = None
    """Exact set; None: those of ``ranks``."""
    hooks: str = ""
    """Change to the default hooks."""
    patience_s: float = 0.0
    """Time that the case, not its fault, is given on purpose."""
    may_be_partial: bool = False
    """The evidence cannot name anybody for certain: no suspect is right too."""

    @property
    def name(self) -> str:
        """Its name, in which everything can be searched for."""
        what = self.classes[0] if self.classes else "near miss"
        who = ",".join(map(str, self.ranks)) or "none"
        where = f"{self.shape}{' wrapped' if self.hooks else ''}"
        when = "late" if self.at >= LATE else "early"
        note = f", {self.note}" if self.note else ""
        return f"{what}: {self.fault}, rank {who} of {self.num_ranks}, {where}, {when}{note}"

    @property
    def expected(self) -> frozenset[int]:
        """Ranks that must be named."""
        return frozenset(self.ranks if self.suspects is None else self.suspects)

    @property
    def is_near_miss(self) -> bool:
        """Whether silence is right."""
        return not self.classes

    @property
    def is_excused(self) -> bool:
        """Whether the fault is given time on purpose."""
        return bool(self.patience_s or set(self.fault.split("+")) & PATIENCE_S.keys())

    @property
    def deadline_s(self) -> float:
        """Patience, from the fault on."""
        if self.is_near_miss:
            return self.seconds + 22.0 if self.seconds < 60 else 25.0
        return max(self.patience_s, *(PATIENCE_S.get(k, SOON_S) for k in self.fault.split("+")))


def _hooks(shape: str) -> str:
    """Have send and receive seen where there are any."""
    return WRAPPED if shape == "pipeline" else ""


def _away() -> list[Case]:
    """Every way to be away on every place; with them, every layout on every place and time."""
    found = []
    for index, fault in enumerate(AWAY):
        for place, rank in enumerate((FIRST, 1 + index % 2, LAST)):
            shape = LAYOUTS[(index + place) % len(LAYOUTS)]
            at = (EARLY, LATE)[(index // len(LAYOUTS) + place) % 2]
            found.append(Case(fault=fault, ranks=(rank,), shape=shape, at=at, hooks=_hooks(shape)))
    for fault, rank, at in (
        *(("spin", 0, EARLY), ("spin", 2, LATE)),
        *(("checkpoint", 3, EARLY), ("gc_callback", 1, LATE)),
    ):
        found.append(Case(fault=fault, ranks=(rank,), at=at))
    doubles = (
        *(("sleep", "dp", (0, 2)), ("input+gil", "dp", (1, 3))),
        *(("stop", "dp_tp", (0, 3)), ("sleep", "dp_tp", (1, 2)), ("gil+lock", "dp_tp", (0, 1))),
        *(("exception", "dp_tp", (0, 2)), ("child+stop", "moe", (1, 2))),
        *(("input", "pipeline", (1, 2)), ("sleep+service", "pipeline", (0, 2))),
    )
    for index, (fault, shape, ranks) in enumerate(doubles):
        at = (EARLY, LATE)[index % 2]
        found.append(Case(fault=fault, ranks=ranks, shape=shape, at=at, hooks=_hooks(shape)))
    others = (("sleep", "dp", 8, 5), ("stop", "dp_tp", 8, 6), ("input", "dp", 2, 1))
    found += [
        Case(fault=fault, ranks=(rank,), shape=shape, num_ranks=num)
        for fault, shape, num, rank in others
    ]
    return [replace(case, classes=("never_entered",)) for case in found]


def _unseen() -> list[Case]:
    """Send and receive that nobody records: stacks must tell."""
    chosen = (("sleep", 0), ("sleep", 1), ("sleep", 3), ("stop", 2), ("input", 0))
    found = [
        Case(
            fault=fault,
            ranks=(rank,),
            shape="pipeline",
            at=(EARLY, LATE)[index % 2],
            classes=("never_entered", "unmatched_p2p"),
        )
        for index, (fault, rank) in enumerate(chosen)
    ]
    return [
        *found,
        Case(
            fault="service",
            ranks=(1,),
            shape="pipeline",
            classes=("never_entered", "undetermined"),
            # A wait for a socket is what a wait for a peer looks like from outside: nobody can be
            # named, and a verdict without a name comes after a minute.
            patience_s=90.0,
            may_be_partial=True,
        ),
    ]


def _mismatches() -> list[Case]:
    found = []
    for index, fault in enumerate(("wrong_op", "wrong_size", "wrong_dtype", "empty")):
        for place, rank in enumerate((FIRST, 1 + index % 2, LAST)):
            shape = LAYOUTS[(index + place) % len(LAYOUTS)]
            at = (EARLY, LATE)[(index + place // 2) % 2]
            found.append(Case(fault=fault, ranks=(rank,), shape=shape, at=at, hooks=_hooks(shape)))
    for place, rank in enumerate((FIRST, 2, LAST)):
        at = (EARLY, LATE)[place % 2]
        found.append(Case(fault="wrong_order", ranks=(rank,), shape="moe", at=at))
        found.append(Case(fault="skipped_op", ranks=(rank,), shape="rooted", at=at))
    found += [
        Case(fault="wrong_op", ranks=(1, 2), at=LATE),
        Case(fault="empty", ranks=(0, 2)),
        Case(fault="wrong_op", ranks=(1, 2), shape="dp_tp"),
        Case(fault="wrong_size", ranks=(0, 3), num_ranks=8, at=LATE),
    ]
    return [replace(case, classes=("mismatch",)) for case in found]


def _none_completed() -> list[Case]:
    """All are in it, and something below the operation is dead."""
    chosen = (
        *(("thread", "dp", (0,)), ("thread", "dp", (1,)), ("thread", "dp", (3,))),
        *(("thread", "dp_tp", (0,)), ("thread", "dp_tp", (3,)), ("thread", "dp_tp", (1, 2))),
        *(("link", "dp", (0, 1)), ("link", "dp", (1, 2)), ("link", "dp", (0, 3))),
        *(("link", "dp_tp", (2, 3)), ("link", "dp_tp", (0, 2))),
        ("links", "dp", (2,)),
    )
    found = [
        Case(fault=fault, shape=shape, ranks=ranks, at=(EARLY, LATE)[index % 2], suspects=())
        for index, (fault, shape, ranks) in enumerate(chosen)
    ]
    found.append(Case(fault="link", ranks=(3, 4), num_ranks=8, suspects=()))
    return [replace(case, classes=("none_completed",)) for case in found]


def _stuck() -> list[Case]:
    """The others have what they need of a rank, and it does not get what it needs."""
    chosen = (
        *(("late_thread", 4, (0,)), ("late_thread", 4, (1,)), ("late_thread", 4, (3,))),
        *(("late_links", 4, (2,)), ("late_thread", 2, (1,)), ("late_thread", 8, (5,))),
        # A link has two ends.
        *(("link", 4, (1, 2)), ("link", 4, (0, 3))),
    )
    found = [
        Case(
            fault=fault,
            shape="moe",
            num_ranks=num,
            ranks=ranks,
            at=(EARLY, LATE)[index % 2],
            classes=("stuck_peers_done",),
        )
        for index, (fault, num, ranks) in enumerate(chosen)
    ]
    leaf = Case(
        fault="late_thread",
        shape="rooted",
        ranks=(3,),
        classes=("stuck_peers_done", "undetermined"),
        # What a leaf of a broadcast does not get may not have been sent.
        may_be_partial=True,
    )
    return [*found, leaf]


def _orders() -> list[Case]:
    """Groups taken in another order."""
    crossed = ((4, (0, 3), EARLY), (4, (1, 2), LATE), (8, (0, 3), EARLY))
    found = [
        Case(fault="wrong_group", shape="dp_tp", num_ranks=num, ranks=ranks, at=at)
        for num, ranks, at in crossed
    ]
    skipped = ((0, LATE), (1, EARLY), (3, LATE))
    found += [Case(fault="skipped_op", shape="moe", ranks=(rank,), at=at) for rank, at in skipped]
    return [replace(case, classes=("wait_cycle",)) for case in found]


def _messages() -> list[Case]:
    """Messages nobody takes, nobody sends, or that are lost."""
    unmatched = (
        *(("extra_recv", (0,), EARLY), ("extra_recv", (3,), LATE)),
        *(("extra_send", (0,), LATE), ("extra_send", (1,), EARLY), ("extra_send", (3,), LATE)),
        *(("wrong_tag", (0,), EARLY), ("wrong_tag", (1,), LATE), ("extra_recv", (0, 2), LATE)),
    )
    found = [
        Case(
            fault=fault,
            ranks=ranks,
            at=at,
            shape="pipeline",
            hooks=WRAPPED,
            classes=("unmatched_p2p",),
            # One does too much, or the other too little: calls alone do not say.
            may_be_partial=True,
        )
        for fault, ranks, at in unmatched
    ]
    found += [
        # Gloo calls a send over when the kernel has it: either side, or what lies between.
        Case(
            fault=fault,
            ranks=ranks,
            at=at,
            shape="pipeline",
            hooks=WRAPPED,
            classes=("none_completed",),
            suspects=(),
        )
        for fault, ranks, at in (
            *(("thread", (1,), EARLY), ("thread", (3,), LATE)),
            *(("link", (0, 1), EARLY), ("link", (2, 3), LATE)),
        )
    ]
    return found


def _others() -> list[Case]:
    inside = [
        Case(
            fault="stop_inside",
            ranks=(rank,),
            at=at,
            # Nobody can ask the recorder of a stopped rank whether it had entered.
            classes=("never_entered", "none_completed", "stuck_peers_done"),
        )
        for rank, at in ((0, EARLY), (2, LATE))
    ]
    starts = (
        *(("late_to_join", (0,)), ("late_to_join", (3,)), ("late_to_join", (1, 2))),
        ("no_new_group", (2,)),
    )
    return [
        *inside,
        *(Case(fault=fault, ranks=ranks, classes=("rendezvous",)) for fault, ranks in starts),
        Case(fault="everyone", suspects=(), classes=("not_collective",)),
        Case(
            fault="harmless_dtype+sleep_after",
            ranks=(1, 2),
            suspects=(2,),
            classes=("never_entered",),
            note="after a mismatch that did no harm",
        ),
    ]


def _near_misses() -> list[Case]:
    pauses = (
        *(("pause", "dp", (1,), 3.0), ("pause", "dp_tp", (2,), 4.5), ("pause", "moe", (0, 3), 4.0)),
        *(("checkpoint", "dp", (0,), 10.0), ("input", "dp", (3,), 4.0), ("gil", "dp", (1,), 4.0)),
        *(("everyone", "dp", (), 10.0), ("validation", "dp", (0,), 12.0)),
        *(("flap", "dp", (1, 2), 1.0), ("late_to_join", "dp_tp", (2,), 20.0)),
    )
    found = [
        Case(fault=fault, shape=shape, ranks=ranks, seconds=seconds, note=f"{seconds:g} s")
        for fault, shape, ranks, seconds in pauses
    ]
    healthy = [Case(fault="none", shape=shape, hooks=_hooks(shape)) for shape in LAYOUTS]
    killed = Case(fault="die", ranks=(1,))
    harmless = Case(fault="harmless_dtype", ranks=(2,))
    return [replace(case, suspects=()) for case in (*found, *healthy, killed, harmless)]


CASES = (
    *_away(),
    *_unseen(),
    *_mismatches(),
    *_none_completed(),
    *_stuck(),
    *_orders(),
    *_messages(),
    *_others(),
    *_near_misses(),
)
