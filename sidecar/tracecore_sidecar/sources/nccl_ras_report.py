"""Reads what NCCL's RAS service tells as JSON, and puts what stands out into sentences.

The service lists, for each group of NCCL (its *communicator*), the members it heard with the
number of operations of each kind they have launched, and the members it did not hear. It counts
members within the group and names processes by address and pid; only a process of this node can be
told to be a rank.

What it tells is a hint, never health and never a fault: it is no single moment (a job that runs
shows differences, too), it counts launches and not completions, and it has called hung jobs
healthy. So nothing here says who is to blame, nor that all is well.

The answer is not trusted: any JSON gives a report or None, and a report is bounded.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

MAX_GROUPS = 4_096
MAX_MEMBERS = 65_536
"""Of all groups together."""
MAX_OPS = 64
MAX_TEXT = 64
MAX_SIDES = 4
"""Different counts of one operation that are written out."""
MAX_NAMED = 8
"""Members of one sentence that are written out."""
MAX_FINDINGS = 20
MAX_HOSTS = 64
"""Addresses looked at for one pid."""
_NO_ERROR = (0, 7)
"""Results of NCCL that are none: success, and in progress."""
_END_WITHOUT_COMMA = re.compile(r'([0-9"}\]el])[ \t]*\n(\s*["{])')
_MAX_DIGITS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A member of a group, as the service names it."""

    number: int
    """Within its group: a rank of NCCL, which need not be the rank in the job."""
    host: str
    """Address, as a number."""
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RasGroup:
    """A group of NCCL."""

    name: str
    size: int
    heard: tuple[Member, ...]
    silent: tuple[Member, ...]
    """Missing, and the service could not reach their processes."""
    left: tuple[Member, ...]
    """Missing, though their processes answered: not in the group yet, or not any more."""
    failed: tuple[Member, ...]
    """With an error of NCCL."""
    starting: tuple[Member, ...]
    """Still being made members."""
    counts: Mapping[str, Mapping[int, tuple[Member, ...]]]
    """By operation and number of launches, who is there."""

    @property
    def num_unheard(self) -> int:
        """Members of which the service tells nothing at all."""
        return max(0, self.size - len(self.heard) - len(self.silent) - len(self.left))


@dataclass(frozen=True, slots=True, kw_only=True)
class RasReport:
    """One answer."""

    groups: tuple[RasGroup, ...]
    num_timeouts: int
    """Times the service gave up waiting for a process while it gathered."""

    def hosts_of(self, pid: int) -> set[str]:
        """Give the addresses at which it names a process of this pid."""
        lists = (part for g in self.groups for part in (g.heard, g.silent, g.left))
        return {member.host for part in lists for member in part if member.pid == pid}


def parse_report(text: str) -> RasReport | None:
    """Read an answer; None where it is no report as JSON."""
    told = _load(text)
    if told is None:
        # NCCL 2.28.9 leaves out commas at ends of lines.
        told = _load(_END_WITHOUT_COMMA.sub(r"\1,\n\2", text))
    if not isinstance(told, dict) or not isinstance(told.get("communicators"), list):
        return None
    left = MAX_MEMBERS
    groups = []
    for item in told["communicators"][:MAX_GROUPS]:
        if isinstance(item, dict) and left > 0:
            group = _group(item, left)
            left -= len(group.heard) + len(group.silent) + len(group.left)
            groups.append(group)
    return RasReport(
        groups=tuple(groups),
        num_timeouts=_number(_dict(told.get("ras")).get("timeouts_count")),
    )


def read_answer(
    text: str, ranks_by_pid: Mapping[int, int], is_own: Callable[[str], bool]
) -> tuple[list[str], str]:
    """Give what stands out in an answer, or else the reason why nothing can be made of it.

    ``ranks_by_pid`` are those of this node, ``is_own`` tells whether an address is one of it.
    """
    report = parse_report(text)
    if report is None:
        return [], "its answer is not JSON, which NCCL 2.28.7 and newer give"
    ranks = recognise(report, ranks_by_pid, is_own)
    if not ranks:
        return [], (
            "it names no process of this job on this node, so another job may have answered; "
            "give each job a NCCL_RAS_ADDR of its own"
        )
    return findings(report, ranks), ""


def recognise(
    report: RasReport, ranks_by_pid: Mapping[int, int], is_own: Callable[[str], bool]
) -> dict[tuple[str, int], int]:
    """Give the rank of each process that the report names and that is a rank of this node.

    None at all: the answer is of another job, as where jobs share a port.
    """
    found = {}
    for pid, rank in ranks_by_pid.items():
        for host in sorted(report.hosts_of(pid))[:MAX_HOSTS]:
            if is_own(host):
                found[host, pid] = rank
    return found


def findings(report: RasReport, ranks: Mapping[tuple[str, int], int]) -> list[str]:
    """Put what stands out into sentences; none where nothing does, which is no good sign.

    ``ranks``: see :func:`recognise`.
    """
    found = [text for group in report.groups for text in _group_findings(group, ranks)]
    if report.num_timeouts:
        found.append(f"it gave up waiting for an answer {report.num_timeouts} times")
    more = len(found) - MAX_FINDINGS
    return found if more <= 0 else [*found[:MAX_FINDINGS], f"{more} more"]


