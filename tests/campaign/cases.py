"""The campaign's jobs: shape, fault, who and when, and what must be said."""

from __future__ import annotations

from dataclasses import dataclass

NAMED = frozenset[int]
ENTERED_NOT = ("sleep", "input", "gil", "stop", "spin", "exception", "lock", "left_the_loop")
"""Ways to be elsewhere while the others wait."""
EXCUSED = ("spin", "checkpoint", "everyone", "late_to_join", "no_new_group")
"""Faults given time on purpose: a busy rank, a checkpoint, a pause of all ranks, a start."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One real job."""

    name: str
    shape: str = "dp"
    num_ranks: int = 4
    fault: str
    ranks: tuple[int, ...] = ()
    at: int = 20
    seconds: float = 600.0
    classes: tuple[str, ...] = ()
    """Classes that are right; empty: nobody may be accused of a hang."""
    suspects: tuple[int, ...] | None = None
    """Exact set; None: those of ``ranks``."""
    hooks: str = ""
    """Change to the default hooks."""
    deadline_s: float = 45.0
    """Patience, from the fault on."""
    may_be_partial: bool = False
    """The evidence cannot name anybody for certain: no suspect is right too."""

    @property
    def expected(self) -> NAMED:
        """Ranks that must be named."""
        return frozenset(self.ranks if self.suspects is None else self.suspects)

    @property
    def is_near_miss(self) -> bool:
        """Whether silence is right."""
        return not self.classes


def _singles() -> list[Case]:
    found = []
    places = {0: "first", 1: "middle", 3: "last"}
    for index, fault in enumerate(ENTERED_NOT):
        for rank, place in places.items():
            at = (8, 150)[(index + rank) % 2]
            found.append(
                Case(
                    name=f"{fault}, {place} rank, {'early' if at < 50 else 'late'}",
                    fault=fault,
                    ranks=(rank,),
                    at=at,
                    classes=("never_entered",),
                    deadline_s=150.0 if fault in EXCUSED else 45.0,
                )
            )
    return found


def _layouts() -> list[Case]:
    crossed = [
        Case(
            name=f"{fault}, rank {rank} of dp x tp",
            shape="dp_tp",
            fault=fault,
            ranks=(rank,),
            classes=("never_entered",),
        )
        for fault, rank in (("sleep", 0), ("input", 1), ("stop", 2), ("gil", 3))
    ]
    pipeline = [
        Case(
            name=f"sleep, stage {rank} of a pipeline, send/recv {'wrapped' if hooks else 'unseen'}",
            shape="pipeline",
            fault="sleep",
            ranks=(rank,),
            classes=("never_entered", "unmatched_p2p"),
            hooks=hooks,
        )
        for rank in (0, 1, 3)
        for hooks in ("+point_to_point", "")
    ]
    return [*crossed, *pipeline]


def _classes() -> list[Case]:
    return [
        *(
            Case(
                name=f"stopped inside all_reduce, rank {rank}",
                fault="stop_inside",
                ranks=(rank,),
                # Nobody can ask the recorder of a stopped rank whether it had entered.
                classes=("none_completed", "stuck_peers_done", "never_entered"),
            )
            for rank in (0, 2)
        ),
        *(
            Case(
                name=f"wrong operation, rank {rank}",
                fault="wrong_op",
                ranks=(rank,),
                classes=("mismatch",),
            )
            for rank in (0, 2, 3)
        ),
        Case(
            name="group order crossed on ranks 0 and 3",
            shape="dp_tp",
            fault="wrong_group",
            ranks=(0, 3),
            classes=("wait_cycle",),
        ),
        *(
            Case(
                name=f"receive nobody sends, rank {rank}",
                shape="pipeline",
                fault="extra_recv",
                ranks=(rank,),
                classes=("unmatched_p2p",),
                hooks="+point_to_point",
                # One receives what nobody sends, or one does not send: calls alone do not say.
                may_be_partial=True,
            )
            for rank in (0, 2)
        ),
        *(
            Case(
                name=f"{fault}, rank {rank}",
                fault=fault,
                ranks=(rank,),
                classes=("rendezvous",),
                deadline_s=150.0,
            )
            for fault, rank in (("late_to_join", 1), ("late_to_join", 0), ("no_new_group", 2))
        ),
        Case(
            name="every rank sleeps",
            fault="everyone",
            suspects=(),
            classes=("not_collective",),
            deadline_s=120.0,
        ),
        Case(
            name="checkpoint that does not end",
            fault="checkpoint",
            ranks=(2,),
            classes=("never_entered",),
            deadline_s=200.0,
        ),
    ]


def _doubles() -> list[Case]:
    return [
        Case(
            name=f"{fault} on two ranks, {shape}",
            shape=shape,
            fault=fault,
            ranks=ranks,
            classes=("never_entered",),
        )
        for fault, shape, ranks in (
            ("sleep", "dp", (0, 2)),
            ("input", "dp", (1, 3)),
            ("stop", "dp_tp", (0, 3)),
            ("gil", "dp", (2, 3)),
            ("sleep", "dp_tp", (1, 2)),
        )
    ]


def _eights() -> list[Case]:
    return [
        Case(
            name=f"{fault}, rank {ranks} of 8, {shape}",
            shape=shape,
            num_ranks=8,
            fault=fault,
            ranks=ranks,
            classes=("never_entered",),
            deadline_s=90.0,
        )
        for fault, shape, ranks in (("sleep", "dp", (5,)), ("stop", "dp_tp", (6,)))
    ]


def _twos() -> list[Case]:
    return [
        Case(
            name=f"{fault}, rank {rank} of 2",
            num_ranks=2,
            fault=fault,
            ranks=(rank,),
            classes=("never_entered",),
        )
        for fault, rank in (("sleep", 0), ("input", 1), ("gil", 0), ("stop", 1))
    ]


def _near_misses() -> list[Case]:
    pauses = [
        ("pause", "pause of 3 s on one rank", (1,), 3.0),
        ("pause", "pause of 4.5 s on one rank", (2,), 4.5),
        ("checkpoint", "checkpoint of 10 s on rank 0", (0,), 10.0),
        ("input", "batch that takes 4 s", (3,), 4.0),
        ("gil", "GIL held for 4 s", (1,), 4.0),
        ("everyone", "pause of 10 s on every rank", (), 10.0),
    ]
    found = [
        Case(name=name, fault=fault, ranks=ranks, seconds=seconds, suspects=(), deadline_s=25.0)
        for fault, name, ranks, seconds in pauses
    ]
    healthy = [
        Case(name=f"healthy {shape}", shape=shape, fault="none", deadline_s=25.0, hooks=hooks)
        for shape, hooks in (("dp", ""), ("dp_tp", ""), ("pipeline", "+point_to_point"))
    ]
    killed = Case(name="a rank is killed", fault="die", ranks=(1,), suspects=(), deadline_s=30.0)
    return [*found, *healthy, killed]


CASES = (
    *_singles(),
    *_layouts(),
    *_classes(),
    *_doubles(),
    *_eights(),
    *_twos(),
    *_near_misses(),
)