def _group_findings(group: RasGroup, ranks: Mapping[tuple[str, int], int]) -> Iterator[str]:
    where = f"group {group.name} of {group.size}"
    if group.silent:
        yield f"{where}: no answer from {_who(group.silent, ranks)}"
    if group.num_unheard:
        yield f"{where}: nothing is told of {group.num_unheard} members"
    if group.left:
        yield f"{where}: not members, though they answer: {_who(group.left, ranks)}"
    if group.failed:
        yield f"{where}: an error of NCCL at {_who(group.failed, ranks)}"
    if group.starting:
        yield f"{where}: still being made at {_who(group.starting, ranks)}"
    for op, sides in group.counts.items():
        if len(sides) > 1:
            yield f"{where}: {op} counts differ: {_sides(sides, ranks)}"


def _sides(sides: Mapping[int, Sequence[Member]], ranks: Mapping[tuple[str, int], int]) -> str:
    """Tell the counts; who is where is said of all but the side of most members, if there is one.

    The few may be ahead of the others as well as behind.
    """
    order = sorted(sides, key=lambda count: (-len(sides[count]), count))
    most, total = order[0], sum(len(side) for side in sides.values())
    is_majority = 2 * len(sides[most]) > total
    parts = []
    for count in order[:MAX_SIDES]:
        if is_majority and count == most:
            parts.append(f"{len(sides[count])} members at {count}")
            continue
        place = "" if not is_majority else " (ahead)" if count > most else " (behind)"
        parts.append(f"{_who(sides[count], ranks)} at {count}{place}")
    if len(order) > MAX_SIDES:
        parts.append(f"{len(order) - MAX_SIDES} other counts")
    return ", ".join(parts)


def _who(members: Sequence[Member], ranks: Mapping[tuple[str, int], int]) -> str:
    named = []
    for member in members[:MAX_NAMED]:
        rank = ranks.get((member.host, member.pid))
        is_known = "" if rank is None else f"rank {rank}, "
        named.append(f"member {member.number} ({is_known}pid {member.pid} at {member.host})")
    if len(members) > MAX_NAMED:
        named.append(f"... ({len(members)} in all)")
    return " and ".join(named) if len(named) < 3 else ", ".join(named)


def _load(text: str) -> Any:
    try:
        return json.loads(text, parse_int=_bounded_int, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None


def _bounded_int(digits: str) -> int:
    # A number of a million digits would keep the interpreter for minutes.
    return int(digits) if len(digits) <= _MAX_DIGITS else -1


def _group(told: dict[str, Any], limit: int) -> RasGroup:
    heard = _dicts(told.get("ranks"), limit)
    missing = _dicts(told.get("missing_ranks"), limit - len(heard))
    members = [_member(item) for item in heard]
    states = [_dict(item.get("status")) for item in heard]
    pairs = list(zip(members, states, strict=True))
    lost = [(_member(item), _dict(item.get("status"))) for item in missing]
    return RasGroup(
        name=_text(told.get("hash")) or "without a name",
        size=min(_number(told.get("size")), MAX_MEMBERS),
        heard=tuple(members),
        silent=tuple(m for m, status in lost if _is_out_of_reach(status)),
        left=tuple(m for m, status in lost if not _is_out_of_reach(status)),
        failed=tuple(m for m, status in pairs if _has_failed(status)),
        starting=tuple(m for m, status in pairs if status.get("init_state") == 7),
        counts=_counts(members, heard),
    )


def _is_out_of_reach(status: Mapping[str, Any]) -> bool:
    return status.get("unresponsive") is True or status.get("considered_dead") is True


def _has_failed(status: Mapping[str, Any]) -> bool:
    return any(_number(status.get(name)) not in _NO_ERROR for name in ("init_state", "async_error"))


def _counts(
    members: Sequence[Member], heard: Sequence[Mapping[str, Any]]
) -> dict[str, dict[int, tuple[Member, ...]]]:
    found: dict[str, dict[int, list[Member]]] = {}
    for member, item in zip(members, heard, strict=True):
        for op, count in list(_dict(item.get("collective_counts")).items())[:MAX_OPS]:
            name, number = _text(op), _number(count, -1)
            if number >= 0 and (name in found or len(found) < MAX_OPS):
                found.setdefault(name, {}).setdefault(number, []).append(member)
    return {
        op: {count: tuple(side) for count, side in sides.items()} for op, sides in found.items()
    }


def _member(told: Mapping[str, Any]) -> Member:
    return Member(
        number=_number(told.get("rank"), -1),
        host=_text(told.get("host")),
        pid=_number(told.get("pid"), -1),
    )


def _number(value: Any, otherwise: int = 0) -> int:
    return (
        value
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0
        else otherwise
    )


def _text(value: Any) -> str:
    shown = value[:MAX_TEXT] if isinstance(value, str) else ""
    return "".join(char if char.isprintable() else "?" for char in shown)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _dicts(value: Any, limit: int) -> list[dict[str, Any]]:
    listed = value[: max(0, limit)] if isinstance(value, list) else []
    return [item for item in listed if isinstance(item, dict)]
